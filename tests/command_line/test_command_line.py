"""The console command: a trained model used without a line of Python."""

import re

import numpy as np
import pytest
from PIL import Image

from pipeline import __main__
from tests import toy


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A trained model, and four pictures of two people."""
    folder = tmp_path_factory.mktemp("world")
    toy.trained(folder / "trained")
    for n, image in enumerate(np.random.default_rng(0).integers(0, 256, (4, *toy.SIZE, 3), np.uint8)):
        place = folder / "people" / "ab"[n // 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{n}.png")
    return folder


def test_a_folder_is_indexed_and_searched_as_by_the_stage(run, tmp_path):
    file = tmp_path / "gallery.h5"
    said = run("index", "people", "--model", "trained", "--out", file)
    assert said.startswith(f"{file}: 4 pictures, 4 embedded now, 0 rows dropped")
    lines = run("query", file, "people/b/2.png", "people/a/0.png", "--top", 2).splitlines()
    assert [line.split("\t")[:2] for line in lines] == [
        [query, rank] for query in ("people/b/2.png", "people/a/0.png") for rank in ("1", "2")
    ]
    assert [line.split("\t")[3] for line in lines[::2]] == ["b/2.png", "a/0.png"]


WRONG = {  # words: what the user reads
    "query gone.h5 people": "gone.h5: no such file. Name a file that `index` wrote",
    "query trained/model.safetensors people": "damaged or no HDF5 file. Name a file that `index` wrote",
    "query gone.h5 people --html people": "people: is a folder, and a file would take its place.",
    "index people --model trained --out .": ".: is a folder, and a file would take its place.",
    "index people --model people": "people: no trained model",
    "index people --model trained --device tpu": "device = 'tpu'",
    "export gone people": "people: is a folder, and a file would take its place.",
    "export people model.onnx": "people: no trained model",
}


@pytest.mark.parametrize("words", WRONG)
def test_a_wrong_word_is_named(run, words):
    assert WRONG[words] in run(*words.split())


def test_a_call_without_a_command_asks_for_it_alone(run, capsys):
    assert run() == 2 and capsys.readouterr().err.endswith("arguments are required: command\n")


def test_a_folder_is_packed(run, tmp_path):
    assert run("pack", "people", tmp_path / "people.zip").startswith(f"{tmp_path}/people.zip: 4 files of")


def test_help_names_the_program_as_it_was_called(run):
    for program, name in (("/bin/occluded-reid", "occluded-reid"), ("x/__main__.py", "python -m pipeline")):
        words = " ".join(run("--help", program=program).split())  # a long name breaks the line elsewhere
        assert words.startswith(f"usage: {name} [-h] {{index,query,serve,export,")
        assert run("index", "--help", program=program).startswith(f"usage: {name} index [-h] [--model MODEL]")


def test_each_command_stands_in_the_description(run):
    for command in __main__.COMMANDS:
        assert re.search(rf"^ *{command} +\w", run("--help"), re.MULTILINE)
