"""Partial-REID (Zheng et al., ICCV 2015), as in Partial-REID_Dataset; for testing alone.

    Partial-REID_Dataset/partial_body_images/001_001.jpg     query    identity 1
    Partial-REID_Dataset/whole_body_images/001_001.jpg       gallery

Partial images are the occluded ones (occluded_body_images/, left out here) cut down to what shows the
person.  Cameras are not told.
"""

from pipeline.indexing.archive import Archive
from pipeline.indexing.layout import Count, Listing, by_folder, numbered

FOLDERS = {"partial_body_images": "query", "whole_body_images": "gallery"}
COUNTS = {"query": Count(300, 60, 0), "gallery": Count(300, 60, 0)}


def find(archive: Archive) -> Listing:
    """Every image of the two folders, and what is wrong with the rest."""
    return by_folder(archive, FOLDERS, numbered)
