"""What networks compute in: named, or chosen where it is exact and faster."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import nn

from pipeline.core.params import BadInput
from pipeline.model import compute
from tests import toy

CPU = torch.device("cpu")


def now():
    return torch.backends.mkldnn.matmul.fp32_precision


@pytest.fixture
def measured(monkeypatch):
    """Tells the choice what a measurement would have found."""

    def tell(rounding, seconds):
        monkeypatch.setattr(compute, "_rounding", lambda library: rounding)
        monkeypatch.setattr(compute, "_onednn_is_faster", lambda: 1 / seconds)
        return compute.matmul_library("auto")

    forget()
    yield tell
    forget()


def forget():
    compute._fastest_library.cache_clear()
    compute._onednn_is_exact.cache_clear()


CHOICES = {  # oneDNN's rounding, its seconds where stock takes 1
    (1e-6, 0.5): "onednn",
    (1e-6, 0.85): "stock",  # a gain that the load of the moment could make
    (1e-3, 0.1): "stock",  # as on a CPU that rounds to bfloat16
}


@pytest.mark.parametrize(("found", "wanted"), CHOICES.items())
def test_onednn_multiplies_where_it_is_exact_and_clearly_faster(measured, found, wanted):
    assert measured(*found) == wanted


def test_a_library_that_rounds_is_refused_by_name(measured):
    measured(1e-3, 0.1)
    with (
        pytest.raises(BadInput, match="onednn: rounds float32 to bfloat16"),
        compute.float32_matmul("onednn"),
    ):
        pass


def test_products_are_as_named_within_and_as_before_after(measured):
    before = now()
    for name, setting in {"stock": "ieee", "onednn": "bf16"}.items():
        with compute.float32_matmul(name):
            assert now() == setting
        assert now() == before
    with pytest.raises(KeyError), compute.float32_matmul("onednn"):
        raise KeyError
    assert now() == before


def test_auto_takes_the_chosen_library(measured):
    measured(1e-6, 0.5)
    with compute.float32_matmul("auto"):
        assert compute.matmul_library("auto") == "onednn" and now() == "bf16"


def test_rounding_tells_float32_from_bfloat16(monkeypatch):
    assert compute._rounding("stock") < compute.ROUNDING
    with torch.autocast("cpu", torch.bfloat16):
        assert compute._rounding("stock") > compute.ROUNDING


def test_measurements_compare_what_takes_time():
    def sum_of(count):
        return lambda: sum(range(count))

    short, long = sum_of(100_000), sum_of(1_000_000)
    first = compute._times_faster("to sum less", short, long, CPU)
    assert first > 1 and compute._times_faster("to sum less", long, short, CPU) == first  # measured once
    assert compute._onednn_is_faster() > 0
    assert compute._fused_is_faster(CPU, torch.float32, "stock") > 0


# ------------------------------------------------------------------ all three


class Spy(nn.Module):
    """Says how it is computed."""

    def __init__(self):
        super().__init__()
        self.fused_attn = None

    def forward(self):
        half = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
        return half, torch.backends.mkldnn.matmul.fp32_precision, self.fused_attn


COMPUTED = {
    ("float32", "stock", "written"): (torch.float32, "ieee", False),
    ("float32", "onednn", "fused"): (torch.float32, "bf16", True),
    ("bfloat16", "stock", "fused"): (torch.bfloat16, "ieee", True),
}


@pytest.mark.parametrize("names", COMPUTED)
def test_a_model_computes_as_it_is_told_and_what_is_global_is_put_back(monkeypatch, names):
    monkeypatch.setattr(compute, "_onednn_is_exact", lambda: True)
    spy, before = Spy(), torch.backends.mkldnn.matmul.fp32_precision
    with compute.inference_mode(spy, CPU, compute.Compute(*names)):
        assert spy() == COMPUTED[names]
    assert spy() == (torch.float32, before, names[2] == "fused")


def test_auto_is_settled_as_each_choice_says(monkeypatch):
    monkeypatch.setattr(compute, "computes_in_bfloat16", lambda device: True)
    monkeypatch.setattr(compute, "_fastest_library", lambda: "onednn")
    monkeypatch.setattr(compute, "_fastest_kernel", lambda *choices: {"onednn": "fused"}[choices[2]])
    found = compute.resolve(compute.Compute("auto", "auto", "auto"), CPU)
    assert found == ("bfloat16", "onednn", "fused") and compute.resolve(found, CPU) == found


# ------------------------------------------------------------------ attention


@pytest.mark.parametrize("fused", [True, False])
def test_attention_is_softmax_of_scaled_products_by_either_kernel(fused):
    query, key, value = torch.randn(3, 2, 3, 5, 4, generator=torch.manual_seed(0)).unbind()
    query = query[:, :, :2]
    wanted = torch.zeros(2, 3, 2, 4)
    for b, head, q in itertools.product(range(2), range(3), range(2)):
        weight = [float(query[b, head, q] @ key[b, head, k]) / 2 for k in range(5)]  # 2 is the root of 4
        weight = np.exp(weight) / np.exp(weight).sum()
        wanted[b, head, q] = sum(float(w) * value[b, head, k] for k, w in enumerate(weight))
    torch.testing.assert_close(compute.dot_product_attention(query, key, value, fused), wanted)


KERNELS = {  # the fused kernel's error where the written one's is 1, its seconds likewise
    (1.0, 0.5): "fused",
    (1.0, 0.85): "written",
    (9.0, 0.1): "written",
}


@pytest.mark.parametrize(("found", "wanted"), KERNELS.items())
def test_the_fused_kernel_is_taken_where_it_is_as_exact_and_clearly_faster(monkeypatch, found, wanted):
    error, seconds = found
    monkeypatch.setattr(compute, "_attention_error", lambda fused, *_: error if fused else 1.0)
    monkeypatch.setattr(compute, "_fused_is_faster", lambda *_: 1 / seconds)
    compute._fastest_kernel.cache_clear()
    assert compute.attention_kernel("auto", CPU, torch.float32) == wanted
    compute._fastest_kernel.cache_clear()
    assert [compute.attention_kernel(name, CPU, torch.float32) for name in ("fused", "written")] == [
        "fused",
        "written",
    ]


def test_errors_tell_a_rough_kernel():
    assert compute._attention_error(True, CPU, torch.float32) < compute.ROUNDING
    assert compute._attention_error(True, CPU, torch.bfloat16) > compute.ROUNDING


@pytest.mark.parametrize(("name", "calls"), [("written", 0), ("fused", 2 + 2)])
def test_all_attention_of_a_model_is_computed_as_told(monkeypatch, name, calls):
    model, seen = toy.model(toy.people()).eval(), []
    wanted, kernel = model.embed(toy.batch()).parts, F.scaled_dot_product_attention
    compute.set_attention(model, name)

    def counted(*given, **more):
        seen.append(1)
        return kernel(*given, **more)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    torch.testing.assert_close(model.embed(toy.batch()).parts, wanted)
    assert len(seen) == calls  # of the encoder's layers and the student's


def test_compiled_layers_give_the_same_features_and_gradients():
    plain, compiled = (Block(16, 2) for _ in range(2))
    compiled.load_state_dict(plain.state_dict())
    compute.compile_layers(torch.nn.Sequential(compiled))
    for count in (2, 3):
        tokens = torch.randn(count, 5, 16)
        found, wanted = compiled(tokens), plain(tokens)
        torch.testing.assert_close(found, wanted)
        gradients = (
            torch.autograd.grad(y.sum(), list(m.parameters()))
            for y, m in ((found, compiled), (wanted, plain))
        )
        torch.testing.assert_close(*gradients)
    assert compiled._compiled_call_impl is not None


def test_compiled_layers_are_timed_against_plain_ones():
    assert compute.times_faster_compiled(Block(16, 2), CPU, torch.float32) > 0  # exact, and of some speed
    assert not compute.should_compile("auto", Block(16, 2), CPU, torch.float32)
    assert compute.should_compile(True, Block(16, 2), CPU, torch.float32)


def test_compiled_layers_that_are_not_exact_are_refused(monkeypatch):
    monkeypatch.setattr(compute, "_error", lambda found, wanted: 1e-3)
    assert compute.times_faster_compiled(Block(16, 2), CPU, torch.float32) == 0


def test_auto_takes_the_precision_in_which_the_machine_computes(monkeypatch):
    for native, wanted in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(compute, "computes_in_bfloat16", lambda device, native=native: native)
        assert compute.precision("auto", CPU) == wanted
    assert compute.precision("float16", CPU) == torch.float16
