"""Pictures of one's own become a dataset: whatever people and cameras are called, down to two people."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core import params
from pipeline.core.params import BadInput
from pipeline.indexing import datasets, own_data
from pipeline.indexing.archive import Archive
from pipeline.indexing.build import build_index
from stages import init
from tests.indexing.test_build import options, picture

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with params.yaml, in which the command is called."""
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text((ROOT / "params.yaml").read_text())
    return tmp_path


def draw(folder: str, *paths: str) -> None:
    for number, path in enumerate(paths):
        file = Path(folder, path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(picture(number))


def table_of(archive: str) -> pd.DataFrame:
    with zipfile.ZipFile(archive) as file:
        return pd.read_csv(io.BytesIO(file.read("people.csv")))


def index_of(archive: str) -> pd.DataFrame:
    with Archive(archive) as files:
        return build_index(files, "table", options(), 1).index


def folders(people: int, *cameras: str) -> list[str]:
    return [f"person {n}/cam{camera} 1.jpg" for n in range(people) for camera in cameras]


# ------------------------------------------------------------------ a folder a person


def test_a_folder_a_person_becomes_a_dataset_that_params_yaml_names(project, capsys):
    draw("my photos", *folders(6, "A", "B"), "read me.txt")
    init.main("my photos", pattern=r"cam(\w)")
    index = index_of("data/raw/my_photos.zip")
    assert index.groupby("split", sort=False).size().to_dict() == {"train": 6, "query": 3, "gallery": 3}
    train = set(index.loc[index["split"] == "train", "pid"])
    assert len(train) == 3 and not train & set(index.loc[index["split"] != "train", "pid"])
    assert set(index["camid"]) == {0, 1}
    values = params.load("params.yaml")
    assert values["datasets"] == {"my_photos": {"layout": "table", "archive": "data/raw/my_photos.zip"}}
    assert values["parse_on"] == values["test_on"] == ["my_photos"] and values["train_on"] == "my_photos"
    assert values["parsers"] == "coco" and values["train"]["identities"] == 3
    said = capsys.readouterr().out
    for line in (
        "data/raw/my_photos.zip: 12 pictures of my photos",
        "train   6 pictures of 3 persons, 2 cameras",
        "left out: 1 file: read me.txt",
        "3 persons of 6 drawn to test on, by seed 1",
        'params.yaml: train_on: "embedded" -> "my_photos"',
        "Next: `uv run dvc repro index@my_photos`",
    ):
        assert line in said


def test_comments_and_all_other_values_of_params_yaml_stay(project):
    before = Path("params.yaml").read_text()
    draw("mine", *folders(2, "A", "B"))
    init.main("mine", parsers="embedded")
    after = Path("params.yaml").read_text()
    comments = [
        [line.split("#", 1)[1] for line in text.splitlines() if "#" in line] for text in (before, after)
    ]
    assert comments[0] == comments[1]
    old, new = params.load(io_path(before)), params.load("params.yaml")
    changed = {name for name in old if old[name] != new[name]}
    assert changed == {"datasets", "parse_on", "train_on", "test_on", "train"}
    assert {name for name in old["train"] if old["train"][name] != new["train"][name]} == {"identities"}


def io_path(text: str) -> Path:
    Path("before.yaml").write_text(text)
    return Path("before.yaml")


def test_the_split_is_the_same_for_a_seed_and_another_for_another(project):
    draw("mine", *folders(20, "A", "B"))
    blobs = []
    for seed in (1, 1, 2):
        init.main("mine", seed=seed, force=True)
        blobs.append(Path("data/raw/mine.zip").read_bytes())
    assert blobs[0] == blobs[1] != blobs[2]


@pytest.mark.parametrize("people", [2, 3])
def test_too_few_people_to_divide_are_trained_and_tested_on_alike_with_a_warning(project, people, capsys):
    draw("mine", *folders(people, "A", "B"))
    init.main("mine", pattern="cam(.)")
    index = index_of("data/raw/mine.zip")
    assert index.groupby("split")["pid"].nunique().to_dict() == dict.fromkeys(
        ("train", "query", "gallery"), people
    )
    assert params.load("params.yaml")["train"]["identities"] == people
    assert f"WARNING: {people} persons cannot be divided" in capsys.readouterr().out


def test_four_people_are_two_to_train_on_and_two_to_test_on(project):
    draw("mine", *folders(4, "A", "B"))
    init.main("mine")
    index = index_of("data/raw/mine.zip")
    assert index.groupby("split")["pid"].nunique().to_dict() == {"train": 2, "query": 2, "gallery": 2}


def test_folders_of_splits_hold_a_folder_a_person(project):
    draw("mine", "Train/ann/1.jpg", "Train/bob/1.jpg", "query/eve/1.jpg", "gallery/eve/2.jpg")
    init.main("mine")
    table = table_of("data/raw/mine.zip")
    assert table["split"].tolist() == ["train", "train", "query", "gallery"]
    assert table["person"].tolist() == ["ann", "bob", "eve", "eve"]
    assert table["path"].iloc[0] == "Train/ann/1.jpg"


def test_a_folder_test_is_divided_into_query_and_gallery(project):
    draw("mine", *(f"train/{n}/1.jpg" for n in "ab"), *(f"test/{n}/{i}.jpg" for n in "cd" for i in range(3)))
    init.main("mine")
    table = table_of("data/raw/mine.zip")
    assert table.groupby("split").size().to_dict() == {"train": 2, "query": 2, "gallery": 4}


# ------------------------------------------------------------------ any CSV


def write_csv(text: str, name: str = "mine/list.csv") -> str:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(text, encoding="utf-8")
    return name


def test_names_numbers_from_0_and_cameras_as_text_are_numbered_and_kept(project):
    draw("mine", *(f"{n}.jpg" for n in range(5)))
    rows = ["0.jpg,0,yard", "1.jpg,0,door", "2.jpg,Zoë,yard", "3.jpg,Zoë,door 10", "4.jpg,7,door 9"]
    init.main("mine", csv=write_csv("File Name,Person ID,Cam\n" + "\n".join(rows)))
    table = table_of("data/raw/mine.zip").drop_duplicates("path").set_index("path")
    assert table["pid"].to_dict() == {"0.jpg": 1, "1.jpg": 1, "4.jpg": 2, "2.jpg": 3, "3.jpg": 3}
    assert table["camid"].to_dict() == {"0.jpg": 3, "1.jpg": 0, "4.jpg": 1, "2.jpg": 3, "3.jpg": 2}
    assert table.loc["3.jpg", ["person", "camera"]].tolist() == ["Zoë", "door 10"]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_csv_may_come_from_any_spreadsheet(project, separator, mark):
    draw("mine", "a/1.jpg", "a/2.jpg", "b/1.jpg", "b/2.jpg")
    rows = [["image", "label"], ["a\\1.jpg", "1"], ["a/2.jpg", "1"], ["b/1.jpg", "2"], [" b/2.jpg", "2 "]]
    init.main("mine", csv=write_csv(mark + "\r\n".join(separator.join(row) for row in rows)))
    assert table_of("data/raw/mine.zip")["pid"].nunique() == 2


def test_columns_of_any_name_are_named_by_options(project):
    draw("mine", "1.jpg", "2.jpg", "3.jpg", "4.jpg")
    rows = "pic,who,where\n1.jpg,a,x\n2.jpg,a,y\n3.jpg,b,x\n4.jpg,b,y\n"
    init.main(
        "mine", csv=write_csv(rows, "elsewhere.csv"), path="pic", person="who", camera="where", name="our"
    )
    assert set(table_of("data/raw/our.zip")["camera"]) == {"x", "y"}


def test_paths_start_at_the_folder_or_at_the_csv_or_at_the_root(project):
    draw("mine", *(f"{n}.jpg" for n in range(4)))
    paths = ["0.jpg", "../1.jpg", "./2.jpg", str(project / "mine/3.jpg")]
    rows = "".join(f"{path},{n // 2}\n" for n, path in enumerate(paths))
    init.main("mine", csv=write_csv("path,pid\n" + rows, "mine/lists/all.csv"))
    assert set(table_of("data/raw/mine.zip")["path"]) == {"0.jpg", "1.jpg", "2.jpg", "3.jpg"}


def test_a_split_that_is_given_is_kept(project):
    draw("mine", *(f"{n}.jpg" for n in range(6)))
    rows = [
        "0.jpg,a,training",
        "1.jpg,b,Train",
        "2.jpg,c,test",
        "3.jpg,c,test",
        "4.jpg,d,probe",
        "5.jpg,d,gallery",
    ]
    init.main("mine", csv=write_csv("path,pid,set\n" + "\n".join(rows)))
    table = table_of("data/raw/mine.zip")
    assert table.groupby("split")["person"].apply("".join).to_dict() == {
        "train": "ab",
        "query": "cd",
        "gallery": "cd",
    }


FAULTS = {  # files, csv, options: what is said
    "no folder a person": (
        ["1.jpg", "a/2.jpg"],
        "",
        {},
        r"mine: needs a folder for each person; 1\.jpg lie in none",
    ),
    "no picture": (["a/notes.txt"], "", {}, "mine: needs a folder for each person, and holds no picture"),
    "one person": (["a/1.jpg", "a/2.jpg"], "", {}, r"one person alone \(a\): there is nobody to tell apart"),
    "one picture each": (["a/1.jpg", "b/2.jpg"], "", {}, "no person has two pictures"),
    "one camera each": (
        ["a/c1.jpg", "a/c1 x.jpg", "b/c2.jpg"],
        "",
        {"pattern": r"c(\d)"},
        "no person has two pictures by two cameras. Leave the cameras out",
    ),
    "a pattern that finds nothing": (
        ["a/c1.jpg", "b/x.jpg"],
        "",
        {"pattern": r"c(\d)"},
        r"finds no camera in 1 path: b/x\.jpg",
    ),
    "a pattern without a group": (
        ["a/1.jpg", "b/1.jpg"],
        "",
        {"pattern": "."},
        "no regular expression with a group",
    ),
    "no column of people": (
        ["1.jpg"],
        "path,who\n1.jpg,a\n",
        {},
        "which column is the person.*There are: path, who",
    ),
    "two columns of people": (
        ["1.jpg"],
        "path,pid,label\n1.jpg,1,a\n",
        {},
        "pid and label may both be the person",
    ),
    "a column that is not there": (
        ["1.jpg"],
        "path,pid\n1.jpg,1\n",
        {"person": "who"},
        "has no column 'who'",
    ),
    "a file that is not there": (
        ["1.jpg"],
        "path,pid\n1.jpg,1\n2.jpg,1\n",
        {},
        r"row 3: no file '2\.jpg' below mine",
    ),
    "a picture twice": (
        ["1.jpg"],
        "path,pid\n1.jpg,1\n\n1.jpg,2\n",
        {},
        r"row 4: 1\.jpg stands above already",
    ),
    "no row": (["1.jpg"], "path,pid\n", {}, "has no row below its header"),
    "nobody": (["1.jpg"], "path,pid\n1.jpg,-1\n", {}, "row 2: person = '-1' is nobody"),
    "a split of another name": (
        ["1.jpg"],
        "path,pid,split\n1.jpg,1,dev\n",
        {},
        "row 2: split = 'dev' is none of",
    ),
    "a name that cannot be": (
        ["a/1.jpg", "b/1.jpg"],
        "",
        {"name": "raw"},
        "--name: raw: data/raw/ holds the archives",
    ),
    "a share of nobody": (["a/1.jpg", "b/1.jpg"], "", {"test": 0}, "--test 0: give percent"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_and_nothing_is_written(project, fault):
    files, csv, choices, message = FAULTS[fault]
    draw("mine", *files)
    before = Path("params.yaml").read_text()
    with pytest.raises(BadInput, match=message):
        init.main("mine", csv=write_csv(csv) if csv else "", **choices)
    assert Path("params.yaml").read_text() == before and not Path("data").exists()


def test_a_params_yaml_that_lacks_a_section_is_named_and_nothing_is_written(project):
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(text.replace("index:", "indx:"))
    draw("mine", *folders(4, "A", "B"))
    with pytest.raises(BadInput, match=r"params\.yaml: index is missing; rename 'indx'"):
        init.main("mine")
    assert not Path("data").exists()


def test_nothing_is_replaced_unless_forced(project):
    draw("mine", *folders(4, "A", "B"))
    init.main("mine")
    with pytest.raises(BadInput, match=r"data/raw/mine\.zip exists and params\.yaml has a dataset mine"):
        init.main("mine")
    init.main("mine", force=True)
    assert params.load("params.yaml")["parse_on"] == ["mine"]


# ------------------------------------------------------------------ laws


@given(st.lists(st.integers(-1, 3), max_size=12), st.integers(0, 99))
def test_every_query_has_a_match_by_another_camera_in_the_gallery(cameras, seed):
    queries = own_data.choose_queries(cameras, np.random.default_rng(seed))
    gallery = [camera for i, camera in enumerate(cameras) if i not in queries]
    known = [cameras[q] for q in queries if cameras[q] >= 0]
    assert len(known) == len(set(known))
    assert all(cameras[q] < 0 or any(c != cameras[q] for c in gallery) for q in queries)
    assert bool(queries) == any(a < 0 or b < 0 or a != b for i, a in enumerate(cameras) for b in cameras[:i])


@given(st.text(max_size=60))
def test_a_suggested_name_can_be_one(text):
    assert datasets.name_faults([datasets.suggest_name(text)]) == []


def test_cam10_comes_behind_cam2():
    assert sorted(["cam10", "cam2", "b", "10", "9", "²"], key=own_data.natural) == [
        "9",
        "10",
        "b",
        "cam2",
        "cam10",
        "²",
    ]
