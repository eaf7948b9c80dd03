"""Rendered pedestrians and their truth."""

import io
import re
import zipfile
from dataclasses import replace
from functools import cache

import cv2
import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core import params
from pipeline.synthetic import dataset, figures, occluders, people, pictures
from pipeline.synthetic.cameras import sample_camera, spread_cameras
from pipeline.synthetic.contamination import MAX_HIDDEN
from pipeline.synthetic.overlay import share_boundary
from pipeline.synthetic.people import ATTRIBUTES, attribute_classes, sample_person
from pipeline.synthetic.pictures import training_picture
from pipeline.synthetic.skeleton import KEYPOINTS

SMALL = dataset.Render(
    seed=3,
    train_identities=2,
    test_identities=2,
    distractors=2,
    cameras=2,
    train_shots=1,
    gallery_shots=1,
    occluded_queries=1,
    holistic_queries=1,
    train_occluded=0.5,
    gallery_occluded=0.1,
    train_contaminated=0.0,
)
FULL = params.read("params.yaml", "render", dataset.Render)
HEAD, LEFT_ARM, RIGHT_ARM, TORSO, LEFT_LEG, RIGHT_LEG, LEFT_FOOT, RIGHT_FOOT = range(1, 9)


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """The archive of a small dataset."""
    path = tmp_path_factory.mktemp("embedded") / "raw.zip"
    dataset.write(path, SMALL, 1)
    return path


@cache
def stream(count=24):
    """Pictures of the training stream."""
    return [training_picture(5, i) for i in range(count)]


@cache
def figure(number, yaw):
    """A person from a direction, upright in the crop, nothing in front."""
    rng = np.random.default_rng([8, number])
    place = figures.Placement(64.0, 245.0, 225.0, yaw)
    return figures.paint_figure(rng, sample_person(rng), sample_camera(rng), place)


def middle(labels, part):
    return np.nonzero(labels == part)[1].mean()


# ------------------------------------------------------------------ the same again


def test_a_training_picture_depends_on_seed_and_number_alone():
    first, again, other = training_picture(1, 7), training_picture(1, 7), training_picture(2, 7)
    assert first.jpeg == again.jpeg
    assert (first.map == again.map).all() and (first.keypoints == again.keypoints).all()
    assert first.jpeg != other.jpeg


def test_a_training_identity_can_be_shown_in_many_pictures():
    first, second = training_picture(1, 7, identity=3), training_picture(1, 8, identity=3)
    assert first.identity == second.identity
    assert first.jpeg != second.jpeg


def test_the_people_of_the_training_stream_are_not_those_of_a_dataset_of_the_same_seed():
    of_dataset = {person.variety for person in dataset.population(SMALL)}
    assert not of_dataset & {training_picture(SMALL.seed, i).identity.variety for i in range(3)}


def test_workers_do_not_change_a_byte_of_the_archive(tmp_path, rendered):
    dataset.write(tmp_path / "raw.zip", SMALL, 2)
    assert (tmp_path / "raw.zip").read_bytes() == rendered.read_bytes()


def test_the_datasets_size_does_not_change_a_picture():
    larger = dataset.Render(**{**SMALL.__dict__, "train_shots": 3, "gallery_shots": 1})
    shot = dataset.shots(SMALL)[0]
    assert shot in dataset.shots(larger)
    assert dataset.picture(SMALL, shot).jpeg == dataset.picture(larger, shot).jpeg


# ------------------------------------------------------------------ truth


@pytest.mark.parametrize("i", range(24))
def test_parts_masks_and_counts_agree(i):
    picture = stream()[i]
    assert picture.image.shape == (256, 128, 3) and picture.image.dtype == np.uint8
    assert (picture.person == (picture.map > 0)).all()
    assert [(picture.map == part).sum() for part in range(1, 9)] == picture.visible.tolist()
    assert (picture.visible <= picture.whole).all()
    if picture.occluder == 0:
        assert (picture.visible == picture.whole).all()


def test_whole_is_what_the_same_picture_shows_without_its_occluder():
    for number in range(6):
        draws = [np.random.default_rng([4, number]) for _ in range(2)]
        person, camera = (
            sample_person(np.random.default_rng(number)),
            sample_camera(np.random.default_rng(number)),
        )
        hidden, free = (
            pictures.compose(rng, person, camera, occluded)
            for rng, occluded in zip(draws, (True, False), strict=True)
        )
        assert hidden.occluder > 0 and free.occluder == 0
        assert (hidden.whole == free.visible).all()
        assert (free.map[hidden.map > 0] == hidden.map[hidden.map > 0]).all()


def test_an_occluder_hides_a_real_share_of_a_person_and_never_everything():
    occluded = [picture for picture in stream() if picture.occluder]
    assert {picture.occluder for picture in occluded} == {1, 2}
    hidden = np.array([1 - picture.visible.sum() / picture.whole.sum() for picture in occluded])
    assert hidden.min() > 0.05 and hidden.max() < 1
    assert np.mean((hidden >= pictures.MIN_HIDDEN) & (hidden <= pictures.MAX_HIDDEN)) > 0.5


@pytest.mark.parametrize(("aim", "kinds"), [aim[:2] for aim in pictures.HIDDEN_PARTS if aim[0]])
def test_an_object_over_parts_hides_all_of_them(aim, kinds):
    labels = np.where(figure(1, 0.0).map < 9, figure(1, 0.0).map, 0).astype(np.uint8)
    layers = [
        pictures._object_over_parts(np.random.default_rng(seed), labels, aim, kinds) for seed in range(4)
    ]
    assert any(layer is not None for layer in layers)
    for layer in layers:
        assert layer is None or (np.isin(labels, aim) & ~layer[2]).sum() <= pictures.MAX_REST


def test_there_is_no_object_over_parts_that_are_not_visible():
    labels = np.where(figure(1, 0.0).map == TORSO, TORSO, 0).astype(np.uint8)
    assert pictures._object_over_parts(np.random.default_rng(0), labels, (HEAD,), ("umbrella",)) is None


@pytest.mark.parametrize("i", range(24))
def test_a_visible_keypoint_lies_on_its_part_and_every_other_one_does_not(i):
    # the rule read aloud, pixel by pixel; facial points may also be turned away
    picture = stream()[i]
    for number, (x, y, visibility) in enumerate(picture.keypoints):
        column, row = round(float(x)), round(float(y))
        near = {
            int(picture.map[r, c])
            for r in range(row - 1, row + 2)
            for c in range(column - 1, column + 2)
            if 0 <= r < 256 and 0 <= c < 128
        }
        on_part = bool(near & figures.KEYPOINT_PARTS[number])
        assert on_part or visibility < 2
        if visibility == 1 and number > 4:
            assert not on_part


def test_limbs_behind_their_own_person_are_hidden_and_not_absent():
    points = np.stack([picture.keypoints for picture in stream()])
    assert set(np.unique(points[..., 2])) == {0, 1, 2}
    assert (points[..., 2] == 2).mean() > 0.5


def test_a_keypoint_outside_the_picture_is_zero():
    place = figures.Placement(64.0, 300.0, 240.0, 0.0)
    rng = np.random.default_rng(1)
    painted = figures.paint_figure(rng, sample_person(rng), sample_camera(rng), place)
    points = figures.keypoint_visibility(painted, np.zeros((256, 128), bool))
    ankles = [KEYPOINTS.index("left_ankle"), KEYPOINTS.index("right_ankle")]
    assert (points[ankles] == 0).all()


@pytest.mark.parametrize("number", range(6))
@pytest.mark.parametrize(("left", "right"), [(LEFT_ARM, RIGHT_ARM), (LEFT_LEG, RIGHT_LEG)])
def test_the_persons_left_is_on_the_right_from_the_front_and_on_the_left_from_behind(number, left, right):
    front, back = figure(number, 0.0).map, figure(number, np.pi).map
    assert middle(front, left) > middle(front, right)
    assert middle(back, left) < middle(back, right)


@pytest.mark.parametrize("number", range(6))
def test_from_the_side_the_nearer_arm_shows_more_and_the_face_looks_ahead(number):
    walks_right, walks_left = figure(number, np.pi / 2), figure(number, -np.pi / 2)
    assert (walks_right.map == RIGHT_ARM).sum() > (walks_right.map == LEFT_ARM).sum()
    assert (walks_left.map == LEFT_ARM).sum() > (walks_left.map == RIGHT_ARM).sum()
    nose, ear = KEYPOINTS.index("nose"), KEYPOINTS.index("left_ear")
    assert walks_right.keypoints[nose, 0] > walks_right.keypoints[ear, 0]
    assert walks_left.keypoints[nose, 0] < walks_left.keypoints[ear, 0]


@pytest.mark.parametrize("number", range(6))
def test_parts_are_stacked_as_bodies_are(number):
    labels = figure(number, 0.0).map
    height = {part: np.nonzero(labels == part)[0].mean() for part in range(1, 9)}
    assert height[HEAD] < height[TORSO] < min(height[LEFT_LEG], height[RIGHT_LEG])
    assert height[LEFT_LEG] < height[LEFT_FOOT] and height[RIGHT_LEG] < height[RIGHT_FOOT]
    shares = np.bincount(labels[(labels > 0) & (labels < 9)], minlength=9)[1:] / (labels > 0).sum()
    assert 0.05 < shares[HEAD - 1] < 0.2 and 0.15 < shares[TORSO - 1] < 0.5


def test_others_are_where_the_target_is_not_and_one_of_them_is_the_person_in_front():
    assert any(len(picture.others) for picture in stream())
    for picture in stream():
        for mask, keypoints in picture.others:
            assert not (mask & (picture.person > 0)).any()
            assert mask.shape == (256, 128) and keypoints.shape == (17, 3)
        if picture.occluder == 2:
            assert picture.others[0][0].any()


# ------------------------------------------------------------------ contamination


@cache
def contaminated_pairs():
    """Holistic training pictures, without and with a contamination."""
    plain = replace(SMALL, train_identities=6, train_occluded=0.0)
    contaminated = replace(plain, train_contaminated=1.0)
    shots = [shot for shot in dataset.shots(plain) if shot.split == "train"]
    return [[dataset.picture(render, shot) for render in (plain, contaminated)] for shot in shots]


def test_a_contaminated_picture_is_the_same_but_for_a_bystander_or_a_parcel():
    bystanders = 0
    for plain, contaminated in contaminated_pairs():
        assert contaminated.occluder == 0 and (contaminated.whole == plain.whole).all()
        hidden = (plain.map > 0) & (contaminated.map == 0)
        extra = contaminated.contaminating & ~plain.contaminating
        assert extra.any() and (hidden <= extra).all() and not (extra & (contaminated.map > 0)).any()
        far = cv2.dilate(extra.astype(np.uint8), np.ones((25, 25))) == 0  # beyond blur and blocks of JPEG
        difference = np.abs(plain.image.astype(int) - contaminated.image.astype(int))
        assert difference[extra].mean() > 4 * difference[far].mean()
        bystanders += len(contaminated.others) > len(plain.others)
        assert (len(contaminated.others) > len(plain.others)) == (not hidden.any())
    assert 0 < bystanders < len(contaminated_pairs())


def test_a_parcel_hides_less_of_the_target_than_an_occluder():
    shares = [
        1 - contaminated.visible.sum() / contaminated.whole.sum() for _, contaminated in contaminated_pairs()
    ]
    assert 0 < max(shares) <= MAX_HIDDEN


def test_only_holistic_training_pictures_are_contaminated_at_about_the_rate():
    render = replace(SMALL, train_identities=200, train_contaminated=0.3)
    train = [shot for shot in dataset.shots(render) if shot.split == "train"]
    rate = np.mean([dataset.contamination(render, shot) is not None for shot in train if not shot.occluded])
    assert 0.22 < rate < 0.38
    others = [shot for shot in dataset.shots(render) if shot.split != "train"]
    assert all(dataset.contamination(render, shot) is None for shot in others)
    assert all(dataset.contamination(render, shot) is None for shot in train if shot.occluded)


def test_the_truth_of_a_contaminated_dataset_has_a_map_of_what_contaminates(tmp_path):
    dataset.write(tmp_path / "raw.zip", replace(SMALL, train_contaminated=1.0), 1)
    with zipfile.ZipFile(tmp_path / "raw.zip") as file, h5py.File(io.BytesIO(file.read("truth.h5"))) as truth:
        assert truth["contaminating"].shape == truth["map"].shape
        assert not (truth["contaminating"][:] & (truth["map"][:] > 0)).any()


# ------------------------------------------------------------------ occluders


@pytest.mark.parametrize("kind", occluders.OBJECTS)
@pytest.mark.parametrize("share", [0.25, 0.55])
def test_every_kind_of_object_hides_a_part_of_a_person(kind, share):
    person = np.zeros((256, 128), bool)
    person[20:245, 40:88] = True
    hidden = []
    for seed in range(4):
        colour, cover, mask = occluders.draw_object(np.random.default_rng(seed), person, share, kind)
        hidden.append(occluders.hidden_share(person, mask))
        assert (cover[mask] > 0).all() and (colour[cover == 0] == 0).all()
    assert 0.1 < np.median(hidden) < 0.8


@given(share=st.floats(0.05, 0.95), axis=st.integers(0, 1), from_end=st.booleans(), seed=st.integers(0, 50))
@settings(max_examples=30, deadline=None)
def test_the_given_share_of_the_person_lies_beyond_the_boundary(share, axis, from_end, seed):
    person = np.random.default_rng(seed).random((60, 40)) < 0.5
    edge = share_boundary(person, share, axis, from_end)
    beyond = np.moveaxis(person, axis, 0)
    beyond = beyond[edge:] if from_end else beyond[: edge + 1]
    assert abs(beyond.sum() / person.sum() - share) < 0.05


# ------------------------------------------------------------------ people and cameras


def test_attributes_are_class_ids_that_name_what_the_person_wears():
    person = sample_person(np.random.default_rng(2))
    ids = attribute_classes(person)
    assert list(ids) == list(ATTRIBUTES)
    assert all(ATTRIBUTES[name][number] == getattr(person, name) for name, number in ids.items())


def test_every_class_has_a_probability():
    for name, classes in ATTRIBUTES.items():
        assert len(people.PROBABILITIES[name]) == len(classes)
        assert sum(people.PROBABILITIES[name]) == pytest.approx(1)


def test_no_two_people_of_the_dataset_look_the_same_yet_many_share_garments():
    looks = [tuple(attribute_classes(person).values()) for person in dataset.population(FULL)]
    assert len(set(looks)) == len(looks)
    garments = {(person.upper_colour, person.lower_colour) for person in dataset.population(FULL)}
    assert len(garments) < len(looks) / 5


def test_spread_cameras_differ():
    cameras = spread_cameras(FULL.seed, FULL.cameras)
    assert len({camera.balance for camera in cameras}) == FULL.cameras
    assert len({camera.place for camera in cameras}) == min(FULL.cameras, 5)


# ------------------------------------------------------------------ the dataset


def test_the_embedded_dataset_is_as_large_as_promised():
    shots = dataset.shots(FULL)
    assert FULL.train_identities >= 100 and FULL.test_identities >= 100 and FULL.cameras >= 4
    assert len(shots) >= 4000 and len({shot.name for shot in shots}) == len(shots)
    gallery = [shot for shot in shots if shot.split == "gallery"]
    assert np.mean([not shot.occluded for shot in gallery]) >= 0.85
    assert any(shot.pid == 0 for shot in gallery)


def test_every_query_has_a_match_in_another_camera():
    shots = dataset.shots(FULL)
    gallery = {(shot.pid, shot.camera) for shot in shots if shot.split == "gallery"}
    for shot in shots:
        if shot.split == "query":
            assert any(
                (shot.pid, camera) in gallery for camera in range(FULL.cameras) if camera != shot.camera
            )


def test_training_and_test_identities_are_disjoint():
    splits = {
        name: {shot.pid for shot in dataset.shots(FULL) if shot.split == name} for name in dataset.FOLDERS
    }
    assert not splits["train"] & (splits["query"] | splits["gallery"])
    assert splits["query"] == splits["gallery"] - {0}


def test_the_archive_has_market_1501s_layout_and_the_truth_of_every_picture(rendered):
    with zipfile.ZipFile(rendered) as archive:
        names = archive.namelist()
        truth = h5py.File(io.BytesIO(archive.read("truth.h5")))
        stored = {entry.compress_type for entry in archive.infolist()}
        dates = {entry.date_time for entry in archive.infolist()}
        pictures_ = {name: archive.read(name) for name in names if name != "truth.h5"}
    assert names == sorted(names)
    assert stored == {zipfile.ZIP_STORED} and dates == {dataset.DATE}
    shots = dataset.shots(SMALL)
    assert [key.decode() for key in truth["key"]] == [shot.key for shot in shots]
    assert truth.attrs["kind"] == "truth"
    for row, shot in enumerate(shots):
        pid, camera = re.match(r"(-?\d+)_c(\d)", shot.name).groups()
        assert (int(pid), int(camera) - 1) == (shot.pid, shot.camera)
        rendered_picture = dataset.picture(SMALL, shot)
        assert pictures_[f"{dataset.FOLDERS[shot.split]}/{shot.name}"] == rendered_picture.jpeg
        for name in ("map", "person", "keypoints", "visible", "whole"):
            assert (truth[name][row] == getattr(rendered_picture, name)).all()
        assert truth["occluder"][row] == rendered_picture.occluder
        assert (rendered_picture.occluder > 0) == shot.occluded


BAD = {
    "cameras: 1": "render.cameras",
    "train_occluded: 1.5": "render.train_occluded",
    "train_identites: 3": "train_identites is not a parameter",
}


@pytest.mark.parametrize(("line", "message"), BAD.items())
def test_a_dataset_that_cannot_be_rendered_is_refused(tmp_path, line, message):
    name, value = line.split(": ")
    values = {**SMALL.__dict__, name: float(value) if "." in value else int(value)}
    path = tmp_path / "params.yaml"
    path.write_text(
        "render:\n" + "".join(f"  {key}: {val}\n" for key, val in values.items() if "__" not in key)
    )
    with pytest.raises(params.BadInput, match=message):
        params.read(path, "render", dataset.Render)
