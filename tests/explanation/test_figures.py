"""Patches drawn where they lie, and figures whose bytes say nothing of when they were made."""

import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from pipeline.batches.views import eval_batch
from pipeline.core.params import BadInput
from pipeline.data import parts
from pipeline.explanation import figures
from pipeline.explanation.attention import Attention, PartFeatures, attention, part_features
from pipeline.explanation.erasing import Erasing
from pipeline.model.backbones import small_vit
from pipeline.model.vit import OcclusionAwareViT
from tests import toy

BATCH = eval_batch(toy.people(), slice(0, 2))


def encoder(size=toy.SIZE, patch=16, stride=16):
    vit = small_vit(img_size=size, patch_size=patch, embed_dim=4, depth=1, num_heads=1)
    return OcclusionAwareViT(vit, size, stride, parts=0, coarse=1, cameras=1)


ENCODER = encoder()


def test_a_pixel_has_the_mean_of_the_patches_that_cover_it():
    pixels = figures.to_pixels(np.array([1.0, 5.0, 9.0, 1.0]), encoder((3, 3), patch=2, stride=1))
    assert pixels.tolist() == [[1, 3, 5], [5, 4, 3], [9, 5, 1]]


def test_pixels_without_a_patch_have_no_value():
    pixels = figures.to_pixels(np.array([1.0, 5.0]), encoder((2, 5), patch=2, stride=2))
    assert pixels[:, :4].tolist() == [[1, 1, 5, 5]] * 2 and np.isnan(pixels[:, 4]).all()


def test_a_pixel_has_the_label_of_most_of_its_patches():
    labels = figures.labels_to_pixels(np.array([2, 7, 7]), encoder((3, 5), patch=3, stride=1))
    assert labels.tolist() == [[2, 2, 7, 7, 7]] * 3  # of 2; of 2 and 7; of 2, 7 and 7; ...
    labels = figures.labels_to_pixels(np.array([3, 1]), encoder((5, 2), patch=2, stride=2))
    assert labels[:, 0].tolist() == [3, 3, 1, 1, 0]


def attention_figure(features=True, pictures=None):
    """Two pictures of which every token attends to another patch."""
    weights = torch.eye(9, 8)[None].repeat(2, 1, 1)
    drawn = Attention("some layer", ("global", *parts.FINE), weights)
    visibility = torch.ones(2, 8)
    visibility[:, 2] = 0
    seen = PartFeatures(torch.arange(8)[None].repeat(2, 1), visibility)
    if not features:
        drawn, seen = drawn._replace(tokens=("global",), weights=weights[:, :1]), None
    pictures = pictures or figures.Pictures.of(BATCH, ["first", "second"])
    return figures.attention_figure("toy", pictures, drawn, seen, ENCODER)


def erasing_figure():
    pictures = figures.Pictures.of(BATCH, ["first", "second"])
    kept = torch.tensor([[1, 1, 1, 1, 0, 0, 0, 1], [0] * 8]).bool()
    result = Erasing(0.25 + 0.5 * kept.float(), kept, torch.tensor([[1, 0] * 4, [0] * 8]).bool())
    one = figures.Pictures(*(array[:1] for array in pictures))
    sides = [([0, 1], pictures, result), ([1], one, Erasing(*(t[:1] for t in result)))]
    return figures.erasing_figure("toy", sides, ENCODER)


def words(figure):
    return [text.get_text() for text in figure.findobj(plt.Text) if text.get_text()]


def images(axes):
    return [np.asarray(image.get_array()) for image in axes.get_images()]


def test_the_figure_of_attention_has_a_column_for_each_token_with_its_parts_frame():
    figure = attention_figure()
    line = figure.axes[:13]
    titles = [axes.get_title() for axes in line]
    assert titles == ["picture", "parsing map", "z", "global", *parts.FINE, "nearest part"]
    assert np.array_equal(images(line[0])[0], BATCH.holistic.image[0].permute(1, 2, 0).numpy())
    for label, axes in enumerate(line[4:12], 1):
        (frame,) = axes.patches
        assert list(frame.get_edgecolor()[:3]) == figures.TINTS[label]
        assert frame.get_linestyle() == (":" if label == 3 else "-")
        (heat,) = images(axes)
        bright = heat.sum(-1) > 2
        assert bright.any() == (label < 8)  # patch 8 does not exist: the ninth token attends to no patch
        assert not bright.any() or np.argwhere(bright)[0].tolist() == [16 * (label // 2), 16 * (label % 2)]
    (nearest,) = images(line[-1])
    labels = np.arange(8, dtype=np.uint8).reshape(4, 2).repeat(16, 0).repeat(16, 1)
    assert np.array_equal(nearest, figures.overlay(BATCH.holistic.image[0].permute(1, 2, 0).numpy(), labels))
    plt.close(figure)


def test_the_figure_names_what_its_colours_and_boxes_mean():
    figure = attention_figure()
    said = words(figure)
    assert "toy: attention of some layer" in said and "attention per patch, %\n(even: 12 %)" in said
    assert set(parts.FINE) <= set(said) and {"z: visible", "z: hidden", "first", "second"} <= set(said)
    assert {"visible to the model (Eq. 24)", "not visible to the model"} <= set(said)
    plt.close(figure)


def test_a_box_of_z_is_empty_if_its_part_is_hidden():
    pictures = figures.Pictures.of(BATCH, ["", ""])
    hidden = np.array([[0, 0, 1, 0], [0] * 4]).astype(bool)
    figure = attention_figure(pictures=pictures._replace(hidden=hidden))
    boxes = figure.axes[2].patches
    assert [box.get_facecolor()[:3] == (1, 1, 1) for box in boxes] == [False, False, True, False]
    assert [text.get_text() for text in figure.axes[2].texts] == list(parts.COARSE[4])
    plt.close(figure)


def test_without_features_of_parts_the_class_token_is_drawn_alone():
    figure = attention_figure(features=False)
    assert [axes.get_title() for axes in figure.axes[:4]] == ["picture", "parsing map", "z", "global"]
    assert "visible to the model (Eq. 24)" not in words(figure)
    plt.close(figure)


def test_erased_patches_are_white_and_their_shares_are_written_below():
    figure = erasing_figure()
    said = words(figure)
    assert "first\nkept 62 %: body 50 %, background 75 %" in said
    assert "second\nkept 0 %: body none, background 0 %" in said
    (erased,) = images(figure.axes[1])
    picture = BATCH.holistic.image[0].permute(1, 2, 0).numpy()
    assert (erased[32:48] == 255).all() and (erased[48:, :16] == 255).all()
    assert np.array_equal(erased[:32], picture[:32])
    assert np.array_equal(erased[48:, 16:], picture[48:, 16:])
    assert not images(figure.axes[4]) and images(figure.axes[7 + 4])  # the second person alone has an image
    plt.close(figure)


@pytest.mark.parametrize("kind", ["png", "pdf", "svg"])
@pytest.mark.parametrize("figure", [attention_figure, erasing_figure])
def test_a_figure_has_the_same_bytes_each_time_and_no_date(kind, figure, tmp_path):
    files, others = [tmp_path / f"{n}.{kind}" for n in range(2)], plt.get_fignums()
    for file in files:
        figures.save(figure(), str(file), 50)
    first, second = (file.read_bytes() for file in files)
    assert first == second and not re.search(rb"20[2-9]\d-|CreationDate|Matplotlib v|dc:date", first)
    assert first.startswith({"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}[kind])
    assert plt.get_fignums() == others


def test_the_dpi_is_that_of_a_png(tmp_path):
    widths = []
    for dpi in (50, 100):
        figures.save(attention_figure(), str(tmp_path / "a.png"), dpi)
        widths.append(plt.imread(tmp_path / "a.png").shape[1])
    assert widths[1] == pytest.approx(2 * widths[0], abs=2)


@pytest.mark.parametrize("name", ["figure", "figure.jpg", "pdf"])
def test_another_ending_is_refused(name):
    with pytest.raises(BadInput, match=r"no kind of figure\. Let the name end in one of \.png, \.pdf, \.svg"):
        figures.check_path(name)


def test_a_models_own_arrays_can_be_drawn():
    network = toy.model().eval()
    drawn, features = attention(network, BATCH), part_features(network, BATCH)
    pictures = figures.Pictures.of(BATCH, ["", ""])
    figure = figures.attention_figure("ogfr", pictures, drawn, features, network.encoder)
    assert len(figure.axes) == 2 * 13 + 1  # and the colour bar
    plt.close(figure)
