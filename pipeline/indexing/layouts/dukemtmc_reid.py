"""DukeMTMC-reID (Zheng et al., ICCV 2017), as in DukeMTMC-reID.zip.  Withdrawn by its authors.

bounding_box_train/0001_c2_f0046182.jpg        train    identity 1, second camera
query/                                         query
bounding_box_test/                             gallery; 408 of its identities are in no query
"""

from pipeline.indexing.archive import Archive
from pipeline.indexing.layout import Listing, PublishedCount, list_folders, parse_market_name

FOLDERS = {"bounding_box_train": "train", "query": "query", "bounding_box_test": "gallery"}
COUNTS = {
    "train": PublishedCount(16522, 702, 8),
    "query": PublishedCount(2228, 702, 8),
    "gallery": PublishedCount(17661, 1110, 8),
}


def list_images(archive: Archive) -> Listing:
    """List the images of the three folders."""
    return list_folders(archive, FOLDERS, parse_market_name)
