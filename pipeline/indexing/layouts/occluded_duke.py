"""Occluded-Duke (Miao et al., ICCV 2019): DukeMTMC-reID split anew by its authors' script and lists.

    Occluded_Duke/bounding_box_train/0001_c2_f0046182.jpg     train    identity 1, second camera
    Occluded_Duke/query/                                      query    all occluded
    Occluded_Duke/bounding_box_test/                          gallery; 591 of its identities are in no query

1,870 of the queries are in the gallery too, under the same name: the same image by the same camera, which
the protocol leaves out for that query.  Hence keys that begin with the split.
"""

from pipeline.indexing.archive import Archive
from pipeline.indexing.layout import Count, Listing, by_folder, market

FOLDERS = {"bounding_box_train": "train", "query": "query", "bounding_box_test": "gallery"}
COUNTS = {"train": Count(15618, 702, 8), "query": Count(2210, 519, 8), "gallery": Count(17661, 1110, 8)}


def find(archive: Archive) -> Listing:
    """Every image of the three folders, and what is wrong with the rest."""
    return by_folder(archive, FOLDERS, market)
