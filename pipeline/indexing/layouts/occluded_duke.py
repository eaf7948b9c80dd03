"""Occluded-Duke (Miao et al., ICCV 2019): DukeMTMC-reID split anew by its authors' script and lists.

    Occluded_Duke/bounding_box_train/0001_c2_f0046182.jpg     train    identity 1, second camera
    Occluded_Duke/query/                                      query    all occluded
    Occluded_Duke/bounding_box_test/                          gallery; 591 of its identities are in no query

1,870 of the queries are also in the gallery, under the same name.  They show the query by its own camera, so
the protocol leaves them out for that query.  A key begins with the split, which keeps the two apart.
"""

from pipeline.indexing.archive import Archive
from pipeline.indexing.layout import Listing, PublishedCount, list_folders, parse_market_name

FOLDERS = {"bounding_box_train": "train", "query": "query", "bounding_box_test": "gallery"}
COUNTS = {
    "train": PublishedCount(15618, 702, 8),
    "query": PublishedCount(2210, 519, 8),
    "gallery": PublishedCount(17661, 1110, 8),
}


def list_images(archive: Archive) -> Listing:
    """List the images of the three folders."""
    return list_folders(archive, FOLDERS, parse_market_name)
