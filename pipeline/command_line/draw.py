"""Draw what a trained model attends to, what its agent erases, or its rankings beside another system's.

Takes:
    figure     attention (what tokens attend to, by part), erasing (the patches that OGFR's agent erases) or
               rankings (the nearest images of each query by two systems)
    queries    worst, best, changed (most, between --model and --beside) or random; or keys of queries
    dataset    folder of a test set that `evaluate` has ranked
    model      folder of the trained model; of rankings also as --beside
    beside     the other system of `rankings` and `changed`: one that `evaluate` ranks, such as encoder,
               histogram or model; of rankings also a features.h5 or a folder of a trained model
    group      the queries of which some are chosen
    count      how many are chosen
    nearest    of rankings: images of the gallery for each query
    layer      of attention: last (whose features are compared), encoder (its last block) or decoder (OGFR's)
    seed       of random queries, and of those of equal AP
    dpi        dots per inch, of PNG
Writes:
    out        .png, .pdf or .svg (default: the figure's name, .png)

AP is that of `evaluate` in queries.parquet; `rankings` computes it, by the params `evaluate`.  Pictures are
given to the model as the stage `embed` does it, by the params `embed`.
"""

from pathlib import Path
from typing import Literal

import pandas as pd
from matplotlib.figure import Figure

from pipeline.command_line.evaluated_set import EvaluatedSet, TrainedModel
from pipeline.core.params import check_count, plural
from pipeline.explanation import figures
from pipeline.explanation.attention import Layer, attention, part_features
from pipeline.explanation.choice import Group, choose, holistic_image
from pipeline.explanation.erasing import erasing
from pipeline.ranking import Ranking, tables
from pipeline.ranking.figures import ranking_sheet


def main(
    figure: Literal["attention", "erasing", "rankings"],
    queries: list[str],
    dataset: str = "data/embedded",
    model: str = "models/trained",
    beside: str = "encoder",
    out: str = "",
    group: Group = "all",
    count: int = 6,
    nearest: int = 5,
    layer: Layer = "last",
    seed: int = 1,
    dpi: int = 200,
    config: str = "params.yaml",
) -> None:
    """Write the figure, and print what it shows."""
    out = out or f"{figure}.png"
    figures.check_path(out)
    for name, value in {"count": count, "nearest": nearest, "dpi": dpi}.items():
        check_count(f"--{name}", value, 1)
    test_set = EvaluatedSet(Path(dataset), config)
    table, systems = test_set.queries, ("model", beside)
    if figure == "rankings":
        rankings, systems = test_set.rankings(model, beside, nearest), (model, beside)
        scores = {"ap": "ap", "first": "first_match"}  # columns of queries.parquet
        for name, ranking in rankings.items():
            table = table.assign(**{f"{name}_{c}": getattr(ranking, member) for c, member in scores.items()})
    chosen = choose(table, queries, count, seed, group, systems)
    if figure == "rankings":
        drawn = draw_rankings(test_set, rankings, chosen, nearest)
    elif figure == "attention":
        drawn = draw_attention(test_set, model, chosen, layer)
    else:
        drawn = draw_erasing(test_set, model, chosen)
    figures.save(drawn, out, dpi)
    print(f"{out}: {plural(len(chosen), 'query')}", *chosen["key"], sep="\n")


# ------------------------------------------------------------------ the figures


def draw_attention(test_set: EvaluatedSet, folder: str, queries: pd.DataFrame, layer: Layer) -> Figure:
    """What the tokens of the model in a folder attend to in the queries."""
    trained = TrainedModel(folder, test_set)
    batch = trained.batch(queries["row"].tolist())
    with trained.computing():
        weights = attention(trained.model, batch, layer)
        features = part_features(trained.model, batch)
    if features is None:
        print(f"{folder}: {trained.method} has no part tokens, so its class token is drawn alone")
    pictures = figures.Pictures.of(batch, captions(queries))
    return figures.attention_figure(trained.title, pictures, weights, features, trained.encoder)


def draw_erasing(test_set: EvaluatedSet, folder: str, queries: pd.DataFrame) -> Figure:
    """What the agent of the model in a folder erases of the queries, and of a whole image of each person."""
    trained = TrainedModel(folder, test_set)
    whole = [holistic_image(test_set.index, test_set.hidden, row) for row in queries["row"]]
    sides = []
    for rows, words in (
        (queries["row"].tolist(), captions(queries)),
        (whole, ["" if row is None else test_set.index["key"][row] for row in whole]),
    ):
        lines = [line for line, row in enumerate(rows) if row is not None]
        if lines:
            batch = trained.batch([rows[line] for line in lines])
            pictures = figures.Pictures.of(batch, [words[line] for line in lines])
            with trained.computing():
                sides.append((lines, pictures, erasing(trained.model, batch)))
    return figures.erasing_figure(trained.title, sides, trained.encoder)


def draw_rankings(
    test_set: EvaluatedSet, rankings: dict[str, Ranking], queries: pd.DataFrame, nearest: int
) -> Figure:
    """The nearest images of the queries by each system, side by side."""
    lists = [
        tables.ranking_table(test_set.index, {"model": ranking}, nearest).assign(system=name)
        for name, ranking in rankings.items()
    ]
    return ranking_sheet(
        queries, pd.concat(lists), test_set.index, test_set.images, test_set.parsing, nearest
    )


def captions(queries: pd.DataFrame) -> list[str]:
    """The key of each query and its AP."""
    return [
        f"{key}, AP {100 * ap:.1f} %" if matches else f"{key}, no match"
        for key, ap, matches in queries[["key", "model_ap", "matches"]].itertuples(index=False)
    ]
