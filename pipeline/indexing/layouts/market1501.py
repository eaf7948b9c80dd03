"""Market-1501 (Zheng et al., ICCV 2015), as in Market-1501-v15.09.15.zip.

    bounding_box_train/0002_c1s1_000451_03.jpg     train    identity 2, first camera
    query/                                         query
    bounding_box_test/                             gallery; 2,798 distractors 0000, and 3,819 junk images -1

The protocol leaves junk out of the gallery and keeps distractors in it, which match no query.
"""

from pipeline.indexing.archive import Archive
from pipeline.indexing.layout import Listing, PublishedCount, list_folders, parse_market_name

FOLDERS = {"bounding_box_train": "train", "query": "query", "bounding_box_test": "gallery"}
COUNTS = {
    "train": PublishedCount(12936, 751, 6),
    "query": PublishedCount(3368, 750, 6),
    "gallery": PublishedCount(15913, 750, 6),
}


def list_images(archive: Archive) -> Listing:
    """List the images of the three folders."""
    return list_folders(archive, FOLDERS, parse_market_name)
