"""What is asked of a gallery in the browser, by many at a time."""

import io
import secrets
from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from threading import Lock

import numpy as np
from jaxtyping import Bool
from PIL import Image

from pipeline.data import parts as body
from pipeline.data.index import Crop
from pipeline.drawing.pictures import COLOURS
from pipeline.inference.api import Map
from pipeline.methods.base import Embedding
from pipeline.ranking import Rerank
from pipeline.search.embedder import Embedder
from pipeline.search.gallery import THUMBNAIL, Gallery, thumbnail, visible_parts
from pipeline.search.web.upload import Refused

RERANK = Rerank(depth=100, k1=20, k2=6, original=0.3)  # the paper's values; depth: what one looks through
GATED = "This model weighs a picture's features by each query: nearest neighbours are not mutual."
REMEMBERED = 64  # uploads, some 100 kB each
MOST_FOLDERS = 1000  # offered by name; any can be typed
SIZES = {"small": THUMBNAIL, "large": (576, 384)}  # height, width


@dataclass(frozen=True)
class Query:
    """A picture that was dropped in: what a search and the page need of it."""

    embedding: Embedding
    picture: bytes  # JPEG
    map: Map | None


@dataclass(frozen=True)
class Choice:
    """Which rows may be found: all those of a camera, and in or below a folder."""

    camera: str | None = None
    folder: str | None = None


class Service:
    """A gallery to look through and to search.  Threads may share it: one at a time computes, on all cores.

    Raises `BadInput` if the embedder is not that of the gallery.
    """

    def __init__(self, gallery: Gallery, embedder: Embedder):
        embedder.check(gallery)
        self.gallery, self._embedder = gallery, embedder
        self._computing, self._remembering = Lock(), Lock()
        self._queries: OrderedDict[str, Query] = OrderedDict()
        self._cameras = _Column([gallery.camera(row) for row in range(len(gallery))])
        self._folders = _Column([gallery.folder(row) for row in range(len(gallery))])

    def describe(self) -> dict:
        """What the page needs to know before anything is asked."""
        names, folders = self.gallery.part_names, [name for name in self._folders.values if name]
        groups = body.COARSE[4] if names[1:] == body.FINE else {}
        return {
            "count": len(self.gallery),
            "root": self.gallery.root.name,
            "guessed": self.gallery.attrs["z"] == "guessed",
            "maps": self.gallery.has_maps,
            "parts": list(names),
            "presets": {name: [body.FINE[label - 1] for label in group] for name, group in groups.items()},
            "colours": {name: f"#{COLOURS[n].tobytes().hex()}" for n, name in enumerate(body.FINE, 1)},
            "cameras": [camera for camera in self._cameras.values if camera is not None],
            "folders": folders[:MOST_FOLDERS],
            "no_rerank": GATED if "gate" in self.gallery.file else "",
        }

    # -------------------------------------------------------------- rows

    def row(self, row: int) -> int:
        """The row, if there is one.  Raises `Refused`."""
        if not 0 <= row < len(self.gallery):
            raise Refused(404, f"There is no picture {row}: the gallery has {len(self.gallery)}.")
        return row

    def hit(self, row: int) -> dict:
        """What is said of a picture."""
        gallery = self.gallery
        return {
            "row": row,
            "name": gallery.names[row],
            "folder": gallery.folder(row),
            "camera": gallery.camera(row),
            "parts": gallery.visible_parts(row),
        }

    def picture(self, row: int, size: str) -> bytes:
        """A picture as a JPEG file.

        Raises `Refused` for what is no file in the gallery's folder, and `BadInput` for one that is gone.
        """
        root, name = self.gallery.root, self.gallery.names[self.row(row)]
        try:
            path = (root / name).resolve()
            inside = path.is_relative_to(root.resolve()) and (path.is_file() or not path.exists())
        except (OSError, ValueError, RuntimeError):  # such as a link to itself
            inside = False
        if not inside:
            raise Refused(403, "The picture is not a file in the gallery's folder, so it is not shown.")
        return self.gallery.thumbnail(row, SIZES[size])

    def browse(self, choice: Choice, offset: int, top: int) -> dict:
        """Some pictures in the order of the rows."""
        rows = np.flatnonzero(self._allowed(choice))
        hits = [self.hit(row) for row in rows[offset : offset + top].tolist()]
        return {"count": len(rows), "offset": offset, "hits": hits}

    def _allowed(self, choice: Choice) -> Bool[np.ndarray, "N"]:
        allowed = np.ones(len(self.gallery), bool)
        if choice.camera is not None:
            allowed &= self._cameras.among([choice.camera])
        if choice.folder:
            folder = choice.folder.strip("/")
            below = [name for name in self._folders.values if f"{name}/".startswith(f"{folder}/")]
            allowed &= self._folders.among(below)
        return allowed

    # -------------------------------------------------------------- queries

    def remember(self, image: Crop) -> str:
        """A name for a picture that was dropped in, embedded; it is forgotten after `REMEMBERED` others."""
        with self._computing:
            embedding, maps = self._embedder.embed([image])
        query = Query(embedding, thumbnail(image, SIZES["large"]), maps[0] if maps else None)
        name = secrets.token_urlsafe(16)
        with self._remembering:
            self._queries[name] = query
            while len(self._queries) > REMEMBERED:
                self._queries.popitem(last=False)
        return name

    def query(self, name: str) -> Query:
        """A picture that was dropped in.  Raises `Refused` if it is forgotten."""
        with self._remembering:
            query = self._queries.get(name)
        if query is None:
            raise Refused(404, "This picture is forgotten. Drop it in again.")
        return query

    def nearest(
        self,
        query: str | int,
        choice: Choice,
        parts: Collection[str] | None,
        rerank: bool,
        offset: int,
        top: int,
    ) -> dict:
        """The nearest pictures to a remembered query, or to a row, which does not find itself.

        A distance is None if no part is visible in both.  Raises `Refused`, and `BadInput` for parts that
        there are not, and to re-rank a method with gates.
        """
        allowed = self._allowed(choice)
        if isinstance(query, int):
            embedding = self.gallery.embedding([self.row(query)])
            shown = self.hit(query)
            allowed[query] = False
        else:
            embedding = self.query(query).embedding
            visible = visible_parts(self.gallery.part_names, embedding.visibility[0].numpy())
            shown = {"query": query, "parts": visible}
        with self._computing:
            lists = self.gallery.nearest(embedding, top, offset, allowed, parts, RERANK if rerank else None)
        found = zip(*(table[0].tolist() for table in lists), strict=True)
        hits = [
            {"rank": rank, "distance": distance if np.isfinite(distance) else None, **self.hit(row)}
            for rank, (distance, row) in enumerate(found, offset + 1)
        ]
        return {"count": int(allowed.sum()), "offset": offset, "query": shown, "hits": hits}


class _Column:
    """A text or None for each row, as numbers of the few different ones; `values` are these, sorted."""

    def __init__(self, texts: Sequence[str | None]):
        self.values = sorted(set(texts), key=lambda text: (text is not None, text))
        number = {text: n for n, text in enumerate(self.values)}
        self._number = np.array([number[text] for text in texts], np.int32)

    def among(self, texts: Collection[str | None]) -> Bool[np.ndarray, "N"]:
        """Which rows have one of some texts."""
        return np.isin(self._number, [n for n, text in enumerate(self.values) if text in set(texts)])


def map_png(labels: Map) -> bytes:
    """A label map as a PNG file in the colours of the parts, transparent where there is none."""
    out = io.BytesIO()
    image = Image.fromarray(labels)
    image.putpalette(COLOURS.tobytes())
    image.save(out, "PNG", transparency=0)
    return out.getvalue()
