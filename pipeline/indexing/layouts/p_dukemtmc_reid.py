"""P-DukeMTMC-reID (Zhuo et al., ICME 2018), as in P-DukeMTMC-reid.zip.  DukeMTMC was withdrawn.

    P-DukeMTMC-reid/train/whole_body_images/1/0001_c2_f0046182.jpg     train    identity 1
    P-DukeMTMC-reid/train/occluded_body_images/                        train
    P-DukeMTMC-reid/test/occluded_body_images/                         query
    P-DukeMTMC-reid/test/whole_body_images/                            gallery

Its protocol compares a query with every whole image, whichever camera took it: cameras are unknown here.
"""

from pipeline.indexing.archive import Archive
from pipeline.indexing.layout import Count, Listing, by_folder, numbered

FOLDERS = {
    "train/whole_body_images": "train",
    "train/occluded_body_images": "train",
    "test/occluded_body_images": "query",
    "test/whole_body_images": "gallery",
}
COUNTS = {"train": Count(12927, 665, 0), "query": Count(2163, 634, 0), "gallery": Count(9053, 634, 0)}


def find(archive: Archive) -> Listing:
    """Every image of the four folders, and what is wrong with the rest."""
    return by_folder(archive, FOLDERS, numbered)
