"""Figures of the labels: contact sheets of maps over images, histograms of y(c) with lambda."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Integer, UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from pipeline.data.index import Images
from pipeline.labels.quality import metrics, statistics

# RGB of background and of the parts in their order
COLOURS = np.array(
    [[0, 0, 0], [230, 75, 60], [120, 220, 110], [25, 130, 60], [245, 205, 60], [90, 165, 245], [30, 70, 190],
     [225, 110, 225], [125, 30, 140]], np.uint8
)  # fmt: skip
TILE = (192, 96)  # height, width of a picture on a sheet in pixels


def draw(
    folder: Path,
    images: Images,
    labels: metrics.Labels,
    agreement: metrics.Agreement | None,
    threshold: float,
    score: metrics.Score,
) -> None:
    """Write labels.png (random images), pixels.png (histograms of y(c)), with truth worst.png (least IoU).

    A tile shows an image, its true map if there is one, and its map.
    """
    random = random_order(len(labels.parsing["map"]))[: score.pictures]
    iou = None if agreement is None else agreement.image_iou()
    sheet(folder / "labels.png", [_tile(images, labels, int(i), iou) for i in random], score.columns)
    names = labels.occlusion.attrs["parts"]
    histograms(folder / "pixels.png", labels.occlusion["pixels"][:], names, threshold)
    if iou is not None:
        worst = np.argsort(iou, kind="stable")[: score.pictures]  # nan, where no part is visible, comes last
        sheet(folder / "worst.png", [_tile(images, labels, int(i), iou) for i in worst], score.columns)


def _tile(
    images: Images, labels: metrics.Labels, i: int, iou: np.ndarray | None
) -> UInt8[np.ndarray, "T S 3"]:
    z = "".join(map(str, labels.occlusion["occluded"][i]))
    status = ("", " no person", " ambiguous")[int(labels.parsing["status"][i])]
    share = "" if iou is None else f" IoU {iou[i]:.2f}"
    return tile(images[i], label_maps(labels, i), f"{i} z={z}{share}{status}")


def random_order(count: int) -> Integer[np.ndarray, "N"]:
    """All rows in a random order, the same at every call."""
    return np.random.default_rng(statistics.SHUFFLE).permutation(count)


def label_maps(labels: metrics.Labels, i: int) -> list[UInt8[np.ndarray, "H W"]]:
    """The maps beside an image: its true map if there is one, and its map."""
    return [*([labels.truth["map"][i]] if labels.has_truth else []), labels.parsing["map"][i]]


def tile(
    image: UInt8[np.ndarray, "h w 3"], maps: Sequence[UInt8[np.ndarray, "H W"]], caption: str
) -> UInt8[np.ndarray, "T S 3"]:
    """An image and, beside it, each label map over the darkened image; a caption below."""
    picture = panels(image, maps)
    strip = np.zeros((16, picture.shape[1], 3), np.uint8)
    cv2.putText(strip, caption, (2, 12), cv2.FONT_HERSHEY_SIMPLEX, 0.36, (255, 255, 255), 1, cv2.LINE_AA)
    return np.concatenate([picture, strip])


def panels(
    image: UInt8[np.ndarray, "h w 3"], maps: Sequence[UInt8[np.ndarray, "H W"]]
) -> UInt8[np.ndarray, "T S 3"]:
    """An image and, beside it, each label map over the darkened image."""
    height, width = TILE
    small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    pictures = [small]
    for label in maps:
        resized = cv2.resize(label, (width, height), interpolation=cv2.INTER_NEAREST)
        overlay = small // 2 + COLOURS[resized] // 2
        pictures.append(np.where(resized[..., None] > 0, overlay, small // 3).astype(np.uint8))
    return np.concatenate(pictures, 1)


def sheet(path: str | Path, tiles: Sequence[UInt8[np.ndarray, "T S 3"]], columns: int) -> None:
    """Tiles of one size side by side, row by row, as a PNG."""
    tiles = [*tiles, *[np.zeros_like(tiles[0])] * (-len(tiles) % columns)]
    rows = [np.concatenate(tiles[i : i + columns], 1) for i in range(0, len(tiles), columns)]
    _save(path, np.concatenate(rows))


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


def encode_image(picture: UInt8[np.ndarray, "h w 3"], ending: str) -> bytes:
    """The bytes of a picture file, `.png` or `.jpg`."""
    success, data = cv2.imencode(ending, np.ascontiguousarray(picture[..., ::-1]))
    assert success
    return data.tobytes()
