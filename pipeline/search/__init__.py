"""Search over pictures of one's own: a folder is embedded once, and ranked for any picture."""

from pipeline.search.gallery import Gallery

__all__ = ["Gallery"]
