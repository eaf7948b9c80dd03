"""DPM's mask generator and masked similarity, against loops."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.params import BadInput
from pipeline.model.masking import MaskGenerator, masked_cosine, participation, tapped_blocks
from tests.methods import dpm_reference as slow
from tests.reference import scalars, stacked

BLOCKS = {12: (2, 4, 10, 12), 6: (1, 2, 5, 6), 24: (4, 8, 20, 24), 4: (1, 3, 4), 2: (1, 2), 1: (1,)}


def generator(width=2, grid=(5, 4), taps=2, seed=0):
    """One whose masks differ from image to image."""
    torch.manual_seed(seed)
    network = MaskGenerator(width, grid, taps)
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.5)
    return network.double()


def tokens(count=2, width=2, grid=(5, 4), taps=2, seed=1):
    drawn = torch.Generator().manual_seed(seed)
    shape = (count, grid[0] * grid[1], width)
    return [torch.randn(shape, generator=drawn, dtype=torch.float64) for _ in range(taps)]


@pytest.mark.parametrize(("depth", "wanted"), BLOCKS.items())
def test_the_tapped_blocks_keep_their_shares_of_the_depth(depth, wanted):
    assert tapped_blocks("proportional", depth, "dpm.taps") == wanted


@pytest.mark.parametrize("taps", [(), (0, 1), (2, 1), (1, 1), (1, 7)])
def test_blocks_that_the_encoder_lacks_are_refused(taps):
    with pytest.raises(BadInput, match=r"params.yaml: dpm.taps = \[.*the encoder has 6 blocks. Name some of"):
        tapped_blocks(taps, 6, "dpm.taps")
    assert tapped_blocks((1, 6), 6, "dpm.taps") == (1, 6)


def test_a_generator_for_vit_b_has_the_published_number_of_parameters():
    with torch.device("meta"):
        network = MaskGenerator(768, (22, 11), 4)
    assert sum(p.numel() for p in network.parameters()) == 58_992_384


@pytest.mark.parametrize("grid", [(16, 8), (22, 11), (24, 8), (8, 4), (4, 2), (2, 1), (1, 1)])
def test_every_mask_is_one_half_at_the_start_on_any_grid(grid):
    for mode in (True, False):
        network = MaskGenerator(4, grid, 3).train(mode)
        patches = [p.float() for p in tokens(3, 4, grid, 3)]
        assert torch.equal(network(patches), torch.full((3, 4), 0.5))


def test_the_generator_is_the_loop_in_value_and_gradient():
    network, patches = generator(), [p.requires_grad_() for p in tokens()]
    fast = network(patches)
    planes = [
        [scalars(p[image, :, channel].view(5, 4)) for p in patches for channel in (0, 1)] for image in (0, 1)
    ]
    convolutions, norms = network.layers[0::4], network.layers[1::4]
    layers = [
        [scalars(t) for t in (conv.weight, conv.bias, norm.weight, norm.bias)]
        for conv, norm in zip(convolutions, norms, strict=True)
    ]
    linear = [scalars(network.linear.weight), scalars(network.linear.bias)]
    loop = stacked(slow.mask(planes, layers, linear))
    assert fast.dtype == torch.float32 and len(layers) == 3
    torch.testing.assert_close(fast.double(), loop, atol=1e-6, rtol=1e-6)
    assert (loop[0] - loop[1]).abs().max() > 1e-3
    weights = torch.tensor([[1.0, -2.0], [3.0, 0.5]], dtype=torch.float64)
    leaves = [*network.parameters(), *patches]
    gradients = (torch.autograd.grad((m * weights).sum(), leaves) for m in (fast.double(), loop))
    for got, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-6, rtol=1e-4)


def test_the_loss_of_a_mask_reaches_the_patches():
    patches = [p.requires_grad_() for p in tokens()]
    generator()(patches).sum().backward()
    assert all(p.grad.any() for p in patches)


def test_a_masked_cosine_is_the_loop_in_value_and_gradient():
    torch.manual_seed(0)
    leaves = [torch.randn(*shape).requires_grad_() for shape in ((3, 5), (4, 5))]
    leaves.append(torch.rand(3, 5).requires_grad_())
    fast = masked_cosine(*leaves)
    features, prototypes, masks = map(scalars, leaves)
    loop = stacked(
        [[slow.masked_cosine(f, w, m) for w in prototypes] for f, m in zip(features, masks, strict=True)]
    )
    torch.testing.assert_close(fast, loop.float(), atol=1e-6, rtol=1e-5)
    weights = torch.randn(3, 4)
    gradients = (torch.autograd.grad((c * weights).sum(), leaves) for c in (fast, loop))
    for got, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)


@given(st.lists(st.floats(0.01, 1), min_size=6, max_size=6), st.floats(0.01, 100))
def test_the_scale_of_a_mask_does_not_matter(values, scale):
    mask = torch.tensor([values])
    features, prototypes = torch.linspace(-1, 2, 6)[None], torch.linspace(-2, 3, 18).view(3, 6).sin()
    masked, scaled = (masked_cosine(features, prototypes, m) for m in (mask, mask * scale))
    torch.testing.assert_close(masked, scaled, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(participation(mask), participation(mask * scale), atol=1e-5, rtol=1e-4)


def test_a_flat_mask_gives_the_plain_cosine():
    features, prototypes = torch.randn(3, 6), torch.randn(4, 6)
    plain = torch.nn.functional.cosine_similarity(features[:, None], prototypes[None], dim=2)
    torch.testing.assert_close(masked_cosine(features, prototypes, torch.full((3, 6), 0.5)), plain)


def test_participation_is_one_for_a_flat_mask_and_a_channels_share_for_one():
    masks = torch.tensor([[0.3, 0.3, 0.3, 0.3], [0, 0, 0.7, 0], [0.5, 0.5, 0, 0]])
    assert participation(masks).tolist() == pytest.approx([1, 0.25, 0.5])
