"""The text branch: towers that embed words, prompts that learn from images, and where both come from."""

import math
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from pipeline.core import distributed
from pipeline.core.params import BadInput
from pipeline.model import losses
from pipeline.model import text as text_branch
from pipeline.model.text import AFTER, BEFORE, Projection, Towers, encode, read_towers, write_towers
from pipeline.model.text.clip import clip_sizes, clip_towers
from pipeline.model.text.prompts import FIRST_LR, LearnedPrompts, Prompts, prompt_schedule, prompt_table
from pipeline.model.text.supervision import Supervision, check_texts, fitting_texts
from pipeline.model.text.tower import TextTower

WORDS = [text_branch.START, text_branch.END, *sorted({*BEFORE.split(), *AFTER.split(), "red", "blue"})]
PLACE = {word: n for n, word in enumerate(WORDS)}
WIDTH, EMBEDDING = 6, 5  # D of the encoder, E
EMBEDDED = Path(__file__).parents[2] / "models/embedded/text.safetensors"
SETTINGS = Prompts(tokens=2, epochs=3, lr=0.05, batch=8)


def tower(seed=0, quick_gelu=False):
    torch.manual_seed(seed)
    network = TextTower(len(WORDS), 12, 8, 2, 2, EMBEDDING, quick_gelu)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return network.eval().requires_grad_(False)


def towers(pooled=True):
    network, projection = tower(), Projection(WIDTH, EMBEDDING, pooled).requires_grad_(False)
    projection.scale.fill_(10.0 if pooled else 1.0)
    before, after = encode(PLACE, BEFORE), encode(PLACE, AFTER)
    return Towers(network, projection, torch.randn(WIDTH), before[:-1], after[1:])


def images():
    """Embeddings of four images of each of four identities, and whose they are."""
    image = torch.randn(16, EMBEDDING, generator=torch.Generator().manual_seed(1))
    return F.normalize(image, dim=-1), torch.arange(4).repeat_interleave(4)


# ------------------------------------------------------------------ the tower


def slow_tower(network, words, gelu):
    """One text's embedding, read aloud: every token looks at itself and at those before it."""
    state = [word + place for word, place in zip(words, network.positional_embedding, strict=False)]
    for layer in network.transformer["resblocks"]:
        norm = [layer.ln_1(token) for token in state]
        query, key, value = (
            [F.linear(x, w, b) for x in norm]
            for w, b in zip(layer.attn.in_proj_weight.chunk(3), layer.attn.in_proj_bias.chunk(3), strict=True)
        )
        size, mixed = 4, []  # channels of each of two heads
        for place in range(len(state)):
            heads = []
            for head in (slice(0, size), slice(size, 2 * size)):
                scores = [query[place][head] @ key[n][head] / math.sqrt(size) for n in range(place + 1)]
                shares = torch.stack(scores).softmax(0)
                heads.append(sum(share * value[n][head] for n, share in enumerate(shares)))
            mixed.append(layer.attn.out_proj(torch.cat(heads)))
        state = [token + m for token, m in zip(state, mixed, strict=True)]
        mlp = layer.mlp
        state = [token + mlp.c_proj(gelu(mlp.c_fc(layer.ln_2(token)))) for token in state]
    return network.ln_final(state[-1]) @ network.text_projection


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_a_text_is_the_projected_state_of_its_last_token(quick_gelu):
    network, words = tower(quick_gelu=quick_gelu), torch.randn(2, 7, 8)
    gelu = (lambda x: x / (1 + (-1.702 * x).exp())) if quick_gelu else F.gelu
    expected = torch.stack([slow_tower(network, row, gelu) for row in words])
    assert torch.allclose(network(words), expected, atol=1e-5)


@given(end=st.integers(0, 10), seed=st.integers(0, 99))
def test_tokens_behind_the_end_change_nothing_and_need_not_be_there(end, seed):
    words = torch.randn(1, 12, 8, generator=torch.Generator().manual_seed(seed))
    other = words.clone()
    other[:, end + 1 :] += 1
    network, place = tower(), torch.tensor([end])
    short = network(words[:, : end + 1])
    assert torch.allclose(network(words, place), short, atol=1e-6)
    assert torch.equal(network(words, place), network(other, place))
    other[:, end] += torch.randn(8)
    assert not torch.allclose(network(other, place), short, atol=1e-3)


# ------------------------------------------------------------------ the projection


def test_our_projection_reads_the_class_token_and_the_mean_patch_token_and_gives_unit_length():
    projection, cls, patch = (
        Projection(WIDTH, EMBEDDING, pooled=True),
        torch.randn(3, WIDTH),
        torch.randn(3, 4, 6),
    )
    expected = torch.cat([cls, patch.sum(1) / 4], 1) @ projection.weight.T
    expected = expected / expected.square().sum(1, keepdim=True).sqrt()
    assert torch.allclose(projection(cls, patch), expected, atol=1e-6)


def test_clips_projection_reads_the_class_token_alone_and_scales_nothing():
    projection, cls, patch = (
        Projection(WIDTH, EMBEDDING, pooled=False),
        torch.randn(3, WIDTH),
        torch.randn(3, 4, 6),
    )
    assert torch.allclose(projection(cls, patch), cls @ projection.weight.T, atol=1e-6)
    table = torch.randn(7, EMBEDDING)
    assert torch.allclose(projection.logits(projection(cls, patch), table), projection(cls, patch) @ table.T)


def test_logits_are_products_of_images_and_texts_times_the_learned_scale():
    projection = towers().projection
    image, table = torch.eye(EMBEDDING)[:2], torch.eye(EMBEDDING)
    assert torch.equal(projection.logits(image, table), 10 * torch.eye(EMBEDDING)[:2])


@pytest.mark.parametrize("pooled", [True, False])
def test_an_embedding_is_the_same_under_autocast_in_float32(pooled):
    projection = towers(pooled).projection
    cls, patch = torch.randn(3, WIDTH).bfloat16(), torch.randn(3, 4, WIDTH).bfloat16()
    expected = projection(cls.float(), patch.float())
    with torch.autocast("cpu", torch.bfloat16):
        embedding = projection(cls, patch)
    assert embedding.dtype == torch.float32 and torch.equal(embedding, expected)


# ------------------------------------------------------------------ prompts


def test_a_learned_vector_stands_where_a_word_would():
    pair = towers()
    prompts = LearnedPrompts(pair, 2, 1, torch.Generator())
    words = pair.text.token_embedding.weight
    prompts.learned.data = torch.stack([words[PLACE["red"]], words[PLACE["blue"]]])[:, None]
    for row, word in enumerate(("red", "blue")):
        tokens = torch.tensor([encode(PLACE, f"{BEFORE} {word} {AFTER}")])
        expected = F.normalize(pair.text(pair.text.token_embedding(tokens)), dim=-1)
        assert torch.allclose(prompts(torch.tensor([row])), expected, atol=1e-6)


@pytest.mark.parametrize("free", [True, False])
def test_stage_1_lowers_its_loss_until_each_image_fits_its_own_identity_best(free):
    pair = read_towers(EMBEDDED)
    words, target = pair.text.token_embedding.weight, LearnedPrompts(pair, 8, 4, torch.Generator())
    target.learned.data = words[torch.randint(len(words), (8, 4), generator=torch.Generator().manual_seed(0))]
    pid = torch.arange(8).repeat_interleave(4)
    image = target(torch.arange(8)).detach()[pid]

    def table(lr):
        return prompt_table(pair, image, pid, 8, Prompts(tokens=4, epochs=20, lr=lr, batch=16), 0, free)

    def loss(table):
        return losses.contrast(pair.projection.scale * image, table[pid], pid)

    first, learned = table(1e-9), table(0.01)
    assert loss(learned) < loss(first) - 1
    assert (pair.projection.logits(image, learned).argmax(1) == pid).all()
    assert torch.allclose(learned.norm(dim=1), torch.ones(8))


@pytest.mark.parametrize("free", [True, False])
def test_stage_1_gives_the_same_table_for_the_same_seed_whatever_is_drawn_elsewhere(free):
    pair, (image, pid) = towers(), images()
    tables = []
    for draw in range(2):
        torch.manual_seed(draw)
        tables.append(prompt_table(pair, image, pid, 4, SETTINGS, 3, free))
    assert torch.equal(*tables)
    assert not torch.allclose(tables[0], prompt_table(pair, image, pid, 4, SETTINGS, 4, free))


def test_stage_1_draws_nothing_from_the_global_generator():
    pair, (image, pid) = towers(), images()
    before = torch.get_rng_state()
    prompt_table(pair, image, pid, 4, SETTINGS, 3)
    assert torch.equal(before, torch.get_rng_state())


def test_stage_1_computes_the_same_under_autocast_and_without_a_gradient_around_it():
    pair, (image, pid) = towers(), images()
    expected = prompt_table(pair, image, pid, 4, SETTINGS, 3)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(prompt_table(pair, image, pid, 4, SETTINGS, 3), expected)


@pytest.mark.parametrize("link", ["start", "replace"])
def test_texts_and_the_prototypes_that_start_from_them_are_the_same_under_autocast_in_float32(link):
    pair, (image, pid) = towers(), images()
    learned = []
    for autocast in (False, True):
        torch.manual_seed(0)
        supervision, prototypes = Supervision(WIDTH, 4, EMBEDDING, True, (link,)), torch.randn(4, WIDTH)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            supervision.learn(pair, image, pid, prototypes, SETTINGS, 3, False)
        learned.append((supervision.table, prototypes))
    for plain, under_autocast in zip(*learned, strict=True):
        assert under_autocast.dtype == torch.float32 and torch.equal(under_autocast, plain)


@pytest.mark.parametrize("epochs", [2, 5, 6, 12, 30, 120])
def test_stage_1_warms_up_for_5_epochs_and_at_most_for_a_sixth_of_all(epochs):
    optimiser = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], 1.0)
    schedule, warmup = prompt_schedule(optimiser, epochs), min(5, epochs // 6)
    rates = []
    for epoch in range(1, epochs + 1):
        schedule.step(epoch)
        rates.append(optimiser.param_groups[0]["lr"])
        cosine = (1 + math.cos(math.pi * epoch / epochs)) / 2
        wanted = FIRST_LR + (1 - FIRST_LR) * epoch / warmup if epoch < warmup else cosine
        assert rates[-1] == pytest.approx(wanted, abs=1e-5)
    assert max(rates) >= 0.5


def test_stage_1_leaves_the_towers_as_they_are():
    pair, (image, pid) = towers(), images()
    before = {name: tensor.clone() for name, tensor in pair.text.state_dict().items()}
    table = prompt_table(pair, image.requires_grad_(), pid, 4, SETTINGS, 3)
    assert all(torch.equal(before[name], tensor) for name, tensor in pair.text.state_dict().items())
    assert all(parameter.grad is None for parameter in pair.text.parameters()) and image.grad is None
    assert pair.projection.weight.grad is None and not table.requires_grad


def test_every_process_takes_the_first_ones_table(monkeypatch):
    monkeypatch.setattr(distributed, "broadcast_object", lambda table: torch.zeros_like(table))
    assert not prompt_table(towers(), *images(), 4, SETTINGS, 3).any()


# ------------------------------------------------------------------ where towers come from


def test_towers_that_were_written_are_read_with_their_prompt_in_half_precision(tmp_path):
    pair = towers()
    write_towers(tmp_path / "text.safetensors", pair, WORDS, 2, {"seed": 1})
    again = read_towers(tmp_path / "text.safetensors")
    assert again.before == pair.before and again.after == pair.after and again.sizes == pair.sizes
    words = torch.randn(1, 5, 8)
    assert torch.allclose(again.text(words), pair.text(words), atol=0.01)
    cls, patch = torch.randn(1, WIDTH), torch.randn(1, 3, WIDTH)
    assert torch.allclose(again.projection(cls, patch), pair.projection(cls, patch), atol=0.01)
    assert again.projection.scale == 10 and not again.text.ln_final.weight.requires_grad
    again.check_pair(pair.class_token[None, None], "m")


def test_reading_towers_draws_no_random_number(tmp_path):
    write_towers(tmp_path / "text.safetensors", towers(), WORDS, 2, {})
    before = torch.get_rng_state()
    read_towers(tmp_path / "text.safetensors")
    assert torch.equal(before, torch.get_rng_state())


def test_a_file_of_another_network_is_refused(tmp_path):
    save_file({"cls_token": torch.zeros(1)}, tmp_path / "vit.safetensors")
    with pytest.raises(BadInput, match=r"vit\.safetensors: not a text tower of ours.*git checkout"):
        read_towers(tmp_path / "vit.safetensors")


def test_towers_of_another_encoder_are_refused():
    pair = towers()
    pair.check_pair(pair.class_token.half(), "m")
    for token in (torch.randn(WIDTH), torch.randn(WIDTH + 2)):
        with pytest.raises(BadInput, match=r"m\.text: .* m\.vit are not of one training.*m\.text to none"):
            pair.check_pair(token, "m")


def test_a_prompt_has_room_for_as_many_learned_words_as_its_tower_has_places():
    pair = towers()
    assert pair.sizes == (EMBEDDING, 4)  # of 12 tokens 5 stand before, 3 behind the learned words
    pair.sizes.check("m", EMBEDDING, 4)
    assert LearnedPrompts(pair, 2, 4, torch.Generator())(torch.arange(2)).shape == (2, EMBEDDING)
    with pytest.raises(BadInput, match=r"m\.prompt_tokens = 5: .* room for 4 .*Set it to 4 or less"):
        pair.sizes.check("m", EMBEDDING, 5)
    with pytest.raises(BadInput, match=r"m\.embedding = 8: .* have 5 channels. Set it to 5"):
        pair.sizes.check("m", 8, 4)


CLIP = "vit_base_patch16_clip_quickgelu_224.openai"
FITTING = {  # vit: what text may be
    "embedded": {"embedded", "table", "none"},
    CLIP: {"clip", "table", "none"},
    "vit_large_patch14_clip_336": {"clip", "table", "none"},
    "vit_base_patch16_224.orig_in21k_ft_in1k": {"none"},
}


@pytest.mark.parametrize("vit", FITTING)
@pytest.mark.parametrize("text", ["embedded", "clip", "table", "none"])
def test_a_text_needs_the_tower_that_was_trained_with_the_encoder(vit, text):
    assert set(fitting_texts(vit)) == FITTING[vit]
    if text in FITTING[vit]:
        return check_texts("m", vit, text)
    with pytest.raises(BadInput, match=rf"m\.text = {text}: .*m\.vit = {vit}\. Set m\.text to ") as error:
        check_texts("m", vit, text)
    offered = str(error.value).partition("Set m.text to ")[2].partition(",")[0].split(" or ")
    assert set(offered) == FITTING[vit]


# ------------------------------------------------------------------ CLIP's


class Tokeniser:
    """Words by their place, as CLIP's tokeniser but without its pieces of words."""

    sot_token_id, eot_token_id = PLACE[text_branch.START], PLACE[text_branch.END]

    def encode(self, text):
        return [PLACE[word] for word in text.split()]


def clip_tensors(pair):
    """The tensors of both towers as CLIP names them."""
    visual = {
        "visual.proj": pair.projection.weight.T.contiguous(),
        "visual.class_embedding": pair.class_token,
    }
    return {
        **pair.text.state_dict(),
        **visual,
        "visual.conv1.weight": torch.zeros(1),
        "logit_scale": torch.ones(()),
    }


@pytest.fixture
def open_clip(monkeypatch):
    """A module in the place of open_clip, which knows one small CLIP and one of another kind."""

    def create_model(name, pretrained):
        if pretrained == "far":
            raise RuntimeError("no connection")
        return SimpleNamespace(state_dict=lambda: clip_tensors(towers(pooled=False)))

    sizes = {"context_length": 12, "vocab_size": len(WORDS), "width": 8, "heads": 2, "layers": 2}
    configs = {
        "tiny": {"embed_dim": EMBEDDING, "text_cfg": sizes, "quick_gelu": True},
        "other": {"text_cfg": {"hf_model_name": "bert"}},
    }
    module = ModuleType("open_clip")
    module.__spec__ = ModuleSpec("open_clip", None)
    module.get_model_config = configs.get
    module.tokenizer = SimpleNamespace(SimpleTokenizer=Tokeniser)
    module.list_pretrained_tags_by_model = lambda name: ["near", "far"]
    module.create_model = create_model
    monkeypatch.setitem(sys.modules, "open_clip", module)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_clips_towers_come_from_a_local_file_of_half_precision(open_clip, tmp_path, prefix):
    pair, file = towers(pooled=False), str(tmp_path / "clip.pt")
    torch.save({f"{prefix}{name}": tensor.half() for name, tensor in clip_tensors(pair).items()}, file)
    clip = clip_towers("m", "tiny", file)
    words, quick = torch.randn(1, 5, 8), tower(quick_gelu=True)
    assert torch.allclose(clip.text(words), quick(words), atol=0.02)
    assert torch.allclose(clip.projection.weight, pair.projection.weight, atol=0.01)
    assert (clip.before, clip.after) == (pair.before, pair.after)
    assert not clip.projection.pooled and clip.projection.scale == 1
    clip.check_pair(pair.class_token, "m")


def test_clips_towers_come_from_a_tag_of_open_clip(open_clip):
    clip = clip_towers("m", "tiny", "near")
    assert torch.equal(clip.projection.weight, towers(pooled=False).projection.weight)
    assert clip.sizes == clip_sizes("m", "tiny", "near")


def test_the_sizes_of_a_published_clip_cost_no_download(open_clip):
    assert clip_sizes("m", "tiny", "far") == (EMBEDDING, 4)
    with pytest.raises(BadInput, match=r"m\.text_tower = tiny has none of that tag"):
        clip_sizes("m", "tiny", "elsewhere")


REFUSED = {
    ("tiny", "elsewhere"): r"weights = 'elsewhere': m.text_tower = tiny .* Choose one of near, far, or name",
    ("tiny", "far"): r"weights = 'far': cannot be downloaded \(no connection\). Download .* m.text to none",
    ("tiny", "gone.pt"): r"weights = gone.pt: no such file of weights",
    ("tiny", "text.safetensors"): r"weights = text.safetensors: visual.proj, visual.class_embedding missing",
    ("tiny", "deeper.safetensors"): r"weights = deeper.safetensors: made for another network: 1 unexpected",
    (
        "other",
        "near",
    ): r"tower = 'other': not one of open_clip's CLIPs with CLIP's own .* m.text to none",
    ("none", "near"): r"tower = 'none': not one of open_clip's CLIPs",
}


@pytest.mark.parametrize("choice", REFUSED)
def test_a_clip_that_cannot_be_used_is_refused(open_clip, choice, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tensors = clip_tensors(towers(pooled=False))
    save_file(tower().state_dict(), "text.safetensors")
    save_file({**tensors, "transformer.resblocks.1.extra": torch.ones(1)}, "deeper.safetensors")
    with pytest.raises(BadInput, match=rf"params.yaml: m.text_{REFUSED[choice]}"):
        clip_towers("m", *choice)


def test_without_open_clip_an_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr("pipeline.model.text.clip.find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"m\.text: .*needs open_clip. Run `uv sync --group clip`.*to none"):
        clip_towers("m", "ViT-B-16", "openai")


def test_open_clips_own_tower_embeds_the_prompt_the_same(tmp_path):
    open_clip = pytest.importorskip("open_clip", reason="the dependency group clip is not installed")
    config = open_clip.get_model_config("ViT-B-16-quickgelu")
    config["text_cfg"]["layers"], config["vision_cfg"]["layers"] = 2, 1
    torch.manual_seed(0)
    network = open_clip.model.CLIP(**config).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    torch.save(network.state_dict(), tmp_path / "clip.pt")
    clip = clip_towers("m", "ViT-B-16-quickgelu", str(tmp_path / "clip.pt"))
    assert clip.sizes == clip_sizes("m", "ViT-B-16-quickgelu", "openai") == (512, 69)
    tokens = open_clip.tokenize(["A photo of a X X X X person."])
    learned = open_clip.tokenizer.SimpleTokenizer().encode("X X X X")
    prompt = torch.tensor([[*clip.before, *learned, *clip.after]])
    assert torch.equal(tokens[:, : prompt.shape[1]], prompt)
    with torch.no_grad():
        embedding = clip.text(clip.text.token_embedding(prompt))
        assert torch.allclose(embedding, network.encode_text(tokens), atol=1e-6)
