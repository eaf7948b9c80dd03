"""What tokens attend to, which parts patches resemble, which patches the agent erases: against slow loops."""

import math

import pytest
import torch

from pipeline.batches.views import eval_batch
from pipeline.core.params import BadInput
from pipeline.data import parts
from pipeline.explanation.attention import attention, part_features
from pipeline.explanation.erasing import erasing, kept_shares
from pipeline.methods.base import data_spec, load_trained
from pipeline.methods.ogfr.correlation import correlation
from pipeline.methods.ogfr.model import build
from pipeline.methods.ogfr.params import HOLISTIC, OCCLUDED, K
from pipeline.model.compute import set_attention
from pipeline.model.taps import watch
from tests import toy

N = 8  # patches of 16 pixels in a picture of 64 x 32
BATCH = eval_batch(toy.people(), slice(0, 12, 5))
WITH_PARTS = ("global", *parts.FINE)
OTHERS = ("vit_baseline", "transreid", "fed", "dpm", "dpmpp")


@torch.no_grad()
def model(**changes):
    """OGFR with random weights, of which none is negligible, and an agent that keeps half of all patches."""
    network = toy.model(**changes).eval()
    torch.manual_seed(1)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    tokens = network.encode(BATCH.holistic, BATCH.camid)
    logits = network.agent(correlation(tokens.patch, tokens.part))
    network.agent.linear.bias -= logits.median() + 1e-3
    return network


def softmax_by_hand(module, tokens, heads, row, first):
    """Attention of one picture's token `row` to the patches from `first` on: head by head, token by token."""
    width = tokens.shape[1] // heads
    total = [0.0] * N
    query, key, _ = module.qkv(tokens).chunk(3, -1)
    for head in range(heads):
        channels = slice(head * width, (head + 1) * width)
        powers = [
            math.exp(sum((query[row, channels] * key[other, channels]).tolist()) / math.sqrt(width))
            for other in range(len(tokens))
        ]
        for n in range(N):
            total[n] += powers[first + n] / sum(powers) / heads
    return total


def check(weights, module, tokens, heads, rows, first):
    assert weights.shape == (3, len(rows), N)
    for image in range(3):
        for place, row in enumerate(rows):
            wanted = softmax_by_hand(module, tokens[image], heads, row, first)
            assert weights[image, place].tolist() == pytest.approx(wanted, abs=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kernel", ["math", "sdpa"])
def test_the_last_layer_of_ogfr_is_its_students(kernel):
    network = model()
    set_attention(network, kernel)
    drawn = attention(network, BATCH)
    assert (drawn.layer, drawn.tokens) == ("the student's last layer", WITH_PARTS)
    tokens = network.encode(BATCH.holistic, BATCH.camid).sequence
    for layer in network.student[:-1]:
        tokens = layer(tokens)
    last = network.student[-1]
    check(drawn.weights, last.attn, last.norm1(tokens), 2, range(K + 1), K + 1)


@torch.no_grad()
@pytest.mark.parametrize("fep", ["teacher", "both", "student"])
def test_the_decoders_tokens_attend_to_what_the_agent_left(fep):
    network = model(fep=fep, distil=fep != "student")
    drawn = attention(network, BATCH, "decoder")
    assert (drawn.layer, drawn.tokens) == ("the decoder's last layer", WITH_PARTS)
    tokens = network.encode(BATCH.holistic, BATCH.camid)
    branch = OCCLUDED if fep == "student" else HOLISTIC
    mask = network.branch(branch, tokens, BATCH.holistic).mask
    assert 0 < mask.float().mean() < 1
    sequence = network.decoder[0](network.erase(tokens, mask).sequence)
    check(drawn.weights, network.decoder[1].attention, sequence, 2, range(K + 1), K + 1)
    if fep != "teacher":  # the student's features are the decoder's
        last = attention(network, BATCH, "last")
        assert last.layer == drawn.layer and torch.equal(last.weights, drawn.weights)


@torch.no_grad()
def test_a_rebuilt_global_token_attends_in_layers_of_its_own():
    network = model(global_token="rebuilt")
    drawn = attention(network, BATCH, "decoder")
    tokens = network.encode(BATCH.holistic, BATCH.camid)
    erased = network.erase(tokens, network.branch(HOLISTIC, tokens, BATCH.holistic).mask)
    query = (network.query + network.encoder.position[:, :1]).expand(3, -1, -1)
    sequence = network.reader[0](torch.cat([query, erased.patch], 1))
    last = network.reader[-1]
    check(drawn.weights[:, :1], last.attn, last.norm1(sequence), 2, [0], 1)
    sequence = network.decoder[0](erased.sequence)
    check(drawn.weights[:, 1:], network.decoder[1].attention, sequence, 2, range(1, K + 1), K + 1)


@torch.no_grad()
@pytest.mark.parametrize("method", ["ogfr", *OTHERS])
def test_the_class_token_of_every_method_attends_as_its_logits_say(method, tmp_path):
    network = load_trained(toy.trained(tmp_path, method))
    drawn = attention(network, BATCH, "encoder")
    view = BATCH.holistic
    logits = watch(network.encoder, view.image, view.hidden, BATCH.camid, logits=True).logits
    wanted = logits.softmax(-1)
    sums = attention_sums(network, view)
    assert torch.allclose(drawn.weights[:, 0], (wanted * sums[..., None]).mean(1), atol=1e-6)
    assert drawn.tokens == (WITH_PARTS if method == "ogfr" else ("global",))
    assert drawn.layer == "the encoder's last block"


def attention_sums(network, view):
    """Of each head, the share of the class token's attention that patches take."""
    encoder, block = network.encoder, network.encoder.blocks[-1]
    _, taps, _ = watch(encoder, view.image, view.hidden, BATCH.camid, (len(encoder.blocks) - 1,))
    tokens = block.norm1(taps[len(encoder.blocks) - 1])
    query, key, _ = block.attn.qkv(tokens).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
    shares = (query[:, :, :1] @ key.mT / query.shape[-1] ** 0.5).softmax(-1)[:, :, 0]
    first = 1 + encoder.parts
    return shares[..., first : first + N].sum(-1)


@torch.no_grad()
def test_the_part_tokens_of_the_encoder_are_without_the_backgrounds_and_registers_are_no_patches():
    network = model()
    drawn = attention(network, BATCH, "encoder")
    view = BATCH.holistic
    _, taps, _ = watch(network.encoder, view.image, view.hidden, BATCH.camid, (1,))
    last = network.encoder.blocks[-1]
    check(drawn.weights, last.attn, last.norm1(taps[1]), 2, [0, *range(2, K + 2)], K + 2)
    registered = build(toy.settings(), data_spec(toy.people()), toy.registered()).eval()
    assert attention(registered, BATCH, "encoder").weights.shape == (3, K + 1, N)


def test_a_student_without_layers_compares_the_encoders_tokens():
    network = model(student_layers=0)
    last, encoder = attention(network, BATCH), attention(network, BATCH, "encoder")
    assert last.layer == encoder.layer and torch.equal(last.weights, encoder.weights)


def test_a_model_without_a_decoder_says_so(tmp_path):
    with pytest.raises(BadInput, match=r"no decoder, as it was trained with ogfr\.fep = none"):
        attention(model(fep="none"), BATCH, "decoder")
    with pytest.raises(BadInput, match="no decoder: OGFR alone has one"):
        attention(load_trained(toy.trained(tmp_path, "dpm")), BATCH, "decoder")


def test_no_hook_stays_on_the_model():
    network = model()
    attention(network, BATCH)
    attention(network, BATCH, "decoder")
    assert not [module for module in network.modules() if module._forward_pre_hooks]


# ------------------------------------------------------------------ parts and patches


@torch.no_grad()
def test_a_patch_is_nearest_to_the_part_of_the_greatest_cosine():
    network = model()
    features = part_features(network, BATCH)
    tokens = network.encode(BATCH.holistic, BATCH.camid)
    for image in range(3):
        for n in range(N):
            cosines = [
                torch.cosine_similarity(tokens.patch[image, n], part, dim=0) for part in tokens.part[image]
            ]
            assert features.nearest[image, n] == max(range(K + 1), key=cosines.__getitem__)
    assert torch.equal(features.visibility, network.embed(BATCH).visibility[:, 1:])


@pytest.mark.parametrize("method", OTHERS)
def test_methods_without_parts_have_no_part_features_and_no_agent(method, tmp_path):
    network = load_trained(toy.trained(tmp_path, method))
    assert part_features(network, BATCH) is None
    with pytest.raises(BadInput, match="no agent that erases patches: OGFR alone has one"):
        erasing(network, BATCH)


@torch.no_grad()
def test_the_agent_erases_what_it_more_likely_erases_than_keeps():
    network = model()
    result = erasing(network, BATCH)
    state = network.branch(HOLISTIC, network.encode(BATCH.holistic, BATCH.camid), BATCH.holistic).state
    for image in range(3):
        for n in range(N):
            weight, bias = network.agent.linear.weight[0], network.agent.linear.bias[0]
            logit = sum((state[image, n] * weight).tolist()) + float(bias)
            assert result.keep[image, n].item() == pytest.approx(1 / (1 + math.exp(-logit)), abs=1e-5)
            assert result.kept[image, n] == (logit > 0)
            cell = BATCH.holistic.parsing[image, 16 * (n // 2) :, 16 * (n % 2) :][:16, :16]
            assert result.body[image, n] == ((cell > 0).float().mean() > 0.5)


@pytest.mark.parametrize("changes", [{"fep": "none"}, {"erase": "random"}, {"erase": "labels"}])
def test_a_model_that_no_agent_taught_says_how_it_was_trained(changes):
    (name, value), *_ = changes.items()
    with pytest.raises(BadInput, match=rf"no agent .* ogfr\.{name} = {value}"):
        erasing(model(**changes), BATCH)


def test_shares_of_kept_patches_are_of_all_of_the_body_and_of_the_background():
    kept, body = torch.tensor([1, 1, 0, 0, 1]).bool(), torch.tensor([1, 1, 1, 0, 0]).bool()
    assert kept_shares(kept, body) == pytest.approx({"all": 3 / 5, "body": 2 / 3, "background": 1 / 2})
    assert math.isnan(kept_shares(kept, torch.zeros(5).bool())["body"])
