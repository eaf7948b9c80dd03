"""Any dataset in the layout of Market-1501, which most re-ID datasets share; it has no published counts.

bounding_box_train/0002_c1s1_000451_03.jpg     train    identity 2, first camera
query/                                         query
bounding_box_test/                             gallery; identity 0 is a distractor, -1 junk
"""

from pipeline.indexing.archive import Archive
from pipeline.indexing.layout import Listing, PublishedCount, list_folders, parse_market_name

FOLDERS = {"bounding_box_train": "train", "query": "query", "bounding_box_test": "gallery"}
COUNTS: dict[str, PublishedCount] = {}


def list_images(archive: Archive) -> Listing:
    """List the images of the three folders."""
    return list_folders(archive, FOLDERS, parse_market_name)
