"""The console command: a trained model used without a line of Python."""

import csv
import re
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline import __main__, inference
from pipeline.command_line import search
from pipeline.inference import embedding_file
from pipeline.inference.embedding_file import EmbeddingFile
from pipeline.methods.base import Embedding
from tests import toy


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two trained models, and four pictures of two people."""
    folder = tmp_path_factory.mktemp("world")
    toy.trained(folder / "trained")
    toy.trained(folder / "other", seed=1)
    for n, image in enumerate(np.random.default_rng(0).integers(0, 256, (4, *toy.SIZE, 3), np.uint8)):
        place = folder / "people" / "ab"[n // 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{n}.png")
    return folder


@pytest.fixture
def run(world, monkeypatch, capsys):
    """Runs the words of a command line in the world's folder; returns what it printed, or its exit code."""

    def run(*words, program="/usr/bin/occluded-reid"):
        monkeypatch.setattr(sys, "argv", [program, *map(str, words)])
        try:
            __main__.main()
        except SystemExit as error:
            return error.code or capsys.readouterr().out
        return capsys.readouterr().out

    monkeypatch.chdir(world)
    return run


def test_pictures_are_embedded_and_what_is_left_out_is_listed(run, world, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    (tmp_path / "notes.txt").write_text("no picture")
    out = tmp_path / "embeddings.h5"
    (tmp_path / ".hidden.png").write_bytes(b"")
    (tmp_path / "again").symlink_to(".")
    assert run(
        "embed", "trained", "people/**/*.png", tmp_path, "people/a", "people/a/0.png", "--out", out
    ) == (
        f"{out}: 4 pictures\n1 picture left out:\n  {tmp_path}/bad.jpg: no picture\n"
        "3 other files left out (1 hidden, 1 link to a folder, 1 .txt)\n"
    )
    content = inference.read_embeddings(out)
    assert content.names == ["people/a/0.png", "people/a/1.png", "people/b/2.png", "people/b/3.png"]
    wanted = inference.load("trained").embed("people")
    assert torch.equal(content.embedding.parts, wanted.parts)


@pytest.mark.parametrize("guess", [(), ("--guess",)])
def test_a_search_names_the_nearest_pictures_with_their_distances(run, tmp_path, guess):
    file = tmp_path / "embeddings.h5"
    run("embed", "trained", "people", "--out", file, "--batch", 3, *guess)
    model = inference.load("trained")
    both = [model.embed(p, guess=bool(guess)) for p in (["people/b/2.png", "people/a/0.png"], "people")]
    table = inference.distances(*both)
    names = [f"people/{name}.png" for name in ("a/0", "a/1", "b/2", "b/3")]
    rows = [
        [query, str(rank), f"{table[q, g]:.6g}", names[g]]
        for q, query in enumerate(["people/b/2.png", "people/a/0.png"])
        for rank, g in enumerate(table[q].argsort(stable=True)[:3].tolist(), 1)
    ]
    words = ("search", "trained", file, "people/b/2.png", "people/a/0.png", "--top", 3)
    lines = run(*words).splitlines()
    printed = [line.split("\t") for line in lines]
    assert [row[0::3] for row in printed] == [row[0::3] for row in rows]
    assert np.allclose([float(row[2]) for row in printed], [float(row[2]) for row in rows], atol=2e-3)
    assert run(*words, "--csv", tmp_path / "near.csv") == ""
    with (tmp_path / "near.csv").open(newline="") as stream:
        assert list(csv.reader(stream)) == [["query", "rank", "distance", "picture"], *printed]


@settings(max_examples=20)
@given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 12), st.integers(1, 20), st.integers(0, 99))
def test_a_search_by_blocks_finds_what_sorting_all_distances_finds(
    tmp_path_factory, queries, count, top, pairs, seed
):
    generator = torch.Generator().manual_seed(seed)
    sides = [
        Embedding(
            torch.randint(1, 3, (n, 2, 2), generator=generator).float(),  # of few values: many distances tie
            torch.ones(n, 2),
        )
        for n in (queries, count)
    ]
    path = tmp_path_factory.mktemp("search") / "file.h5"
    with embedding_file.create(path, {}, []) as append:
        append([str(n) for n in range(count)], sides[1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "PAIRS", pairs)
        distances, rows = search.nearest(sides[0], EmbeddingFile(path), top)
    table = torch.cat([inference.distances(sides[0], _rows(sides[1], g)) for g in range(count)], 1)
    for q in range(queries):
        order = sorted(range(count), key=lambda g, q=q: (table[q, g], g))[:top]
        assert torch.allclose(distances[q], table[q, order], atol=1e-3)
        assert rows[q].tolist() == order or torch.allclose(table[q, rows[q]], table[q, order], atol=1e-3)


def _rows(embedding, row):
    return Embedding(embedding.parts[row : row + 1], embedding.visibility[row : row + 1])


def test_a_search_by_another_model_is_refused(run, tmp_path):
    run("embed", "trained", "people", "--out", tmp_path / "embeddings.h5")
    said = run("search", "other", tmp_path / "embeddings.h5", "people/a/0.png")
    assert said == f"{tmp_path}/embeddings.h5: not made by the model other. Embed the gallery with it."


WRONG = {  # words: what the user reads
    "search trained gone.h5 people": "gone.h5: no such file. Name a file that `embed` wrote",
    "search gone trained/model.safetensors people": "damaged or no HDF5 file. Name a file that `embed` wrote",
    "search trained trained/record.json people --top 0": "--top = 0: give a whole number, 1 or more.",
    "embed trained gone.png": "gone.png: no such file. Name files, folders or patterns.",
    "embed trained people gone.png gone.jpg": "gone.png, gone.jpg: no such file.",
    "embed trained people/*.jpg": "people/*.jpg: no file matches. Name another place.",
    "embed trained trained/record.json": "trained/record.json: cannot be used (no picture), and no other",
    "embed gone people --out people": "people: is a folder, and a file would take its place.",
    "export gone people": "people: is a folder, and a file would take its place.",
    "search trained gone.h5 people --csv people": "people: is a folder, and a file would take its place.",
    "embed trained people --out .": ".: is a folder, and a file would take its place.",
    "embed people people": "people: no trained model",
    "export people model.onnx": "people: no trained model",
    "embed trained people --device tpu": "device = 'tpu'",
}


@pytest.mark.parametrize("words", WRONG)
def test_a_wrong_word_is_named(run, words):
    assert WRONG[words] in run(*words.split())


def test_what_a_search_cannot_read_is_named_with_a_remedy_for_a_shell(run, tmp_path):
    run("embed", "trained", "people", "--out", tmp_path / "embeddings.h5")
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    said = run("search", "trained", tmp_path / "embeddings.h5", tmp_path / "broken.jpg")
    assert said == f"{tmp_path}/broken.jpg: cannot be used (no picture).\nLeave these out, or give others."


def test_small_distances_keep_their_digits(run, tmp_path, monkeypatch):
    run("embed", "trained", "people", "--out", tmp_path / "embeddings.h5")
    row = torch.tensor([[0.0]]), torch.tensor([[0]])
    for distance, printed in ((0.00001234567, "1.23457e-05"), (1.0, "1"), (0.25, "0.25")):
        monkeypatch.setattr(search, "nearest", lambda *_, d=distance: (row[0] + d, row[1]))
        assert (
            run("search", "trained", tmp_path / "embeddings.h5", "people/a/0.png").split("\t")[2] == printed
        )


def test_a_call_without_a_command_asks_for_it_alone(run, capsys):
    assert run() == 2 and capsys.readouterr().err.endswith("arguments are required: command\n")


def test_a_folder_is_packed(run, tmp_path):
    assert run("pack", "people", tmp_path / "people.zip").startswith(f"{tmp_path}/people.zip: 4 files of")


def test_help_names_the_program_as_it_was_called(run):
    for program, name in (("/bin/occluded-reid", "occluded-reid"), ("x/__main__.py", "python -m pipeline")):
        assert run("--help", program=program).startswith(f"usage: {name} [-h] {{embed,search,export,")
        assert run("embed", "--help", program=program).startswith(f"usage: {name} embed [-h] [--out OUT]")


def test_each_command_stands_in_the_description(run):
    for command in __main__.COMMANDS:
        assert re.search(rf"^ *{command} +\w", run("--help"), re.MULTILINE)
