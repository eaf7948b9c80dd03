"""HTML pages in one file each: nothing comes from elsewhere; readable on a phone and in print."""

import base64
import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

from pipeline.data import parts
from pipeline.drawing.pictures import COLOURS

STYLE = """
:root { --ink: #1d2329; --dim: #5c6670; --line: #e3e6e9; --bar: #2f6694; --right: #2e7d4f; --wrong: #b3261e }
* { box-sizing: border-box }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); margin: 0 auto; max-width: 1240px;
       padding: 32px 24px 64px; background: #fff; overflow-wrap: anywhere }
h1 { font-size: 26px; margin: 0 } h2 { font-size: 18px; margin: 40px 0 4px } h3 { font-size: 15px; margin: 0 }
h4 { font-size: 13px; font-weight: 500; margin: 12px 0 4px } p { margin: 0 0 12px } a { color: var(--bar) }
.dim, figcaption, th { color: var(--dim) }
nav { margin-top: 20px } nav a { display: inline-block; margin-right: 18px }
.numbers { display: flex; flex-wrap: wrap; gap: 12px; margin: 20px 0 }
.numbers div { border: 1px solid var(--line); border-radius: 8px; padding: 8px 16px; min-width: 128px }
.numbers b { display: block; font-size: 24px; font-variant-numeric: tabular-nums }
.tiles { display: flex; flex-wrap: wrap; gap: 12px } .tiles.wide { gap: 12px 48px }
figure { margin: 0 } img, svg { display: block; max-width: 100%; height: auto }
figcaption { font-size: 11px; line-height: 1.35; margin-top: 4px }
.scroll { overflow-x: auto; overflow-wrap: normal; margin-bottom: 12px }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
td, th { padding: 3px 14px 3px 0; vertical-align: top }
th { text-align: left; font-weight: 500; border-bottom: 1px solid var(--line) }
td.n, th.n { text-align: right; white-space: nowrap } td small { color: var(--dim) }
.legend { display: flex; flex-wrap: wrap; gap: 4px 14px; font-size: 13px; margin-bottom: 12px }
.legend i { display: inline-block; width: 11px; height: 11px; border-radius: 3px; margin-right: 5px }
@media (max-width: 600px) { body { padding: 16px 14px 48px; font-size: 14px } td, th { padding-right: 9px } }
"""


class Markup(str):
    """HTML, where else text would be escaped."""

    __slots__ = ()


class Section(NamedTuple):
    """A part of a page: its title, a line that explains it, and HTML."""

    title: str
    line: str
    content: str

    def anchor(self) -> str:
        """The section's name in links."""
        return re.sub(r"\W+", "-", self.title.lower()).strip("-")

    def html(self) -> str:
        """The section with its heading."""
        heads = f'<h2>{escape(self.title)}</h2><p class="dim">{escape(self.line)}</p>'
        return f'<section id="{self.anchor()}">{heads}{self.content}</section>'


def document(title: str, head: str, sections: Sequence[Section], style: str = "", script: str = "") -> str:
    """A whole page: `head`, links to the sections, the sections; with more style and a script of its own."""
    links = " ".join(f'<a href="#{s.anchor()}">{escape(s.title)}</a>' for s in sections)
    body = [head, f'<nav aria-label="sections">{links}</nav>', *(section.html() for section in sections)]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(title)}</title>"
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}{style}</style></head>\n<body>\n'
        + "\n".join(body)
        + (f"\n<script>{script}</script>" if script else "")
        + "\n</body></html>\n"
    )


def table(heads: Sequence[str], rows: Iterable[Sequence[object]], text: int = 1) -> str:
    """A table whose first `text` columns are text and the others numbers; scrolls where it is too wide."""
    kind = [""] * text + [' class="n"'] * (len(heads) - text)
    top = "".join(f"<th{k}>{_cell(head)}</th>" for k, head in zip(kind, heads, strict=True))
    lines = ("".join(f"<td{k}>{_cell(cell)}</td>" for k, cell in zip(kind, row, strict=True)) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return scroll(f"<tr>{top}</tr>{body}")


def scroll(rows: str) -> str:
    """A table of these rows of HTML, which scrolls where it is too wide for the page."""
    around = '<div class="scroll" tabindex="0" role="region" aria-label="table">'
    return f"{around}<table>{rows}</table></div>"


def _cell(value: object) -> str:
    return value if isinstance(value, Markup) else escape(str(value))


def picture(data: bytes, kind: str, alt: str, width: int, caption: str = "", mark: str = "") -> str:
    """A picture in the page with its HTML caption; `kind` is `png` or `jpeg`, `mark` a class of style."""
    image = f'<img alt="{escape(alt)}" width="{width}" src="{data_uri(data, kind)}">'
    below = f"<figcaption>{caption}</figcaption>" if caption else ""
    marked = f' class="{mark}"' if mark else ""
    return f'<figure{marked} style="max-width:{width}px">{image}{below}</figure>'


def legend(names: Sequence[str] = parts.FINE) -> str:
    """The colours of the parts, under these names."""
    items = "".join(
        f'<span><i style="background:rgb{tuple(COLOURS[k].tolist())}"></i>{escape(name)}</span>'
        for k, name in enumerate(names, 1)
    )
    return f'<div class="legend">{items}</div>'


def data_uri(data: bytes, kind: str) -> str:
    """The address of a picture that lies in the page."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
