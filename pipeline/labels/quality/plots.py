"""Figures of the labels: contact sheets of maps over images, histograms of y(c) with lambda."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from jaxtyping import Integer, UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter
from PIL import Image, ImageDraw, ImageFont

from pipeline.data import parts
from pipeline.data.index import Images
from pipeline.drawing.pictures import COLOURS, encode_image, panels, resize_picture
from pipeline.labels import parsing
from pipeline.labels.quality import metrics, statistics

TILE = (192, 96)  # height, width of a picture on a sheet in pixels
GAP, MARGIN = 14, 20  # pixels between two tiles of a sheet, around it
LINE, SMALL, LARGE = 15, 11, 18  # pixels: of a line below a tile; sizes of letters
INK, DIM = (29, 35, 41), (102, 112, 122)
FONT = Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"
STATUS = ("", "no person", "ambiguous")  # of a map


def draw(
    folder: Path,
    keys: Sequence[str],
    images: Images,
    labels: metrics.Labels,
    agreement: metrics.Agreement | None,
    threshold: float,
    score: metrics.Score,
) -> None:
    """Write labels.png (random images), pixels.png (histograms of y(c)), with truth worst.png (least IoU).

    A tile shows an image, its true map if there is one, and its map; below stand the image's key and what its
    label says.
    """
    iou = None if agreement is None else agreement.image_iou()
    random = random_order(len(labels.parsing["map"]))[: score.pictures]
    sheets = {"labels.png": ("Labels of images at random", random)}
    if iou is not None:
        worst = np.argsort(iou, kind="stable")[: score.pictures]  # nan, where no part is visible, comes last
        sheets["worst.png"] = ("Labels with the least mean IoU with the true map", worst)
    for name, (title, rows) in sheets.items():
        tiles = [tile(images[i], label_maps(labels, i), _facts(keys, labels, i, iou)) for i in rows.tolist()]
        panel_names = ["image", *(["true map"] if labels.has_truth else []), "map"]
        _save(folder / name, sheet(title, panel_names, tiles, score.columns))
    names = labels.occlusion.attrs["parts"]
    histograms(folder / "pixels.png", labels.occlusion["pixels"][:], names, threshold)


def _facts(keys: Sequence[str], labels: metrics.Labels, i: int, iou: np.ndarray | None) -> tuple[str, str]:
    flags = zip(labels.occlusion.attrs["parts"], labels.occlusion["occluded"][i], strict=True)
    hidden = ", ".join(name for name, flag in flags if flag) or "nothing"
    status = int(labels.parsing["status"][i])
    facts = [STATUS[status]] if status == parsing.NO_PERSON else [f"hides {hidden}", STATUS[status]]
    if iou is not None and not np.isnan(iou[i]):
        facts.append(f"IoU {iou[i]:.2f}")
    return keys[i], " · ".join(filter(None, facts))


def random_order(count: int) -> Integer[np.ndarray, "N"]:
    """All rows in a random order, the same at every call."""
    return np.random.default_rng(statistics.SHUFFLE).permutation(count)


def label_maps(labels: metrics.Labels, i: int) -> list[UInt8[np.ndarray, "H W"]]:
    """The maps beside an image: its true map if there is one, and its map."""
    return [*([labels.truth["map"][i]] if labels.has_truth else []), labels.parsing["map"][i]]


def tile(
    image: UInt8[np.ndarray, "h w 3"], maps: Sequence[UInt8[np.ndarray, "H W"]], lines: Sequence[str]
) -> UInt8[np.ndarray, "T S 3"]:
    """An image and, beside it, each label map over the darkened image; lines of text below."""
    picture = panels(resize_picture(image, TILE), maps)
    canvas = _canvas(picture.shape[0] + LINE * len(lines) + 2, picture.shape[1])
    canvas.paste(Image.fromarray(picture))
    for n, line in enumerate(lines):
        place = (0, picture.shape[0] + 2 + LINE * n)
        write(canvas, place, line, SMALL, DIM if n else INK, picture.shape[1])
    return np.asarray(canvas)


def sheet(
    title: str, panel_names: Sequence[str], tiles: Sequence[UInt8[np.ndarray, "T S 3"]], columns: int
) -> UInt8[np.ndarray, "H W 3"]:
    """Tiles of one size side by side, row by row, below a title, the colours of the parts, panels' names."""
    height, width = tiles[0].shape[:2]
    columns = min(columns, len(tiles))
    head = MARGIN + LARGE + 2 * LINE
    legend = _legend(columns * (width + GAP) - GAP)
    top = head + legend.height + LINE + 6
    size = top + -(-len(tiles) // columns) * (height + GAP), 2 * MARGIN + columns * (width + GAP) - GAP
    canvas = _canvas(*size)
    write(canvas, (MARGIN, MARGIN), title, LARGE, INK, size[1] - 2 * MARGIN)
    canvas.paste(legend, (MARGIN, head))
    for n, picture in enumerate(tiles):
        row, column = divmod(n, columns)
        left = MARGIN + column * (width + GAP)
        canvas.paste(Image.fromarray(picture), (left, top + row * (height + GAP)))
        if row == 0:
            for i, name in enumerate(panel_names):
                write(canvas, (left + i * TILE[1], top - LINE - 2), name, SMALL, DIM, TILE[1])
    return np.asarray(canvas)


def _legend(width: int) -> Image.Image:
    """The colours of the parts with their names, in as many lines as this width needs."""
    font, square, places, x, y = _font(SMALL), 11, [], 0, 0
    for name in parts.FINE:
        length = square + 5 + int(font.getlength(name)) + 16
        if x and x + length > width:
            x, y = 0, y + LINE + 3
        places.append((x, y))
        x += length
    canvas = _canvas(y + LINE + 3, width)
    for name, colour, (x, y) in zip(parts.FINE, COLOURS[1:].tolist(), places, strict=True):
        ImageDraw.Draw(canvas).rectangle((x, y + 2, x + square, y + 2 + square), fill=tuple(colour))
        write(canvas, (x + square + 5, y), name, SMALL, INK, width)
    return canvas


def write(
    canvas: Image.Image, place: tuple[int, int], text: str, size: int, colour: tuple[int, ...], width: int
) -> None:
    """Write a line of text, its upper left corner at `place`; what is wider than `width` loses its start."""
    font, shown = _font(size), text
    while font.getlength(shown) > width:
        text = text[1:]
        shown = f"…{text}"
    ImageDraw.Draw(canvas).text(place, shown, fill=colour, font=font)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(FONT, size, layout_engine=ImageFont.Layout.BASIC)


def _canvas(height: int, width: int) -> Image.Image:
    return Image.new("RGB", (width, height), "white")


def histograms(
    path: str | Path, counts: Integer[np.ndarray, "N C"], names: Sequence[str], threshold: float
) -> None:
    """Histograms of the pixels of each part over all images, as a PNG; lambda is the dashed line.

    The axis is linear up to ten pixels and logarithmic above, as lambda lies near its low end.
    """
    figure = Figure(figsize=(3.2 * len(names), 2.8), layout="constrained")
    edges = np.concatenate([np.arange(-0.5, 10), np.geomspace(10.5, max(counts.max(initial=0), 11) + 1, 40)])
    for c, (name, axes) in enumerate(
        zip(names, figure.subplots(1, len(names), squeeze=False)[0], strict=True)
    ):
        axes.hist(counts[:, c], edges, color="#4878a8")
        axes.axvline(threshold, color="#c03030", linestyle="--")
        axes.set_xscale("symlog", linthresh=10)
        axes.set_yscale("symlog", linthresh=1)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.set(title=name, xlabel="y(c), pixels", xlim=(-0.5, edges[-1]))
    figure.axes[0].set_ylabel("images")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    _save(path, np.asarray(canvas.buffer_rgba())[..., :3])


def _save(path: str | Path, picture: UInt8[np.ndarray, "h w 3"]) -> None:
    Path(path).write_bytes(encode_image(picture, ".png"))
