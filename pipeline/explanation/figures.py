"""Figures of what a trained model attends to and erases (Fig. 6 and 7 of OGFR), as PNG, PDF or SVG.

The same input gives the same bytes.  A patch is drawn where it lies in the picture; where patches overlap, a
pixel has the mean of those that cover it.
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from pipeline.batches.views import Batch
from pipeline.core.files import atomic_write, check_file_path
from pipeline.core.params import BadInput
from pipeline.data import parts
from pipeline.drawing.pictures import COLOURS, overlay
from pipeline.explanation.attention import Attention, PartFeatures
from pipeline.explanation.erasing import Erasing, kept_shares
from pipeline.model.vit import OcclusionAwareViT

matplotlib.use("Agg")

# what a format writes beside the picture, and would change from run to run or from version to version
METADATA: dict[str, dict[str, Any]] = {
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    "svg": {"Date": None, "Creator": None},
}
WIDTH, HEIGHT, CAPTION = 0.85, 1.7, 0.3  # inches of a picture, and of the words below it
SMALL, NORMAL, LARGE = 7, 8, 10  # points of text
INK = "#333333"
TINTS = (COLOURS / 255).tolist()  # of the parts in frames and legends, RGB in [0, 1]
HEAT = matplotlib.colormaps["inferno"]
SATURATED = 0.998  # the quantile of attention that has the brightest colour


# ------------------------------------------------------------------ files


def check_path(path: str) -> None:
    """Raise `BadInput` unless a figure can be written to a file of this name; before anything is computed."""
    check_file_path(path)
    if _ending(path) not in METADATA:
        endings = ", ".join(f".{name}" for name in METADATA)
        raise BadInput(f"{path}: no kind of figure. Let the name end in one of {endings}.")


def save(figure: Figure, path: str, dpi: int) -> None:
    """Write a figure by the ending of `path`, and close it; `dpi` of what is made of pixels."""
    kind = _ending(path)
    with atomic_write(path) as beside, matplotlib.rc_context({"svg.hashsalt": "figure", "pdf.fonttype": 42}):
        figure.savefig(beside, format=kind, dpi=dpi, bbox_inches="tight", metadata=METADATA[kind])
    plt.close(figure)


def _ending(path: str) -> str:
    return Path(path).suffix.lower().removeprefix(".")


# ------------------------------------------------------------------ patches in the picture


def to_pixels(values: Float[np.ndarray, "N"], encoder: OcclusionAwareViT) -> Float[np.ndarray, "H W"]:
    """A value of each patch at its pixels, the mean where patches overlap; NaN where none lies."""
    total, count = np.zeros(encoder.size), np.zeros(encoder.size)
    for n, value in enumerate(values):
        top, left = (encoder.stride * place for place in divmod(n, encoder.grid[1]))
        place = np.s_[top : top + encoder.patch, left : left + encoder.patch]
        total[place] += value
        count[place] += 1
    return np.divide(total, count, out=np.full(encoder.size, np.nan), where=count > 0)


def labels_to_pixels(labels: Int[np.ndarray, "N"], encoder: OcclusionAwareViT) -> UInt8[np.ndarray, "H W"]:
    """The label that most of a pixel's patches have, the smallest of equally many; 0 where no patch lies."""
    votes = np.stack(
        [to_pixels((labels == label).astype(float), encoder) for label in range(len(parts.FINE) + 1)]
    )
    return np.nan_to_num(votes).argmax(0).astype(np.uint8)


# ------------------------------------------------------------------ panels


class Pictures(NamedTuple):
    """B pictures as the model is given them."""

    image: UInt8[np.ndarray, "B H W 3"]
    parsing: UInt8[np.ndarray, "B H W"]
    hidden: Bool[np.ndarray, "B C"]  # z
    captions: Sequence[str]  # one each

    @classmethod
    def of(cls, batch: Batch, captions: Sequence[str]) -> "Pictures":
        """The holistic views of a batch, whose images are bytes."""
        view = batch.holistic
        image, parsing, hidden = (t.cpu().numpy() for t in (view.image, view.parsing, view.hidden))
        return cls(image.transpose(0, 2, 3, 1), parsing, hidden, captions)


def _grid(rows: int, widths: Sequence[float]) -> tuple[Figure, Any]:
    size = (WIDTH * sum(widths), (HEIGHT + CAPTION) * rows)
    figure, grid = plt.subplots(rows, len(widths), figsize=size, width_ratios=widths, squeeze=False)
    bottom = CAPTION / size[1]
    figure.subplots_adjust(0, bottom, 1, 1, wspace=0.07, hspace=CAPTION / HEIGHT)
    for axes in grid.flat:
        axes.set_axis_off()
    return figure, grid


def _title(figure: Figure, text: str) -> None:
    height = figure.get_figheight()
    figure.suptitle(text, x=0, y=1 + 0.3 / height, ha="left", va="bottom", fontsize=LARGE)


def _titles(line: Iterable[Axes], titles: Sequence[str]) -> None:
    for axes, title in zip(line, titles, strict=True):
        axes.set_title(title, fontsize=NORMAL, pad=4)


def _picture(axes: Axes, image: np.ndarray, caption: str) -> None:
    _show(axes, image)
    _caption(axes, caption)


def _show(axes: Axes, image: np.ndarray) -> None:
    axes.imshow(image, aspect="auto", extent=(0, 1, 0, 1))


def _caption(axes: Axes, text: str) -> None:
    axes.annotate(
        text, (0, 0), (0, -2), textcoords="offset points", fontsize=SMALL, va="top", linespacing=1.1
    )


def _heat(axes: Axes, image: np.ndarray, values: Float[np.ndarray, "H W"], norm: Normalize) -> None:
    """Values over the grey picture: the greater, the less of the picture shows through."""
    grey = image.mean(-1, keepdims=True) / 255
    level = np.clip(norm(np.nan_to_num(values)), 0, 1)
    _show(axes, 0.5 * grey * (1 - level[..., None]) + HEAT(level)[..., :3] * level[..., None])


def _whitened(image: np.ndarray, share: Float[np.ndarray, "H W"]) -> np.ndarray:
    share = np.nan_to_num(share)[..., None]
    return (image * (1 - share) + 255 * share).astype(np.uint8)


def _frame(axes: Axes, colour: Any, style: str, width: float = 2.0) -> None:
    axes.add_patch(Rectangle((0, 0), 1, 1, fill=False, clip_on=False, ec=colour, ls=style, lw=width))


def _occlusion_type(axes: Axes, hidden: Bool[np.ndarray, "C"]) -> None:
    """z, a box for each coarse part: filled if it is visible, empty and dashed if it is hidden."""
    names, height = list(parts.COARSE[len(hidden)]), 1 / len(hidden)
    for n, (name, empty) in enumerate(zip(names, hidden, strict=True)):
        middle = 1 - (n + 0.5) * height
        face, style = ("white", "--") if empty else (INK, "-")
        axes.add_patch(
            Rectangle((0.03, middle - 0.46 * height), 0.94, 0.92 * height, fc=face, ec=INK, ls=style)
        )
        axes.text(
            0.5, middle, name.replace(" ", "\n"), fontsize=SMALL, ha="center", va="center",
            color=INK if empty else "white",
        )  # fmt: skip
    axes.set(xlim=(0, 1), ylim=(0, 1))


def _part_handles() -> list[Patch]:
    return [Patch(color=TINTS[label], label=name) for label, name in enumerate(parts.FINE, 1)]


def _attention_handles(with_parts: bool) -> list[Any]:
    boxes = [Patch(fc=INK, ec=INK, label="z: visible"), Patch(fc="white", ec=INK, ls="--", label="z: hidden")]
    styles = {"-": "visible to the model (Eq. 24)", ":": "not visible to the model"} if with_parts else {}
    return boxes + [Line2D([], [], color=INK, ls=style, lw=2, label=name) for style, name in styles.items()]


def _legend(figure: Figure, handles: Sequence[Any]) -> None:
    figure.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(0, -0.05 / figure.get_figheight()),
        fontsize=NORMAL, ncols=6 if figure.get_figwidth() > 6 else 3, frameon=False, borderaxespad=0,
        borderpad=0,
    )  # fmt: skip


def _colour_bar(figure: Figure, norm: Normalize, label: str) -> None:
    """A bar of `HEAT`, right of the first row."""
    width, height = figure.get_size_inches()
    axes = figure.add_axes((1 + 0.12 / width, 1 - HEIGHT / height, 0.1 / width, HEIGHT / height))
    figure.colorbar(ScalarMappable(norm, HEAT), cax=axes)
    axes.tick_params(labelsize=SMALL)
    axes.set_ylabel(label, fontsize=SMALL)


def _kept_words(shares: dict[str, float]) -> str:
    body, background = (
        f"{100 * shares[name]:.0f} %" if not math.isnan(shares[name]) else "none"
        for name in ("body", "background")
    )
    return f"kept {100 * shares['all']:.0f} %: body {body}, background {background}"


# ------------------------------------------------------------------ figures


def attention_figure(
    model: str,
    pictures: Pictures,
    attention: Attention,
    features: PartFeatures | None,
    encoder: OcclusionAwareViT,
) -> Figure:
    """Each picture, its parsing map and z, each token's attention, and the part that each patch resembles.

    `model` names the model in the title.
    """
    weights = 100 * attention.weights.cpu().numpy()
    norm = Normalize(0, float(np.quantile(weights, SATURATED)))
    figure, grid = _grid(
        len(pictures.image), [1.0, 1.0, 0.75, *[1.0] * (len(attention.tokens) + bool(features))]
    )
    for row, (line, image) in enumerate(zip(grid, pictures.image, strict=True)):
        _picture(line[0], image, pictures.captions[row])
        _show(line[1], overlay(image, pictures.parsing[row]))
        _occlusion_type(line[2], pictures.hidden[row])
        for token, axes in enumerate(line[3 : 3 + len(attention.tokens)]):
            _heat(axes, image, to_pixels(weights[row, token], encoder), norm)
        if features:
            for label, visible in enumerate(features.visibility[row].tolist(), 1):
                _frame(line[3 + label], TINTS[label], "-" if visible else ":")
            nearest = labels_to_pixels(features.nearest[row].cpu().numpy(), encoder)
            _show(line[-1], overlay(image, nearest))
    titles = ["picture", "parsing map", "z", *attention.tokens, *(["nearest part"] if features else [])]
    _titles(grid[0], titles)
    uniform = 100 / weights.shape[-1]
    _title(figure, f"{model}: attention of {attention.layer}")
    _colour_bar(figure, norm, f"attention per patch, %\n(even: {uniform:.2g} %)")
    _legend(figure, [*_part_handles(), *_attention_handles(bool(features))])
    return figure


def erasing_figure(
    model: str, sides: Sequence[tuple[Sequence[int], Pictures, Erasing]], encoder: OcclusionAwareViT
) -> Figure:
    """Pictures, the patches that the agent erases of each, and how likely it erases a patch.

    `model` names the model in the title.  A side is pictures in the lines that it names: the queries in all
    lines, then images of the same people, if there are any.
    """
    lines = len(sides[0][0])
    figure, grid = _grid(lines, [1.0, 1.0, 1.0, 0.3, 1.0, 1.0, 1.0])
    norm = Normalize(0, 100)
    for first, (places, pictures, erasing) in zip((0, 4), sides, strict=False):
        for row, place in enumerate(places):
            line, image = grid[place, first:], pictures.image[row]
            kept, probability = erasing.kept[row].cpu(), 100 * (1 - erasing.keep[row].cpu().numpy())
            shares = kept_shares(kept, erasing.body[row].cpu())
            _picture(line[0], image, f"{pictures.captions[row]}\n{_kept_words(shares)}")
            _show(line[1], _whitened(image, to_pixels(1 - kept.float().numpy(), encoder)))
            _frame(line[1], INK, "-", 0.5)
            _heat(line[2], image, to_pixels(probability, encoder), norm)
    _title(figure, f"{model}: patches that the agent erases")
    names = ["erased: white", "probability"]
    _titles(grid[0], ["query", *names, "", "same person", *names])
    _colour_bar(figure, norm, "probability of\nerasing a patch, %")
    return figure
