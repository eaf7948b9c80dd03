"""The audit as one HTML file with its pictures inside."""

from html import escape
from typing import Any

import cv2
import numpy as np
import pandas as pd
from jaxtyping import Float, Integer, UInt8

from pipeline.drawing import html
from pipeline.drawing.html import Section
from pipeline.drawing.pictures import panels
from pipeline.labels import parsing
from pipeline.labels.quality import plots, statistics
from pipeline.labels.quality.audit import CLOSE_CALLS, Audit, draw_boxes, fit_picture, select_rows
from pipeline.labels.quality.checks import FEWEST, Finding, check_labels

HEAT_HEIGHT = 256  # of a heat map in pixels
_SPLITS = (
    "Hidden parts are counted in images that show a person. The last columns are shares of an image's colour "
    "variance that maps explain; their ratio is near 1 if maps and images are out of step."
)
_TYPES = "Of images that show a person. Types in no training image are marked."
STYLE = """
:root { --look: #9a6700 }
.findings { list-style: none; padding: 0; margin: 0 }
.findings li { border-left: 5px solid; border-radius: 4px; padding: 8px 14px; margin: 6px 0 }
.findings .wrong { border-color: var(--wrong); background: #fdecea }
.findings .look { border-color: #d4a72c; background: #fff8e1 }
.findings .well { border-color: var(--right); background: #eaf6ee }
.wrong b { color: var(--wrong) } .look b { color: var(--look) } .well b { color: var(--right) }
figure img { border-radius: 4px } .places img { border: 1px solid var(--line) }
.bar { background: var(--line); border-radius: 3px; height: 9px; width: 160px; overflow: hidden }
.bar i { display: block; height: 100%; background: var(--bar) } .new { background: #fff8e1 }
"""


def render(audit: Audit, histograms: bytes, pictures: int) -> str:
    """The audit as one HTML document.  `histograms` is the PNG of y(c) with lambda drawn in."""
    person = audit.labels.has_person()
    patterns = statistics.count_patterns(audit.index[person], audit.labels.occlusion["occluded"][:][person])
    iou = None if audit.agreement is None else audit.agreement.image_iou()
    below = f"A part left of the dashed line, λ = {audit.threshold:g} pixels, counts as hidden."
    image = f'<img alt="histograms of y(c)" src="{html.data_uri(histograms, "png")}">'
    sections = [
        Section("Each split", _SPLITS, _splits(audit.report)),
        Section("Where each part lies", _where(audit), _places(audit)),
        Section("Pixels of each part, y(c)", below, image),
        Section("Occlusion types", _TYPES, _types(audit.report, patterns)),
        *([_truth(audit)] if audit.agreement is not None else []),
        *(_sheet(audit, iou, title, *sheet) for title, sheet in select_rows(audit, pictures).items()),
    ]
    head = _head(audit) + _findings(check_labels(audit.report, audit.survey))
    return html.document(f"Labels of {audit.name}", head, sections, STYLE)


def _head(audit: Audit) -> str:
    report, attrs = audit.report, audit.labels.parsing.attrs
    source = attrs.get("source", "Mask R-CNN and PifPaf")
    numbers = {
        "images": report["images"],
        "without a person": report["no_person"],
        "ambiguous": report["ambiguous"],
        "hide a part": report["hide_part"],
    }
    boxes = "".join(f"<div><b>{count:,}</b>{name}</div>" for name, count in numbers.items())
    return (
        f'<h1>Labels of {escape(audit.name)}</h1>\n<p class="dim">from {escape(str(source))} · λ = '
        f"{audit.threshold:g} pixels · C = {len(report['hidden'])} · maps of "
        f"{' × '.join(map(str, audit.survey.frequency.shape[1:]))} · index {escape(attrs['index'][:12])}</p>"
        f'<div class="numbers">{boxes}</div>'
    )


def _findings(findings: list[Finding]) -> str:
    if not findings:
        line = "<b>Nothing stands out.</b> Look at the pictures all the same."
        return f'<ul class="findings"><li class="well">{line}</li></ul>'
    word = {"wrong": "Wrong?", "look": "Look:"}
    lines = "".join(f'<li class="{f.level}"><b>{word[f.level]}</b> {escape(f.text)}</li>' for f in findings)
    return f'<ul class="findings">{lines}</ul>'


def _splits(report: dict[str, Any]) -> str:
    names = list(report["hidden"])
    heads = ("images", "nobody found", "ambiguous", "hide a part", *names, "own map", "another", "ratio")
    rows = []
    for split, counts in report["splits"].items():
        people = counts["images"] - counts["no_person"]
        cells = [
            f"{counts['images']:,}",
            *(_count(counts[key], counts["images"]) for key in ("no_person", "ambiguous")),
            *(_count(n, people) for n in (counts["hide_part"], *counts["hidden"].values())),
            *_fit_cells(counts["fit"]),
        ]
        row = "".join(f'<td class="n">{cell}</td>' for cell in cells)
        rows.append(f"<tr><td>{split}</td>{row}</tr>")
    head = "".join(f'<th class="n">{escape(name)}</th>' for name in heads)
    return html.scroll(f"<tr><th></th>{head}</tr>{''.join(rows)}")


def _count(count: int, total: int) -> str:
    return f"{count:,}<br>{count / max(total, 1):.1%}"


def _fit_cells(fit: dict[str, Any] | None) -> list[str]:
    if fit is None:
        return ["–"] * 3
    few = "<br>too few" if fit["images"] < FEWEST else ""
    return [_number(fit["own"]), _number(fit["other"]), f"{fit['own'] / max(fit['other'], 1e-9):.2f}{few}"]


def _where(audit: Audit) -> str:
    if not audit.guessed():
        return "How often a pixel shows it."
    return (
        "How often a pixel shows it. The source does not tell left from right: a side marked as guessed "
        "follows from where the pixels lie, as in an image from the front."
    )


def _places(audit: Audit) -> str:
    shares, figures = (audit.survey.pixels > 0).mean(0), []
    for k, name in enumerate(audit.part_names(), 1):
        heat = heat_map(audit.survey.frequency[k], plots.COLOURS[k])
        caption = f"<b>{name}</b><br>in {shares[k - 1]:.1%} of images"
        data = plots.encode_image(heat, ".png")
        figures.append(html.picture(data, "png", f"where the {name} lies", heat.shape[1], caption))
    return f'<div class="tiles places">{"".join(figures)}</div>'


def heat_map(share: Float[np.ndarray, "H W"], colour: UInt8[np.ndarray, "3"]) -> UInt8[np.ndarray, "T S 3"]:
    """Shares as colours: white for 0, nearly the given colour for the greatest.  In the shape of the maps."""
    strength = (share / max(share.max(), 1e-9))[..., None]
    picture = (255 * (1 - strength * 0.92) + colour * strength * 0.92).round().astype(np.uint8)
    width = max(round(HEAT_HEIGHT * share.shape[1] / share.shape[0]), 1)
    return cv2.resize(picture, (width, HEAT_HEIGHT), interpolation=cv2.INTER_LINEAR)


def _types(report: dict[str, Any], patterns: pd.DataFrame) -> str:
    names, most = list(report["hidden"]), patterns.sum(axis=1).max()
    rows = []
    for z, counts in patterns.iterrows():
        hidden = ", ".join(n for n, bit in zip(names, z, strict=True) if bit == "1") or "nothing"
        new = ' class="new"' if z in report["unseen"] else ""
        cells = "".join(f'<td class="n">{count:,}</td>' for count in counts)
        share = _bar(counts.sum() / most)
        rows.append(f"<tr{new}><td>{z}</td><td>{escape(hidden)}</td>{cells}<td>{share}</td></tr>")
    heads = "<th>z</th><th>hidden</th>" + "".join(f'<th class="n">{name}</th>' for name in patterns.columns)
    return html.scroll(f"<tr>{heads}<th></th></tr>{''.join(rows)}")


def _truth(audit: Audit) -> Section:
    report = audit.report
    line = (
        "Balanced accuracy of each flag (0.5 is a guess), IoU of masks and parts. Another person was taken "
        f"for the target in {report['wrong_person']:,} images."
    )
    tables = [
        _table(f"l(c), {name}", report[group]["balanced_accuracy"])
        for name, group in (("all images", "all"), ("occluded queries", "occluded"))
    ]
    part_iou = dict(zip([*audit.part_names(), "mean"], report["part_iou"].values(), strict=True))
    tables.append(_table("IoU", {"the whole person": report["mask_iou"], **part_iou}))
    return Section("Against the truth", line, f'<div class="tiles wide">{"".join(tables)}</div>')


def _table(title: str, values: dict[str, float | None]) -> str:
    rows = "".join(
        f'<tr><td>{escape(name)}</td><td class="n">{_number(value)}</td><td>{_bar(value)}</td></tr>'
        for name, value in values.items()
    )
    return f'<div><table><tr><th colspan="3">{escape(title)}</th></tr>{rows}</table></div>'


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _bar(share: float | None) -> str:
    return f'<div class="bar"><i style="width:{100 * (share or 0):.1f}%"></i></div>'


def _sheet(
    audit: Audit, iou: Float[np.ndarray, "N"] | None, title: str, line: str, rows: Integer[np.ndarray, "n"]
) -> Section:
    beside = "Image, true map, map." if audit.labels.has_truth else "Image and map."
    figures = "".join(_tile(audit, int(i), iou, title == CLOSE_CALLS) for i in rows)
    legend = html.legend(audit.part_names())
    return Section(title, f"{line} {beside}", f'{legend}<div class="tiles">{figures}</div>')


def _tile(audit: Audit, i: int, iou: Float[np.ndarray, "N"] | None, close: bool) -> str:
    image = draw_boxes(audit, i) if close else fit_picture(audit.images[i])
    picture = panels(image, plots.label_maps(audit.labels, i))
    z = "".join(map(str, audit.labels.occlusion["occluded"][i]))
    nobody = audit.labels.parsing["status"][i] == parsing.NO_PERSON
    facts = ["nobody found" if nobody else f"z = {z}"]
    if iou is not None:
        facts.append(f"IoU {iou[i]:.2f}")
    if np.isfinite(margin := float(audit.labels.parsing["margin"][i])):
        facts.append(f"lead {margin:.2f}")
    caption = f"{escape(audit.index['key'][i])}<br>{' · '.join(facts)}"
    data, alt = plots.encode_image(picture, ".jpg"), f"{audit.index['key'][i]} and its maps"
    return html.picture(data, "jpeg", alt, picture.shape[1], caption)
