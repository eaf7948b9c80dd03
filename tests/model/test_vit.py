"""The occlusion-aware encoder: Eq. 3-5, and where its weights come from."""

import argparse
from functools import cache

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import _builder

from pipeline.batches.views import normalise
from pipeline.command_line import convert
from pipeline.core.params import BadInput
from pipeline.model.backbones import (
    check_vit,
    load_vit,
    pretrained_encoder,
    save_vit,
    timm_vit,
    untrained_vit,
)
from pipeline.model.compute import set_attention
from pipeline.model.layers import TransformerLayer, TransformerLayers
from pipeline.model.taps import watch
from pipeline.model.vit import (
    OcclusionAwareViT,
    class_tokens,
    grid,
    patch_labels,
    plain_vit,
    resize_positions,
)
from tests import toy

GRIDS = {16: (16, 8), 14: (18, 9), 12: (21, 10), 11: (22, 11), 10: (25, 12)}  # S: patches down and across
NOTHING, UNKNOWN = torch.zeros(2, 4, dtype=torch.bool), torch.tensor([-1, -1])
BYTES = torch.arange(256, dtype=torch.uint8).repeat(48).view(2, 3, *toy.SIZE)
IMAGE = torch.rand(2, 3, *toy.SIZE) * 2 - 1


def oa_vit(model=None, **changes):
    torch.manual_seed(0)
    wanted = {"size": toy.SIZE, "stride": 16, "parts": 9, "coarse": 4, "cameras": 3, **changes}
    return OcclusionAwareViT(model or toy.encoder(), **wanted).eval()


@pytest.mark.parametrize(("stride", "wanted"), GRIDS.items())
def test_patches_of_every_stride_are_counted_as_in_equation_4(stride, wanted):
    assert grid((256, 128), 16, stride) == wanted
    down, across = wanted
    assert (down - 1) * stride + 16 <= 256 < down * stride + 16 and (across - 1) * stride + 16 <= 128


@pytest.mark.parametrize("stride", [16, 12, 7])
def test_a_forward_pass_gives_as_many_patch_tokens(stride):
    encoder = oa_vit(stride=stride)
    tokens = encoder(IMAGE, NOTHING, UNKNOWN)
    down, across = grid(toy.SIZE, 16, stride)
    assert tokens.patch.shape == (2, down * across, 16) and tokens.part.shape == (2, 9, 16)


@pytest.mark.parametrize("name", ["embedded", "vit_tiny_patch16_224"])
def test_without_part_tokens_and_given_embeddings_it_is_timms_vit(name):
    size = toy.SIZE if name == "embedded" else (224, 224)
    model = toy.encoder() if name == "embedded" else timm.create_model(name, num_classes=0)
    image = torch.rand(1, 3, *size)
    with torch.no_grad():
        theirs = model.eval().forward_features(image)
        encoder = oa_vit(model, size=size, parts=0, gamma_pattern=0.0, gamma_camera=0.0)
        tokens = encoder(image, NOTHING[:1], UNKNOWN[:1])
    assert torch.allclose(theirs[:, 0], tokens.cls, atol=1e-5)
    assert torch.allclose(theirs[:, 1:], tokens.patch, atol=1e-5)


def test_positions_of_the_same_grid_are_kept_and_others_are_resized():
    rows = torch.randn(1, 14 * 14, 3)
    assert resize_positions(rows, (14, 14), (14, 14)) is rows
    ramp = torch.arange(14.0).view(1, 14, 1, 1).expand(1, 14, 14, 1).reshape(1, 196, 1)
    resized = resize_positions(ramp, (14, 14), (7, 3)).view(7, 3)
    assert (
        torch.allclose(resized[:, 0], torch.arange(7.0) * 2 + 0.5) and (resized[:, 0] == resized[:, 2]).all()
    )


def test_the_sequence_is_tokens_plus_position_plus_pattern_plus_camera():
    encoder = oa_vit(gamma_pattern=2.0, gamma_camera=0.5)
    hidden = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 0]]).bool()
    with torch.no_grad():
        sequence = encoder.embed(IMAGE, hidden, torch.tensor([2, 0]))
        patch = encoder.projection(IMAGE).flatten(2).transpose(1, 2)
        for image, (pattern, camera) in enumerate([(5, 2), (0, 0)]):
            tokens = torch.cat([encoder.cls[0], encoder.part[0], patch[image]])
            wanted = (
                tokens + encoder.position[0] + 2 * encoder.pattern[pattern] + 0.5 * encoder.camera[camera]
            )
            assert torch.allclose(sequence[image], wanted, atol=1e-6)
    assert encoder.pattern.shape == (16, 16) and encoder.position.shape == (1, 8 + 10, 16)


def test_an_unknown_camera_is_the_mean_of_those_that_were_trained():
    encoder = oa_vit(trained=(0, 2))
    assert torch.equal(encoder.camera_embedding(UNKNOWN[:1])[0], encoder.camera[[0, 2]].mean(0))


def test_an_unknown_camera_is_the_mean_of_all_and_one_never_seen_is_an_error():
    encoder = oa_vit()
    rows = encoder.camera_embedding(torch.tensor([-1, 1]))
    assert torch.allclose(rows[0], encoder.camera.mean(0)) and torch.equal(rows[1], encoder.camera[1])
    with pytest.raises(ValueError, match="camera 3, but the model knows 3"):
        encoder.camera_embedding(torch.tensor([3]))


def test_bytes_are_seen_as_their_colours():
    encoder = oa_vit()
    with torch.no_grad():
        output, wanted = (encoder(image, NOTHING, UNKNOWN) for image in (BYTES, BYTES.float() / 127.5 - 1))
    assert torch.equal(output.patch, wanted.patch)


@cache
def registered_tensors():
    torch.manual_seed(0)
    tensors = timm.create_model(REGISTERED, num_classes=0).state_dict()
    return tensors | {"reg_token": torch.randn(1, 4, 384), "cls_token": torch.randn(1, 1, 384)}


def test_an_image_of_another_size_is_an_error():
    with pytest.raises(ValueError, match="takes"):
        oa_vit()(IMAGE[..., :16], NOTHING, UNKNOWN)


def test_one_pass_over_two_views_equals_two_passes():
    encoder = oa_vit()
    other = torch.rand_like(IMAGE)
    z = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 1]]).bool()
    with torch.no_grad():
        both = encoder(torch.cat([IMAGE, other]), torch.cat([NOTHING, z]), torch.tensor([0, 1, 0, 1]))
        first, second = encoder(IMAGE, NOTHING, torch.tensor([0, 1])), encoder(other, z, torch.tensor([0, 1]))
    for joined, a, b in zip(both, first, second, strict=True):
        assert torch.allclose(joined, torch.cat([a, b]), atol=1e-5)


@pytest.mark.parametrize("stride", [16, 11])
def test_patch_labels_are_shares_of_the_pixels_that_a_patch_sees(stride):
    parsing = torch.randint(0, 9, (2, 64, 32), dtype=torch.uint8)
    shares = patch_labels(parsing, 9, 16, stride)
    down, across = grid((64, 32), 16, stride)
    for n in range(down * across):
        top, left = n // across * stride, n % across * stride
        pixels = parsing[1, top : top + 16, left : left + 16]
        slow = [(pixels == k).float().mean().item() for k in range(9)]
        assert shares[1, n].tolist() == pytest.approx(slow, abs=1e-6)


@pytest.mark.parametrize("num_tokens", [1, 3, None])
@pytest.mark.parametrize("count", [0, 1, 2])
def test_layers_asked_for_less_give_the_first_tokens_of_all(count, num_tokens):
    torch.manual_seed(0)
    layers, tokens = (
        TransformerLayers(*(TransformerLayer(16, 2) for _ in range(count))).eval(),
        torch.randn(2, 5, 16),
    )
    whole = torch.nn.Sequential(*layers)(tokens)
    assert torch.allclose(layers(tokens, num_tokens), whole[:, :num_tokens], atol=1e-5)


def test_class_tokens_are_those_of_the_plain_vit():
    model = toy.encoder().eval()
    with torch.no_grad():
        wanted = torch.nn.functional.normalize(model.forward_features(IMAGE)[:, 0], dim=1)
    tokens = class_tokens(plain_vit(model, tuple(IMAGE.shape[2:])), IMAGE)
    assert torch.allclose(tokens, wanted, atol=1e-5)


# ------------------------------------------------------------------ where encoders come from


def test_a_small_vit_is_saved_with_its_architecture_and_read_again(tmp_path):
    model = toy.encoder()
    save_vit(tmp_path / "vit.safetensors", model, {"seed": 1})
    again = load_vit(tmp_path / "vit.safetensors")
    sizes = {name: value for name, value in again.architecture.items() if name != "weights"}
    assert (
        sizes == model.architecture
        and len(again.architecture["weights"]) == 64
        and (tmp_path / "vit.json").is_file()
    )
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value.half().float())


def test_a_file_that_is_no_vit_of_ours_is_an_error(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(BadInput, match="not a ViT of ours"):
        load_vit(tmp_path / "other.safetensors")
    with pytest.raises(BadInput, match="no such file"):
        pretrained_encoder("embedded", "", str(tmp_path / "missing.safetensors"), toy.SIZE)


def test_a_vit_of_timm_takes_weights_from_a_local_file(tmp_path):
    torch.manual_seed(1)
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=1000)
    save_file(theirs.state_dict(), tmp_path / "tiny.safetensors")
    ours = pretrained_encoder("vit_tiny_patch16_224", str(tmp_path / "tiny.safetensors"), "", toy.SIZE)
    assert torch.equal(ours.blocks[3].mlp.fc1.weight, theirs.blocks[3].mlp.fc1.weight)
    encoder = OcclusionAwareViT(ours, (256, 128), 16, 9, 4, 1)
    assert encoder.position.shape == (1, 128 + 10, 192)


def test_the_record_of_a_timm_vit_tells_its_weights_from_others(tmp_path):
    records = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        save_file(timm.create_model("vit_tiny_patch16_224").state_dict(), tmp_path / "tiny.safetensors")
        records.append(timm_vit("vit_tiny_patch16_224", str(tmp_path / "tiny.safetensors")).architecture)
    assert records[0] == records[1] != records[2] and records[0]["name"] == "vit_tiny_patch16_224"
    assert untrained_vit(records[0]).architecture == records[0]


TINY = "vit_tiny_patch16_224"
REGISTERED = "vit_small_patch14_reg4_dinov2"
THEIRS = timm.create_model(TINY, num_classes=3).state_dict()
BODY = {n: t for n, t in THEIRS.items() if not n.startswith("head.")}
HEAD = {n: t for n, t in THEIRS.items() if n.startswith("head.")}


def named(prefix, tensors=BODY):
    return {f"{prefix}{n}": t for n, t in tensors.items()}


def views(tensors):
    # as flattened optimisers keep parameters: one storage for all
    pieces = torch.cat([t.flatten() for t in tensors.values()]).split([t.numel() for t in tensors.values()])
    return {n: piece.view(tensors[n].shape) for n, piece in zip(tensors, pieces, strict=True)}


NECK = {"classifier.weight": torch.zeros(5, 192), "bottleneck.weight": torch.zeros(192)}
# a file that authors of this field share: its content, and the line that says what became of it
ACCEPTED = {
    "timm's own": (THEIRS, "2 tensors left out (head.weight, head.bias)"),
    "without a classifier": (BODY, ""),
    "in DataParallel": (
        named("module.", THEIRS),
        "prefix 'module.' stripped; 2 tensors left out (module.head",
    ),
    "TransReID": (
        {**named("base."), **named("base.fc.", {"weight": torch.zeros(9, 192)}), **NECK},
        "prefix 'base.' stripped; 3 tensors left out (base.fc.weight, classifier.weight, bottleneck.weight)",
    ),
    "TransReID with cameras": (
        named("base.") | {"base.sie_embed": torch.zeros(6, 1, 192)},
        "prefix 'base.' stripped; 1 tensor left out (base.sie_embed)",
    ),
    "views of one buffer": (views(THEIRS), "2 tensors left out (head.weight, head.bias)"),
    "Lightning": ({"state_dict": named("model.backbone.")}, "prefix 'model.backbone.' stripped"),
    "DINO": (
        {
            "student": named("module.backbone.", {n: t + 1 for n, t in BODY.items()}),
            "teacher": named("backbone.") | {"head.mlp.0.weight": torch.zeros(4, 192)},
        },
        "prefix 'backbone.' stripped; 1 tensor left out (head.mlp.0.weight)",
    ),
    "iBOT's student": (
        named("student.module.backbone.", BODY | {"masked_embed": torch.zeros(1, 192)}),
        "prefix 'student.module.backbone.' stripped; 1 tensor left out (student.module.backbone.masked",
    ),
    "MAE": (
        {"model": BODY | {"mask_token": torch.zeros(1, 1, 8), "decoder_embed.weight": torch.zeros(8, 192)}},
        "2 tensors left out (mask_token, decoder_embed.weight)",
    ),
    "pictures of 384": (
        BODY | {"pos_embed": torch.zeros(1, 577, 192)},
        "pos_embed resampled from (1, 577, 192) to (1, 197, 192)",
    ),
    "an older timm's": (
        BODY | {"pre_logits.fc.weight": torch.zeros(192, 192)},
        "1 tensor left out (pre_logits.fc.weight)",
    ),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_an_encoders_file_is_taken_under_its_names_and_what_is_left_out_is_said(tmp_path, capsys, case):
    content, line = ACCEPTED[case]
    path = tmp_path / "encoder.pth"
    torch.save(content, path)
    state = timm_vit(TINY, str(path)).state_dict()
    assert all(torch.equal(state[n], t) for n, t in BODY.items() if not n.startswith(("pos", "patch")))
    printed = capsys.readouterr().out
    assert printed.count("\n") == bool(line) and line in printed


def openai_names(tensors):
    # those of OpenAI's CLIP, for the tests' few tensors
    swaps = {"attn.qkv.": "attn.in_proj_", "attn.proj": "attn.out_proj", "mlp.fc1": "mlp.c_fc"}
    swaps |= {"mlp.fc2": "mlp.c_proj", "norm1": "ln_1", "norm2": "ln_2", "blocks.": "transformer.resblocks."}
    swaps |= {"norm_pre": "ln_pre", "patch_embed.proj": "conv1"}
    renamed = {}
    for name, tensor in tensors.items():
        for ours, theirs in swaps.items():
            name = name.replace(ours, theirs)
        renamed[f"visual.{name}"] = tensor
    renamed["visual.class_embedding"] = renamed.pop("visual.cls_token")[0, 0]
    renamed["visual.positional_embedding"] = renamed.pop("visual.pos_embed")[0]
    renamed["visual.ln_post.weight"] = renamed.pop("visual.norm.weight")
    renamed["visual.ln_post.bias"] = renamed.pop("visual.norm.bias")
    return renamed


def test_clips_names_are_understood_and_its_text_is_left_out(tmp_path, capsys):
    name = "vit_xsmall_patch16_clip_224.tinyclip_yfcc15m"
    theirs = timm.create_model(name, num_classes=0).state_dict()
    text = {"token_embedding.weight": torch.zeros(7, 8), "positional_embedding": torch.zeros(77, 8)}
    save_file(
        {n: t.contiguous() for n, t in (openai_names(theirs) | text).items()}, tmp_path / "clip.safetensors"
    )
    ours = timm_vit(name, str(tmp_path / "clip.safetensors"))
    assert torch.equal(ours.blocks[3].attn.qkv.weight, theirs["blocks.3.attn.qkv.weight"])
    assert "2 tensors left out (positional_embedding, token_embedding.weight)" in capsys.readouterr().out
    larger = openai_names(theirs | {"pos_embed": torch.zeros(1, 577, theirs["norm.bias"].shape[0])}) | text
    torch.save(larger, tmp_path / "larger.pth")
    timm_vit(name, str(tmp_path / "larger.pth"))
    assert "; visual.positional_embedding resampled from (577, 256)" in capsys.readouterr().out


SMALL = {n: t[..., :96] if t.ndim > 1 else t for n, t in BODY.items()}
REFUSED = {
    "one tensor": ({"a": torch.zeros(1)}, r"150 missing \(cls_token, pos_embed, patch.*1 unexpected \(a\)"),
    "half of it": ({n: t for n, t in BODY.items() if "blocks.1" not in n}, r"36 missing \(blocks\.1\.norm1"),
    "deeper": (
        BODY | {"blocks.12.norm1.bias": torch.zeros(192)},
        r"1 unexpected \(blocks\.12\.norm1\.bias\)",
    ),
    "narrower": (SMALL, r"mis-shaped \(cls_token \(1, 1, 96\) instead of \(1, 1, 192\)"),
    "other patches": (
        BODY | {"patch_embed.proj.weight": torch.zeros(192, 3, 32, 32)},
        r"mis-shaped \(patch_embed\.proj\.weight \(192, 3, 32, 32\) instead of \(192, 3, 16, 16\)\)",
    ),
    "of 256 x 128": (
        BODY | {"pos_embed": torch.zeros(1, 129, 192)},
        r"mis-shaped \(pos_embed \(1, 129, 192\) instead of \(1, 197, 192\)\)",
    ),
    "a mean of patches": (
        {n.replace("norm.", "fc_norm.") if n.startswith("norm.") else n: t for n, t in BODY.items()},
        r"2 missing \(norm\.weight, norm\.bias\); 2 unexpected \(fc_norm\.weight",
    ),
    "not finite": (BODY | {"norm.bias": torch.full((192,), torch.inf)}, r"damaged: 1 tensor.*norm\.bias"),
    "quantised": (
        BODY | {"norm.bias": torch.zeros(192, dtype=torch.int8)},
        r"mis-typed \(norm\.bias torch\.int8",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_that_is_not_the_encoders_is_refused_by_its_tensors(tmp_path, case):
    content, message = REFUSED[case]
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(BadInput, match=rf"other\.pth: .*{message}.*the method's vit to the ViT") as error:
        timm_vit(TINY, str(tmp_path / "other.pth"))
    assert error.value.args[0].count("\n") == 0


@pytest.mark.parametrize("stride", [16, 14, 12, 11])
def test_an_encoder_trained_on_images_of_our_size_keeps_its_grid(tmp_path, capsys, stride):
    down, across = GRIDS[stride]
    places = torch.randn(1, down * across + 1, 192)
    torch.save(named("base.", BODY | {"pos_embed": places}), tmp_path / "transreid.pth")
    ours = pretrained_encoder(TINY, str(tmp_path / "transreid.pth"), "", (256, 128))
    assert f"pos_embed of {down} x {across} patches kept" in capsys.readouterr().out
    encoder = OcclusionAwareViT(ours, (256, 128), stride, parts=0, coarse=4, cameras=1)
    assert torch.equal(encoder.position.data, places)
    with pytest.raises(
        BadInput, match=rf"pos_embed \(1, {down * across + 1}, 192\) instead of \(1, 197, 192\)"
    ):
        pretrained_encoder(TINY, str(tmp_path / "transreid.pth"), "", (224, 224))


def test_a_checkpoint_of_personvits_form_is_converted_and_keeps_its_grid(tmp_path, capsys):
    places, other = torch.randn(1, 129, 192), {n: t + 1 for n, t in BODY.items()}
    heads = named(
        "module.head.", {"mlp.0.weight": torch.zeros(8, 192), "last_layer.weight_g": torch.ones(4, 1)}
    )
    checkpoint = {
        "student": named("module.backbone.", other) | heads,
        "teacher": named("module.backbone.", BODY | {"pos_embed": places}) | heads,
        "optimizer": {"state": {}, "param_groups": [{"lr": np.float64(1e-4)}]},
        "epoch": 220,
        "args": argparse.Namespace(arch="vit_tiny", patch_size=16),
        "ibot_loss": {"center": torch.zeros(1, 4)},
    }
    torch.save(checkpoint, tmp_path / "checkpoint0220.pth")
    with pytest.raises(BadInput, match=r"holds \S+, which is refused.*`python -m pipeline convert"):
        timm_vit(TINY, str(tmp_path / "checkpoint0220.pth"), (256, 128))
    convert.main(str(tmp_path / "checkpoint0220.pth"), str(tmp_path / "tiny.safetensors"))
    ours = pretrained_encoder(TINY, str(tmp_path / "tiny.safetensors"), "", (256, 128), "half")
    assert "'module.backbone.' stripped; 2 tensors left out (module.head.last" in capsys.readouterr().out
    assert torch.equal(ours.blocks[3].mlp.fc1.weight, BODY["blocks.3.mlp.fc1.weight"])
    encoder = OcclusionAwareViT(ours, (256, 128), 16, parts=0, coarse=4, cameras=1)
    assert torch.equal(encoder.position.data, places)


@pytest.mark.parametrize("content", [BODY, {n: t for n, t in BODY.items() if n != "norm.bias"}])
def test_what_timm_downloads_is_loaded_whole_or_refused(monkeypatch, content):
    monkeypatch.setattr(_builder, "load_state_dict_from_hf", lambda *_, **__: dict(content) | HEAD)
    if len(content) == len(BODY):
        ours = timm_vit(TINY)
        assert torch.equal(ours.blocks[3].mlp.fc1.weight, BODY["blocks.3.mlp.fc1.weight"])
        return
    with pytest.raises(BadInput, match=r"made for another network: 1 missing \(norm\.bias\)"):
        timm_vit(TINY)


def test_weights_out_of_reach_name_the_file_to_bring(tmp_path):
    with pytest.raises(BadInput, match=r"missing\.safetensors: no weights of vit_tiny.*the method's weights"):
        timm_vit(TINY, str(tmp_path / "missing.safetensors"))


@pytest.mark.parametrize(
    "name", ["deit_tiny_patch16_224.fb_in1k", "vit_xsmall_patch16_clip_224.tinyclip_yfcc15m"]
)
def test_a_vit_of_other_colours_takes_ours(tmp_path, name):
    theirs = timm.create_model(name)  # of ImageNet's mean and deviation; of CLIP's, and without a bias
    mean, deviation = (torch.tensor(theirs.pretrained_cfg[n])[:, None, None] for n in ("mean", "std"))
    save_file(theirs.state_dict(), tmp_path / "theirs.safetensors")
    ours = timm_vit(name, str(tmp_path / "theirs.safetensors"))
    image = torch.randint(256, (1, 3, 224, 224), dtype=torch.uint8)
    wanted = theirs.patch_embed((image / 255 - mean) / deviation)
    assert torch.allclose(ours.patch_embed(normalise(image)), wanted, atol=1e-4)


@pytest.mark.parametrize(
    ("colours", "mean", "deviation"),
    [
        ("half", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ("imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("clip", (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    ],
)
@pytest.mark.parametrize("name", [TINY, "deit_tiny_patch16_224.fb_in1k"])
def test_the_colours_of_a_file_can_be_named_whatever_the_tags(tmp_path, name, colours, mean, deviation):
    theirs = timm.create_model(name)
    save_file(theirs.state_dict(), tmp_path / "theirs.safetensors")
    ours = timm_vit(name, str(tmp_path / "theirs.safetensors"), colours=colours)
    image = torch.randint(256, (1, 3, 224, 224), dtype=torch.uint8)
    mean, deviation = (torch.tensor(n)[:, None, None] for n in (mean, deviation))
    wanted = theirs.patch_embed((image / 255 - mean) / deviation)
    assert torch.allclose(ours.patch_embed(normalise(image)), wanted, atol=1e-4)
    tagged = timm_vit(name, str(tmp_path / "theirs.safetensors"))
    same = colours == ("imagenet" if name.startswith("deit") else "half")
    assert torch.equal(ours.patch_embed.proj.bias, tagged.patch_embed.proj.bias) is same


@pytest.mark.parametrize(
    "name",
    [
        "vit_enormous",
        "resnet18",
        "vit_dwee_patch16_reg1_gap_256",
        "vit_tiny_patch16_224.nonsense",
        "vit_tiny_r_s16_p8_224",
        "vit_small_patch16_18x2_224",
    ],
)
def test_only_plain_vits_with_one_class_token_are_taken(name):
    with pytest.raises(BadInput, match=f"vit = '{name}'"):
        untrained_vit({"name": name})
    with pytest.raises(BadInput, match=f"vit = '{name}'"):
        check_vit(name)


@pytest.mark.parametrize(
    "name",
    ["embedded", TINY, f"{TINY}.augreg_in21k", "vit_large_patch14_clip_224.openai", REGISTERED],
)
def test_a_vits_name_is_checked_without_its_weights(monkeypatch, name):
    monkeypatch.setattr(_builder, "load_state_dict_from_hf", None)
    check_vit(name)


@pytest.mark.parametrize("file", ["models/trained/model.safetensors", "no/such.pth"])
def test_weights_beside_the_embedded_encoder_are_refused(file):
    with pytest.raises(BadInput, match=rf"weights = '{file}': the vit `embedded` has its own.*start_from"):
        check_vit("embedded", file)
    check_vit(TINY, file)


def test_colours_beside_the_embedded_encoder_are_refused():
    with pytest.raises(BadInput, match=r"colours = clip: the vit `embedded` has its own"):
        check_vit("embedded", "", "clip")
    check_vit(TINY, "", "clip")


# ------------------------------------------------------------------ registers


def test_registers_are_timms_though_they_end_the_sequence():
    model = toy.registered().eval()
    encoder = oa_vit(model, parts=0, gamma_pattern=0.0, gamma_camera=0.0)
    with torch.no_grad():
        theirs, tokens = model.forward_features(IMAGE), encoder(IMAGE, NOTHING, UNKNOWN)
        sequence = encoder.embed(IMAGE, NOTHING, UNKNOWN)
    assert torch.allclose(theirs[:, 0], tokens.cls, atol=1e-5)
    assert torch.allclose(theirs[:, 5:], tokens.patch, atol=1e-5)
    assert encoder.registers == 4 and torch.equal(sequence[:, -4:], model.reg_token.expand(2, -1, -1))


def test_registers_have_neither_position_nor_side_embeddings_and_stand_behind_part_tokens():
    encoder = oa_vit(toy.registered())
    with torch.no_grad():
        sequence = encoder.embed(IMAGE, NOTHING + True, torch.tensor([0, 2]))
        tokens = encoder(IMAGE, NOTHING, UNKNOWN)
    assert torch.equal(sequence[:, 18:], encoder.register.expand(2, -1, -1))
    assert tokens.part.shape == (2, 9, 16) and tokens.patch.shape == (2, 8, 16)
    assert encoder.position.shape == (1, 18, 16) and not encoder.position[:, 0].any()


def test_a_class_token_learns_from_registers():
    encoder = oa_vit(toy.registered())
    encoder(IMAGE, NOTHING, UNKNOWN).cls[:, 0].sum().backward()
    assert encoder.register.grad.abs().sum() > 0


@pytest.mark.parametrize("kernel", ["math", "sdpa"])
def test_an_encoder_with_registers_is_watched_as_any_other(kernel):
    encoder = oa_vit(toy.registered())
    set_attention(encoder, kernel)
    with torch.no_grad():
        watched = watch(encoder, IMAGE, NOTHING, UNKNOWN, taps=[1, 2], logits=True)
        wanted = encoder(IMAGE, NOTHING, UNKNOWN)
    assert all(torch.equal(a, b) for a, b in zip(watched.tokens, wanted, strict=True))
    assert watched.taps[1].shape == (2, 1 + 9 + 8 + 4, 16) and watched.logits.shape == (2, 2, 8)
    assert torch.equal(encoder.split(encoder.norm(watched.taps[2])).patch, wanted.patch)


def dinov2_names(tensors, places):
    # those of DINOv2's own files, in which the class token has a place
    class_place = torch.randn(1, 1, 384)
    return {
        **{n: t for n, t in tensors.items() if n not in ("reg_token", "cls_token", "pos_embed")},
        "register_tokens": tensors["reg_token"],
        "cls_token": tensors["cls_token"] - class_place,
        "pos_embed": torch.cat([class_place, places], 1),
        "mask_token": torch.zeros(1, 384),
    }


@pytest.mark.parametrize(
    ("own", "places", "word"),
    [
        (True, 37 * 37, ""),
        (True, 18 * 9, "18 x 9 patches kept"),
        (False, 18 * 9, "18 x 9 patches kept"),
        (False, 16 * 16, "resampled"),
    ],
)
def test_dinov2_with_registers_is_read_under_timms_names_and_its_own(tmp_path, capsys, own, places, word):
    theirs = registered_tensors() | {"pos_embed": torch.randn(1, places, 384)}
    content = dinov2_names(theirs, theirs["pos_embed"]) if own else theirs
    torch.save(content, tmp_path / "dinov2.pth")
    ours = pretrained_encoder(REGISTERED, str(tmp_path / "dinov2.pth"), "", (256, 128))
    assert torch.equal(ours.reg_token, theirs["reg_token"])
    assert torch.allclose(ours.cls_token, theirs["cls_token"], atol=1e-6)
    assert word == "resampled" or torch.equal(ours.pos_embed, theirs["pos_embed"])
    printed = capsys.readouterr().out
    assert word in printed and ("1 tensor left out (mask_token)" in printed) is own
