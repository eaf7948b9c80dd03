"""Ranking a gallery for every query: one distance for all methods, and the protocol of Market-1501.

    query = Embedded.of(query_features, query_pid, query_camid)
    gallery = Embedded.of(gallery_features, gallery_pid, gallery_camid)
    scores(rank(query, gallery))

Unusual here:
- Memory is bounded, whatever the size: the matrix of distances never exists, features may stay in a file.
- Nothing is sorted: AP, CMC and mINP need the ranks of the matches alone, and those are counted.
- A camera may be unknown (-1); it then hides nothing from a query.
"""

from pipeline.model.average_precision import Rule
from pipeline.model.distance import Metric
from pipeline.ranking.comparison import distances
from pipeline.ranking.embedded import Embedded, Stored
from pipeline.ranking.protocol import Ranking, rank_distances
from pipeline.ranking.reranking import Rerank, rerank, rerank_distances
from pipeline.ranking.search import rank
from pipeline.ranking.summary import cmc, scores

__all__ = [
    "Embedded",
    "Metric",
    "Ranking",
    "Rerank",
    "Rule",
    "Stored",
    "cmc",
    "distances",
    "rank",
    "rank_distances",
    "rerank",
    "rerank_distances",
    "scores",
]
