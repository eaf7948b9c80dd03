"""DukeMTMC-reID (Zheng et al., ICCV 2017), as in DukeMTMC-reID.zip.  Withdrawn by its authors.

bounding_box_train/0001_c2_f0046182.jpg        train    identity 1, second camera
query/                                         query
bounding_box_test/                             gallery; 408 of its identities are in no query
"""

from pipeline.indexing.archive import Archive
from pipeline.indexing.layout import Count, Listing, by_folder, market

FOLDERS = {"bounding_box_train": "train", "query": "query", "bounding_box_test": "gallery"}
COUNTS = {"train": Count(16522, 702, 8), "query": Count(2228, 702, 8), "gallery": Count(17661, 1110, 8)}


def find(archive: Archive) -> Listing:
    """Every image of the three folders, and what is wrong with the rest."""
    return by_folder(archive, FOLDERS, market)
