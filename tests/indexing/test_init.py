"""Pictures of one's own become a dataset: whatever people and cameras are called, down to two people."""

import difflib
import io
import re
import time
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core import params
from pipeline.core.params import BadInput
from pipeline.indexing import datasets, own_data, own_splits
from pipeline.indexing.archive import Archive
from pipeline.indexing.build import build_index
from stages import init
from tests.indexing.test_build import options, picture
from tests.reduced import change

ROOT = Path(__file__).parents[2]
CONTENTS = {".txt": b"text", ".heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"}


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
        file.write_bytes(CONTENTS.get(file.suffix, picture(number)))


def table_of(archive: str) -> pd.DataFrame:
    with zipfile.ZipFile(archive) as file:
        return pd.read_csv(io.BytesIO(file.read("people.csv")))


def index_of(archive: str) -> pd.DataFrame:
    with Archive(archive) as files:
        return build_index(files, "table", options(), 1).index


def folders(people: int, *cameras: str) -> list[str]:
    return [f"person {n}/cam{camera} 1.jpg" for n in range(people) for camera in cameras]


# ------------------------------------------------------------------ one folder for each person


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
        "people: person 0, person 1, person 2, person 3, person 4, and 1 more",
        "1 other file left out:\n  no picture: 1 .txt (read me.txt)",
        "3 persons of 6 drawn to test on, by seed 1",
        'params.yaml: train_on: "embedded" -> "my_photos"',
        "params.yaml: train.identities is 3: that many people are in a batch",
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
    "one person": (["a/1.jpg", "a/2.jpg"], "", {}, r"1 person alone \(a\): there is nobody to tell apart"),
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
        "pid and label may each be the person. Say which: --person 'pid' or --person 'label'",
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
    "nobody": (["1.jpg"], "path,pid\n1.jpg,-1\n", {}, "row 2: person = '-1' is not a person"),
    "nobody of another name": (
        ["1.jpg"],
        "path,pid\n1.jpg,NaN\n",
        {},
        "row 2: person = 'NaN' is not a person",
    ),
    "strangers in one folder": (
        ["ann/1.jpg", "Unknown/1.jpg"],
        "",
        {},
        "mine: 1 fault\n  in Unknown/1.jpg: person = 'Unknown' is not a person",
    ),
    "a column twice": (["1.jpg"], "path,pid,path\n1.jpg,1,2.jpg\n", {}, "has more than one column path"),
    "another case of letters": (
        ["1.JPG"],
        "path,pid\n1.jpg,1\n",
        {},
        r"row 2: no file '1\.jpg' below mine; there is 1\.JPG",
    ),
    "folders of Market-1501": (
        ["bounding_box_train/1_c1s1_1.jpg", "query/1_c1s1_1.jpg", "bounding_box_test/1_c2s1_1.jpg"],
        "",
        {},
        "_test/ and bounding_box_train/, the folders of Market-1501.*pack mine mine.zip`.*folders`",
    ),
    "splits beside others": (
        ["train/a/1.jpg", "test/b/1.jpg", "misc/X/1.jpg"],
        "",
        {},
        "test/, train/ are called as splits, and misc/ not",
    ),
    "people in HEIC": (
        ["A/0.heic", "A/1.jpg", "B/1.jpg", "B/2.jpg", "E/1.heic"],
        "",
        {},
        "mine: 2 faults\n  A/0.heic: a picture of a format that Pillow lacks, which is not read; save it as",
    ),
    "a hidden picture": (["a/1.jpg", "a/.2.jpg", "b/1.jpg"], "", {}, r"a/\.2\.jpg: a hidden picture"),
    "a column without a CSV": (["a/1.jpg"], "", {"camera": "cam", "path": "x"}, "--path, --camera: columns"),
    "a pattern beside a CSV": (["1.jpg"], "path,pid\n1.jpg,1\n", {"pattern": "(.)"}, "--pattern: not read"),
    "a seed below 0": (
        ["a/1.jpg", "b/1.jpg"],
        "",
        {"seed": -1},
        "--seed = -1: give a whole number, 0 or more",
    ),
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


def test_a_link_in_place_of_a_persons_folder_is_a_fault(project):
    draw("mine", "a/1.jpg", "b/1.jpg")
    draw("other", "1.jpg")
    Path("mine/c").symlink_to(Path("other").resolve())
    with pytest.raises(BadInput, match="mine: 1 fault\n  c: a link or device, which is not read"):
        init.main("mine")


def test_what_is_missed_is_left_out_and_listed_if_params_yaml_says_so(project, capsys):
    change("params.yaml", {"index": {"others": "warn"}})
    draw("mine", *folders(4, "A", "B"), "person 4/1.heic", ".hidden/x/1.jpg", "person 0/notes")
    init.main("mine")
    assert table_of("data/raw/mine.zip")["person"].nunique() == 4
    said = capsys.readouterr().out
    assert "2 other files left out:\n  a hidden picture: 1 .jpg (.hidden/x/1.jpg)" in said
    assert "a picture of a format that Pillow lacks: 1 .heic (person 4/1.heic)" in said


def test_pictures_without_a_suffix_are_read(project):
    draw("mine", *(f"{person}/{n}" for person in "ab" for n in "12"))
    init.main("mine")
    assert len(set(index_of("data/raw/mine.zip")["sha256"])) == 4


def test_folders_below_those_of_people_are_warned_of(project, capsys):
    draw(
        "mine",
        *(f"{day}/{name}/{n}.jpg" for day in ("monday", "friday") for name in ("Ann", "Bob") for n in "12"),
    )
    init.main("mine")
    said = capsys.readouterr().out
    assert "people: friday, monday" in said
    assert "WARNING: 8 pictures in folders below those of people, such as friday/Ann/1.jpg" in said


# ------------------------------------------------------------------ what is unknown, and who is nobody


@pytest.mark.parametrize("word", ["-1", "NaN", "nan", "None", "null", "Unknown", ""])
def test_a_camera_that_is_called_unknown_is_unknown(project, word):
    draw("mine", *(f"{n}.jpg" for n in range(8)))
    rows = [f"{n}.jpg,p{n // 2},{word if n < 4 else n % 2}" for n in range(8)]
    init.main("mine", csv=write_csv("path,pid,camid\n" + "\n".join(rows)))
    cameras = table_of("data/raw/mine.zip").set_index("path")["camid"]
    assert cameras.to_dict() == {f"{n}.jpg": -1 if n < 4 else n % 2 for n in range(8)}


def test_a_column_of_cameras_or_splits_may_be_left_unread(project):
    draw("mine", *(f"{n}.jpg" for n in range(4)))
    file = write_csv("path,pid,cam,set\n" + "".join(f"{n}.jpg,{n // 2},7,dev\n" for n in range(4)))
    with pytest.raises(BadInput, match="split = 'dev' is none of"):
        init.main("mine", csv=file)
    with pytest.raises(BadInput, match="Leave the cameras out: no --pattern, or `--camera none`"):
        init.main("mine", csv=file, split="none")
    init.main("mine", csv=file, split="none", camera="none")
    assert set(table_of("data/raw/mine.zip")["camid"]) == {-1}


def test_persons_0_and_minus_1_in_the_gallery_alone_are_distractors_and_junk(project, capsys):
    people = ["a,train", "b,train", "c,query", "c,gallery", "0,gallery", "-1,gallery"]
    draw("mine", *(f"{n}.jpg" for n in range(6)))
    init.main(
        "mine", csv=write_csv("path,pid,split\n" + "".join(f"{n}.jpg,{p}\n" for n, p in enumerate(people)))
    )
    assert table_of("data/raw/mine.zip").set_index("path")["pid"].tolist() == [1, 2, 3, -1, 0, 3]
    assert "gallery 3 pictures of 1 person, cameras unknown, 1 distractor, 1 picture of junk" in (
        capsys.readouterr().out
    )


def test_person_0_is_a_person_where_a_query_shows_one_or_no_split_is_given(project):
    draw("mine", *(f"{split}/{n}/{split}.jpg" for split in ("train", "query", "gallery") for n in "01"))
    init.main("mine")
    assert set(table_of("data/raw/mine.zip")["pid"]) == {1, 2}


# ------------------------------------------------------------------ what params.yaml becomes


def test_people_to_test_on_alone_leave_the_training_as_it_was(project, capsys):
    draw("mine", *(f"test/{n}/{i}.jpg" for n in "cd" for i in range(3)))
    init.main("mine")
    values = params.load("params.yaml")
    assert (values["train_on"], values["test_on"]) == ("embedded", ["mine"])
    assert values["train"]["identities"] == 16 and values["parse_on"] == ["embedded", "mine"]
    assert datasets.reference_faults(values) == []
    assert "train_on stays embedded: fewer than two people of mine to train on" in capsys.readouterr().out


def test_people_to_train_on_alone_leave_the_test_as_it_was(project, capsys):
    draw("mine", *(f"{split}/{n}/1.jpg" for split, n in (("train", "a"), ("train", "b"), ("val", "c"))))
    init.main("mine")
    values = params.load("params.yaml")
    assert (values["train_on"], values["test_on"]) == ("mine", ["embedded"])
    assert datasets.reference_faults(values) == []
    said = capsys.readouterr().out
    assert (
        "test_on stays embedded: no query or no gallery in mine" in said and "split val: trained on" in said
    )


def test_an_edit_changes_only_the_lines_that_it_means_and_keeps_their_ends(project):
    draw("mine", *folders(4, "A", "B"))
    before = Path("params.yaml").read_bytes().replace(b"\n", b"\r\n")
    Path("params.yaml").write_bytes(before)
    init.main("mine")
    texts = [data.decode().split("\n") for data in (before, Path("params.yaml").read_bytes())]
    added = [line[1:] for line in difflib.unified_diff(*texts, n=0) if re.match(r"\+\s*\w", line)]
    assert [line.split(":")[0].strip() for line in added] == [
        "mine",
        "layout",
        "archive",
        "parse_on",
        "train_on",
        "test_on",
        "parsers",
        "identities",
    ]


def test_a_fault_that_index_finds_is_mended_by_init_again(project):
    draw("mine", *folders(4, "A", "B"))
    Path("mine/person 0/camA 1.jpg").write_bytes(picture(1)[:200])
    init.main("mine")
    with pytest.raises(BadInput) as error:
        index_of("data/raw/mine.zip")
    remedy = "Repair them in their folder, then run `python -m stages.init FOLDER --name mine --force`."
    assert str(error.value).endswith(remedy)
    draw("mine", *folders(4, "A", "B"))
    init.main("mine", name="mine", force=True)
    assert len(index_of("data/raw/mine.zip")) == 8


# ------------------------------------------------------------------ laws


def slow_queries(cameras, rng):
    """A picture is a query if afterwards every query still has a match, tried picture by picture."""
    queries = []
    for position in rng.permutation(len(cameras)).tolist():
        same = [q for q in queries if cameras[q] == cameras[position]]
        tried = [*queries, position]
        gallery = [camera for i, camera in enumerate(cameras) if i not in tried]
        matched = [any(cameras[q] < 0 or c < 0 or c != cameras[q] for c in gallery) for q in tried]
        if len(same) < (max(1, len(cameras) // 4) if cameras[position] < 0 else 1) and all(matched):
            queries.append(position)
    return sorted(queries)


@given(st.lists(st.integers(-1, 3), max_size=12), st.integers(0, 99))
def test_queries_are_those_of_the_slow_rule(cameras, seed):
    choose = (own_splits.choose_queries, slow_queries)
    chosen, slow = (function(cameras, np.random.default_rng(seed)) for function in choose)
    assert chosen == slow


@pytest.mark.parametrize("cameras", [[-1] * 40_000, [n % 3 for n in range(40_000)], list(range(2_000))])
def test_queries_of_many_pictures_are_chosen_at_once(cameras):
    start = time.perf_counter()
    assert own_splits.choose_queries(cameras, np.random.default_rng(1))
    assert time.perf_counter() - start < 2


@given(st.lists(st.integers(-1, 3), max_size=12), st.integers(0, 99))
def test_every_query_has_a_match_by_another_camera_in_the_gallery(cameras, seed):
    queries = own_splits.choose_queries(cameras, np.random.default_rng(seed))
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
