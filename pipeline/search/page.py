"""Results of a search as one HTML page with its pictures inside."""

import base64
from collections.abc import Callable
from functools import partial
from html import escape

from pipeline.core.params import BadInput
from pipeline.data.index import DECODE_ERRORS
from pipeline.inference.api import read_picture
from pipeline.search.gallery import Gallery, thumbnail
from pipeline.search.query import Result

STYLE = """
:root { --ink: #1d2329; --dim: #66707a; --line: #e3e6e9; --shown: #4878a8; }
* { box-sizing: border-box }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); margin: 0 auto; max-width: 1240px;
       padding: 32px 24px 64px; background: #fff }
h1 { font-size: 26px; margin: 0 } .dim, figcaption { color: var(--dim) }
section { display: flex; gap: 24px; border-top: 1px solid var(--line); margin-top: 24px; padding-top: 24px }
.hits { display: flex; flex-wrap: wrap; gap: 16px; align-content: start }
figure { margin: 0; width: 128px } .query { flex: none; font-weight: 600 }
img, .gone { display: block; height: 192px; max-width: 128px; object-fit: contain; border-radius: 4px }
.gone { background: var(--line); padding: 8px; width: 96px; font-size: 11px; overflow: hidden }
figcaption { font-size: 11px; line-height: 1.35; margin-top: 4px; overflow-wrap: anywhere }
figcaption b { color: var(--ink); font-size: 13px } figcaption div { display: flex; gap: 6px }
svg { flex: none; height: 44px; width: 28px } rect { fill: none; stroke: #b8c0c8; stroke-width: .6 }
rect.shown { fill: var(--shown); stroke: var(--shown) }
"""
# x, y, width, height of each part in a drawing 28 x 44, seen from the front: the left is on the right
FIGURE = {
    "head": (10, 1, 8, 8),
    "left arm": (20, 11, 4, 15),
    "right arm": (4, 11, 4, 15),
    "torso": (9, 10, 10, 15),
    "left leg": (14.5, 26, 4.5, 12),
    "right leg": (9, 26, 4.5, 12),
    "left foot": (14.5, 39, 7, 4),
    "right foot": (6.5, 39, 7, 4),
}


def printable(text: str) -> str:
    """Text for a terminal or a page: a character that is no visible one, as a new line, is its escape."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def render(gallery: Gallery, results: list[Result]) -> str:
    """One HTML document: each query and what is nearest to it, with the parts that each picture shows."""
    guessed = "guessed by the model" if gallery.attrs["z"] == "guessed" else "known by parsing maps"
    count = f"{len(gallery):,} picture{'' if len(gallery) == 1 else 's'}"
    body = "\n".join(_section(gallery, result) for result in results)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Search</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>\n<body>'
        f'<h1>Search</h1><p class="dim">{count} of {_text(str(gallery.root))}. A distance of 0 is equal. '
        f"Parts that the model takes for visible are filled; what is hidden is {guessed}.</p>\n{body}\n"
        "</body></html>\n"
    )


def _section(gallery: Gallery, result: Result) -> str:
    names = gallery.part_names[1:]
    query = _figure(
        _image(lambda: thumbnail(read_picture(result.picture))), result.picture, "", result.visible, names
    )
    hits = [
        _figure(
            _image(partial(gallery.thumbnail, hit.row)),
            hit.picture,
            f"<b>{rank}</b> · {hit.distance:.3f}",
            hit.visible,
            names,
        )
        for rank, hit in enumerate(result.hits, 1)
    ]
    return f'<section><div class="query">{query}</div><div class="hits">{"".join(hits)}</div></section>'


def _figure(image: str, name: str, line: str, visible: list[str], names: tuple[str, ...]) -> str:
    drawing = _drawing(visible) if set(names) == set(FIGURE) else ""
    shown = f"shows {', '.join(visible) or 'no part'}" if names else ""
    caption = f"<div>{drawing}<span>{line}<br>{_text(shown)}</span></div>{_text(name)}"
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def _drawing(visible: list[str]) -> str:
    rectangles = "".join(
        f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="1.5"{" class=shown" * (name in visible)}>'
        f"<title>{name}</title></rect>"
        for name, (x, y, w, h) in FIGURE.items()
    )
    return f'<svg viewBox="0 0 28 44" role="img">{rectangles}</svg>'


def _image(read: Callable[[], bytes]) -> str:
    try:
        data = base64.b64encode(read()).decode()
    except (BadInput, *DECODE_ERRORS) as error:  # a page of the rest is worth having
        return f'<div class="gone">{_text(str(error))}</div>'
    return f'<img alt="" src="data:image/jpeg;base64,{data}">'


def _text(text: str) -> str:
    return escape(printable(text))
