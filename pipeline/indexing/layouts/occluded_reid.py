"""Occluded-REID (Zhuo et al., ICME 2018), as in Occluded_REID.zip; for testing alone.

    Occluded_REID/occluded_body_images/001/001_01.tif     query    identity 1
    Occluded_REID/whole_body_images/001/001_01.tif        gallery

Cameras are not told, so that no gallery image is left out for any query.
"""

from pipeline.indexing.archive import Archive
from pipeline.indexing.layout import Count, Listing, by_folder, numbered

FOLDERS = {"occluded_body_images": "query", "whole_body_images": "gallery"}
COUNTS = {"query": Count(1000, 200, 0), "gallery": Count(1000, 200, 0)}


def find(archive: Archive) -> Listing:
    """Every image of the two folders, and what is wrong with the rest."""
    return by_folder(archive, FOLDERS, numbered)
