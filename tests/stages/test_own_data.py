"""The pages' steps for pictures of one's own work as they are written, in a fresh clone, on drawn pictures.

Two things differ, as there is no network and little time: the parsers are the embedded ones, and training is
one epoch.
"""

import json
import re
import shlex
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests import reduced
from tests.indexing.test_build import picture
from tests.stages.test_pipeline import clone, command, commit, copy_project, stages_run

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
QUICK = {"parsers": "", "train": {"epochs": 1}, "workers": 1}


def blocks(page: str, heading: str) -> list[str]:
    """The fenced blocks of a section of a page, without their indent; YAML ones start with `yaml`."""
    section = re.search(
        rf"^## {heading}\n(.*?)(?=^## |\Z)", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE
    )
    found = re.findall(r"^( *)```(.*?)^ *```$", section[1], re.DOTALL | re.MULTILINE)
    return [re.sub(rf"^{indent}", "", block, flags=re.MULTILINE).strip() for indent, block in found]


def run_block(project: Path, block: str) -> str:
    """The output of a block's commands, line after line as a user would paste them; or set its YAML."""
    if block.startswith("yaml\n"):
        reduced.replace(project / "params.yaml", YAML(typ="safe").load(block.removeprefix("yaml\n")))
        return ""
    output = ""
    for line in block.splitlines():
        words = shlex.split(line, comments=True)
        output += command(project, *(words[2:] if words[:2] == ["uv", "run"] else words))
        if "stages.init" in words:
            reduced.change(project / "params.yaml", QUICK)
    return output


def draw(folder: Path, paths: list[str]) -> None:
    for number, path in enumerate(paths):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(picture(number, size=(24, 48)))


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A fresh clone of the project, its embedded dataset made small."""
    origin = copy_project(tmp_path_factory.mktemp("own") / "origin")
    commit(origin, "The project")
    return clone(origin, "clone")


def test_pictures_in_a_folder_a_person_come_to_metrics_and_a_queued_experiment(project):
    draw(project / "mine", [f"{person}/{n}.jpg" for person in ("Ann", "Bob", "Cid", "Dé") for n in "ab"])
    (own,) = blocks("README.md", "Your own data")
    output = run_block(project, own)
    assert "train   4 pictures of 2 persons, cameras unknown" in output
    assert len(stages_run(output)) == 12
    assert set(json.loads((project / "data/mine/metrics.json").read_text())) == {
        "all",
        "occluded",
        "holistic",
    }
    queue = blocks("pipeline/indexing/README.md", "Steps")[-1]
    output = run_block(project, queue)
    again = stages_run(output)
    assert "label@mine" in again and not {"index@mine", "segment@mine", "pose@mine"} & set(again), output


def test_the_steps_by_hand_come_to_an_index(project):
    project = clone(project, "by_hand")
    draw(project / "mine", [f"{n}.jpg" for n in range(8)])
    splits = ["train", "train", "train", "train", "query", "gallery", "query", "gallery"]
    rows = [f"{n}.jpg,{n // 2 + 1},{n % 2},{split}" for n, split in enumerate(splits)]
    (project / "mine/people.csv").write_text("path,pid,camid,split\n" + "\n".join(rows), encoding="utf-8")
    *steps, index, _ = blocks("pipeline/indexing/README.md", "Steps")
    for block in steps:
        run_block(project, block)
    reduced.change(project / "params.yaml", {**QUICK, "train": {"identities": 2}})  # step 5
    output = run_block(project, index)
    assert stages_run(output) == ["check", "index@mine"] and "8 images" in output
