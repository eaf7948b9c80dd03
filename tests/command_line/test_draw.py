"""The command `draw`: figures of a test set and of trained models, from files alone."""

import shutil

import matplotlib.pyplot as plt
import numpy as np
import pytest

from pipeline.command_line.evaluated_set import EvaluatedSet, TrainedModel
from pipeline.core.params import BadInput
from pipeline.data.index import read_index
from pipeline.inference.extract import extract_features
from tests import toy
from tests.explanation import world as test_world

EMBED = "{batch: 3, cameras: auto, without_maps: false, precision: float32, matmul: default, attention: math}"
EVALUATE = """{metric: euclidean, ap: rectangular, memory: 64, group_lambda: 5, depth: 4, top: 3,
           rerank: {depth: 0, k1: 2, k2: 1, original: 0.3}}"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A test set, OGFR, the baseline, and features of another model that mistakes person 1 for person 2."""
    folder = tmp_path_factory.mktemp("world")
    index = test_world.write(folder / "set")
    test_world.write_features(folder / "other.h5", index, swapped=(1, 2))
    toy.trained(folder / "ogfr")
    toy.trained(folder / "baseline", "vit_baseline")
    (folder / "params.yaml").write_text(f"embed: {EMBED}\nevaluate: {EVALUATE}\n")
    return folder


@pytest.fixture
def run(run):
    """Runs `draw` in the world's folder; returns what it printed, or its exit code."""
    return lambda words: run("draw", *words.split(), "--dataset", "set", "--dpi", "30")


@pytest.fixture
def drawn(monkeypatch):
    """The texts of the last figure that was saved."""
    texts = []
    save = plt.Figure.savefig

    def watched(figure, *arguments, **options):
        texts[:] = [text.get_text() for text in figure.findobj(plt.Text) if text.get_text()]
        return save(figure, *arguments, **options)

    monkeypatch.setattr(plt.Figure, "savefig", watched)
    return texts


WRITTEN = {  # words: what is printed below the file's name, what the figure says
    "attention worst --model ogfr": (
        "query/1.png query/2.png", "ogfr (ogfr): attention of the student's last layer"
    ),
    "attention best --model ogfr --count 1 --layer decoder": (
        "query/2.png", "ogfr (ogfr): attention of the decoder's last layer"
    ),
    "attention worst --model baseline --group occluded": ("query/1.png", "query/1.png, AP 50.0 %"),
    "attention query/3.png query/1.png --model ogfr": ("query/3.png query/1.png", "query/3.png, no match"),
    "attention changed --model ogfr --count 1 --beside encoder": ("query/2.png", "query/2.png, AP 100.0 %"),
    "erasing worst --model ogfr --count 1": ("query/1.png", "ogfr (ogfr): patches that the agent erases"),
    "erasing query/3.png --model ogfr": ("query/3.png", "same person"),
    "rankings changed --model model --beside other.h5 --count 1": ("query/1.png", None),
    "rankings worst --model other.h5 --beside model --count 1": ("query/1.png", None),
    "rankings random --model ogfr --beside baseline --count 9": ("", None),
}  # fmt: skip


@pytest.mark.parametrize("words", WRITTEN)
@pytest.mark.parametrize("kind", ["png", "svg"])
def test_a_figure_is_written_and_its_queries_are_listed(run, drawn, words, kind, tmp_path):
    keys, text = WRITTEN[words]
    out = tmp_path / f"figure.{kind}"
    said = run(f"{words} --out {out}")
    assert out.stat().st_size > 1000
    listed = [line for line in said.splitlines() if line.startswith("query/")]
    assert listed == keys.split() or (not keys and sorted(listed) == ["query/1.png", "query/2.png"])
    assert f"{out}: " in said and (text is None or text in drawn)


def test_a_method_without_parts_says_that_its_class_token_is_drawn_alone(run, drawn, tmp_path):
    said = run(f"attention random --model baseline --out {tmp_path / 'a.png'}")
    assert said.startswith("baseline: vit_baseline has no part tokens, so its class token is drawn alone\n")
    assert "nearest part" not in drawn and "global" in drawn


def test_below_an_erased_query_stands_the_whole_image_of_its_person(run, drawn, tmp_path):
    run(f"erasing query/1.png --model ogfr --out {tmp_path / 'a.png'}")
    captions = [text.split("\n")[0] for text in drawn if "kept" in text]
    assert captions == ["query/1.png, AP 50.0 %", "gallery/1_1.png"]  # 1_0 hides the legs


def test_rankings_show_both_systems_as_they_rank(world):
    both = EvaluatedSet(world / "set", str(world / "params.yaml"))
    rankings = both.rankings("model", str(world / "other.h5"), top=2)
    gallery = read_index(world / "set" / "index.parquet").query("split == 'gallery'")["pid"].to_numpy()
    pids = {name: gallery[ranking.top[:2]].tolist() for name, ranking in rankings.items()}
    assert list(pids.values()) == [[[1, 1], [2, 2]], [[2, 2], [1, 1]]]


def test_a_trained_folder_embeds_as_the_stage_embed_does(world):
    both = EvaluatedSet(world / "set", str(world / "params.yaml"))
    trained = TrainedModel(str(world / "ogfr"), both)
    query, gallery = both.embedded(str(world / "ogfr"))
    batches = list(trained.batches(np.arange(7), 3))
    with trained.computing():
        arrays = extract_features(
            trained.model, trained.encoder, batches, 7, 3, trained.device, without_maps=False
        )
    assert np.array_equal(np.concatenate([query.parts, gallery.parts]), arrays["model/part"])
    assert np.array_equal(np.concatenate([query.visibility, gallery.visibility]), arrays["model/visibility"])
    assert query.keys == [f"query/{pid}.png" for pid in (1, 2, 3)] and gallery.pid.tolist() == [1, 1, 2, 2]


def test_the_gate_of_a_trained_folder_is_that_of_its_queries(world, tmp_path):
    both = EvaluatedSet(world / "set", str(world / "params.yaml"))
    query, gallery = both.embedded(str(toy.trained(tmp_path / "dpm", "dpm")))
    assert query.gate.shape == query.parts.shape and gallery.gate is None


WRONG = {  # words: what the user reads
    "attention worst --model ogfr --out a.jpg": "a.jpg: no kind of figure. Let the name end in one of .png,",
    "attention worst --model ogfr --count 0": "--count = 0: give a whole number, 1 or more.",
    "attention wurst --model ogfr": "queries: wurst: no query has this key. Name keys of the index, such as",
    "attention worst --model set": "set: no trained model.",
    "attention worst --model baseline --layer decoder": "baseline: no decoder: OGFR alone has one.",
    "attention changed --model ogfr --beside clip": "beside = clip: no AP of this system.",
    "erasing worst --model baseline": "baseline: no agent that erases patches: OGFR alone has one.",
    "rankings worst --model gone": "gone: no such file or folder, and no system that `evaluate` ranks "
    "(model, encoder, histogram). Name one of these, a features.h5, or a folder of a trained model.",
    "rankings worst --model encoder": "--beside = encoder: the same as --model. Name another system.",
    "rankings worst --model ogfr/model.safetensors": "damaged or no HDF5 file",
    "rankings worst --model set": "set: no trained model.",
}


@pytest.mark.parametrize("words", WRONG)
def test_what_cannot_be_drawn_is_named(run, words, tmp_path):
    out = "" if "--out" in words else f" --out {tmp_path / 'a.png'}"
    assert WRONG[words] in run(words + out)
    assert not (tmp_path / "a.png").exists()


def test_a_test_set_that_is_not_ranked_or_was_ranked_by_another_index_is_named(world, tmp_path):
    shutil.copytree(world / "set", tmp_path / "set")
    other = EvaluatedSet(tmp_path / "set", str(world / "params.yaml"))
    table = other.queries
    table.iloc[::-1].to_parquet(tmp_path / "set" / "queries.parquet", index=False)
    with pytest.raises(BadInput, match=r"not the queries of index\.parquet beside it"):
        _ = other.queries
    (tmp_path / "set" / "queries.parquet").unlink()
    with pytest.raises(BadInput, match=r"queries\.parquet: no such file\. Run `dvc repro evaluate`"):
        _ = other.queries
