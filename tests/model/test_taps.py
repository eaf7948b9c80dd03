"""What is watched inside an encoder: inner tokens, the class token's logits, edited patches."""

import pytest
import timm
import torch

from pipeline.model.compute import compile_layers, set_attention
from pipeline.model.taps import watch
from pipeline.model.vit import OcclusionAwareViT
from tests import toy

IMAGE = torch.rand(3, 3, *toy.SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1
HIDDEN = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 0], [0, 1, 0, 0]]).bool()
CAMERAS = torch.tensor([2, -1, 0])
KERNELS = pytest.mark.parametrize("kernel", ["math", "sdpa"])


def oa_vit(model=None, **changes):
    torch.manual_seed(0)
    wanted = {"size": toy.SIZE, "stride": 16, "parts": 2, "coarse": 4, "cameras": 3, **changes}
    encoder = OcclusionAwareViT(model or toy.encoder(depth=3), **wanted).eval()
    for p in encoder.parameters():
        torch.nn.init.normal_(p, std=0.3)  # nothing is negligible
    return encoder


@KERNELS
@pytest.mark.parametrize("compiled", [False, True])
def test_the_output_is_the_encoders_bit_for_bit(kernel, compiled, monkeypatch):
    encoder = oa_vit()
    set_attention(encoder, kernel)
    if compiled:
        monkeypatch.setattr(torch, "compile", lambda model, **options: model)  # the program is the layer
        compile_layers(encoder)
        assert all(block._compiled_call_impl is not None for block in encoder.blocks)
    with torch.no_grad():
        watched, plain = watch(encoder, IMAGE, HIDDEN, CAMERAS), encoder(IMAGE, HIDDEN, CAMERAS)
        asked = watch(encoder, IMAGE, HIDDEN, CAMERAS, (1, 3), logits=True, edit=lambda patch: patch)
    assert not watched.taps and watched.logits is None
    for tokens in (watched.tokens, asked.tokens):
        assert all(torch.equal(a, b) for a, b in zip(tokens, plain, strict=True))


def test_a_tap_holds_all_tokens_after_its_block_and_before_the_last_norm():
    encoder = oa_vit()
    with torch.no_grad():
        tokens, taps, _ = watch(encoder, IMAGE, HIDDEN, CAMERAS, (1, 2, 3))
        sequence = encoder.embed(IMAGE, HIDDEN, CAMERAS)
        for number in (1, 2, 3):
            sequence = encoder.blocks[number - 1](sequence)
            assert torch.equal(taps[number], sequence)
    assert sorted(taps) == [1, 2, 3] and sequence.shape == (3, 1 + 2 + 8, 16)
    assert torch.equal(encoder.norm(taps[3])[:, 0], tokens.cls)


@KERNELS
@pytest.mark.parametrize("options", [{}, {"qk_norm": True, "qkv_bias": False}])
def test_logits_are_those_of_which_the_last_block_takes_the_softmax(kernel, options):
    model = timm.models.vision_transformer.VisionTransformer(
        img_size=toy.SIZE, embed_dim=16, depth=2, num_heads=2, num_classes=0, **options
    )
    encoder = oa_vit(model)
    set_attention(encoder, kernel)
    _, taps, logits = watch(encoder, IMAGE, HIDDEN, CAMERAS, (1,), logits=True)
    attention = encoder.blocks[-1].attn
    tokens = encoder.blocks[-1].norm1(taps[1])
    query, key, _ = attention.qkv(tokens).chunk(3, -1)
    assert logits.shape == (3, 2, 8)
    for image in range(3):
        for head, channels in enumerate((slice(0, 8), slice(8, 16))):
            q = attention.q_norm(query[image, 0, channels])
            for patch in range(8):
                k = attention.k_norm(key[image, 1 + 2 + patch, channels])
                assert logits[image, head, patch].item() == pytest.approx(
                    sum((q * k).tolist()) / 8**0.5, abs=1e-5
                )


def test_the_logits_teach_the_last_blocks_queries_and_keys():
    encoder = oa_vit()
    watch(encoder, IMAGE, HIDDEN, CAMERAS, logits=True).logits.square().sum().backward()
    query, key, value = encoder.blocks[-1].attn.qkv.weight.grad.chunk(3)
    assert query.any() and key.any() and not value.any()
    assert encoder.blocks[-1].mlp.fc1.weight.grad is None
    assert encoder.blocks[0].mlp.fc1.weight.grad.any()


def test_an_edit_changes_the_patches_before_positions_are_added():
    encoder = oa_vit()
    donor = [1, 2, 0]
    with torch.no_grad():
        plain = encoder.embed(IMAGE, HIDDEN, CAMERAS)
        edited = encoder.embed(IMAGE, HIDDEN, CAMERAS, lambda patch: patch[donor])
        patch = encoder.projection(IMAGE).flatten(2).transpose(1, 2)
        wanted = torch.cat([plain[:, :3], plain[:, 3:] - patch + patch[donor]], 1)
        watched = watch(encoder, IMAGE, HIDDEN, CAMERAS, edit=lambda patch: patch[donor])
        output = encoder.split(encoder.norm(encoder.blocks(edited)))
    assert torch.allclose(edited, wanted, atol=1e-5)
    assert torch.equal(watched.tokens.cls, output.cls)


def test_the_camera_may_reach_the_class_token_alone():
    everywhere, on_class = oa_vit(gamma_pattern=0.0), oa_vit(gamma_pattern=0.0, camera_on="class")
    without = oa_vit(gamma_pattern=0.0, gamma_camera=0.0)
    with torch.no_grad():
        all_tokens, class_token, none = (
            encoder.embed(IMAGE, HIDDEN, CAMERAS) for encoder in (everywhere, on_class, without)
        )
    assert torch.equal(class_token[:, 0], all_tokens[:, 0]) and not torch.equal(class_token[:, 0], none[:, 0])
    assert torch.equal(class_token[:, 1:], none[:, 1:]) and not torch.equal(all_tokens[:, 1:], none[:, 1:])
