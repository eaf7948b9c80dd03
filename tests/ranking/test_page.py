"""The page of a run, and what differs between two runs."""

import json
import re
import subprocess

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.params import BadInput
from pipeline.ranking import changes, figures, page, pager
from stages import compare

ENDS = {"rank1": {"low": 40.0, "high": 60.0}, "mAP": {"low": 30.0, "high": 50.0}}
ROW = {"queries": 3, "rank1": 50.0, "rank5": 60.0, "rank10": 70.0, "mAP": 40.0, "mINP": 10.0}
SCORES = {"all": ROW, "occluded": ROW, "holistic": {"queries": 0}}
SYSTEM = {
    **SCORES,
    "confidence": {"all": ENDS, "occluded": ENDS, "holistic": {}},
    "by_cameras": {
        "0-1": {"matches": 1234, "mAP": 40.0, "rank10": 5.0},
        "-1--1": {"matches": 2, "mAP": 7.0, "rank10": 5.0},
        "others": {"pairs": 9, "matches": 10, "mAP": 3.0, "rank10": 5.0},
    },
}
PROTOCOL = {"queries": 4, "gallery": 5, "distance": "euclidean", "ap": "rectangular", "z": "cached labels"}
REPORT = {**SYSTEM, "baselines": {"histogram": SYSTEM}, "reranked": {"model": SYSTEM}, "protocol": PROTOCOL}
RECORD = {
    "method": "ogfr", "params": {"alpha": 0.3, "weights": "<none>"}, "train": {"epochs": 8}, "seed": 1,
    "parameters": 1234, "versions": {"torch": "2.13"}, "sha256": "abc",
}  # fmt: skip
LOG = pd.DataFrame({"step": range(4), "epoch": range(4), "loss": [4.0, 3, 2, 1], "held_out": [np.nan] * 4})
LISTED = ["system", "query", "image", "pid", "camid", "distance", "rank", "match"]
OPTIONS = figures.Draw(queries=1, nearest=1, dpi=40, seed=1)


def queries(ap):
    keys = [f"query/<{n}>.jpg" for n in range(len(ap))]
    columns = {"row": 0, "key": keys, "pid": 7, "camid": -1, "pattern": 0, "hidden": "none", "matches": 1}
    return pd.DataFrame({**columns, "model_ap": ap, "model_first": 1, "occluded": False})


def run(ap=(0.5, 0.1, 0.9, 0.2)):
    table = queries(list(ap))
    near = {"system": "model", "image": "gallery/a.jpg", "camid": 2, "distance": 0.123456}
    rows = [
        {**near, "query": key, "rank": rank, "pid": 9 - rank, "match": "no" if rank == 1 else "yes"}
        for key in table["key"]
        for rank in (1, 2)
    ]
    index = pd.DataFrame({"key": ["query/a.jpg", "gallery/a.jpg"]})
    images, parsing = [np.full((4, 2, 3), 9, np.uint8)] * 2, {"map": np.ones((2, 4, 2), np.uint8)}
    shown = pager.Shown(index, images, parsing, table, pd.DataFrame(rows, columns=LISTED))
    return page.Run("<mine>", shown, REPORT, RECORD, LOG, {"cmc.png": b"CMC", "types.png": b"TYPES"})


PAGE = page.render(run(), OPTIONS)


def test_the_page_loads_nothing_and_links_only_to_files_beside_it():
    assert set(re.findall(r'href="([^"#]+)"', PAGE)) == set(page.LINKS)
    assert not re.search(r"https?:|@import|url\(", PAGE) and not re.search(r'src="(?!data:)', PAGE)


def test_names_are_escaped():
    assert "<h1>ogfr on &lt;mine&gt;</h1>" in PAGE and "&lt;none&gt;" in PAGE
    assert "query/&lt;1&gt;.jpg" in PAGE and "<1>" not in PAGE


def test_every_picture_says_what_it_shows():
    images = re.findall(r"<(?:img|svg)[^>]*>", PAGE)
    assert all(re.search(r'(alt|aria-label)="[^"]+"', image) for image in images)
    assert 'alt="rank 1, another person: gallery/a.jpg"' in PAGE


def test_scores_of_every_system_stand_with_their_intervals():
    assert PAGE.count('<td class="n">50.0 <small>[40.0, 60.0]</small></td>') == 6  # 3 systems, 2 groups
    assert "<td>model_reranked</td><td>occluded</td>" in PAGE and "<td>holistic</td>" not in PAGE
    assert "<div>mAP, all<b>40.0</b><small>[30.0, 50.0]</small></div>" in PAGE


def test_pairs_of_cameras_stand_in_a_matrix_with_the_matches_and_the_others_below():
    assert '<td>camera 0</td><td class="n">–</td><td class="n">40.0 <small>(1,234)' in PAGE
    assert '<td>unknown camera</td><td class="n">7.0 <small>(2)' in PAGE
    assert "9 pairs with fewer matches: 3.0 (10)" in PAGE


def test_the_mean_of_one_query_has_no_interval():
    one = page.render(run([0.25]), OPTIONS)
    assert '<td>none</td><td class="n">1</td><td class="n">100.0</td><td class="n">25.0</td>' in one


def test_a_curve_is_drawn_of_every_quantity_that_has_values():
    assert PAGE.count("<polyline") == 1 and 'aria-label="loss: 4 → 1, over 3 epochs"' in PAGE


@pytest.mark.parametrize("steps", [1, 120, 121, 1000])
def test_a_curve_has_few_points_which_stay_in_its_picture(steps):
    log = pd.DataFrame({"step": 0, "epoch": np.arange(steps) / 10, "loss": np.sin(np.arange(steps))})
    places = re.search(r'points="([^"]+)"', page.training_curves(log))[1].split()
    assert len(places) == -(-steps // -(-steps // page.POINTS)) <= page.POINTS
    for x, y in (map(float, place.split(",")) for place in places):
        assert 0 <= x <= page.CURVE[0] and 0 <= y <= page.CURVE[1]


# ------------------------------------------------------------------ rankings


@given(st.lists(st.floats(0, 1), max_size=20), st.integers(0, 4))
def test_no_query_is_shown_twice_and_none_is_worse_than_the_worst_or_better_than_the_best(aps, count):
    chosen = pager.choose_queries(queries(aps), count, 1)
    keys = [key for rows in chosen.values() for key in rows["key"]]
    assert len(set(keys)) == len(keys) == min(3 * count, len(aps))
    worst, best = (chosen[kind]["model_ap"].tolist() for kind in ("worst", "best"))
    assert worst == sorted(aps)[:count]
    assert best == sorted(sorted(aps)[len(worst) :], reverse=True)[:count]


def test_queries_without_a_match_are_not_chosen():
    assert all(rows.empty for rows in pager.choose_queries(queries([0.5]).assign(matches=0), 2, 1).values())


def test_each_ranking_names_its_query_its_scores_and_its_images():
    articles = re.findall(r"<article.*?</article>", PAGE, re.DOTALL)
    assert [re.search(r'data-kind="(\w+)"', article)[1] for article in articles] == [
        "worst",
        "best",
        "random",
    ]
    worst = articles[0]
    assert "<h3>Worst 1 of 1: query/&lt;1&gt;.jpg</h3>" in worst and "hides nothing · 1 match in" in worst
    assert "model: AP 0.10, first match at rank 1" in worst and "pid 7<br>unknown camera" in worst
    assert '<figure class="no"' in worst and "✗ 1 · 0.123<br>pid 8<br>camera 2" in worst
    assert "rank 2" not in worst  # `nearest` is 1


def test_rankings_are_paged_by_buttons_and_arrow_keys_and_stand_below_each_other_without_the_script():
    assert '<div class="pager" hidden>' in PAGE and not re.search(r"<article[^>]*hidden", PAGE)
    assert "ArrowLeft" in PAGE and 'aria-label="next"' in PAGE and '<span role="status">' in PAGE


def test_without_a_query_there_is_nothing_to_page_through():
    empty = page.render(run([]), OPTIONS)
    assert '<div class="pager"' not in empty and "<article" not in empty


# ------------------------------------------------------------------ changes


def test_nested_values_have_dotted_names():
    assert changes.flatten({"a": {"b": 1, "c": {"d": [2]}}, "e": None}) == {"a.b": 1, "a.c.d": [2], "e": None}


def test_only_what_differs_is_listed_with_its_difference_and_whether_the_interval_holds_it():
    before = {"metrics.json": {"all": {"R1": 50.0, "mAP": 20.0}}, "params.yaml": {"seed": 1, "old": 5}}
    now = {"metrics.json": {"all": {"R1": 52.5, "mAP": 40.0}}, "params.yaml": {"seed": 1, "new": "x"}}
    assert changes.changes(before, now, {"all": ENDS}) == [
        ("metrics.json.all.R1", 50.0, 52.5, "+2.50, within the 95 % interval"),
        ("metrics.json.all.mAP", 20.0, 40.0, "+20.00, beyond the 95 % interval"),
        ("params.yaml.old", 5, "–", ""),
        ("params.yaml.new", "–", "x", ""),
    ]
    assert changes.changes(now, now, {}) == []


def test_scores_of_baselines_have_a_difference_alone():
    before, now = ({"encoder.json": {"all": {"mAP": value}}} for value in (20.0, 19.0))
    assert changes.changes(before, now, {"all": ENDS})[0][3] == "-1.00"


def test_changes_go_only_into_a_page_of_a_run():
    rows = [("params.yaml.seed", 1, 2, "")]
    text = changes.add_changes(PAGE, "a<b", rows)
    assert "<h2>What differs from a&lt;b</h2>" in text and "<td>params.yaml.seed</td>" in text
    assert "Nothing: scores and params are the same" in changes.add_changes(PAGE, "HEAD", [])
    with pytest.raises(BadInput, match="no place for changes"):
        changes.add_changes("<html>", "HEAD", [])


@pytest.fixture
def project(tmp_path):
    """A git repository with one commit, after which the scores changed."""
    folder = tmp_path / "data/mine"
    folder.mkdir(parents=True)
    for name in compare.METRICS:
        (folder / name).write_text(json.dumps({"all": {"R1": 50.0, "mAP": 30.0}}))
    (tmp_path / "params.yaml").write_text("seed: 1\n")
    author = ["-c", "user.name=tests", "-c", "user.email=tests"]
    for words in (["init", "-q"], ["add", "."], [*author, "commit", "-q", "-m", "One run"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    (folder / "metrics.json").write_text(json.dumps({"all": {"R1": 55.0, "mAP": 30.0}}))
    (folder / "report.json").write_text(json.dumps(REPORT))
    (folder / "report.html").write_text(PAGE, encoding="utf-8")
    return tmp_path


def test_a_page_is_compared_with_a_commit_and_itself_left_alone(project):
    source, out = project / "data/mine/report.html", project / "changes.html"
    compare.main(str(source), str(out), config=str(project / "params.yaml"))
    text = out.read_text(encoding="utf-8")
    assert "<td>metrics.json.all.R1</td>" in text and "+5.00, within" in text and "params.yaml" not in text
    assert source.read_text(encoding="utf-8") == PAGE


def test_a_commit_that_is_not_there_is_named(project):
    source = str(project / "data/mine/report.html")
    with pytest.raises(BadInput, match=r"metrics\.json: not in the commit nowhere .* Name one with --rev"):
        compare.main(source, str(project / "out.html"), "nowhere", str(project / "params.yaml"))
