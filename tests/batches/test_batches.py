"""Batches: the identity sampler, the two views, their labels, and the evaluation batches."""

import io
from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.batches import views
from pipeline.batches.augment import (
    _other_identity,
    apply_flip_shift,
    random_flip_crop,
    sample_augmentations,
    training_batch,
)
from pipeline.batches.jitter import apply_jitter
from pipeline.batches.prefetch import prefetch
from pipeline.batches.sampler import pk_batches
from pipeline.batches.views import (
    eval_batch,
    eval_batches,
    label_threshold,
    normalise,
    resize_image,
    resize_images,
    stream_eval_batches,
    training_set,
)
from pipeline.core.label_file import LabelFile, write_label_file, write_packed
from pipeline.core.params import BadInput
from pipeline.data import parts
from pipeline.data.index import Images
from pipeline.labels import occlusion
from tests import toy

RNG = np.random.default_rng


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 99))
def test_a_batch_holds_p_identities_with_k_images_each(identities, images, seed):
    pid = np.repeat(np.arange(5), [1, 3, 4, 8, 9])
    for rows in pk_batches(pid, identities, images, RNG(seed)):
        images_of = Counter(pid[rows].tolist())
        assert len(images_of) == identities and set(images_of.values()) == {images}


def test_an_epoch_repeats_no_image_of_an_identity_with_enough_of_them():
    pid = np.repeat(np.arange(4), 8)
    rows = np.concatenate(pk_batches(pid, 2, 4, RNG(0)))
    assert len(set(rows.tolist())) == len(rows) == 32


def test_an_identity_with_exactly_k_images_gives_each_once():
    for seed in range(20):
        (rows,) = pk_batches(np.repeat([0, 1], 4), 2, 4, RNG(seed))
        assert sorted(rows.tolist()) == list(range(8))


def test_too_few_identities_are_an_error_that_names_the_parameter():
    with pytest.raises(BadInput, match=r"train\.identities = 3.*only 2"):
        pk_batches(np.array([0, 0, 1]), 3, 1, RNG(0))


def test_a_flip_swaps_left_and_right_parts_and_two_flips_are_the_identity():
    people, every = toy.people(), np.arange(16)
    image, parsing = random_flip_crop(people.image, people.parsing, every, 1.0, 0, RNG(0))
    assert (image == people.image[:, :, ::-1]).all()
    assert (parsing == parts.RIGHT_ARM)[people.parsing[..., ::-1] == parts.LEFT_ARM].all()
    again, labels = random_flip_crop(image, parsing, every, 1.0, 0, RNG(0))
    assert (again == people.image).all() and (labels == people.parsing).all()


@settings(max_examples=50)
@given(st.booleans(), st.integers(-9, 9), st.integers(-9, 9), st.sampled_from([(8, 6), (8, 6, 3)]))
def test_a_shift_moves_every_pixel_of_the_flipped_image_and_pads_with_zeros(flipped, down, right, shape):
    image = RNG(0).integers(1, 255, shape).astype(np.uint8)
    slow, fast = np.zeros_like(image), np.zeros_like(image)
    for y in range(8):
        for x in range(6):
            if 0 <= y - down < 8 and 0 <= x - right < 6:
                slow[y, x] = (image[:, ::-1] if flipped else image)[y - down, x - right]
    apply_flip_shift(image, flipped, down, right, fast)
    assert (fast == slow).all()


@given(st.integers(0, 2**32 - 1))
def test_an_image_and_its_parsing_map_move_alike(seed):
    person = np.zeros((1, 64, 32), np.uint8)
    person[:, 8:40, 12:20] = parts.TORSO  # a torso in the flipped image too
    image, parsing = random_flip_crop(np.stack([person] * 3, 3), person, np.array([0]), 0.5, 4, RNG(seed))
    assert (image == parsing[..., None]).all() and parsing.any()


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_a_map_is_flipped_with_its_image_alone_and_its_sides_are_swapped(flip):
    parsing = np.zeros((1, 4, 6), np.uint8)
    parsing[0, 1, 0] = 2  # the left arm, at the left edge
    image, labels = random_flip_crop(np.stack([parsing] * 3, 3), parsing, np.array([0]), flip, 0, RNG(0))
    column, label = (5, 3) if flip else (0, 2)  # 3 is the right arm
    assert labels[0, 1, column] == label and (labels > 0).sum() == 1
    assert image[0, 1, column].tolist() == [2, 2, 2] and (image > 0).sum() == 3


def test_a_shift_by_the_whole_frame_leaves_nothing():
    for down, right in [(4, 0), (-4, 0), (0, 6), (0, -6)]:
        out = np.zeros((4, 6), np.uint8)
        apply_flip_shift(np.ones((4, 6), np.uint8), False, down, right, out)
        assert not out.any()


def test_a_batch_moves_with_all_of_its_tensors():
    batch = toy.batch()
    moved = batch.to("meta")  # a device that holds shapes and no values
    for view in (moved.holistic, moved.occluded):
        assert {view.image.device.type, view.parsing.device.type, view.hidden.device.type} == {"meta"}
    assert {t.device.type for t in (moved.camid, moved.pid, moved.covered)} == {"meta"}
    same = batch.to("cpu")
    assert torch.equal(same.holistic.image, batch.holistic.image) and torch.equal(same.pid, batch.pid)


def test_both_views_share_their_geometry():
    batch = toy.batch()
    same = ~batch.covered[:, None].expand_as(batch.holistic.image)
    assert batch.covered.any() and (batch.holistic.image[same] == batch.occluded.image[same]).all()
    assert (batch.holistic.parsing[~batch.covered] == batch.occluded.parsing[~batch.covered]).all()


def test_what_is_pasted_is_background_in_the_students_map_and_counts_in_its_z():
    people = replace(toy.people(), threshold=90.0)
    batch = toy.batch(people)
    assert (batch.occluded.parsing[batch.covered] == 0).all()
    for view in (batch.holistic, batch.occluded):
        counts = occlusion.count_pixels(view.parsing, 4)
        assert (view.hidden == (counts < people.threshold)).all()
    assert batch.occluded.hidden.sum() > batch.holistic.hidden.sum()
    assert not batch.holistic.hidden[0].any()


def test_without_an_obstacle_both_views_are_the_same():
    people, plan = toy.people(), toy.schedule()
    none = replace(plan.obstacles, probability=0.0)
    rows = np.arange(4)
    batch = training_batch(people, rows, sample_augmentations(people, rows, 0.5, 2, none, {}, RNG(0)))
    assert (batch.holistic.image == batch.occluded.image).all() and not batch.covered.any()
    assert (batch.holistic.hidden == batch.occluded.hidden).all()


def augmented(people, strengths, seed=0, flip=0.5, pad=2, **obstacles):
    params, rows = replace(toy.schedule().obstacles, **obstacles), np.arange(len(people))
    chances = sample_augmentations(people, rows, flip, pad, params, {}, RNG(seed), strengths)
    return chances, training_batch(people, rows, chances)


def test_a_jitter_of_zeros_draws_nothing_and_another_one_changes_nothing_else():
    rows, params, rng = np.arange(16), toy.schedule().obstacles, RNG(3)
    sample_augmentations(toy.people(), rows, 0.5, 2, params, {}, rng)
    other = RNG(3)
    chances = sample_augmentations(toy.people(), rows, 0.5, 2, params, {}, other, (0.0, 0.0, 0.0, 0.0))
    assert other.bit_generator.state == rng.bit_generator.state
    assert {chance.jitter for chance in chances} == {None}


def test_colours_are_jittered_before_the_flip_the_padding_and_the_obstacle_in_both_views_alike():
    people, strengths = toy.people(), (0.5, 0.5, 0.5, 0.5)
    chances, batch = augmented(people, strengths, pad=5, probability=1.0)
    jittered = apply_jitter(torch.from_numpy(people.image), [chance.jitter for chance in chances])
    plain = [chance._replace(jitter=None) for chance in chances]
    expected = training_batch(replace(people, image=jittered.numpy()), np.arange(16), plain)
    assert torch.equal(batch.holistic.image, expected.holistic.image)
    assert torch.equal(batch.occluded.image, expected.occluded.image)
    assert torch.equal(batch.occluded.hidden, expected.occluded.hidden)
    unchanged = training_batch(people, np.arange(16), plain)
    differs = (batch.holistic.image != unchanged.holistic.image).flatten(1).any(1)
    assert differs.all() and torch.equal(batch.holistic.parsing, unchanged.holistic.parsing)


@pytest.mark.parametrize("source", ["rectangle", "person", "noise", "background"])
@pytest.mark.parametrize("placement", ["anywhere", "border"])
def test_covered_is_where_the_obstacle_lies_and_nowhere_else_do_the_views_differ(source, placement):
    people = toy.people()
    chances, batch = augmented(people, (0.1, 0.1, 0.1, 0.0), sources=[source], placement=placement)
    for n, chance in enumerate(chances):
        (top, left), solid = chance.position, chance.obstacle.solid
        slow = torch.zeros(toy.SIZE, dtype=torch.bool)
        for y, x in zip(*np.nonzero(solid), strict=True):
            if 0 <= top + y < toy.SIZE[0] and 0 <= left + x < toy.SIZE[1]:
                slow[top + y, left + x] = True
        assert torch.equal(batch.covered[n], slow) and slow.any()
    differs = (batch.holistic.image != batch.occluded.image).any(1)
    assert not (differs & ~batch.covered).any()
    assert (batch.occluded.parsing[batch.covered] == 0).all()


def test_noise_that_fits_nowhere_covers_nothing():
    chances, batch = augmented(toy.people(), (0.0,) * 4, sources=["noise"], area=(1.0, 1.0), probability=1.0)
    assert {chance.obstacle for chance in chances} == {None} and not batch.covered.any()
    assert torch.equal(batch.holistic.image, batch.occluded.image)


def test_obstacles_come_from_other_identities():
    pid = np.array([0, 0, 0, 1])
    assert {_other_identity(pid, 0, RNG(seed)) for seed in range(30)} == {3}


def test_the_same_seed_draws_the_same_batch():
    assert (toy.batch(seed=3).occluded.image == toy.batch(seed=3).occluded.image).all()
    assert (toy.batch(seed=3).occluded.image != toy.batch(seed=4).occluded.image).any()


def test_prefetched_batches_are_the_same_in_the_same_order_and_no_more_than_two_ahead():
    prepared, used = [], []

    def batches():
        for number in range(6):
            prepared.append(number)
            yield replace(toy.batch(), pid=torch.full((16,), number))

    for batch in prefetch(batches()):
        used.append(int(batch.pid[0]))
        assert len(prepared) <= len(used) + 2
    assert prepared == used == list(range(6))


def test_an_error_while_a_batch_is_prepared_reaches_its_consumer():
    def batches():
        yield toy.batch()
        raise BadInput("no second batch")

    prefetched = prefetch(batches())
    next(prefetched)
    with pytest.raises(BadInput, match="no second batch"):
        next(prefetched)


def test_colours_run_from_minus_one_to_one():
    image = torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2).expand(1, 3, 1, 2)
    assert normalise(image)[0, 0, 0].tolist() == [-1, 1]


@pytest.mark.parametrize("wanted", [0, 3, 5, 10])
def test_the_threshold_is_read_back_from_the_labels(wanted):
    pixels = np.array([[0, 12], [3, 9], [4, 10], [700, 5]])
    hidden = pixels < wanted
    assert ((pixels < label_threshold(pixels, hidden)) == hidden).all()
    assert label_threshold(pixels, np.ones_like(hidden)) == np.inf


class Stored:
    """Files of a few people, as the stages before training write them."""

    def __init__(self, people, folder):
        png = [io.BytesIO() for _ in people.image]
        for file, image in zip(png, people.image, strict=True):
            Image.fromarray(image).save(file, "PNG")
        blobs = [file.getvalue() for file in png]
        write_packed(folder / "images.h5", "images", blobs, np.array([len(b) for b in blobs]), {"index": "x"})
        counts = occlusion.count_pixels(torch.from_numpy(people.parsing), 4).numpy().astype(np.int32)
        flags = {"pixels": counts, "occluded": (counts < 5).astype(np.uint8)}
        write_label_file(folder / "parsing.h5", "parsing", {"map": people.parsing}, {"index": "x"})
        write_label_file(folder / "occlusion.h5", "occlusion", flags, {"index": "x"})
        self.index = pd.DataFrame(
            {"split": ["train"] * len(people), "pid": people.pid * 10 + 7, "camid": people.camid}
        )
        self.images = Images(folder / "images.h5")
        self.labels = LabelFile(folder / "parsing.h5"), LabelFile(folder / "occlusion.h5")
        self.counts = counts

    def read(self, size=toy.SIZE):
        return training_set(self.index, self.images, *self.labels, size)


def test_training_images_are_decoded_once_with_identities_numbered_from_zero(tmp_path):
    people = toy.people()
    stored = Stored(people, tmp_path)
    images = stored.read()
    assert (images.image == people.image).all() and (images.parsing == people.parsing).all()
    assert (images.pid == people.pid).all() and images.threshold == stored.counts.min()


def test_images_and_maps_of_another_size_are_resized_and_the_threshold_with_them(tmp_path):
    people = toy.people()
    stored = Stored(people, tmp_path)
    small, full = stored.read((32, 16)), stored.read()
    assert small.image.shape == (16, 32, 16, 3) and small.threshold == full.threshold / 4
    pillow = np.asarray(Image.fromarray(people.image[0]).resize((16, 32), Image.Resampling.BICUBIC))
    assert np.abs(small.image[0].astype(int) - pillow).max() <= 2
    assert set(small.parsing[0].ravel()) <= set(range(9))


@pytest.mark.parametrize("size", [(40, 20), (64, 32)])
def test_images_resized_together_are_the_same_as_each_alone(size):
    shapes = [(40, 20), (64, 32), (33, 21), (40, 20), (128, 64), (40, 20)]
    images = [RNG(n).integers(0, 256, (*shape, 3), np.uint8) for n, shape in enumerate(shapes)]
    together = np.empty((len(images), *size, 3), np.uint8)
    resize_images(images, together)
    assert (together == [resize_image(image, size) for image in images]).all()


def test_junk_distractors_and_test_images_are_not_trained_on(tmp_path):
    stored = Stored(toy.people(), tmp_path)
    stored.index.loc[0, "pid"], stored.index.loc[1, "pid"], stored.index.loc[2, "split"] = -1, 0, "query"
    assert len(stored.read()) == 13
    stored.index["split"] = "query"
    with pytest.raises(BadInput, match="no training images"):
        stored.read()


def test_a_large_set_lives_in_a_scratch_file_without_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(views, "IN_MEMORY", 10)
    people = toy.people()
    images = Stored(people, tmp_path).read()
    assert isinstance(images.image, np.memmap) and (images.image == people.image).all()
    assert list((tmp_path / ".scratch").iterdir()) == []


def test_evaluation_batches_come_in_order_as_they_are(tmp_path):
    people = toy.people()
    stored = Stored(people, tmp_path)
    streamed = list(
        stream_eval_batches(stored.index, stored.images, *stored.labels, np.arange(3, 16), toy.SIZE, 5)
    )
    assert [len(b.pid) for b in streamed] == [5, 5, 3] and streamed[0].occluded is None
    assert (torch.cat([b.holistic.image for b in streamed]) == eval_batch(people).holistic.image[3:]).all()
    batches = list(eval_batches(people, 7))
    assert [len(b.pid) for b in batches] == [7, 7, 2]
