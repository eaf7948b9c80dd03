"""Partial-iLIDS (Zheng et al., CVPR 2011, as cut by He et al., CVPR 2018); for testing alone.

    Partial_iLIDS/Probe/1.jpg       query    one image of each of 119 people
    Partial_iLIDS/Gallery/1.jpg     gallery

Identities are one more than the names say, so that nobody is 0, a distractor.  Cameras are not told.
"""

from pipeline.indexing.archive import Archive
from pipeline.indexing.layout import Count, Listing, PersonCamera, by_folder, numbered

FOLDERS = {"Probe": "query", "Gallery": "gallery"}
COUNTS = {"query": Count(119, 119, 0), "gallery": Count(119, 119, 0)}


def find(archive: Archive) -> Listing:
    """Every image of the two folders, and what is wrong with the rest."""
    return by_folder(archive, FOLDERS, _from_one)


def _from_one(inside: str) -> PersonCamera | str:
    who = numbered(inside)
    return who if isinstance(who, str) else (who[0] + 1, who[1])
