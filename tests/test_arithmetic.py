"""What networks compute in: named, or chosen where it is exact and faster."""

import pytest
import torch

from pipeline import arithmetic

CPU = torch.device("cpu")


def now():
    return torch.backends.mkldnn.matmul.fp32_precision


@pytest.fixture
def measured(monkeypatch):
    """Tells the choice what a measurement would have found."""

    def tell(rounding, seconds):
        monkeypatch.setattr(arithmetic, "_rounding", lambda library: rounding)
        monkeypatch.setattr(arithmetic, "_seconds", {"stock": 1.0, "onednn": seconds}.get)
        return arithmetic.chosen()

    arithmetic.chosen.cache_clear()
    yield tell
    arithmetic.chosen.cache_clear()


CHOICES = {  # oneDNN's rounding, its seconds where stock takes 1
    (1e-6, 0.5): "onednn",
    (1e-6, 0.85): "stock",  # a gain that the load of the moment could make
    (1e-3, 0.1): "stock",  # as on a CPU that rounds to bfloat16
}


@pytest.mark.parametrize(("found", "wanted"), CHOICES.items())
def test_onednn_multiplies_where_it_is_exact_and_clearly_faster(measured, found, wanted):
    assert measured(*found) == wanted


def test_products_are_as_named_within_and_as_before_after(measured):
    before = now()
    for name, setting in {"stock": "ieee", "onednn": "bf16"}.items():
        with arithmetic.products(name):
            assert now() == setting
        assert now() == before
    with pytest.raises(KeyError), arithmetic.products("onednn"):
        raise KeyError
    assert now() == before


def test_auto_takes_the_chosen_library(measured):
    measured(1e-6, 0.5)
    with arithmetic.products("auto"):
        assert arithmetic.library("auto") == "onednn" and now() == "bf16"


def test_rounding_tells_float32_from_bfloat16(monkeypatch):
    assert arithmetic._rounding("stock") < arithmetic.ROUNDING
    with torch.autocast("cpu", torch.bfloat16):
        assert arithmetic._rounding("stock") > arithmetic.ROUNDING


def test_a_product_takes_some_time():
    assert arithmetic._seconds("stock") > 0


def test_auto_takes_the_precision_in_which_the_machine_computes(monkeypatch):
    for native, wanted in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(arithmetic, "computes_in_bfloat16", lambda device, native=native: native)
        assert arithmetic.precision("auto", CPU) == wanted
    assert arithmetic.precision("float16", CPU) == torch.float16
