"""Rankings on a page, to page through by buttons and arrow keys."""

from html import escape
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from pipeline.core.label_file import LabelFile
from pipeline.data.index import Crop, Images
from pipeline.drawing import html
from pipeline.drawing.pictures import encode_image, overlay, resize_picture
from pipeline.ranking import figures

TILE = (192, 96)  # height, width of a picture in pixels
WIDTH = 76  # pixels of a picture as it is shown
STYLE = """
.yes img { outline: 4px solid var(--right) } .no img { outline: 4px solid var(--wrong) }
.yes img, .no img { outline-offset: -4px } .ranking { margin: 16px 0 32px }
.pager { display: flex; flex-wrap: wrap; gap: 8px; align-items: center; margin-bottom: 12px }
.pager[hidden] { display: none } .pager span { min-width: 80px; text-align: center }
button { font: inherit; padding: 6px 14px; border: 1px solid #aab2ba; border-radius: 6px; background: #f6f7f8;
         color: inherit }
button:focus-visible, a:focus-visible, .scroll:focus-visible { outline: 2px solid var(--bar) }
button[aria-pressed=true] { background: var(--bar); color: #fff }
@media (max-width: 600px) { .ranking figure { max-width: 62px !important } }
@media print { .ranking[hidden] { display: block } .pager { display: none } }
"""
SCRIPT = """
const all = [...document.querySelectorAll(".ranking")], pager = document.querySelector(".pager");
const jumps = pager ? [...pager.querySelectorAll("[data-kind]")] : [];
let at = 0;
function show(n) {
  at = (n + all.length) % all.length;
  all.forEach((ranking, i) => { ranking.hidden = i !== at; });
  jumps.forEach(b => b.setAttribute("aria-pressed", b.dataset.kind === all[at].dataset.kind));
  pager.querySelector("span").textContent = `${at + 1} of ${all.length}`;
}
if (pager) {
  pager.hidden = false;
  const steps = pager.querySelectorAll("[data-step]");
  const first = kind => all.findIndex(ranking => ranking.dataset.kind === kind);
  steps.forEach(button => { button.onclick = () => show(at + Number(button.dataset.step)); });
  jumps.forEach(button => { button.onclick = () => show(first(button.dataset.kind)); });
  document.addEventListener("keydown", event => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const plain = !event.altKey && !event.ctrlKey && !event.metaKey && !event.target.closest(".scroll");
    if (step && plain) { show(at + step); event.preventDefault(); }
  });
  show(0);
}
"""


class Shown(NamedTuple):
    """What the rankings are drawn from."""

    index: pd.DataFrame
    images: Images
    parsing: LabelFile
    queries: pd.DataFrame  # queries.parquet
    rankings: pd.DataFrame  # rankings.csv


def choose_queries(queries: pd.DataFrame, count: int, seed: int) -> dict[str, pd.DataFrame]:
    """`worst`, `best`, `random` -> up to `count` queries each, none twice; among equal APs the seed chooses.

    Only queries with a match have an AP, and are chosen from.
    """
    left = queries[queries["matches"] > 0].sample(frac=1, random_state=seed)
    chosen = {}
    for kind, order in (("worst", 1), ("best", -1), ("random", 0)):
        chosen[kind] = left.iloc[np.argsort(order * left["model_ap"].to_numpy(), kind="stable")[:count]]
        left = left.drop(chosen[kind].index)
    return chosen


def rankings(shown: Shown, options: figures.Draw) -> str:
    """The rankings of the chosen queries as HTML, which needs `STYLE` and `SCRIPT`.

    Without the script all stand below each other.
    """
    number = dict(zip(shown.index["key"], range(len(shown.index)), strict=True))
    chosen = {k: q for k, q in choose_queries(shown.queries, options.queries, options.seed).items() if len(q)}
    keys = pd.concat(chosen.values())["key"] if chosen else []
    drawn = shown.rankings[shown.rankings["query"].isin(keys) & (shown.rankings["rank"] <= options.nearest)]
    lists = {query: dict(list(rows.groupby("system", sort=False))) for query, rows in drawn.groupby("query")}
    articles = [
        _ranking(shown, f"{kind} {n} of {len(queries)}", kind, query, lists.get(query["key"], {}), number)
        for kind, queries in chosen.items()
        for n, query in enumerate(queries.to_dict("records"), 1)
    ]
    jumps = "".join(
        f'<button type="button" data-kind="{kind}">{kind.capitalize()}</button>' for kind in chosen
    )
    pager = (
        '<div class="pager" hidden><button type="button" data-step="-1" aria-label="previous">‹</button>'
        '<span role="status"></span><button type="button" data-step="1" aria-label="next">›</button>'
        f'{jumps}<small class="dim">or the arrow keys</small></div>'
    )
    says = (
        '<p class="dim">✓ and a green frame: the same person; ✗ and a red one: another. Below stand rank and '
        "distance, identity (pid; 0 is a distractor) and camera.</p>"
    )
    return says + html.legend() + (pager if articles else "") + "".join(articles)


def _ranking(
    shown: Shown, title: str, kind: str, query: dict[str, Any], lists: dict[str, pd.DataFrame],
    number: dict[str, int],
) -> str:  # fmt: skip
    image = shown.images[query["row"]]
    pictures = _tile(image, f"query {query['key']}", _person(query["pid"], query["camid"]))
    tinted = overlay(image, shown.parsing["map"][query["row"]])
    pictures += _tile(tinted, "its parsing map", "parsing map")
    blocks = [f'<div class="tiles">{pictures}</div>']
    for system, rows in lists.items():
        ap, first = query[f"{system}_ap"], query[f"{system}_first"]
        tiles = "".join(_near(shown, row, number) for row in rows.to_dict("records"))
        head = f"{escape(system)}: AP {ap:.2f}, first match at rank {first}"
        blocks.append(f'<h4>{head}</h4><div class="tiles">{tiles}</div>')
    matches = "1 match" if query["matches"] == 1 else f"{query['matches']:,} matches"
    hidden = query["hidden"].replace("+", ", ").replace("none", "nothing")
    return (
        f'<article class="ranking" data-kind="{kind}"><h3>{title.capitalize()}: {escape(query["key"])}</h3>'
        f'<p class="dim">hides {escape(hidden)} · {matches} in the gallery</p>'
        f"{''.join(blocks)}</article>"
    )


def _near(shown: Shown, row: dict[str, Any], number: dict[str, int]) -> str:
    mark, word, style = ("✓", "same", "yes") if row["match"] == "yes" else ("✗", "another", "no")
    caption = f"{mark} {row['rank']} · {row['distance']:.3g}<br>{_person(row['pid'], row['camid'])}"
    alt = f"rank {row['rank']}, {word} person: {row['image']}"
    return _tile(shown.images[number[row["image"]]], alt, caption, style)


def _tile(image: Crop, alt: str, caption: str, mark: str = "") -> str:
    data = encode_image(resize_picture(image, TILE), ".jpg")
    return html.picture(data, "jpeg", alt, WIDTH, caption, mark)


def _person(pid: int, camid: int) -> str:
    return f"pid {pid}<br>{camera(camid)}"


def camera(camid: int) -> str:
    """A camera in words; below 0 it is unknown."""
    return f"camera {camid}" if camid >= 0 else "unknown camera"
