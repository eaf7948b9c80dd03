"""Search over pictures of one's own: a folder is embedded once, and ranked for any picture."""

from pipeline.search.embedder import Embedder
from pipeline.search.folder import Indexed, index
from pipeline.search.gallery import Gallery
from pipeline.search.query import Hit, Result, search

__all__ = ["Embedder", "Gallery", "Hit", "Indexed", "Result", "index", "search"]
