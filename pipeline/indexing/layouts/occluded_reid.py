"""Occluded-REID (Zhuo et al., ICME 2018), as in Occluded_REID.zip; for testing only.

    Occluded_REID/occluded_body_images/001/001_01.tif     query    identity 1
    Occluded_REID/whole_body_images/001/001_01.tif        gallery

File names hold no camera, so no gallery image is left out for any query.
"""

from pipeline.indexing.archive import Archive
from pipeline.indexing.layout import Listing, PublishedCount, list_folders, parse_numbered_name

FOLDERS = {"occluded_body_images": "query", "whole_body_images": "gallery"}
COUNTS = {"query": PublishedCount(1000, 200, 0), "gallery": PublishedCount(1000, 200, 0)}


def list_images(archive: Archive) -> Listing:
    """List the images of the two folders."""
    return list_folders(archive, FOLDERS, parse_numbered_name)
