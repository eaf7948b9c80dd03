"""What `evaluate` reports and `draw` shows, on a world of four people and two cameras."""

import io
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from ruamel.yaml import YAML

from pipeline.core import params
from pipeline.core.label_file import LabelFile, write_label_file
from pipeline.core.params import BadInput
from pipeline.data import parts
from pipeline.data.index import Images, index_hash, read_index
from pipeline.indexing.archive import pack
from pipeline.ranking import Embedded, figures, rank, report
from pipeline.ranking.summary import mean_interval
from stages import draw, evaluate
from stages import index as index_stage
from tests.indexing.test_build import INDEX

CONFIG = f"""
workers: 1
datasets: {{}}
train_on: other
test_on: [other]
train: {{identities: 2, held_out: 0}}
index: {json.dumps(INDEX | {"junk": "keep"})}
evaluate: {{metric: euclidean, ap: rectangular, memory: 64, group_lambda: 5, depth: 4, top: 3,
           rerank: {{depth: 0, k1: 2, k2: 1, original: 0.3}}}}
draw: {{queries: 2, nearest: 3, seed: 1, dpi: 40}}
"""
PARTS = ["head", "arms", "torso", "legs"]
FILES = ("index.parquet", "images.h5", "truth.h5")
JSON = ("metrics.json", "encoder.json", "histogram.json", "report.json")
OUTS = (*JSON, "scores.csv", "rankings.csv", "queries.parquet", "cmc.csv")


def picture(pid):
    out = io.BytesIO()
    Image.fromarray(np.full((16, 8, 3), 20 * pid + 40, np.uint8)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="module")
def indexed(tmp_path_factory):
    """People 1 to 4: queries by camera 1, gallery by camera 2 (not person 4), a distractor and junk."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "params.yaml").write_text(CONFIG)
    names = [f"query/{pid:04d}_c1s1_000001_00.png" for pid in (1, 2, 3, 4)]
    names += [f"bounding_box_test/{pid:04d}_c2s1_000001_00.png" for pid in (0, 1, 2, 3)]
    names += ["bounding_box_test/-1_c2s1_000001_00.png", "bounding_box_train/0009_c1s1_000001_00.png"]
    loose = folder / "loose"
    for name in names:
        (loose / name).parent.mkdir(parents=True, exist_ok=True)
        (loose / name).write_bytes(picture(max(0, int(name.split("/")[1].split("_")[0]))))
    pack(loose, folder / "raw.zip")
    index_stage.main(
        "folders",
        str(folder / "raw.zip"),
        *(str(folder / name) for name in FILES),
        config=str(folder / "params.yaml"),
    )
    return folder


def angles(pids, exact):
    """A part of two channels by identity; inexact systems take everybody for the same person."""
    turn = np.array([pid * 0.3 if exact else 0.0 for pid in pids])
    return np.stack([np.cos(turn), np.sin(turn)], 1)[:, None].astype(np.float32)


@pytest.fixture
def world(indexed, tmp_path):
    """Features in which the model is always right and the others see no difference, and cached labels."""
    write_world(tmp_path, read_index(indexed / "index.parquet"))
    return tmp_path


def write_world(folder, index):
    key = {"index": index_hash(index)}
    rows = np.flatnonzero(index["split"] != "train")
    pids = index["pid"].to_numpy()[rows]
    arrays = {"row": rows.astype(np.int32)}
    for system in ("model", "encoder", "histogram"):
        arrays[f"{system}/part"] = angles(pids, system == "model")
        arrays[f"{system}/visibility"] = np.ones((len(rows), 1), np.float32)
    attrs = key | {"systems": ["model", "encoder", "histogram"]}
    attrs |= {"model_cameras": "those of the training images", "model_cameras_unknown": 0}
    write_label_file(folder / "features.h5", "features", arrays, attrs)
    occluded = np.zeros((len(index), 4), np.uint8)
    occluded[1, 3] = 1  # the first query, by the cached labels
    labels = {"occluded": occluded, "pixels": np.full((len(index), 4), 9, np.int32)}
    write_label_file(folder / "occlusion.h5", "occlusion", labels, key | {"parts": PARTS})
    maps = np.zeros((len(index), 4, 2), np.uint8)
    maps[:, 1:, 1] = 4
    write_label_file(folder / "parsing.h5", "parsing", {"map": maps}, key)
    visible = np.full((len(index), 8), 9, np.int32)
    visible[2, 4:] = 1  # the second query's legs and feet: four pixels in all
    visible[3, 0] = 4
    occluder = np.zeros(len(index), np.uint8)
    occluder[2:4] = 1
    truth = {"visible": visible, "occluder": occluder}
    write_label_file(folder / "truth.h5", "truth", truth, key | {"truth": 1})


def run(indexed, world, truth=None, config=None):
    outs = [str(world / name) for name in OUTS]
    evaluate.main(
        str(indexed / "index.parquet"),
        str(world / "features.h5"),
        str(world / "occlusion.h5"),
        str(truth or world / "truth.h5"),
        *outs,
        config=str(config or indexed / "params.yaml"),
    )
    report_json = json.loads((world / "report.json").read_text())
    return report_json, pd.read_parquet(world / "queries.parquet"), pd.read_csv(world / "cmc.csv")


# ------------------------------------------------------------------ the report


def test_every_system_is_scored_on_all_occluded_and_holistic_queries(indexed, world):
    metrics, _, _ = run(indexed, world)
    perfect = {"rank1": 100.0, "rank5": 100.0, "rank10": 100.0, "mAP": 100.0, "mINP": 100.0}
    skipped = {"unidentified": 0, "camera_unknown": 0, "infinitely_far": 0}
    assert metrics["all"] == {"queries": 3, "without_match": 1, **skipped, **perfect}
    assert metrics["occluded"] == {"queries": 2, "without_match": 0, **skipped, **perfect}
    assert metrics["holistic"] == {"queries": 1, "without_match": 1, **skipped, **perfect}
    # all alike: the gallery's order decides, 0000 0001 0002 0003, so ranks 2, 3 and 4
    for system in ("encoder", "histogram"):
        table = metrics["baselines"][system]
        assert table["all"]["mAP"] == round(100 * (1 / 2 + 1 / 3 + 1 / 4) / 3, 2)
        assert table["occluded"]["mAP"] == round(100 * (1 / 3 + 1 / 4) / 2, 2)


def test_rank_1_and_map_of_model_and_baselines_are_also_written_for_dvc_to_print(indexed, world):
    report_json, _, _ = run(indexed, world)
    systems = {"metrics": report_json, **report_json["baselines"]}
    for name in ("metrics", "encoder", "histogram"):
        printed = json.loads((world / f"{name}.json").read_text())
        assert set(printed) == {"all", "occluded", "holistic"}
        for group, row in printed.items():
            assert row == {"R1": systems[name][group]["rank1"], "mAP": systems[name][group]["mAP"]}


def test_reranked_scores_stand_beside_the_plain_ones_which_stay(indexed, world, capsys):
    plain, queries, curves = run(indexed, world)
    listed = pd.read_csv(world / "rankings.csv")
    assert "reranked" not in plain and plain["protocol"]["rerank"] == "none"
    config = world / "params.yaml"
    config.write_text((indexed / "params.yaml").read_text().replace("{depth: 0, k1", "{depth: 4, k1"))
    metrics, after, reranked_curves = run(indexed, world, config=config)
    assert "model_reranked" in capsys.readouterr().out
    reranked, protocol = metrics.pop("reranked"), metrics.pop("protocol")
    assert protocol["rerank"] == "depth 4, k1 2, k2 1, original 0.3"
    assert metrics == {name: table for name, table in plain.items() if name != "protocol"}
    assert set(reranked) == {"model", "encoder", "histogram"}
    assert reranked["model"]["all"] == metrics["all"] and reranked["model"]["by_z"] == metrics["by_z"]
    pd.testing.assert_frame_equal(after[queries.columns], queries)
    assert {"model_reranked_ap", "model_reranked_first"} <= set(after)
    table = pd.read_csv(world / "rankings.csv").set_index("system")
    pd.testing.assert_frame_equal(table.drop("model_reranked"), listed.set_index("system"))
    assert table.index.value_counts().to_dict() == {"model": 12, "model_reranked": 12, "histogram": 12}
    assert set(reranked_curves) - set(curves) == {f"{system}_reranked" for system in reranked}


def test_queries_are_not_reranked_beside_copies_of_themselves(indexed, world):
    config = world / "params.yaml"
    config.write_text((indexed / "params.yaml").read_text().replace("{depth: 0, k1", "{depth: 4, k1"))
    rows = LabelFile(world / "truth.h5")
    pasted = {"occluder": rows["occluder"][:]}
    write_label_file(world / "pasted.h5", "truth", pasted, {"index": rows.attrs["index"], "truth": 0})
    run(indexed, world, truth=world / "pasted.h5")  # as it stands
    with pytest.raises(BadInput, match=r"evaluate\.rerank\.depth = 4, but .* Set it to 0"):
        run(indexed, world, truth=world / "pasted.h5", config=config)


def test_queries_are_grouped_by_the_true_type_where_it_is_known(indexed, world):
    metrics, queries, _ = run(indexed, world)
    assert {name: row["queries"] for name, row in metrics["by_z"].items()} == {
        "none": 1,
        "head": 1,
        "legs": 1,
    }
    assert queries["hidden"].tolist() == ["none", "legs", "head", "none"]
    assert metrics["protocol"]["z"] == "truth, parts below 5 pixels"


def test_a_part_of_just_as_many_true_pixels_as_the_threshold_is_visible(indexed, world):
    index, key = read_index(indexed / "index.parquet"), LabelFile(world / "truth.h5").attrs["index"]
    visible = np.full((len(index), 8), 9, np.int32)
    visible[1, 0], visible[2, 0] = 5, 4  # heads of the first two queries
    visible[3, 4:], visible[4, 4:] = (2, 1, 1, 1), (1, 1, 1, 1)  # legs and feet: five and four in all
    truth = {"visible": visible, "occluder": np.zeros(len(index), np.uint8)}
    write_label_file(world / "exact.h5", "truth", truth, {"index": key, "truth": 1})
    labels = LabelFile(world / "occlusion.h5")
    for threshold, hidden in {4.0: [0, 0, 0, 0], 5.0: [0, 1, 0, 8], 6.0: [1, 1, 8, 8]}.items():
        groups = report.query_groups(index, labels, LabelFile(world / "exact.h5"), threshold)
        assert groups.pattern.tolist() == hidden


def test_without_truth_queries_are_grouped_by_the_cached_type(indexed, world):
    metrics, queries, _ = run(indexed, world, truth=indexed / "truth.h5")
    assert queries["hidden"].tolist() == ["legs", "none", "none", "none"]
    assert metrics["occluded"]["queries"] == 1 and metrics["protocol"]["z"] == "cached labels"


def test_scores_are_also_given_by_visible_parts_and_pair_of_cameras_with_intervals(indexed, world):
    metrics, _, _ = run(indexed, world)
    assert metrics["by_visible_parts"] == {"1": {"queries": 3, "rank1": 100.0, "mAP": 100.0}}
    sure = {"low": 100.0, "high": 100.0}
    assert metrics["confidence"]["occluded"] == {"rank1": sure, "mAP": sure}
    pairs = metrics["by_cameras"]
    assert sum(pair["matches"] for pair in pairs.values()) == 3
    assert all(pair["mAP"] == pair["rank10"] == 100.0 for pair in pairs.values())
    assert all("-" in name and name[0] != name[-1] for name in pairs)  # its own camera does not count


def test_queries_without_a_match_are_counted_and_named(indexed, world):
    protocol = run(indexed, world)[0]["protocol"]
    assert protocol["queries_without_match"] == 1 and protocol["without_match"].startswith("query/")


@pytest.mark.parametrize(("count", "more"), [(20, ""), (21, ", and 1 more"), (23, ", and 3 more")])
def test_of_many_queries_without_a_match_the_first_twenty_are_named(count, more):
    index = pd.DataFrame({"key": [f"q{n}" for n in range(count)], "split": "query", "pid": 1, "camid": 0})
    nobody, whole = Embedded.of(np.ones((1, 2)), [2], [1]), np.zeros(count, np.int64)
    ranked = rank(Embedded.of(np.ones((count, 2)), whole + 1, whole), nobody, top=2)
    grouped = report.QueryGroups(np.arange(count), whole > 0, whole, PARTS)
    options = params.validate(YAML(typ="safe").load(CONFIG)["evaluate"], report.Evaluate, "")
    index.loc[count] = ["g", "gallery", 2, 1]
    protocol = report.all_scores({"model": ranked}, {}, {"model": whole}, grouped, index, options)["protocol"]
    assert protocol["without_match"] == ", ".join(f"q{n}" for n in range(20)) + more


def test_the_protocol_is_written_beside_the_scores(indexed, world):
    protocol = run(indexed, world)[0]["protocol"]
    assert protocol["ap"] == "rectangular" and protocol["distance"] == "euclidean"
    counts = {name: value for name, value in protocol.items() if isinstance(value, int)}
    assert counts == {
        "queries": 4,
        "queries_without_match": 1,
        "gallery": 5,
        "gallery_junk": 1,
        "gallery_distractors": 1,
        "cameras_unknown": 0,
        "model_cameras_unknown": 0,
        "features": 2,  # one part of two channels
    }
    assert protocol["model_cameras"] == "those of the training images"
    assert protocol["cameras"] == "images by a query's own camera are left out"


def test_every_query_has_one_row(indexed, world):
    _, queries, curves = run(indexed, world)
    index = read_index(indexed / "index.parquet")
    assert queries["key"].tolist() == index["key"][index["split"] == "query"].tolist()
    assert queries["model_first"].tolist() == [1, 1, 1, 0] and queries["matches"].tolist() == [1, 1, 1, 0]
    assert curves["rank"].tolist() == [1, 2, 3, 4] and curves["encoder"].tolist() == [0, 33.333, 66.667, 100]


def test_the_distances_of_a_query_are_those_of_its_listed_images(indexed, world):
    _, queries, _ = run(indexed, world)
    listed = pd.read_csv(world / "rankings.csv").groupby(["system", "query"])["distance"].agg(list)
    assert [name for name in queries if name.endswith("_distances")] == [
        "model_distances",
        "histogram_distances",
    ]
    for system in ("model", "histogram"):
        for key, distances in zip(queries["key"], queries[f"{system}_distances"], strict=True):
            assert distances.tolist() == pytest.approx(listed[system, key], rel=1e-5)


RANKINGS = """system,query,query_pid,query_camid,ap,rank,image,pid,camid,distance,match
model,query/0001_c1s1_000001_00.png,1,0,1.0,1,gallery/0001_c2s1_000001_00.png,1,1,0.0,yes
model,query/0001_c1s1_000001_00.png,1,0,1.0,2,gallery/0000_c2s1_000001_00.png,0,1,0.298876,no
"""


def test_rankings_are_read_without_joining_anything(indexed, world):
    run(indexed, world)
    text = (world / "rankings.csv").read_text()
    assert text.startswith(RANKINGS)
    table = pd.read_csv(world / "rankings.csv", index_col=["system", "query"])
    assert set(table.index.get_level_values(0)) == {"model", "histogram"}
    model = table.loc["model"]
    assert model["rank"].tolist() == [1, 2, 3] * 4 and (model["pid"] >= 0).all()  # no junk
    assert (model["match"] == "yes").tolist() == [True, False, False] * 3 + [False] * 3
    nobody = model.loc["query/0004_c1s1_000001_00.png"]
    assert nobody["ap"].isna().all() and nobody["pid"].tolist()[0] == 3


def test_scores_of_all_systems_stand_in_one_table(indexed, world):
    metrics, _, _ = run(indexed, world)
    table = pd.read_csv(world / "scores.csv", index_col=["system", "group"])
    groups = ["all", "occluded", "holistic", "hidden none", "hidden head", "hidden legs"]
    assert table.index.tolist() == [(s, g) for s in ("model", "encoder", "histogram") for g in groups]
    for system, scores in {"model": metrics, **metrics["baselines"]}.items():
        assert table.loc[system].loc["occluded"].to_dict() == scores["occluded"]
        assert table.loc[system].loc["hidden legs"].dropna().to_dict() == scores["by_z"]["legs"]


def test_the_table_names_every_system_and_type(indexed, world, capsys):
    run(indexed, world)
    said = capsys.readouterr().out
    assert all(word in said for word in ("model", "encoder", "histogram", "occluded", "legs", "rectangular"))


def test_reports_are_the_same_bytes_twice(indexed, world):
    run(indexed, world)
    first = [(world / name).read_bytes() for name in OUTS]
    run(indexed, world)
    assert [(world / name).read_bytes() for name in OUTS] == first


def test_features_of_other_rows_are_refused(indexed, world):
    index = read_index(indexed / "index.parquet")
    attrs = {"index": index_hash(index), "systems": ["model"]}
    write_label_file(world / "features.h5", "features", {"row": np.arange(3, dtype=np.int32)}, attrs)
    with pytest.raises(BadInput, match="not the index's queries and gallery"):
        run(indexed, world)


def test_an_image_whose_features_cannot_be_compared_is_named_with_its_system(indexed, world):
    rows = LabelFile(world / "features.h5")
    names = [f"{system}/{array}" for system in rows.attrs["systems"] for array in ("part", "visibility")]
    arrays = {name: rows[name][:] for name in ("row", *names)}
    arrays["encoder/part"][6] = 0
    attrs = {"index": rows.attrs["index"], "systems": rows.attrs["systems"]}
    write_label_file(world / "features.h5", "features", arrays, attrs)
    named = r"system encoder: gallery features: zeros, .* looked at: gallery/0001_c2s1_000001_00\.png\. "
    with pytest.raises(BadInput, match=named):
        run(indexed, world)


@pytest.fixture
def changed(indexed, tmp_path):
    """Evaluates the world with other columns in its index."""

    def evaluated(name, **columns):
        folder = tmp_path / name
        folder.mkdir()
        shutil.copy(indexed / "params.yaml", folder)
        index = read_index(indexed / "index.parquet")
        index = index.assign(**{column: value(index) for column, value in columns.items()})
        index.to_parquet(folder / "index.parquet", index=False)
        write_world(folder, index)
        return run(folder, folder)[0]

    return evaluated


def unknown_in(*sides):
    return {"camid": lambda index: index["camid"].where(~index["split"].isin(sides), -1)}


ONE_SIDED = {"query": "gallery", "gallery": "query"}  # cameras unknown in, known in


@pytest.mark.parametrize("side", ONE_SIDED)
def test_cameras_that_one_side_alone_knows_leave_nothing_out_and_that_is_said(changed, side, capsys):
    neither = changed("neither", **unknown_in("query", "gallery"))
    assert neither["protocol"]["cameras"] == "unknown, so no image is left out as its query's own"
    capsys.readouterr()
    one = changed("one", **unknown_in(side))
    said = f"known of {ONE_SIDED[side]} alone, so no image is left out as its query's own"
    assert one["protocol"]["cameras"] == said
    assert (
        f"3 queries with a match that may be by the same camera; cameras: {said}" in capsys.readouterr().out
    )
    for group in ("all", "by_z"):
        assert one[group] == neither[group]
    assert one["all"]["camera_unknown"] == 3


def test_a_camera_of_a_distractor_alone_is_not_known_of_the_gallery(changed):
    one = changed(
        "one", camid=lambda index: index["camid"].where((index["split"] == "query") | (index["pid"] == 0), -1)
    )
    assert one["protocol"]["cameras"] == "known of query alone, so no image is left out as its query's own"


def test_systems_to_which_the_nearest_images_are_alike_are_named(indexed, world, capsys):
    metrics, _, _ = run(indexed, world)
    assert metrics["ties"] == 0 and metrics["baselines"]["encoder"]["ties"] == 4
    said = capsys.readouterr().out
    assert "encoder: two nearest images equally near for 4 queries" in said and "model: two" not in said


# ------------------------------------------------------------------ cameras


def test_a_camera_an_image_leaves_a_short_report(monkeypatch):
    """Three queries of one person, by cameras 0 to 2, and three images of her, by cameras 3 to 5."""
    split = ["query"] * 3 + ["gallery"] * 3
    index = pd.DataFrame({"split": split, "camid": range(6)})
    pid = np.ones(3, np.int64)
    query = Embedded.of(np.eye(3), pid, [0, 1, 2])
    ranked = rank(query, Embedded.of(np.eye(3)[[0, 0, 1]], pid, [3, 4, 5]))
    whole = report.camera_scores(ranked, index)
    assert list(whole) == [f"{a}-{b}" for a in range(3) for b in range(3, 6)]
    monkeypatch.setattr(report, "MAX_PAIRS", 4)
    short = report.camera_scores(ranked, index)
    assert list(short) == [*list(whole)[:4], "others"]
    assert all(short[pair] == whole[pair] for pair in list(whole)[:4])
    rest = [whole[pair] for pair in list(whole)[4:]]
    assert short["others"] == {
        "pairs": 5,
        "matches": 5,
        "mAP": pytest.approx(np.mean([row["mAP"] for row in rest]), abs=0.01),
        "rank10": 100.0,
    }
    busy = rank(query, Embedded.of(np.eye(3)[[0, 0, 1, 1]], [1] * 4, [3, 4, 5, 5]))
    index.loc[6] = ["gallery", 5]
    assert list(report.camera_scores(busy, index)) == ["0-3", "0-5", "1-5", "2-5", "others"]


def test_pictures_compare_the_systems_and_what_reranking_made_of_the_model():
    columns = ("key", "model_ap", "encoder_ap", "model_reranked_ap", "encoder_reranked_ap", "model_top")
    assert figures.drawn_systems(pd.DataFrame(columns=columns)) == ["model", "encoder", "model_reranked"]


@pytest.mark.parametrize(("pattern", "name"), [(0, "none"), (1, "head"), (10, "arms+legs")])
def test_a_type_is_named_by_what_is_hidden(pattern, name):
    empty = np.zeros(0, int)
    assert report.QueryGroups(empty, empty.astype(bool), empty, PARTS).name(pattern) == name


# ------------------------------------------------------------------ the pictures


def drawn(indexed, world, out="figures", config=None):
    run(indexed, world, config=config)
    record = {"method": "ogfr", "params": {"alpha": 0.3}, "train": {"epochs": 1}, "seed": 1, "parameters": 9}
    (world / "record.json").write_text(json.dumps(record))
    (world / "log.csv").write_text("step,epoch,loss\n0,0.5,2.0\n1,1.0,1.0\n")
    draw.main(
        str(indexed / "index.parquet"),
        str(indexed / "images.h5"),
        str(world / "parsing.h5"),
        str(world / "queries.parquet"),
        str(world / "rankings.csv"),
        str(world / "report.json"),
        str(world),
        str(world / "log.csv"),
        str(world / out),
        str(world / f"{out}.html"),
        config=str(indexed / "params.yaml"),
    )
    return {path.name: path.read_bytes() for path in sorted((world / out).iterdir())}


def test_the_page_of_the_run_is_the_same_twice_and_holds_its_pictures(indexed, world):
    drawn(indexed, world), drawn(indexed, world, "again")
    page = (world / "figures.html").read_text()
    assert page == (world / "again.html").read_text()
    assert "<h1>ogfr on " in page and page.count('<article class="ranking"') == 3  # queries with a match


def test_three_pictures_are_drawn_the_same_twice(indexed, world):
    one, two = drawn(indexed, world), drawn(indexed, world, "again")
    assert list(one) == ["cmc.png", "rankings.png", "types.png"] and one == two
    for content in one.values():
        assert min(Image.open(io.BytesIO(content)).size) > 50
        assert b"Software" not in content and b"Date" not in content


def test_no_listed_image_leaves_the_scores_and_the_pictures(indexed, world):
    drawn(indexed, world)
    names = ("metrics.json", "scores.csv", "figures/cmc.png", "figures/types.png")
    listed = [(world / name).read_bytes() for name in names]
    config = world / "params.yaml"
    config.write_text((indexed / "params.yaml").read_text().replace("top: 3", "top: 0"))
    shutil.rmtree(world / "figures")
    drawn(indexed, world, config=config)
    assert pd.read_csv(world / "rankings.csv").empty
    assert [(world / name).read_bytes() for name in names] == listed


def queries(**columns):
    base = {"pid": [1, 1, 2, 3], "occluded": [True, True, True, False], "matches": [1, 1, 1, 1]}
    return pd.DataFrame({**base, **columns})


def test_a_cmc_curve_ends_with_the_gallery(indexed, world, monkeypatch):
    shown = []

    def save(figure, path, dpi):
        shown.append(figure.axes[0])
        path.write_bytes(b"")

    monkeypatch.setattr(figures, "save", save)
    drawn(indexed, world)
    assert shown[0].get_xlim() == (1, 4) and shown[0].lines[0].get_xdata()[-1] == 4  # a fifth is junk


@pytest.mark.parametrize("depth", [2, 4, 13, 20])
def test_a_cmc_curve_has_whole_ranks_alone(depth):
    axes = figures.cmc_curves(queries(model_ap=[1.0] * 4, model_first=[1] * 4), depth).axes[0]
    assert all(tick == int(tick) for tick in axes.get_xticks())


def test_occluded_queries_of_different_people_are_shown_first():
    assert set(figures.sample_queries(queries(), 2, 0)["pid"]) == {1, 2}
    assert len(figures.sample_queries(queries(), 9, 0)) == 3


def test_any_query_is_shown_if_none_is_occluded():
    assert len(figures.sample_queries(queries(occluded=[False] * 4), 9, 0)) == 4


def test_queries_without_a_match_are_not_shown():
    assert figures.sample_queries(queries(matches=[0, 0, 0, 0]), 3, 0).empty


def test_right_answers_are_framed_green_and_wrong_ones_red(indexed, world):
    _, table, _ = run(indexed, world)
    index = read_index(indexed / "index.parquet")
    images, parsing = Images(indexed / "images.h5"), LabelFile(world / "parsing.h5")
    rankings = pd.read_csv(world / "rankings.csv")
    sheet = figures.ranking_sheet(table.iloc[:1], rankings, index, images, parsing, 3)
    frames = [p.get_edgecolor() for axes in sheet.axes for p in axes.patches]
    right = [figures.matplotlib.colors.to_rgba(figures.RIGHT) == colour for colour in frames]
    assert right == [True, False, False, False, True, False]  # the model's three, the histogram's three
    figures.plt.close(sheet)


def test_lists_of_queries_that_are_not_drawn_are_not_looked_at(indexed, world, monkeypatch):
    _, table, _ = run(indexed, world)
    index = read_index(indexed / "index.parquet")
    images, parsing = Images(indexed / "images.h5"), LabelFile(world / "parsing.h5")
    rankings = pd.read_csv(world / "rankings.csv")
    grouped, groupby = [], pd.DataFrame.groupby
    monkeypatch.setattr(pd.DataFrame, "groupby", lambda rows, by: grouped.append(rows) or groupby(rows, by))
    figures.plt.close(figures.ranking_sheet(table.iloc[:1], rankings, index, images, parsing, 3))
    assert [set(rows["query"]) for rows in grouped] == [{table["key"][0]}] and rankings["query"].nunique() > 1


def words(figure):
    """Heading and captions of each picture, in their order."""
    captions = (
        [axes.get_title(loc="left"), *(text.get_text() for text in axes.texts)] for axes in figure.axes
    )
    return [text for both in captions for text in both if text]


def test_a_sheet_names_query_parts_scores_ranks_distances_identities_and_cameras(indexed, world):
    _, table, _ = run(indexed, world)
    index = read_index(indexed / "index.parquet")
    images, parsing = Images(indexed / "images.h5"), LabelFile(world / "parsing.h5")
    rankings = pd.read_csv(world / "rankings.csv")
    sheet = figures.ranking_sheet(table.iloc[1:2], rankings, index, images, parsing, 2)
    assert words(sheet) == [
        "0002_c1s1_000001_00.png\nhides legs",
        "pid 2\ncam 0",
        "parsing map",
        "model: AP 1.00, first match at rank 1",
        "✓ 1 · 0\npid 2\ncam 1",
        "✗ 2 · 0.299\npid 1\ncam 1",
        "histogram: AP 0.33, first match at rank 3",
        "✗ 1 · 0\npid 0\ncam 1",
        "✗ 2 · 0\npid 1\ncam 1",
    ]
    legends = [text.get_text() for legend in sheet.legends for text in legend.get_texts()]
    assert legends[:2] == ["✓ same person", "✗ another person"] and legends[3:] == list(parts.FINE)
    figures.plt.close(sheet)


def typed(patterns, ap):
    hidden = [("none", "head", "arms", "head+arms")[pattern] for pattern in patterns]
    columns = {"pattern": patterns, "hidden": hidden, "matches": 1, "occluded": True}
    return pd.DataFrame({**columns, "model_ap": ap, "model_first": 1})


def test_a_bar_has_its_interval_and_is_hollow_on_few_queries():
    ap = np.linspace(0, 1, 20)
    figure = figures.map_by_pattern(typed([0] * 12 + [1] * 7 + [3], ap))
    (axes,) = figure.axes
    bars = axes.patches
    assert [bar.get_facecolor()[3] for bar in bars] == [1, 0, 0]  # 12 queries, 7, 1
    ends = [line.get_segments()[0][:, 1].tolist() for line in axes.collections]
    assert ends == [pytest.approx(100 * mean_interval(a[:, None])[:, 0]) for a in (ap[:12], ap[12:19])]
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == ["model", "95 % interval", "fewer than 10 queries"]
    assert axes.get_xticklabels()[2].get_text() == "head\narms\n(1)"
    figures.plt.close(figure)


def test_no_bar_is_called_hollow_where_none_is():
    figure = figures.map_by_pattern(typed([0] * 12, [0.5] * 12))
    assert len(figure.axes[0].get_legend().get_texts()) == 2
    figures.plt.close(figure)
