"""Studies: rows name real params, tables say what was measured, nothing is run twice."""

import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from ruamel.yaml import YAML

from pipeline.core import params
from pipeline.core.label_file import write_label_file
from pipeline.core.params import BadInput
from pipeline.data.index import index_hash, read_index
from pipeline.indexing import build
from pipeline.labels import occlusion
from pipeline.methods.base import data_spec, load_method
from pipeline.methods.presets import resolve
from pipeline.model.backbones import save_vit
from pipeline.studies import markdown, tables
from pipeline.training.schedule import Schedule
from stages import index as index_stage
from stages import study as stage
from tests import toy

ROOT = Path(__file__).parents[2]
VALUES = params.load(ROOT / "params.yaml")
DAG = params.load(ROOT / "dvc.yaml")
ALL = {name: tables.load(name) for name in params.load(tables.TABLE)}
COMPARISONS = ("table1", "table2", "table3")  # with sets that users bring
ROWS = [(name, number) for name, study in ALL.items() for number in range(len(study.rows))]


def row_of(name, number):
    return ALL[name].rows[number]


# ------------------------------------------------------------------ what a row sets


@pytest.mark.parametrize(("name", "number"), ROWS)
def test_a_row_sets_params_that_there_are_to_values_that_they_take(name, number):
    row = row_of(name, number)
    values = tables.experiment(VALUES, row, 1)
    chosen = values["method"]
    sets = {"train_on", "test_on"} if name in COMPARISONS else set()
    assert {key.split(".")[0] for key in row.set} <= {"method", "lambda", "label", "train", chosen, *sets}
    module = load_method(chosen)
    settings = params.validate(values[chosen], module.Params, "", chosen)
    schedule = params.validate(values["train"], Schedule, "", "train")
    params.validate(values["label"], occlusion.Label, "", "label")
    params.validate(values["lambda"], float, "", "lambda")
    assert None not in vars(resolve(schedule, module.PRESETS, settings.preset, "train")).values()
    settings = replace(resolve(settings, module.PRESETS, settings.preset, chosen), stride=16)
    world = data_spec(toy.people(identities=10, each=2))
    module.build(settings, replace(world, coarse=values["label"]["parts"]), toy.encoder(depth=6))
    assert len(row.cells) == len(ALL[name].columns)


PUBLISHED = {  # Rank-1, 5, 10 and mAP on Occluded-Duke
    "ogfr": [76.6, 86.4, 89.8, 64.7],
    "fed": [68.1, None, None, 56.4],
    "dpm": [71.4, None, None, 61.8],
    "dpmpp": [None] * 4,
}


@pytest.mark.parametrize("name", sorted(ALL.keys() - COMPARISONS))
def test_the_default_is_one_row_of_every_study_with_the_papers_best_figures(name):
    method = name if name in PUBLISHED else VALUES["method"]
    default = tables.score_params({**VALUES, "method": method})
    same = [
        row
        for row in ALL[name].rows
        if tables.score_params(tables.experiment(VALUES, row, VALUES["seed"])) == default
    ]
    assert [row.paper for row in same] == [PUBLISHED[method]]


def test_the_study_of_all_methods_has_a_row_for_each():
    methods = [tables.experiment(VALUES, row, 1)["method"] for row in ALL["methods"].rows]
    assert sorted(methods) == sorted(tables.METHODS)


def test_a_control_is_an_earlier_row_of_the_study():
    for study in ALL.values():
        assert all(row.control < number for number, row in enumerate(study.rows, 1))
        assert all(study.rows[row.control - 1].control == 0 for row in study.rows if row.control)


def test_the_rows_of_a_study_are_different_experiments():
    for study in ALL.values():
        assert len({tables.digest(tables.experiment(VALUES, row, 1)) for row in study.rows}) == len(
            study.rows
        )


def test_a_comparison_asks_for_the_sets_that_params_yaml_lacks(tmp_path):
    row = row_of("table1", 1)
    wanted = tables.experiment(VALUES, row, 1)
    with pytest.raises(BadInput, match=r"datasets has no 'market1501'.*Add `market1501: {layout: market1501"):
        tables.check_datasets(wanted)
    wanted["datasets"] |= {"market1501": {}}
    with pytest.raises(BadInput, match="datasets has no 'occluded_reid'"):
        tables.check_datasets(wanted)
    tables.check_datasets(wanted | {"datasets": {"market1501": {}, "occluded_reid": {}}})
    with pytest.raises(SystemExit, match="datasets has no 'p_dukemtmc_reid'"):
        stage.main(["run", "table2", "--results", str(tmp_path / "results")])


def test_comparisons_name_layouts_and_are_about_all_queries():
    for name in COMPARISONS:
        assert ALL[name].queries == "all"
        for row in ALL[name].rows:
            for layout in (row.set["train_on"], *row.set["test_on"]):
                assert build.load_layout(layout).COUNTS


@pytest.mark.parametrize("name", COMPARISONS)
def test_every_row_of_a_comparison_learns_at_the_papers_rate(name):
    module = load_method("ogfr")
    for row in ALL[name].rows:
        values = tables.experiment(VALUES, row, 1)
        settings = params.validate(values["ogfr"], module.Params, "", "ogfr")
        schedule = params.validate(values["train"], Schedule, "", "train")
        used = vars(resolve(schedule, module.PRESETS, settings.preset, "train"))
        for step in ("optimiser", "lr", "decay", "clip", "epochs", "warmup"):
            assert used[step] == module.PRESETS[f"train.{step}"][1]  # the preset `paper`
        assert settings.head_gain == module.PRESETS["ogfr.head_gain"][1]


def test_methods_of_other_presets_are_not_compared(tmp_path):
    study, unequal = ALL["table4"], {**VALUES, "ogfr": {**VALUES["ogfr"], "preset": "paper"}}
    both = r"vit_baseline\.preset = recommended but ogfr\.preset = paper.* Give all the same preset"
    with pytest.raises(BadInput, match=both):
        tables.check_presets(study, unequal)
    tables.check_presets(study, {**unequal, "vit_baseline": {**VALUES["vit_baseline"], "preset": "paper"}})
    tables.check_presets(ALL["table5"], unequal)  # rows of one method


@pytest.mark.parametrize("words", [["queue"], ["run", "--results", "r"], ["show", "--results", "r"]])
def test_nothing_is_done_with_a_study_that_would_compare_other_presets(tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    values = {**VALUES, "ogfr": {**VALUES["ogfr"], "preset": "paper"}}
    YAML().dump(values, tmp_path / "params.yaml")
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    (tmp_path / "r" / "abc").mkdir(parents=True)
    YAML().dump(values, tmp_path / "r" / "abc" / "params.yaml")
    (tmp_path / "r" / "abc" / "report.json").write_text("{}")
    monkeypatch.setattr(stage, "experiments", lambda rev, scores=False: [])
    with pytest.raises(SystemExit, match="Give all the same preset"):
        stage.main([words[0], "table5", "table4", *words[1:]])
    assert [path.name for path in (tmp_path / "r").iterdir()] == ["abc"]


@pytest.mark.parametrize("row", ["0", "5", "-1"])
def test_a_row_that_a_study_lacks_is_refused_before_any_is_run(tmp_path, row):
    words = ["run", "table4", "table5", "--results", str(tmp_path / "results"), "--row", row]
    with pytest.raises(SystemExit, match=rf"has no row {row}\. Give --row 1 to [46]"):
        stage.main(words)
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("seeds", ["0", "-1", "three"])
def test_no_seed_at_all_is_refused(capsys, seeds):
    with pytest.raises(SystemExit):
        stage.main(["show", "table5", "--seeds", seeds])
    assert f"--seeds: {seeds}: give how many, 1 or more" in capsys.readouterr().err


def test_one_training_serves_every_test_set():
    market, occluded = (
        tables.experiment(VALUES, row_of(*place), 1) for place in (("table3", 0), ("table1", 1))
    )
    assert market | {"test_on": []} == occluded | {"test_on": []}
    assert (
        tables.stage_commands(DAG, market, "W")[1] == tables.stage_commands(DAG, occluded, "W")[2]
    )  # `train`


def test_a_row_changes_what_it_names_and_the_seed():
    row = tables.Row(["x"], {"ogfr.alpha": 0.7, "lambda": 9}, [None] * 4)
    experiment = tables.experiment(VALUES, row, 4)
    assert (experiment["ogfr"]["alpha"], experiment["lambda"], experiment["seed"]) == (0.7, 9, 4)
    assert experiment["ogfr"] | {"alpha": VALUES["ogfr"]["alpha"]} == VALUES["ogfr"] and VALUES["seed"] == 1


@pytest.mark.parametrize("name", ["lamda", "ogfr.alfa", "ogf.alpha"])
def test_a_misspelt_name_is_refused(name):
    with pytest.raises(BadInput, match=f"{name} is no parameter of params.yaml"):
        tables.experiment(VALUES, tables.Row(["x"], {name: 1}, [None] * 4), 1)


def test_an_unknown_study_is_refused_with_those_there_are():
    with pytest.raises(BadInput, match=r"no study 'table9'. Choose one of table1, table2"):
        tables.load("table9")


# ------------------------------------------------------------------ experiments by their values


def result(row, seed, state="done", rank1=50.0, mAP=40.0, values=VALUES, cost=None):
    scores = {"rank1": rank1, "rank5": 60.0, "rank10": 70.0, "mAP": mAP}
    scores = {"occluded": scores, "holistic": {name: 99.0 for name in scores}} if state == "done" else {}
    return tables.Result(tables.experiment(values, row, seed), state, scores, cost or {})


def test_what_changes_no_score_does_not_make_another_experiment():
    row = row_of("table5", 3)
    wanted = tables.experiment(VALUES, row, 1)
    for name, value in {
        "workers": 7,
        "tensorboard": "runs",
        "draw": {},
        "score": {},
        "vit_baseline": {},
        "datasets": {},
    }.items():
        other = {**wanted, name: value}
        assert tables.find_result([tables.Result(other, "done", {}, {})], wanted)
        assert tables.digest(other) == tables.digest(wanted)
    for name in ("segment", "pose"):
        other = {**wanted, "processes": {**wanted["processes"], name: 4}}
        assert tables.digest(other) == tables.digest(wanted)
    for name, value in {
        "segment": {},
        "seed": 2,
        "lambda": 6,
        "ogfr": {},
        "train": {},
        "render": {},
        "processes": {"train": 2},
    }.items():
        other = {**wanted, name: value}
        assert not tables.find_result([tables.Result(other, "done", {}, {})], wanted)
        assert tables.digest(other) != tables.digest(wanted)


def test_a_study_goes_on_where_it_stopped():
    study = ALL["table6"]
    first, second = study.rows
    known = [
        result(first, 1),
        result(first, 2, "queued"),
        result(first, 3, "failed"),
        result(second, 1, "failed"),
        result(second, 1, "running"),
        result(row_of("fig4", 3), 2),  # another study's default row is the same experiment
    ]
    assert tables.missing(study, VALUES, [1, 2, 3], known) == [(first, 3), (second, 3)]


def test_a_study_follows_params_yaml():
    longer = {**VALUES, "train": {**VALUES["train"], "epochs": 60}}
    study = ALL["table6"]
    known = [result(row, 1) for row in study.rows]
    assert not tables.missing(study, VALUES, [1], known)
    assert len(tables.missing(study, longer, [1], known)) == 2


QUEUE = {
    ("table5", 1): ["ogfr.erase=random"],
    ("table8", 3): [],
    ("table7", 0): ["lambda=0", "label.strict=false"],
    ("table4", 0): ["method=vit_baseline"],
    ("table1", 1): [
        "train_on=market1501",
        'test_on=["occluded_reid"]',
        "ogfr.vit=vit_base_patch16_224.orig_in21k_ft_in1k",
        "ogfr.stride=12",
        "ogfr.head_gain=1.0",
        "train.epochs=120",
        "train.optimiser=sgd",
        "train.lr=0.008",
        "train.decay=0.0001",
        "train.warmup=5",
        "train.clip=0.0",
    ],
}


@pytest.mark.parametrize(("place", "words"), QUEUE.items())
def test_a_row_is_queued_by_one_command_for_all_its_seeds(place, words):
    command = tables.queue_command(row_of(*place), [1, 3])
    assert command[:3] == ["exp", "run", "--queue"]
    assignments = [b for a, b in pairwise(command) if a == "--set-param"]
    assert sorted(assignments) == sorted([*words, "seed=1,3"]) and assignments[-1] == "seed=1,3"
    assert len(command) == 3 + 2 * (len(words) + 1)


# ------------------------------------------------------------------ the table


def test_a_table_shows_mean_and_deviation_and_which_seeds_are_missing():
    study = tables.Study("A study", "Some-Dataset", ["erase", "rate"], ALL["table5"].rows[:3])
    rows = [replace(row, cells=[row.cells[0], n]) for n, row in enumerate(study.rows)]
    rows[2] = replace(rows[2], paper=[None, None, None, 64.25])
    study = replace(study, rows=rows)
    none, random, _ = rows
    known = [
        result(none, 1, rank1=10.0, mAP=30.0),
        result(none, 2, rank1=12.0, mAP=30.0),
        result(none, 3, rank1=17.0, mAP=30.0),  # mean 13, deviation sqrt((9 + 1 + 16) / 2) = 3.606
        result(random, 2, rank1=21.04),
        result(random, 3, "queued"),
    ]
    assert markdown.table(study, VALUES, [1, 2, 3], known, "occluded").splitlines() == [
        "A study",
        "",
        "| erase                    | rate | seeds            | Rank-1     | paper | Rank-5     | paper "
        "| Rank-10    | paper | mAP        | paper |",
        "| ------------------------ | ---- | ---------------- | ---------- | ----- | ---------- | ----- "
        "| ---------- | ----- | ---------- | ----- |",
        "| none                     | 0    | 3 of 3           | 13.0 ± 3.6 | 74.5  | 60.0 ± 0.0 | 86.3  "
        "| 70.0 ± 0.0 | 89.5  | 30.0 ± 0.0 | 64.3  |",
        "| random                   | 1    | 1 of 3, 1 queued | 21.0       | 74.4  | 60.0       | 85.8  "
        "| 70.0       | 88.9  | 40.0       | 63.7  |",
        "| background and occlusion | 2    | 0 of 3           | -          | -     | -          | -     "
        "| -          | -     | -          | 64.2  |",
        "",
        "Ours: occluded queries of `embedded`, percent, mean ± standard deviation of seeds. "
        "The paper's: Some-Dataset.",
    ]
    assert "99.0" in markdown.table(study, VALUES, [1], known, "holistic")


def test_a_table_with_a_control_shows_the_difference_of_the_seeds_that_both_have():
    plain, fixed = ALL["table6"].rows
    plain = replace(plain, control=2)
    study = replace(ALL["table6"], rows=[plain, fixed])
    known = [
        result(plain, 1, mAP=30.0),
        result(plain, 2, mAP=33.0),
        result(plain, 3, mAP=99.0),  # which the control lacks
        result(fixed, 1, mAP=31.0),
        result(fixed, 2, mAP=31.0),  # differences -1 and 2: mean 0.5, deviation sqrt(1.5^2 * 2) = 2.1
    ]
    lines = markdown.table(study, VALUES, [1, 2, 3], known, "occluded").splitlines()[2:6]
    assert [line.split("|")[-2].strip() for line in lines] == [
        "mAP against",
        "-" * len("row 2: +0.5 ± 2.1"),
        "row 2: +0.5 ± 2.1",
        "",
    ]


def test_a_table_with_costs_shows_those_that_are_known():
    study = replace(ALL["table6"], cost=True)
    cost = tables.cost({"protocol": {"features": 1152}}, {"parameters": 2_504_000}, [0.25, 0.125, 9.0])
    known = [result(study.rows[0], 2, cost=cost), result(study.rows[1], 2, cost={"features": 128.0})]
    lines = markdown.table(study, VALUES, [1, 2], known, "occluded").splitlines()[2:6]
    assert [[cell.strip() for cell in line.split("|")[-4:-1]] for line in lines] == [
        ["M params", "numbers/image", "ms/step"],
        ["--------", "-------------", "-------"],
        ["2.50", "1152", "250"],  # the median step
        ["-", "128", "-"],
    ]


def test_a_group_without_a_query_shows_no_scores():
    row = ALL["table6"].rows[0]
    without = result(row, 1)._replace(scores={"occluded": {"queries": 0}})
    shown = markdown.table(ALL["table6"], VALUES, [1], [without], "occluded")
    assert "| conventional | 1 of 1 | -      | 75.3  | -      | 86.0" in shown


def test_dvcs_experiments_are_read_with_their_states():
    values = tables.experiment(VALUES, row_of("table6", 0), 1)

    def shown(state, metrics):
        data = {"params": {"params.yaml": {"data": values}}, "metrics": metrics}
        return {"revs": [{"rev": "abc", "data": data}], "executor": state and {"state": state}}

    scores = {"occluded": {"rank1": 1.0}, "protocol": {"features": 1152}}
    files = {"data/embedded/report.json": scores, "models/trained/record.json": {"parameters": 2_500_000}}
    whole = {
        "data/embedded/labels.json": {"data": {}},
        "data/other/metrics.json": {"data": {"all": {}}},
        "data/embedded/metrics.json": {"data": {"occluded": {"R1": 1.0}}},
    }
    absent = {"data/embedded/metrics.json": {"error": {"type": "FileNotFoundError"}}}
    runs = [shown(None, whole), shown("success", whole), shown("success", absent), shown("failed", absent)]
    runs += [shown("queued", {}), shown("running", {})]
    runs += [{"revs": [{"rev": "abc", "data": None}], "executor": None}]
    commits = [{"experiments": None}, {"experiments": runs}]
    results = tables.from_dvc(commits, lambda rev, path: files[path] if rev == "abc" else {})
    assert [r.state for r in results] == ["done", "done", "failed", "failed", "queued", "running", "failed"]
    assert results[0] == (values, "done", scores, {"parameters": 2.5, "features": 1152})
    assert tables.find_result(results, values).state == "done"
    assert [r.state for r in tables.from_dvc(commits)] == [r.state for r in results]  # without reading scores


def test_a_param_that_is_empty_decides_nothing():
    assert tables.score_params({**VALUES, "labels_from": {}, "parsers": ""}) == tables.score_params(
        {name: value for name, value in VALUES.items() if name not in ("labels_from", "parsers")}
    )
    assert tables.digest({**VALUES, "parsers": "coco"}) != tables.digest(VALUES)


# ------------------------------------------------------------------ without DVC


def test_a_run_takes_the_words_of_dvc_yaml_and_writes_beside():
    assert tables.stage_commands(DAG, VALUES, "W") == [
        ("label", ["data/embedded/parsing.h5", "W/data/embedded/occlusion.h5"]),
        (
            "train",
            [
                *(f"data/embedded/{name}" for name in ("index.parquet", "images.h5", "parsing.h5")),
                "W/data/embedded/occlusion.h5",
                "models/embedded/vit.safetensors",
                "models/embedded/text.safetensors",
                "W/models/trained",
                "W/models/log.csv",
                "W/models/curves",
            ],
        ),
        (
            "embed",
            [
                *(f"data/embedded/{name}" for name in ("index.parquet", "images.h5", "parsing.h5")),
                "W/data/embedded/occlusion.h5",
                "W/models/trained",
                "models/embedded/vit.safetensors",
                "W/data/embedded/features.h5",
            ],
        ),
        (
            "evaluate",
            [
                "data/embedded/index.parquet",
                "W/data/embedded/features.h5",
                "W/data/embedded/occlusion.h5",
                "data/embedded/truth.h5",
                *(f"W/data/embedded/{name}.json" for name in ("metrics", "encoder", "histogram", "report")),
                *(f"W/data/embedded/{name}.csv" for name in ("scores", "rankings")),
                *(f"W/data/embedded/{name}" for name in ("queries.parquet", "cmc.csv")),
            ],
        ),
    ]


def test_a_run_labels_the_test_set_too_if_it_is_another():
    commands = tables.stage_commands(DAG, {**VALUES, "train_on": "a", "test_on": ["b", "c"]}, "W")
    assert [name for name, _ in commands] == ["label", "label", "train", "embed", "evaluate"]
    assert commands[0][1][1] == "W/data/a/occlusion.h5" and commands[2][1][3] == "W/data/a/occlusion.h5"
    assert commands[3][1][0] == "data/b/index.parquet" and commands[3][1][3] == "W/data/b/occlusion.h5"


def draw_people(where):
    """The files before training: six people in two colours each, four of them to train on."""
    people = toy.people(identities=6, each=4)
    with zipfile.ZipFile(where / "raw.zip", "w") as file:
        for n, (pid, image) in enumerate(zip(people.pid, people.image, strict=True)):
            split = "bounding_box_train" if pid < 4 else "query" if n % 4 == 0 else "bounding_box_test"
            stream = io.BytesIO()
            Image.fromarray(image).save(stream, "JPEG", quality=95)
            file.writestr(f"{split}/{pid + 1:04d}_c{n % 4 + 1}s1_{n:06d}_00.jpg", stream.getvalue())
    folder = where / "data" / "embedded"
    folder.mkdir(parents=True)
    paths = [str(folder / name) for name in ("index.parquet", "images.h5", "truth.h5")]
    index_stage.main("folders", str(where / "raw.zip"), *paths, config=str(where / "params.yaml"))
    index = read_index(paths[0])
    maps = np.repeat(people.parsing[:1], len(index), 0)
    attrs = {"index": index_hash(index)}
    write_label_file(folder / "parsing.h5", "parsing", {"map": maps, "status": maps[:, 0, 0]}, attrs)
    (where / "models" / "embedded").mkdir(parents=True)
    torch.manual_seed(0)
    save_vit(where / "models" / "embedded" / "vit.safetensors", toy.encoder(), {})


def reduced(where):
    """params.yaml and dvc.yaml, for pictures of 64 x 32 and one epoch."""
    values = params.load(ROOT / "params.yaml")
    values["train"].update(size=[64, 32], identities=2, images=2, epochs=1, precision="float32")
    values["workers"] = 1
    YAML().dump(values, where / "params.yaml")
    shutil.copy(ROOT / "dvc.yaml", where / "dvc.yaml")


def test_a_study_runs_without_dvc_into_a_folder_that_shows_as_its_table(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    reduced(tmp_path)
    draw_people(tmp_path)
    words = ["run", "table4", "--results", "results", "--seeds", "1", "--row"]
    stage.main([*words, "1"])
    stage.main([*words, "6"])
    kept = sorted(Path("results").iterdir())
    assert len(kept) == 2 and not (tmp_path / "data/embedded/occlusion.h5").exists()
    for folder in kept:
        files = {path.name for path in folder.iterdir()}
        assert files == {"params.yaml", "labels.json", *stage.KEPT}
        assert stage.KEPT == (
            "report.json", "metrics.json", "cmc.csv", "log.csv", "times.csv", "record.json"
        )  # fmt: skip
    methods = {json.loads((folder / "record.json").read_text())["method"] for folder in kept}
    assert methods == {"vit_baseline", "ogfr"}
    before = [path.stat().st_mtime_ns for path in kept]
    stage.main([*words, "6"])  # there already
    assert [path.stat().st_mtime_ns for path in kept] == before
    capsys.readouterr()
    stage.main(["show", "table4", "table5", "--results", "results", "--seeds", "1", "--queries", "all"])
    said = capsys.readouterr().out
    assert said.count("1 of 1") == 3 and said.count("0 of 1") == 7  # table 5's agent is table 4's last row
    scores = [json.loads((folder / "report.json").read_text())["all"]["mAP"] for folder in kept]
    assert all(f"{score:.1f}" in said for score in scores)


def test_a_threshold_that_changes_no_label_takes_over_the_scores(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    reduced(tmp_path)
    draw_people(tmp_path)
    words = ["run", "table7", "--results", "results", "--seeds", "1", "--row"]
    stage.main([*words, "2"])
    (first,) = Path("results").iterdir()
    stage.main([*words, "3"])  # lambda is 10 instead of 5: labels of the same bytes
    (again,) = set(Path("results").iterdir()) - {first}
    assert f"the labels are those of {first}" in capsys.readouterr().out
    assert params.load(again / "params.yaml")["lambda"] == 10
    same = [(again / name).read_bytes() == (first / name).read_bytes() for name in stage.KEPT]
    assert all(same)  # the log tells the time of every step: a second training would differ


@pytest.mark.parametrize("name", ["lambda", "seed", "labels"])
def test_experiments_are_alike_if_seed_and_labels_are(tmp_path, name):
    (tmp_path / "abc").mkdir()
    YAML().dump(VALUES, tmp_path / "abc" / "params.yaml")
    (tmp_path / "abc" / "labels.json").write_text(json.dumps({"occlusion.h5": "1"}))
    wanted = VALUES | ({name: 40} if name in VALUES else {})
    labels = {"occlusion.h5": "2" if name == "labels" else "1"}
    path = tables.same_experiment(tmp_path, wanted, labels)
    assert path == (tmp_path / "abc" if name == "lambda" else None)


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(SystemExit, match=r"no results. Run `python -m stages.study run"):
        stage.main(["show", "table5", "--results", str(tmp_path)])


# ------------------------------------------------------------------ with DVC

TINY = """\
stages:
  train:
    cmd: python score.py
    deps: [score.py]
    params: [seed, lambda, method, train, "${method}"]
    metrics:
      - data/embedded/metrics.json: {cache: false}
    outs: [data/embedded/report.json]
"""
SCORE = """\
import json
from ruamel.yaml import YAML

values = YAML(typ="safe").load(open("params.yaml"))
rank1 = values["seed"] * (10.0 if values["ogfr"]["decoder"] == "plain" else 20.0)
scores = {"rank1": rank1, "rank5": 1.0, "rank10": 1.0, "mAP": 1.0}
json.dump({"occluded": {"R1": rank1}}, open("data/embedded/metrics.json", "w"))
json.dump({"occluded": scores}, open("data/embedded/report.json", "w"))
"""


@pytest.mark.slow
def test_dvc_queues_each_experiment_once_and_shows_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("DVC_")]:
        monkeypatch.delenv(name)
    for who in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{who}_NAME", "tests")
        monkeypatch.setenv(f"GIT_{who}_EMAIL", "tests")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    shutil.copy(ROOT / "params.yaml", tmp_path)
    Path("dvc.yaml").write_text(TINY)
    Path("score.py").write_text(SCORE)
    Path("data/embedded").mkdir(parents=True)
    Path("data/embedded/.gitkeep").touch()
    subprocess.run(["git", "init", "--quiet"], check=True)
    stage.dvc("init", "--quiet")
    subprocess.run(["git", "add", "--all"], check=True)
    subprocess.run(["git", "commit", "--quiet", "--message", "A tiny DAG"], check=True)

    stage.main(["queue", "table6", "--seeds", "1"])
    assert "table6: 2 of 2 experiments queued" in capsys.readouterr().out
    stage.main(["queue", "table6", "table6", "--seeds", "1"])  # named twice, looked at once
    assert capsys.readouterr().out.count("0 of 2 experiments queued") == 1
    stage.main(["show", "table6"])
    assert capsys.readouterr().out.count("0 of 3, 1 queued") == 2
    stage.dvc("exp", "run", "--run-all")
    stage.main(["queue", "table6", "--seeds", "1"])
    assert "0 of 2 experiments queued" in capsys.readouterr().out
    stage.main(["show", "table6"])
    said = capsys.readouterr().out
    assert "| conventional | 1 of 3 | 10.0   | 75.3" in said
    assert "| customized   | 1 of 3 | 20.0   | 76.6" in said


@pytest.mark.slow
def test_dvcs_complaint_reaches_the_user(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    with pytest.raises(SystemExit, match="dvc exp show"):
        stage.main(["show", "table6"])
