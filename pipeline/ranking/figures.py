"""Figures of an evaluation: CMC curves, mAP by occlusion type, sheets of rankings; byte-reproducible."""

from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from pydantic import NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass

from pipeline.core.files import atomic_write
from pipeline.core.label_file import LabelFile
from pipeline.core.params import STRICT
from pipeline.data.index import Images

matplotlib.use("Agg")

COLOURS = {
    "model": "#1b6ca8",
    "model_reranked": "#2e9e4f",
    "z_guessed": "#6fb1e0",
    "z_unknown": "#b9d9f2",
    "encoder": "#8a8a8a",
    "histogram": "#d98c2b",
}
DEPTH = 20  # ranks of the CMC curve, if the gallery has as many images
RIGHT, WRONG = "#2e9e4f", "#d03b3b"
PARTS = matplotlib.colormaps["tab10"](np.arange(9) / 9)  # one colour per label; background is not tinted


@dataclass(frozen=True, config=STRICT)
class Draw:
    """What the figures show."""

    queries: PositiveInt  # on the sheet of rankings
    nearest: PositiveInt  # gallery images per query
    dpi: PositiveInt  # dots per inch
    seed: NonNegativeInt  # of the choice of queries


def save(figure: Figure, path: Path, dpi: int) -> None:
    """Write a PNG without date or version, and close the figure."""
    with atomic_write(path) as beside:
        figure.savefig(beside, format="png", dpi=dpi, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)


def drawn_systems(queries: pd.DataFrame) -> list[str]:
    """The systems in a table of queries; of the re-ranked ones, the model alone."""
    systems = [name.removesuffix("_ap") for name in queries.columns if name.endswith("_ap")]
    return [name for name in systems if name == "model_reranked" or not name.endswith("_reranked")]


def cmc_curves(queries: pd.DataFrame, depth: int) -> Figure:
    """Share of the queries with a match within each rank; solid line: all queries, dashed: the occluded."""
    figure, axes = plt.subplots(figsize=(5, 3.6))
    for system in drawn_systems(queries):
        for style, group in (("-", queries), ("--", queries[queries["occluded"]])):
            first = group.loc[group["matches"] > 0, f"{system}_first"].to_numpy()
            if len(first):
                shares = [100 * (first <= rank).mean() for rank in range(1, depth + 1)]
                label = system if style == "-" else None
                axes.plot(range(1, depth + 1), shares, style, color=COLOURS[system], label=label)
    axes.set(xlabel="rank", ylabel="matching queries, %", ylim=(0, 100), xlim=(1, depth))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title("CMC (dashed: occluded queries)", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1))
    return figure


def map_by_pattern(queries: pd.DataFrame) -> Figure:
    """mAP of every system on each occlusion type, with the number of queries."""
    scored = queries[queries["matches"] > 0]
    patterns = scored.groupby("pattern")["hidden"].agg(["first", "size"])
    figure, axes = plt.subplots(figsize=(max(5, 0.9 * len(patterns) + 2), 3.6))
    systems = drawn_systems(queries)
    for i, system in enumerate(systems):
        means = 100 * scored.groupby("pattern")[f"{system}_ap"].mean()
        places = np.arange(len(patterns)) + (i - (len(systems) - 1) / 2) * 0.8 / len(systems)
        axes.bar(places, means, 0.8 / len(systems), color=COLOURS[system], label=system)
    labels = [f"{name.replace('+', chr(10))}\n({size})" for name, size in patterns.itertuples(index=False)]
    axes.set_xticks(np.arange(len(patterns)), labels, fontsize=7)
    axes.set(ylabel="mAP, %", ylim=(0, 100), xlabel="hidden parts (queries)")
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1))
    return figure


# ------------------------------------------------------------------ rankings


def sample_queries(queries: pd.DataFrame, count: int, seed: int) -> pd.DataFrame:
    """`count` occluded queries (any, if none is occluded), different identities first; fixed by the seed."""
    pool = queries[queries["matches"] > 0]
    pool = pool[pool["occluded"]] if pool["occluded"].any() else pool
    shuffled = pool.sample(frac=1, random_state=seed)
    repeats = shuffled.groupby("pid").cumcount()
    return shuffled.iloc[np.argsort(repeats, kind="stable")[:count]]


def ranking_sheet(
    queries: pd.DataFrame,
    rankings: pd.DataFrame,
    index: pd.DataFrame,
    images: Images,
    parsing: LabelFile,
    nearest: int,
) -> Figure:
    """Each query with its parsing map and its nearest images by each system of `rankings`, side by side.

    A match has a green frame, an image of another identity a red one.
    """
    systems = rankings["system"].unique().tolist()
    drawn = rankings[rankings["query"].isin(queries["key"])]
    lists = dict(list(drawn.groupby(["system", "query"])))
    number = dict(zip(index["key"], range(len(index)), strict=True))
    widths = [1, 1] + ([0.3] + [1] * nearest) * len(systems)
    height = 1.25 * len(queries) + 0.4
    figure, grid = plt.subplots(
        len(queries), len(widths), figsize=(0.68 * sum(widths), height), width_ratios=widths, squeeze=False
    )
    for axes in grid.flat:
        axes.set_axis_off()
    for line, query in zip(grid, queries.to_dict("records"), strict=True):
        picture = images[query["row"]]
        _show(line[0], picture)
        _show(line[1], overlay(picture, parsing["map"][query["row"]]))
        for i, system in enumerate(systems):
            places = line[3 + i * (nearest + 1) :]
            ranking = lists.get((system, query["key"]), rankings[:0])
            for axes, key, match in zip(places[:nearest], ranking["image"], ranking["match"], strict=False):
                _show(axes, images[number[key]])
                _frame(axes, RIGHT if match == "yes" else WRONG)
    titles = {0: "query", 1: "parsing", **{3 + i * (nearest + 1): name for i, name in enumerate(systems)}}
    for column, title in titles.items():
        grid[0, column].set_title(title, fontsize=8, loc="left", pad=3)
    return figure


def overlay(
    image: UInt8[np.ndarray, "H W 3"], labels: UInt8[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "H W 3"]:
    """An image with its parts tinted."""
    rows = np.arange(image.shape[0]) * labels.shape[0] // image.shape[0]
    columns = np.arange(image.shape[1]) * labels.shape[1] // image.shape[1]
    labels = labels[np.ix_(rows, columns)]
    tint = (255 * PARTS[labels, :3]).astype(np.uint8)
    return np.where(labels[..., None] > 0, image // 3 + tint // 3 * 2, image // 2)


def _show(axes: Axes, image: np.ndarray) -> None:
    axes.imshow(image, aspect="auto", extent=(0, 1, 0, 2))


def _frame(axes: Axes, colour: str) -> None:
    axes.add_patch(plt.Rectangle((0, 0), 1, 2, fill=False, edgecolor=colour, linewidth=4))


def draw(
    folder: Path,
    index: pd.DataFrame,
    images: Images,
    parsing: LabelFile,
    queries: pd.DataFrame,
    rankings: pd.DataFrame,
    options: Draw,
) -> None:
    """Write every figure of an evaluation as a PNG file in `folder`."""
    gallery = int(((index["split"] == "gallery") & (index["pid"] >= 0)).sum())  # without junk
    save(cmc_curves(queries, max(2, min(DEPTH, gallery))), folder / "cmc.png", options.dpi)
    save(map_by_pattern(queries), folder / "types.png", options.dpi)
    sample = sample_queries(queries, options.queries, options.seed)
    if len(sample):
        sheet = ranking_sheet(sample, rankings, index, images, parsing, options.nearest)
        save(sheet, folder / "rankings.png", options.dpi)
