"""Drop-path against a loop over images, and what it leaves alone."""

import subprocess
import sys

import pytest
import torch

from pipeline.core import distributed
from pipeline.model.layers import DropPath, set_drop_path
from tests import toy


def test_some_images_lose_a_branch_and_the_mean_stays():
    torch.manual_seed(0)
    branch = torch.randn(4000, 2, 3)
    left = DropPath(0.25).train()(branch)
    lost = (left == 0).all((1, 2))
    assert torch.allclose(left[~lost], branch[~lost] / 0.75)
    assert lost.float().mean() == pytest.approx(0.25, abs=0.03)
    assert DropPath(0.25).eval()(branch) is branch


def test_blocks_leave_out_both_branches_at_a_rate_that_rises_from_nothing():
    vit = toy.encoder(depth=4)
    set_drop_path(vit.blocks, 0.3)
    rates = [[getattr(path, "rate", 0.0) for path in (b.drop_path1, b.drop_path2)] for b in vit.blocks]
    assert rates == [pytest.approx([share] * 2) for share in (0, 0.1, 0.2, 0.3)]


def test_a_rate_of_0_adds_no_module_and_draws_nothing():
    vit = toy.encoder()
    set_drop_path(vit.blocks, 0.0)
    assert not any(isinstance(module, DropPath) for module in vit.modules())
    state = torch.get_rng_state()
    vit.train()(torch.zeros(2, 3, *toy.SIZE))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_block_equals_its_branches_one_image_at_a_time():
    """x + scale Attention(LN x), then + scale MLP(LN x), with the scales drawn in that order."""
    torch.manual_seed(0)
    vit = toy.encoder()
    set_drop_path(vit.blocks, 0.5)
    block, tokens = vit.blocks[-1].train(), torch.randn(6, 3, 16)
    torch.manual_seed(5)
    fast = block(tokens)
    torch.manual_seed(5)
    scales = [torch.bernoulli(torch.full((6,), 0.5)) / 0.5 for _ in range(2)]
    for i in range(6):
        x = tokens[i : i + 1]
        x = x + scales[0][i] * block.attn(block.norm1(x))
        x = x + scales[1][i] * block.mlp(block.norm2(x))
        assert torch.allclose(fast[i], x[0], atol=1e-5)
    assert 0 < scales[0].count_nonzero() < 6


def test_a_process_takes_the_draws_of_its_own_images_in_every_view(monkeypatch):
    numbers = lambda views, images: torch.arange(views * images).reshape(views, images)  # noqa: E731
    assert distributed.sample_rows(numbers, 6).tolist() == [0, 1, 2, 3, 4, 5]
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    assert distributed.sample_rows(numbers, 6).tolist() == [6, 7, 8, 9, 10, 11]
    with distributed.local_images(3):  # two views of 6 images in all, of which 3, 4 and 5 are here
        assert distributed.sample_rows(numbers, 6).tolist() == [3, 4, 5, 9, 10, 11]


COMPILED = """
import torch
from pipeline.model.backbones import small_vit
from pipeline.model.compute import compile_layers
from pipeline.model.layers import set_drop_path

vit = small_vit(img_size=(64, 32), patch_size=16, embed_dim=16, depth=2, num_heads=2).train()
set_drop_path(vit.blocks, 0.5)
tokens, outputs = torch.randn(6, 3, 16), []
for compiled in (False, True):
    if compiled:
        compile_layers(vit)
    torch.manual_seed(5)
    outputs.append(vit.blocks(tokens))
assert torch.allclose(*outputs, atol=1e-5)
"""


@pytest.mark.slow
def test_compiled_layers_leave_out_the_branches_of_the_same_images():
    # in a process without the checks of types, which cannot be compiled
    subprocess.run([sys.executable, "-c", COMPILED], check=True)
