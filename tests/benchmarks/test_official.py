"""Our methods give the numbers of the published code: what `benchmarks.official` printed, kept."""

import contextlib

import pytest
import torch

from benchmarks.official import cases
from benchmarks.official.names import as_theirs, theirs_of
from benchmarks.official.side_by_side import KEPT, mixing_images

# of the published code: loss of a batch; the first numbers of the first and the last embedding
TRANSREID = (
    18.45392608642578,
    [
        [0.008206128142774105, 0.050538986921310425, -0.012633024714887142, -0.003551603527739644],
        [0.06879016757011414, 0.04355579987168312, 0.012452465482056141, -0.013456778600811958],
    ],
)
DPM = (
    25.87270164489746,
    [
        [0.009180550463497639, 0.056540150195360184, -0.014133110642433167, -0.003973332233726978],
        [0.07690590620040894, 0.0486944355070591, 0.013921585865318775, -0.015044385567307472],
    ],
)
FED = (
    14.431680679321289,
    [
        [0.03147895634174347, 0.004900013096630573, -0.00939900241792202, -0.017615672200918198],
        [0.019837265834212303, 0.014673822559416294, -0.0032978521194308996, -0.02689310722053051],
    ],
)
NUMBERS = {
    "transreid": (*TRANSREID, contextlib.nullcontext),
    "dpm": (*DPM, contextlib.nullcontext),
    "fed": (*FED, mixing_images),
}


@pytest.mark.parametrize(
    "name", ["transreid", *(pytest.param(name, marks=pytest.mark.slow) for name in ("dpm", "fed"))]
)
def test_a_method_gives_the_embeddings_and_the_loss_of_the_published_code(name):
    loss, embedding, context = NUMBERS[name]
    model, case = cases.method(name), cases.images()
    two_views = hasattr(model, "memories")
    batch = cases.batch(case if two_views else {**case, "occluded": case["holistic"]})
    features = model.eval().embed(batch).parts[:, 0]
    with torch.no_grad(), context():
        objective = next(model.train().objectives(batch))
    assert objective.loss.item() == pytest.approx(loss, rel=1e-4)
    assert torch.allclose(features[[0, -1], :KEPT], torch.tensor(embedding), atol=1e-5)


def test_a_tensor_of_ours_may_be_several_of_theirs():
    assert theirs_of("transreid", ["head.weight", "encoder.norm.bias", "encoder.pattern"]) == {
        "head.weight": [f"classifier{n}.weight" for n in ("", "_1", "_2", "_3", "_4")],
        "encoder.norm.bias": ["b1.1.bias"],
    }
    parts = as_theirs("transreid", {"head.necks.0.weight": torch.arange(10.0)})
    assert parts["bottleneck.weight"].tolist() == [0, 1] and parts["bottleneck_4.weight"].tolist() == [8, 9]
