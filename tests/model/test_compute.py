"""How networks compute: what the params name, and what `auto` stands for on each kind of device."""

import ctypes
import itertools
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import nn

from pipeline.core.params import BadInput
from pipeline.model import compute
from tests import toy

ROOT = Path(__file__).parents[2]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
MB = 1 << 20


def fp32_precision():
    return torch.backends.mkldnn.matmul.fp32_precision


# ------------------------------------------------------------------ what auto stands for

AUTO = {  # device, computes in bfloat16, compute capability -> precision, attention, compile
    ("cpu", True, None): ("bfloat16", "math", False),
    ("cpu", False, None): ("float32", "math", False),
    ("cuda", True, (9, 0)): ("bfloat16", "sdpa", True),
    ("cuda", False, (7, 0)): ("float32", "sdpa", True),
    ("cuda", False, (6, 1)): ("float32", "sdpa", False),
}


@pytest.mark.parametrize("kind", AUTO)
def test_auto_stands_for_a_fixed_choice_of_each_kind_of_device(monkeypatch, kind):
    name, bfloat16, capability = kind
    device = torch.device(name)
    monkeypatch.setattr(compute, "computes_in_bfloat16", lambda device: bfloat16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    precision, attention, compiles = AUTO[kind]
    resolved = compute.resolve(compute.Compute("auto", "default", "auto"), device)
    assert resolved == (precision, "default", attention)
    assert compute.resolve(resolved, device) == resolved
    assert compute.should_compile("auto", device) == compiles


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_what_is_named_is_taken_on_every_device(device):
    for names in itertools.product(
        ("float32", "float16", "bfloat16"), ("default", "onednn"), ("math", "sdpa")
    ):
        assert compute.resolve(compute.Compute(*names), device) == names
    assert [compute.should_compile(name, device) for name in (True, False)] == [True, False]


def test_auto_takes_the_precision_in_which_the_machine_computes(monkeypatch):
    for native, wanted in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(compute, "computes_in_bfloat16", lambda device, native=native: native)
        assert compute.dtype("auto", CPU) == wanted
    assert compute.dtype("float16", CPU) == torch.float16


# ------------------------------------------------------------------ products of float32 matrices


@pytest.fixture
def rounding(monkeypatch):
    """Sets what oneDNN's products are found to round to."""
    compute._onednn_is_exact.cache_clear()
    yield lambda error: monkeypatch.setattr(compute, "matmul_rounding", lambda name: error)
    compute._onednn_is_exact.cache_clear()


def test_a_library_that_rounds_is_refused_by_name(rounding):
    rounding(1e-3)
    with (
        pytest.raises(BadInput, match="onednn: rounds float32 to bfloat16"),
        compute.float32_matmul("onednn"),
    ):
        pass


def test_products_are_as_named_within_and_as_before_after(rounding):
    rounding(1e-6)
    before = fp32_precision()
    for name, setting in {"default": "ieee", "onednn": "bf16"}.items():
        with compute.float32_matmul(name):
            assert fp32_precision() == setting
        assert fp32_precision() == before
    with pytest.raises(KeyError), compute.float32_matmul("onednn"):
        raise KeyError
    assert fp32_precision() == before


def test_rounding_tells_float32_from_bfloat16():
    assert compute.matmul_rounding("default") < compute.ROUNDING
    with torch.autocast("cpu", torch.bfloat16):
        assert compute.matmul_rounding("default") > compute.ROUNDING


class Spy(nn.Module):
    """Returns how it is computed."""

    def __init__(self):
        super().__init__()
        self.fused_attn = None

    def forward(self):
        half = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
        return half, fp32_precision(), self.fused_attn


COMPUTED = {
    ("float32", "default", "math"): (torch.float32, "ieee", False),
    ("float32", "onednn", "sdpa"): (torch.float32, "bf16", True),
    ("bfloat16", "default", "sdpa"): (torch.bfloat16, "ieee", True),
}


@pytest.mark.parametrize("names", COMPUTED)
def test_a_model_computes_as_named_and_what_is_global_is_put_back(rounding, names):
    rounding(1e-6)
    spy, before = Spy(), fp32_precision()
    with compute.inference_mode(spy, CPU, compute.Compute(*names)):
        assert spy() == COMPUTED[names]
    assert spy() == (torch.float32, before, names[2] == "sdpa")


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


@pytest.mark.parametrize(("name", "calls"), [("math", 0), ("sdpa", 2 + 2)])
def test_all_attention_of_a_model_is_computed_by_the_named_kernel(monkeypatch, name, calls):
    model, counted = toy.model(toy.people()).eval(), []
    wanted, kernel = model.embed(toy.batch()).parts, F.scaled_dot_product_attention
    compute.set_attention(model, name)

    def counting(*args, **kwargs):
        counted.append(1)
        return kernel(*args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counting)
    torch.testing.assert_close(model.embed(toy.batch()).parts, wanted)
    assert len(counted) == calls  # of the encoder's layers and the student's


# ------------------------------------------------------------------ torch.compile


@pytest.mark.slow
def test_compiled_layers_give_the_same_features_and_gradients():
    plain, compiled = (Block(16, 2) for _ in range(2))
    compiled.load_state_dict(plain.state_dict())
    compute.compile_layers(torch.nn.Sequential(compiled))
    for count in (2, 3):
        tokens = torch.randn(count, 5, 16)
        output, wanted = compiled(tokens), plain(tokens)
        torch.testing.assert_close(output, wanted)
        gradients = (
            torch.autograd.grad(y.sum(), list(m.parameters()))
            for y, m in ((output, compiled), (wanted, plain))
        )
        torch.testing.assert_close(*gradients)
    assert compiled._compiled_call_impl is not None


# ------------------------------------------------------------------ processor and memory


def test_a_cpu_is_known_by_its_instructions(monkeypatch):
    capabilities = {"cpu_name": "EPYC", "fma3": True, "avx2": True, "amx_tile": False, "num_sockets": 1}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "x86_64", **capabilities})
    assert compute.processor(CPU) == "x86_64: avx2 fma3"


GLIBC = hasattr(ctypes.CDLL(None), "mallopt")


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def faults(size: int) -> int:
    """Pages that the system hands out for a block of `size` bytes after there was one: the least of five."""
    counts = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        np.ones(size, np.uint8)
        counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return min(counts)


@pytest.mark.skipif(not GLIBC, reason="another C library")
def test_freed_memory_is_kept_within_and_given_back_after():
    with compute.keep_freed_memory():
        assert faults(256 * MB) < 64  # of its 65,536 pages, or 128 huge ones
        inside = resident()
    assert resident() < inside - 200 * MB and faults(256 * MB) >= 64


@pytest.mark.skipif(not GLIBC, reason="another C library")
def test_afterwards_blocks_of_some_mb_are_kept_as_ever():
    program = (
        "from pipeline.model import compute; from tests.model import test_compute as t\n"
        "with compute.keep_freed_memory(): pass\n"
        "print(t.faults(8 * t.MB))"  # in a process that freed no such block before
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert int(done.stdout) < 64  # of 2,048


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    with compute.keep_freed_memory():
        assert torch.ones(3).sum() == 3
