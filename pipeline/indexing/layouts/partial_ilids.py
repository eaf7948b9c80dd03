"""Partial-iLIDS (Zheng et al., CVPR 2011, as cut by He et al., CVPR 2018); for testing only.

    Partial_iLIDS/Probe/1.jpg       query    one image of each of 119 people
    Partial_iLIDS/Gallery/1.jpg     gallery

Identities are the names' numbers plus one, because identity 0 means a distractor.  File names hold no camera.
"""

from pipeline.indexing.archive import Archive
from pipeline.indexing.layout import Listing, PidCamid, PublishedCount, list_folders, parse_numbered_name

FOLDERS = {"Probe": "query", "Gallery": "gallery"}
COUNTS = {"query": PublishedCount(119, 119, 0), "gallery": PublishedCount(119, 119, 0)}


def list_images(archive: Archive) -> Listing:
    """List the images of the two folders."""
    return list_folders(archive, FOLDERS, _parse_from_one)


def _parse_from_one(path: str) -> PidCamid | str:
    identity = parse_numbered_name(path)
    return identity if isinstance(identity, str) else (identity[0] + 1, identity[1])
