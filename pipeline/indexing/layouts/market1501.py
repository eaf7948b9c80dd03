"""Market-1501 (Zheng et al., ICCV 2015), as in Market-1501-v15.09.15.zip.

    bounding_box_train/0002_c1s1_000451_03.jpg     train    identity 2, first camera
    query/                                         query
    bounding_box_test/                             gallery; 2,798 distractors 0000, and 3,819 junk images -1

The protocol leaves junk out of the gallery and keeps distractors in it, as images of nobody.
"""

from pipeline.indexing.archive import Archive
from pipeline.indexing.layout import Count, Listing, by_folder, market

FOLDERS = {"bounding_box_train": "train", "query": "query", "bounding_box_test": "gallery"}
COUNTS = {"train": Count(12936, 751, 6), "query": Count(3368, 750, 6), "gallery": Count(15913, 750, 6)}


def find(archive: Archive) -> Listing:
    """Every image of the three folders, and what is wrong with the rest."""
    return by_folder(archive, FOLDERS, market)
