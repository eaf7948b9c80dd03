"""P-DukeMTMC-reID (Zhuo et al., ICME 2018), as in P-DukeMTMC-reid.zip.  DukeMTMC was withdrawn.

    P-DukeMTMC-reid/train/whole_body_images/1/0001_c2_f0046182.jpg     train    identity 1
    P-DukeMTMC-reid/train/occluded_body_images/                        train
    P-DukeMTMC-reid/test/occluded_body_images/                         query
    P-DukeMTMC-reid/test/whole_body_images/                            gallery

Its protocol compares a query with every whole image, by any camera.  Cameras are therefore unknown here.
"""

from pipeline.indexing.archive import Archive
from pipeline.indexing.layout import Listing, PublishedCount, list_folders, parse_numbered_name

FOLDERS = {
    "train/whole_body_images": "train",
    "train/occluded_body_images": "train",
    "test/occluded_body_images": "query",
    "test/whole_body_images": "gallery",
}
COUNTS = {
    "train": PublishedCount(12927, 665, 0),
    "query": PublishedCount(2163, 634, 0),
    "gallery": PublishedCount(9053, 634, 0),
}


def list_images(archive: Archive) -> Listing:
    """List the images of the four folders."""
    return list_folders(archive, FOLDERS, parse_numbered_name)
