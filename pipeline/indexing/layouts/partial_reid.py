"""Partial-REID (Zheng et al., ICCV 2015), as in Partial-REID_Dataset; for testing only.

    Partial-REID_Dataset/partial_body_images/001_001.jpg     query    identity 1
    Partial-REID_Dataset/whole_body_images/001_001.jpg       gallery

Partial images are the occluded ones (occluded_body_images/, not read here) cropped to the visible person.
File names hold no camera.
"""

from pipeline.indexing.archive import Archive
from pipeline.indexing.layout import Listing, PublishedCount, list_folders, parse_numbered_name

FOLDERS = {"partial_body_images": "query", "whole_body_images": "gallery"}
COUNTS = {"query": PublishedCount(300, 60, 0), "gallery": PublishedCount(300, 60, 0)}


def list_images(archive: Archive) -> Listing:
    """List the images of the two folders."""
    return list_folders(archive, FOLDERS, parse_numbered_name)
