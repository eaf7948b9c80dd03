"""Any set in the layout of Market-1501, which most re-identification sets share; nothing is published of it.

bounding_box_train/0002_c1s1_000451_03.jpg     train    identity 2, first camera
query/                                         query
bounding_box_test/                             gallery; identity 0 is a distractor, -1 junk
"""

from pipeline.indexing.archive import Archive
from pipeline.indexing.layout import Count, Listing, by_folder, market

FOLDERS = {"bounding_box_train": "train", "query": "query", "bounding_box_test": "gallery"}
COUNTS: dict[str, Count] = {}


def find(archive: Archive) -> Listing:
    """Every image of the three folders, and what is wrong with the rest."""
    return by_folder(archive, FOLDERS, market)
