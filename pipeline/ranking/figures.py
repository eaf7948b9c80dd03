"""Figures of an evaluation: CMC curves, mAP by occlusion type, sheets of rankings; byte-reproducible."""

from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from pydantic import NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass

from pipeline.core.files import atomic_write
from pipeline.core.label_file import LabelFile
from pipeline.core.params import STRICT
from pipeline.data import parts
from pipeline.data.index import Images
from pipeline.drawing.pictures import COLOURS as PARTS
from pipeline.drawing.pictures import overlay, shorten_name
from pipeline.ranking.summary import mean_interval

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
FEW = 10  # queries: a mean of fewer is drawn hollow
ROW, NAME = 2.0, 34  # of the sheet of rankings: inches of a row, characters of a query's name


@dataclass(frozen=True, config=STRICT)
class Draw:
    """What the figures show."""

    queries: PositiveInt  # on the sheet of rankings; on the page, of each kind
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
    """mAP of every system on each occlusion type, with its 95 % interval and the number of queries.

    A bar that stands on fewer than `FEW` queries is hollow; one query alone has no interval.
    """
    scored = queries[queries["matches"] > 0]
    patterns = scored.groupby("pattern")["hidden"].agg(["first", "size"])
    figure, axes = plt.subplots(figsize=(max(5, 1.1 * len(patterns) + 2), 3.6))
    systems = drawn_systems(queries)
    width = 0.8 / len(systems)
    for i, system in enumerate(systems):
        for place, pattern in enumerate(patterns.index):
            ap = scored.loc[scored["pattern"] == pattern, f"{system}_ap"].to_numpy(float)
            x, mean = place + (i - (len(systems) - 1) / 2) * width, 100 * ap.mean()
            face = "none" if len(ap) < FEW else COLOURS[system]
            axes.bar(x, mean, 0.9 * width, facecolor=face, edgecolor=COLOURS[system])
            if len(ap) > 1:
                ends = 100 * mean_interval(ap[:, None])[:, 0]
                axes.vlines(x, *ends, color="#333333", linewidth=0.9)
    labels = [f"{name.replace('+', chr(10))}\n({size})" for name, size in patterns.itertuples(index=False)]
    axes.set_xticks(np.arange(len(patterns)), labels, fontsize=7)
    axes.set(ylabel="mAP, %", ylim=(0, 100), xlabel="hidden parts (queries)")
    axes.set_title("mAP by occlusion type", fontsize=10)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    handles: list[Artist] = [Patch(color=COLOURS[system], label=system) for system in systems]
    handles.append(Line2D([], [], color="#333333", linewidth=0.9, label="95 % interval"))
    if (patterns["size"] < FEW).any():
        handles.append(Patch(facecolor="none", edgecolor="#333333", label=f"fewer than {FEW} queries"))
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1))
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

    Above a query stand its name and hidden parts, above each list AP and the rank of the first match, below
    each picture rank and distance, identity and camera.  A match has a green frame, an image of another
    identity a red one.
    """
    systems = rankings["system"].unique().tolist()
    drawn = rankings[rankings["query"].isin(queries["key"])]
    lists = dict(list(drawn.groupby(["system", "query"])))
    number = dict(zip(index["key"], range(len(index)), strict=True))
    widths = [1, 1] + ([0.25] + [1] * nearest) * len(systems)
    figure, grid = plt.subplots(
        len(queries), len(widths), figsize=(0.78 * sum(widths), ROW * len(queries)), width_ratios=widths,
        squeeze=False, gridspec_kw={"hspace": 0.48, "wspace": 0.08, "top": 1, "bottom": 0},
    )  # fmt: skip
    for axes in grid.flat:
        axes.set_axis_off()
    for line, query in zip(grid, queries.to_dict("records"), strict=True):
        picture = images[query["row"]]
        _show(line[0], picture, _person(query["pid"], query["camid"]))
        _show(line[1], overlay(picture, parsing["map"][query["row"]]), "parsing map")
        hidden = query["hidden"].replace("+", ", ").replace("none", "nothing")
        _head(line[0], f"{shorten_name(query['key'], NAME)}\nhides {hidden}")
        for i, system in enumerate(systems):
            places = line[3 + i * (nearest + 1) :]
            ap, first = query[f"{system}_ap"], query[f"{system}_first"]
            _head(places[0], f"{system}: AP {ap:.2f}, first match at rank {first}")
            ranking = lists.get((system, query["key"]), rankings[:0]).to_dict("records")
            for axes, image in zip(places[:nearest], ranking, strict=False):
                match = image["match"] == "yes"
                mark, person = "✓" if match else "✗", _person(image["pid"], image["camid"])
                caption = f"{mark} {image['rank']} · {image['distance']:.3g}\n{person}"
                _show(axes, images[number[image["image"]]], caption)
                _frame(axes, RIGHT if match else WRONG)
    _legend(figure, 0.35 / (ROW * len(queries)))
    return figure


def _show(axes: Axes, image: np.ndarray, caption: str) -> None:
    axes.imshow(image, aspect="auto", extent=(0, 1, 0, 2))
    axes.text(0, -0.05, caption, fontsize=5.5, va="top", linespacing=1.1)


def _head(axes: Axes, text: str) -> None:
    axes.set_title(text, fontsize=6.5, loc="left", pad=3, linespacing=1.1)


def _frame(axes: Axes, colour: str) -> None:
    axes.add_patch(plt.Rectangle((0, 0), 1, 2, fill=False, edgecolor=colour, linewidth=4))


def _person(pid: int, camid: int) -> str:
    return f"pid {pid}\ncam {camid if camid >= 0 else '?'}"


def _legend(figure: Figure, above: float) -> None:
    """What frames, captions and colours mean, `above` the rows, as a share of the figure's height."""
    frames = {"✓ same person": RIGHT, "✗ another person": WRONG}
    handles = [Patch(facecolor="none", edgecolor=c, linewidth=2, label=name) for name, c in frames.items()]
    words = "below a picture: rank · distance, identity (pid; 0 is a distractor) · camera"
    handles.append(Patch(color="none", label=words))
    tints = zip(parts.FINE, PARTS[1:] / 255, strict=True)
    places = {"fontsize": 6.5, "frameon": False, "columnspacing": 1, "handlelength": 1.2, "borderpad": 0}
    for row, line in enumerate((handles, [Patch(color=tint, label=name) for name, tint in tints])):
        corner = (figure.subplotpars.left, 1 + above * (1.7 - 0.5 * row))
        figure.legend(handles=line, ncols=len(line), loc="lower left", bbox_to_anchor=corner, **places)


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
