"""From instances and fields to parsing maps: the target person, resampling, fusion."""

import dataclasses

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipeline.core.label_file import write_label_file
from pipeline.core.params import BadInput
from pipeline.data import parts
from pipeline.labels import parsing
from pipeline.labels.parsing import AMBIGUOUS, NO_PERSON, OK, Frame, ImageInstances, Parse, Target

TARGET = Target(min_score=0.5, min_area=0.01, centre=1, height=0, score=0, head=0.5, margin=0.1)
ARGMAX = Parse(
    grid=(4, 4),
    grouping="recommended",
    target=TARGET,
    present=0.3,
    threshold=0.3,
    fill=False,
    spread=1,
    batch=8,
)
FILL = dataclasses.replace(ARGMAX, fill=True)
TINY = Frame(cells=(2, 2), stride=2, size=(4, 4), pad=(0, 0, 0, 0))
PEOPLE = st.integers(0, 2**32 - 1).map(np.random.default_rng)


def person(box, score=0.9, mask=255):
    return np.float32(score), np.array(box, np.float32), np.full((28, 28), mask, np.uint8)


def instances(*people) -> ImageInstances:
    score, box, mask = zip(*people, strict=True) if people else ((), (), ())
    return ImageInstances(
        np.array(score, np.float32),
        np.array(box, np.float32).reshape(-1, 4),
        np.array(mask, np.uint8).reshape(-1, 28, 28),
    )


def fields(frame=TINY, **cells) -> np.ndarray:
    """Confidence 255 at the named cells: c13=(1, 0) is the left knee in row 1, column 0."""
    confidence = np.zeros((36, *frame.cells), np.uint8)
    for name, cell in cells.items():
        confidence[int(name[1:])][cell] = 255
    return confidence


def anyone(rng, frame=TINY, count=2) -> tuple[ImageInstances, np.ndarray]:
    corner = rng.uniform(0, 2, (count, 2))
    box = np.concatenate([corner, corner + rng.uniform(1, 2, (count, 2))], 1).astype(np.float32)
    mask = rng.integers(0, 256, (count, 28, 28), np.uint8)
    persons = ImageInstances(np.sort(rng.uniform(0.4, 1, count).astype(np.float32))[::-1], box, mask)
    return persons, rng.integers(0, 256, (36, *frame.cells), np.uint8)


def parse(persons, confidence, rule=ARGMAX, size=(4, 4), frame=TINY):
    return parsing.parse(persons, confidence, size, frame, rule)


# ------------------------------------------------------------------ worked examples


def test_each_pixel_takes_its_strongest_part():
    whole = np.ones((2, 2), np.float32)
    confidence = np.zeros((8, 2, 2), np.float32)
    confidence[parts.HEAD - 1] = [[0.9, 0.4], [0.2, 0.0]]
    confidence[parts.TORSO - 1] = [[0.5, 0.6], [0.1, 0.0]]
    assert parsing.argmax_parts(confidence, whole, 0.3).tolist() == [[1, 4], [0, 0]]


def test_the_mask_multiplies_the_confidence_before_the_threshold():
    confidence = np.full((8, 2, 2), 0.5, np.float32)
    mask = np.array([[1.0, 0.6], [0.59, 0.0]], np.float32)
    assert parsing.argmax_parts(confidence, mask, 0.3).tolist() == [[1, 1], [0, 0]]


def test_a_field_cell_lies_on_its_pixel():
    rows, columns = parsing.field_sampling(Frame((3, 3), 2, (5, 5), (0, 0, 0, 0)), (5, 5))
    cell = np.zeros((3, 3), np.float32)
    cell[1, 2] = 1
    want = [[0, 0, 0, 0, 0], [0, 0, 0, 0.25, 0.5], [0, 0, 0, 0.5, 1], [0, 0, 0, 0.25, 0.5], [0, 0, 0, 0, 0]]
    assert (rows @ cell @ columns.T).tolist() == want


def test_a_mask_fills_its_box_and_fades_by_half_a_cell_at_its_rim():
    pasted = parsing.paste_mask(
        np.full((2, 2), 255, np.uint8), np.array([1.0, 1, 3, 3], np.float32), (4, 4), (4, 4)
    )
    assert pasted.tolist() == [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]


def test_boxes_are_in_pixels_of_the_crop_and_maps_on_the_grid():
    box = np.array([10.0, 20, 30, 60], np.float32)
    pasted = parsing.paste_mask(np.full((28, 28), 255, np.uint8), box, (80, 40), (8, 4))
    assert (pasted > 0.5).nonzero()[0].tolist() == [2, 2, 3, 3, 4, 4, 5, 5]
    assert (pasted > 0.5).nonzero()[1].tolist() == [1, 2] * 4


def test_keypoints_and_limbs_join_their_part_by_the_greatest():
    grouped = parsing.part_confidences(fields(c0=(0, 0), c13=(0, 1), c14=(1, 0), c15=(1, 1)), "recommended")
    assert [k + 1 for k in range(8) if grouped[k].any()] == [
        parts.HEAD,
        parts.LEFT_LEG,
        parts.RIGHT_LEG,
        parts.LEFT_FOOT,
    ]
    assert grouped[parts.LEFT_FOOT - 1].tolist() == [[0, 0], [0, 1]]


def test_the_limb_between_the_hips_favours_no_leg_unless_asked_to():
    hips = fields(c21=(0, 0))
    assert [int(g.any()) for g in parsing.part_confidences(hips, "recommended")] == [0, 0, 0, 1, 0, 0, 0, 0]
    assert [int(g.any()) for g in parsing.part_confidences(hips, "bpbreid")] == [0, 0, 0, 1, 1, 0, 0, 0]


def test_the_limbs_from_ear_to_shoulder_are_no_head_unless_asked_to():
    ears = fields(c34=(0, 0), c35=(0, 1))
    assert not parsing.part_confidences(ears, "recommended").any()
    assert [int(g.any()) for g in parsing.part_confidences(ears, "bpbreid")] == [1, 0, 0, 0, 0, 0, 0, 0]


def test_every_keypoint_belongs_to_one_part_and_every_channel_to_some():
    for groups in parsing.PART_CHANNELS.values():
        keypoints = [c for channels in groups for c in channels if c < 17]
        assert sorted(keypoints) == list(range(17))
    assert set().union(*parsing.PART_CHANNELS["bpbreid"]) == set(range(36))
    assert set().union(*parsing.PART_CHANNELS["recommended"]) == set(range(34))


def test_a_part_that_wins_nowhere_with_certainty_is_hidden():
    frame = Frame((4, 4), 1, (4, 4), (0, 0, 0, 0))
    confidence = np.zeros((8, 4, 4), np.float32)
    confidence[parts.TORSO - 1, :2], confidence[parts.LEFT_LEG - 1, 2:] = 0.9, 0.6
    confidence[parts.LEFT_LEG - 1, 3, 3] = 0.95  # certain, but outside the mask
    mask = np.ones((4, 4), np.float32)
    mask[3, 3] = 0
    rule = dataclasses.replace(ARGMAX, present=0.7)
    assert set(np.unique(parsing.fuse(confidence, mask, frame, ARGMAX))) == {0, parts.TORSO, parts.LEFT_LEG}
    assert set(np.unique(parsing.fuse(confidence, mask, frame, rule))) == {0, parts.TORSO}
    mask[3, 3] = 1
    assert (parsing.fuse(confidence, mask, frame, rule) == parts.LEFT_LEG).sum() == 8


def test_filling_gives_the_rest_of_the_mask_to_its_nearest_part():
    frame = Frame((4, 4), 1, (4, 4), (0, 0, 0, 0))
    confidence = fields(frame, c0=(0, 1), c13=(3, 1))
    whole = instances(person((0, 0, 4, 4)))
    assert parse(whole, confidence, ARGMAX, frame=frame).map.nonzero()[0].tolist() == [0, 3]
    filled = parse(whole, confidence, FILL, frame=frame).map
    assert filled.tolist() == [[1] * 4, [1] * 4, [5] * 4, [5] * 4]


def test_filling_never_paints_a_part_that_is_shown_nowhere():
    frame = Frame((4, 4), 1, (4, 4), (0, 0, 0, 0))
    confidence = fields(frame, c13=(1, 1), c15=(3, 1))  # the ankle lies below the mask
    above = instances(person((0, 0, 4, 2)))
    assert set(np.unique(parse(above, confidence, FILL, frame=frame).map)) == {0, parts.LEFT_LEG}


# ------------------------------------------------------------------ the target person


def test_the_person_nearest_to_the_centre_is_the_target():
    aside, central = person((0, 0, 1.5, 4), 0.99), person((1, 0, 3, 4), 0.8)
    assert parse(instances(aside, central), fields()).instance == 1


def test_a_large_person_in_front_and_aside_does_not_win():
    frame = Frame((32, 16), 8, (256, 128), (0, 0, 0, 0))
    rule = dataclasses.replace(ARGMAX, grid=(256, 128))
    target, occluder = person((40, 8, 90, 250), 0.7), person((50, 30, 128, 256), 0.99)
    confidence = fields(frame, c0=(2, 8))
    parsed = parse(instances(occluder, target), confidence, rule, (256, 128), frame)
    assert (parsed.instance, parsed.status) == (1, OK)


@pytest.mark.parametrize("column, target", [(1, 0), (2, 1)])
def test_the_head_near_the_top_decides_between_persons_equally_central(column, target):
    frame = Frame((4, 4), 1, (4, 4), (0, 0, 0, 0))
    halves = instances(person((0, 0, 2, 4)), person((2, 0, 4, 4)))
    assert parse(halves, fields(frame, c0=(0, column)), frame=frame).instance == target


@pytest.mark.parametrize("left, right, target", [(0, 2, 0), (2, 0, 1)])
def test_of_two_heads_equally_central_the_higher_one_decides(left, right, target):
    frame = Frame((4, 4), 1, (4, 4), (0, 0, 0, 0))
    halves = instances(person((0, 0, 2, 4)), person((2, 0, 4, 4)))
    heads = fields(frame, c0=(left, 1), c1=(right, 2))
    assert parse(halves, heads, frame=frame).instance == target


def test_the_height_cue_is_the_share_of_the_image_that_the_box_spans():
    persons = instances(person((0, 10, 4, 30)), person((0, 0, 4, 50)), person((0, -20, 4, 60)))
    cues = parsing.target_cues(persons, np.zeros((3, 2, 2)), np.zeros((2, 2)), (40, 4))
    assert cues[:, 1].tolist() == [0.5, 1.0, 1.0]  # 20 of 40 pixels; more than all is all


def test_no_blur_leaves_each_cell_to_itself():
    assert (parsing.blur_matrix(3, 0.0) == np.eye(3)).all()


def test_a_target_without_candidates_is_none_and_has_no_lead():
    persons = instances(person((0, 0, 4, 4), score=0.0))
    assert parsing.select_target(persons, np.ones((1, 4, 4)), np.zeros((4, 4)), (4, 4), ARGMAX.target) == (
        -1,
        0.0,
    )


def test_a_close_call_is_marked_ambiguous_and_its_lead_kept():
    twins = parse(instances(person((0, 0, 2, 4)), person((2, 0, 4, 4))), fields())
    assert (twins.status, twins.margin) == (AMBIGUOUS, 0)
    alone = parse(instances(person((0, 0, 2, 4))), fields())
    assert (alone.status, alone.margin) == (OK, np.inf)


# ------------------------------------------------------------------ faults of the field's published script


def arrays_of(people: list[ImageInstances]) -> dict[str, np.ndarray]:
    room = max([len(p.score) for p in people] + [1])
    arrays = {
        "found": np.array([len(p.score) for p in people], np.int32),
        "score": np.zeros((len(people), room), np.float32),
        "box": np.zeros((len(people), room, 4), np.float32),
        "mask": np.zeros((len(people), room, 28, 28), np.uint8),
    }
    for i, persons in enumerate(people):
        for name, value in persons._asdict().items():
            arrays[name][i, : len(value)] = value
    return arrays


def parser(folder, people, confidence, rule=ARGMAX, index="abc", frame=TINY) -> parsing.Parser:
    attrs = {"index": "abc", "stride": frame.stride, "size": list(frame.size), "pad": list(frame.pad)}
    write_label_file(folder / "instances.h5", "instances", arrays_of(people), {"index": "abc"})
    write_label_file(folder / "fields.h5", "fields", {"confidence": np.stack(confidence)}, attrs)
    sizes = np.full((len(people), 2), 4)
    return parsing.Parser(str(folder / "instances.h5"), str(folder / "fields.h5"), sizes, index, rule)


def test_every_image_of_a_batch_uses_its_own_persons(tmp_path):
    everywhere = np.full((36, 2, 2), 255, np.uint8)
    top, bottom = instances(person((0, 0, 4, 2))), instances(person((0, 2, 4, 4)))
    maps = parser(tmp_path, [top, bottom, top], [everywhere] * 3)(0, 3)["map"]
    assert [m.any(1).tolist() for m in maps] == [[1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 0, 0]]


def test_an_image_without_a_person_is_all_background_and_says_so(tmp_path):
    everywhere = np.full((36, 2, 2), 255, np.uint8)
    someone = instances(person((0, 0, 4, 4)))
    done = parser(tmp_path, [instances(), someone, instances()], [everywhere] * 3)(0, 3)
    assert done["status"].tolist() == [NO_PERSON, OK, NO_PERSON]
    assert done["instance"].tolist() == [-1, 0, -1]
    assert [bool(m.any()) for m in done["map"]] == [False, True, False]


def test_a_detection_of_tiny_score_in_the_centre_is_no_candidate():
    ghost, aside = person((1, 0, 3, 4), 0.06), person((0, 0, 2, 4), 0.9)
    assert parse(instances(aside, ghost), fields()).instance == 0
    assert parse(instances(ghost), fields()).status == NO_PERSON


def test_a_detection_of_tiny_area_in_the_centre_is_no_candidate():
    rule = dataclasses.replace(ARGMAX, grid=(64, 64))
    speck, aside = person((1.9, 1.9, 2.1, 2.1), 0.99), person((0, 0, 2, 4), 0.9)
    assert parse(instances(speck, aside), fields(), rule).instance == 1


def test_a_thin_limb_of_the_mask_survives_resampling():
    thin = np.zeros((28, 28), np.uint8)
    thin[:, 14] = 255  # one of 28 columns
    box = np.array([0.0, 0, 28, 28], np.float32)
    pasted = parsing.paste_mask(thin, box, (28, 28), (56, 56))
    assert pasted.max() >= 0.5 and pasted.sum() == pytest.approx(56 * 2, rel=0.05)


def test_the_pad_of_the_network_input_is_undone():
    grid = (16, 16)
    pixel = np.zeros((9, 9), np.float32)
    pixel[3, 4] = 1  # y = 3 * 2 - 1 = 5, x = 4 * 2 - 2 = 6 of the input
    rows, columns = parsing.field_sampling(Frame((9, 9), 2, (16, 16), (2, 1, 0, 0)), grid)
    placed = rows @ pixel @ columns.T
    assert np.unravel_index(placed.argmax(), grid) == (5, 6) and placed.max() == 1


# ------------------------------------------------------------------ the slow version


def slow_paste(mask, box, size, grid):
    out = np.zeros(grid)
    x0, y0, x1, y1 = (float(b) * grid[1 - i % 2] / size[1 - i % 2] for i, b in enumerate(box))
    for y in range(grid[0]):
        for x in range(grid[1]):
            v = (y + 0.5 - y0) / (y1 - y0) * mask.shape[0] - 0.5
            u = (x + 0.5 - x0) / (x1 - x0) * mask.shape[1] - 0.5
            for r in range(mask.shape[0]):
                for c in range(mask.shape[1]):
                    out[y, x] += max(0, 1 - abs(v - r)) * max(0, 1 - abs(u - c)) * mask[r, c] / 255
    return out


def slow_field(field, frame, grid):
    out = np.zeros(grid)
    for y in range(grid[0]):
        for x in range(grid[1]):
            r = ((y + 0.5) * frame.size[0] / grid[0] - 0.5 + frame.pad[1]) / frame.stride
            c = ((x + 0.5) * frame.size[1] / grid[1] - 0.5 + frame.pad[0]) / frame.stride
            r, c = min(max(r, 0), frame.cells[0] - 1), min(max(c, 0), frame.cells[1] - 1)
            for i in range(frame.cells[0]):
                for j in range(frame.cells[1]):
                    out[y, x] += max(0, 1 - abs(r - i)) * max(0, 1 - abs(c - j)) * field[i, j]
    return out


def slow_planes(confidence, frame, rule):
    grouped = [
        np.max([confidence[c] / 255 for c in channels], 0)
        for channels in parsing.PART_CHANNELS[rule.grouping]
    ]
    return [slow_field(plane, frame, rule.grid) for plane in grouped]


def slow_fusion(confidence, mask, frame, rule):
    """Mask times confidences, grouped, arg-max, two thresholds: read aloud."""
    planes = slow_planes(confidence, frame, rule)
    out, sure = np.zeros(rule.grid, int), set()
    for y in range(rule.grid[0]):
        for x in range(rule.grid[1]):
            values = [plane[y, x] * mask[y, x] for plane in planes]
            best = int(np.argmax(values))
            out[y, x] = best + 1 if values[best] >= rule.threshold else 0
            sure |= {best + 1} if values[best] >= rule.present else set()
    return np.where(np.isin(out, list(sure)), out, 0)


@settings(max_examples=10, deadline=None)
@given(PEOPLE)
def test_pasting_equals_the_slow_version(rng):
    mask = rng.integers(0, 256, (4, 3), np.uint8)
    box = np.array([*rng.uniform(0, 5, 2), *rng.uniform(6, 12, 2)], np.float32)
    fast = parsing.paste_mask(mask, box, (12, 10), (6, 5))
    assert fast == pytest.approx(slow_paste(mask, box, (12, 10), (6, 5)), abs=1e-5)


@settings(max_examples=10, deadline=None)
@given(PEOPLE)
def test_fusion_equals_the_slow_version(rng):
    frame = Frame((3, 2), 4, (10, 5), (1, 2, 1, 0))
    rule = dataclasses.replace(ARGMAX, grid=(6, 4), present=float(rng.uniform(0.2, 0.9)))
    confidence = rng.integers(0, 256, (36, 3, 2), np.uint8)
    mask = rng.uniform(0, 1, (6, 4)).astype(np.float32)
    second, best = np.sort(slow_planes(confidence, frame, rule), 0)[-2:]
    assume((best - second).min() > 1e-6)  # equal parts are told apart by rounding alone
    fast = parsing.fuse(parsing.part_confidences(confidence, rule.grouping), mask, frame, rule)
    assert (fast == slow_fusion(confidence, mask, frame, rule)).all()


# ------------------------------------------------------------------ laws

# channel of each keypoint and limb in the mirror
FLIPPED_CHANNELS = np.arange(parsing.CHANNELS)
for _left, _right in (
    *((1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12), (13, 14), (15, 16)),
    *((17, 19), (18, 20), (22, 23), (25, 26), (27, 28), (30, 31), (32, 33), (34, 35)),
):
    FLIPPED_CHANNELS[[_left, _right]] = _right, _left


def flip(confidence: np.ndarray, frame: Frame) -> tuple[np.ndarray, Frame]:
    """Fields of the mirrored picture: columns reversed, sides swapped, and so the pad."""
    left, top, right, bottom = frame.pad
    return confidence[FLIPPED_CHANNELS][..., ::-1], frame._replace(pad=(right, top, left, bottom))


@given(PEOPLE, st.booleans())
def test_hiding_pixels_never_reveals_a_part(rng, fill):
    rule = dataclasses.replace(FILL if fill else ARGMAX, present=float(rng.uniform(0.2, 0.9)))
    confidence = parsing.part_confidences(rng.integers(0, 256, (36, 2, 2), np.uint8), rule.grouping)
    mask = rng.uniform(0, 1, (4, 4)).astype(np.float32)
    covered = np.where(rng.random((4, 4)) < 0.5, 0, mask).astype(np.float32)
    before = set(np.unique(parsing.fuse(confidence, mask, TINY, rule)))
    assert set(np.unique(parsing.fuse(confidence, covered, TINY, rule))) - {0} <= before


@given(PEOPLE, st.booleans())
def test_a_hidden_pixel_is_background(rng, fill):
    mask = np.where(rng.random((4, 4)) < 0.5, 0, 1).astype(np.float32)
    confidence = parsing.part_confidences(rng.integers(0, 256, (36, 2, 2), np.uint8), "recommended")
    assert not parsing.fuse(confidence, mask, TINY, FILL if fill else ARGMAX)[mask == 0].any()


@given(PEOPLE)
def test_filling_changes_no_pixel_that_shows_a_part_already(rng):
    mask = rng.uniform(0, 1, (4, 4)).astype(np.float32)
    confidence = parsing.part_confidences(rng.integers(0, 256, (36, 2, 2), np.uint8), "recommended")
    bare, filled = (parsing.fuse(confidence, mask, TINY, rule) for rule in (ARGMAX, FILL))
    assert (filled[bare > 0] == bare[bare > 0]).all()


@given(PEOPLE, st.booleans())
def test_the_mirrored_picture_has_the_mirrored_map(rng, fill):
    frame = Frame((3, 3), 2, (4, 4), (1, 0, 0, 1))
    rule = FILL if fill else ARGMAX
    persons, confidence = anyone(rng, frame, 1)
    x0, y0, x1, y1 = persons.box.T
    mirrored = persons._replace(box=np.stack([4 - x1, y0, 4 - x0, y1], 1), mask=persons.mask[..., ::-1])
    there = parsing.parse(persons, confidence, (4, 4), frame, rule).map
    flipped, mirrored_frame = flip(confidence, frame)
    here = parsing.parse(mirrored, flipped, (4, 4), mirrored_frame, rule).map
    assert (here == parts.flip(there)).mean() > 0.9  # but for ties and rounding


@given(PEOPLE)
def test_flipping_twice_changes_nothing(rng):
    maps = rng.integers(0, 9, (2, 4, 3), np.uint8)
    assert (parts.flip(parts.flip(maps)) == maps).all()
    confidence = rng.integers(0, 256, (36, 2, 3), np.uint8)
    frame = Frame((2, 3), 8, (9, 15), (1, 2, 3, 4))
    again, same = flip(*flip(confidence, frame))
    assert (again == confidence).all() and same == frame


def test_a_flip_swaps_the_sides():
    assert parts.flip(np.array([[2, 4, 3], [5, 0, 1], [8, 7, 6]], np.uint8)).tolist() == [
        [2, 4, 3],
        [1, 0, 6],
        [5, 8, 7],
    ]
    confidence = fields(c9=(0, 0), c25=(1, 1), c21=(0, 1))
    mirrored, _ = flip(confidence, TINY)
    assert [tuple(int(i) for i in w) for w in np.argwhere(mirrored)] == [(10, 0, 1), (21, 0, 0), (26, 1, 0)]


def test_permuting_the_images_permutes_the_results(tmp_path):
    rng = np.random.default_rng(0)
    people, confidence = zip(*(anyone(rng, count=i % 3) for i in range(7)), strict=True)
    order = rng.permutation(7)
    straight = parser(tmp_path, people, confidence, FILL)(0, 7)
    permuted = parser(tmp_path, [people[i] for i in order], [confidence[i] for i in order], FILL)(0, 7)
    for name, values in straight.items():
        assert (permuted[name] == values[order]).all()


def test_a_batch_of_seven_equals_seven_batches_of_one(tmp_path):
    rng = np.random.default_rng(1)
    people, confidence = zip(*(anyone(rng, count=i % 3) for i in range(7)), strict=True)
    run = parser(tmp_path, people, confidence, FILL)
    together, apart = run(0, 7), [run(i, i + 1) for i in range(7)]
    for name, values in together.items():
        assert (np.concatenate([a[name] for a in apart]) == values).all()


def test_a_result_does_not_depend_on_the_other_images(tmp_path):
    rng = np.random.default_rng(2)
    people, confidence = zip(*(anyone(rng) for _ in range(6)), strict=True)
    first = parser(tmp_path, people[:3], confidence[:3], FILL)(0, 3)
    others = parser(tmp_path, (*people[3:5], people[2]), (*confidence[3:5], confidence[2]), FILL)(0, 3)
    for name, values in first.items():
        assert (others[name][2] == values[2]).all()


# ------------------------------------------------------------------ errors


def test_files_of_another_index_are_refused(tmp_path):
    with pytest.raises(BadInput, match=r"instances\.h5: made for another index"):
        parser(tmp_path, [instances()], [fields()], index="xyz")


def test_fields_with_another_number_of_confidences_are_refused(tmp_path):
    with pytest.raises(BadInput, match=r"fields\.h5: 17 confidences per image, but 36 are needed"):
        parser(tmp_path, [instances()], [np.zeros((17, 2, 2), np.uint8)])
    with pytest.raises(BadInput, match="17 confidences"):
        parsing.part_confidences(np.zeros((17, 2, 2), np.uint8), "recommended")


def test_a_map_with_unknown_parts_is_refused():
    with pytest.raises(BadInput, match="label 9, but the parts end at 8"):
        parts.flip(np.full((2, 2), 9, np.uint8))
