"""What OGFR costs: counted as it runs, against the formula; and against the paper's Table 9."""

import pytest
import torch

from benchmarks.complexity import counts, methods
from pipeline.methods.base import data_spec
from pipeline.methods.ogfr.model import build
from tests import toy

PEOPLE = toy.people()
SPEC = data_spec(PEOPLE)
HEADS = 10  # 9 of Eq. 19, 1 of Eq. 20


def attention(width, num_tokens, attended):
    """Multiply-adds of queries, keys, values, two products and the projection."""
    return (2 * num_tokens + 2 * attended) * width**2 + 2 * num_tokens * attended * width


def layer(width, tokens):
    """Multiply-adds of a transformer layer whose FFN is four times as wide."""
    return attention(width, tokens, tokens) + 8 * tokens * width**2


def encoder(width, depth, patches, patch, tokens):
    """Multiply-adds of a ViT."""
    return patches * 3 * patch**2 * width + depth * layer(width, tokens)


def by_hand(width, depth, patches, patch, identities):
    """Multiply-adds of each part for an image that is embedded, and for a pair's way forward in training."""
    parts = 9
    whole, kept = 1 + parts + patches, parts + patches  # the background's token stays behind
    once = encoder(width, depth, patches, patch, whole)
    compared = patches * parts * width
    embed = {"encoder": once, "student": 2 * layer(width, kept), "correlation": compared}
    fixed = layer(width, kept) - 2 * parts * kept * width  # fixed tokens attend to nothing
    learn = {
        "encoder": 2 * once,
        "student": 2 * layer(width, kept),
        "decoder": fixed + layer(width, kept),
        "agent": 3 * patches * parts,  # to act, to learn, and for the log
        "heads": 2 * HEADS * width * identities,
        "correlation": 2 * compared,
    }
    return embed, learn


@pytest.fixture(scope="module")
def paper():
    return counts.count(counts.paper_params(), counts.OCCLUDED_DUKE)


def select(values, names):
    return {name: values[name] for name in names}


def test_a_run_costs_what_the_formula_says():
    model = toy.model(PEOPLE, preset="paper")
    embed, learn = by_hand(width=16, depth=2, patches=8, patch=16, identities=4)
    assert counts.inference(model, toy.batch(PEOPLE), whole=True) == embed
    forward = counts.training(model, toy.batch(PEOPLE), backward=False)
    assert select(forward, learn) == learn
    scores, distances = 4 * 16, 9 * 16 * 16  # of the true class; of every image in the batch, part by part
    assert forward["elsewhere"] == scores + distances


@pytest.mark.parametrize("fused", [False, True])
def test_tensors_without_values_cost_the_same_and_so_does_fused_attention(fused):
    model = toy.model(PEOPLE, preset="paper")
    with torch.device("meta"):
        shapes = build(toy.settings("paper"), SPEC, toy.encoder())
    for block in (*shapes.encoder.blocks, *shapes.student):
        block.attn.fused_attn = fused
    for backward in (False, True):
        real = counts.training(model, toy.batch(PEOPLE), backward)
        assert counts.training(shapes, counts.meta_batch(SPEC, 16), backward) == real


def test_going_back_costs_twice_as_much_but_for_the_pixels():
    model = toy.model(PEOPLE, preset="paper")
    forward, both = (counts.training(model, toy.batch(PEOPLE), backward=b) for b in (False, True))
    pixels = 2 * 8 * 3 * 16**2 * 16  # no gradient reaches them
    assert both["encoder"] == 3 * forward["encoder"] - pixels
    assert both["student"] == 3 * forward["student"] and both["decoder"] == 3 * forward["decoder"]
    small_parts = sum(n for name, n in forward.items() if name not in ("encoder", "student", "decoder"))
    assert small_parts < both["elsewhere"] < 4 * small_parts


def test_at_the_papers_size_inference_costs_what_table_9_says(paper):
    embed, learn = by_hand(width=768, depth=12, patches=242, patch=16, identities=702)
    assert paper["inference_gmac"]["all"] == pytest.approx(sum(embed.values()) / 1e9, abs=1e-5)
    assert paper["inference_gmac"]["all"] == pytest.approx(26.5, rel=0.01)
    forward = paper["training_gmac_per_pair"]["forward"]
    assert select(forward, learn) == pytest.approx({name: n / 1e9 for name, n in learn.items()}, abs=1e-6)
    spared = layer(768, 251) - 251 * 2 * 768**2 - 9 * 10 * 768**2 - 2 * 9 * 251 * 768
    saved = paper["inference_gmac"]["all"] - paper["inference_pruned_gmac"]["all"]
    assert saved == pytest.approx(spared / 1e9, abs=1e-5)


def test_every_parameter_is_counted_once():
    model = toy.model(PEOPLE, preset="paper")
    assert sum(counts.parameters(model).values()) == sum(p.numel() for p in model.parameters())


def test_twelve_heads_make_up_table_9s_parameters_if_all_of_them_and_imagenets_count(paper):
    rules = paper["heads"]["table_9_by_what_counts"]
    fitting = {name: round(rule["heads"]) for name, rule in rules.items() if rule["prints_as_table_9"]}
    assert fitting == {"all_and_unused_classifier": 12} and paper["heads"]["ours"] == HEADS


# ------------------------------------------------------------------ all methods

# parameters of the published code that our models do not have, and the reverse (702 identities, 8 cameras)
IMAGENET = 768 * 1000 + 1000  # the ViT's own classifier
PATTERNS = -(2**4) * 768  # of occlusion, which have no weight
PUBLISHED = {  # multiply-adds of an image in G (FED: of a training pair), parameters in M, what explains them
    "vit_baseline": (21.87, 86.4, {"patterns": PATTERNS}),
    "transreid": (
        23.62,
        103.491304,
        {
            "patterns": PATTERNS,
            "ImageNet's classifier": IMAGENET,
            "last layer and norm that are copied twice and not run": 12 * 768**2 + 15 * 768,
        },
    ),
    "dpm": (32.78, 146.1, {"patterns": PATTERNS, "ImageNet's classifier": IMAGENET}),
    "fed": (
        23.2,
        146.053868,
        {
            "patterns": PATTERNS,
            "cameras, which FED has none of": -8 * 768,
            "ImageNet's classifier": IMAGENET,
            "local classifiers that are in no loss": 4 * 768 * 702,
            "necks of stage 2 that are not run": 4 * 2 * 768,
        },
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_method_costs_what_is_published_and_each_other_parameter_is_explained(name):
    gmac, parameters, explained = PUBLISHED[name]
    model, batch = methods.meta_method(name, counts.OCCLUDED_DUKE), counts.meta_batch(counts.OCCLUDED_DUKE, 4)
    cost = (
        methods.training_cost(model, batch, backward=False)
        if name == "fed"
        else methods.embedding_cost(model, batch)
    )
    assert cost / 1e9 == pytest.approx(gmac, rel=0.01)
    ours = sum(p.numel() for p in model.parameters()) + sum(explained.values())
    rounding = 0.05e6 if parameters * 10 == round(parameters * 10) else 0.5  # as it is printed
    assert ours == pytest.approx(parameters * 1e6, abs=rounding)


def test_a_row_counts_what_ogfr_in_detail_does(paper):
    model = toy.model(PEOPLE, preset="paper")
    batch = toy.batch(PEOPLE)
    for backward in (False, True):
        detailed = sum(counts.training(model, batch, backward).values())
        assert methods.training_cost(model, batch, backward) == detailed
    assert methods.embedding_cost(model, batch) == sum(counts.inference(model, batch).values())
    ogfr = methods.meta_method("ogfr", counts.OCCLUDED_DUKE)
    read = methods.embedding_parameters(ogfr, counts.meta_batch(counts.OCCLUDED_DUKE, 1))
    assert read / 1e6 == pytest.approx(paper["inference_parameters_m"]["all"], rel=0.01)


def test_parameters_that_only_training_reads_are_no_inference_parameters():
    model = toy.model(PEOPLE, preset="paper")
    read = methods.embedding_parameters(model, toy.batch(PEOPLE))
    training = [model.decoder, model.agent, model.heads]
    assert (
        0
        < read
        <= sum(p.numel() for p in model.parameters())
        - sum(p.numel() for part in training for p in part.parameters())
    )
