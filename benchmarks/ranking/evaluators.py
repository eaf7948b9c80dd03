"""One evaluator, in a process that `benchmarks.ranking.side_by_side` starts.  Prints one JSON object."""

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, TypeVar

import numpy as np
import torch

from pipeline.model.compute import float32_matmul
from pipeline.ranking import (
    Embedded,
    Ranking,
    Rerank,
    cmc,
    distances,
    rank,
    rank_distances,
    rerank_distances,
)

DEPTH = 50
BATCH = 500  # gallery images at a time: BPBReID's default
MB = 1e6


def main() -> None:
    """Run one evaluator and print its scores and costs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ranking.evaluators", description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of the features")
    parser.add_argument("evaluator", choices=list(EVALUATORS), help="which one")
    parser.add_argument("arguments", nargs="*", help="the evaluator's own")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(EVALUATORS[options.evaluator](options.folder, *options.arguments)))


class Meter:
    """CPU seconds of a block, and its peak memory above the memory before it."""

    def __enter__(self) -> "Meter":
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
        self.before, self.start = _memory("VmRSS"), time.process_time()
        return self

    def __exit__(self, *_: Any) -> None:
        self.seconds = round(time.process_time() - self.start, 4)
        self.peak = round((_memory("VmHWM") - self.before) / MB, 1)


T = TypeVar("T")


def measured(run: Callable[[], T]) -> tuple[T, dict[str, float]]:
    """The result of `run`, the lesser CPU time of two runs and the larger peak of memory.

    The first run also pays for memory that the system has not handed out before.
    """
    meters = Meter(), Meter()
    for meter in meters:
        with meter:
            result = run()
    costs = {
        "cpu_s": min(meter.seconds for meter in meters),
        "first_cpu_s": meters[0].seconds,
        "peak_mb": max(meter.peak for meter in meters),
    }
    return result, costs


def _memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def _load(folder: Path, side: str) -> Embedded:
    parts, visible, pid, camid = (
        np.load(folder / f"{side}_{name}.npy") for name in ("parts", "visible", "pid", "camid")
    )
    return Embedded(torch.from_numpy(parts), torch.from_numpy(visible).float(), pid, camid)


def _scores(ranking: Ranking) -> dict[str, Any]:
    ap, inp = ranking.ap[ranking.valid], ranking.inp[ranking.valid]
    return {"mAP": float(ap.mean()), "mINP": float(inp.mean()), "cmc": cmc(ranking, DEPTH).tolist()}


# ------------------------------------------------------------------ ours


def ours(folder: Path, threads: str, memory: str) -> dict[str, Any]:
    """Our distances and ranking, and the speed of the bare product."""
    query, gallery = _load(folder, "query"), _load(folder, "gallery")
    rank(query[:9], gallery[:9], workers=1)  # loads compiled code
    speed = _speed(query.parts.shape[2])
    ranking, costs = measured(lambda: rank(query, gallery, memory=int(memory), workers=int(threads)))
    return {
        **costs,
        "gflop": 2 * query.visibility.sum().item() * len(gallery) * query.parts.shape[2] / 1e9,
        "product_gflop_per_s": round(max(speed, _speed(query.parts.shape[2])), 1),
        **_scores(ranking),
    }


def _speed(width: int) -> float:
    """GFLOP/s of PyTorch's product, at the sizes at which it is fastest."""
    best = 0.0
    with float32_matmul("default"):
        for rows, columns in ((512, 512), (512, 1024), (1024, 2048)):
            left, right = torch.randn(rows, width), torch.randn(columns, width)
            result = torch.empty(rows, columns)
            for _ in range(8):
                start = time.process_time()
                torch.mm(left, right.T, out=result)
                seconds = time.process_time() - start
                best = max(best, 2 * rows * columns * width / 1e9 / seconds)
    return best


def matrix(folder: Path) -> dict[str, Any]:
    """Our distances, for the evaluators that only rank."""
    np.save(folder / "matrix.npy", distances(_load(folder, "query"), _load(folder, "gallery")).numpy())
    return {}


Labels = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # pid of query and gallery, camid of both


def _load_matrix(folder: Path) -> tuple[np.ndarray, Labels]:
    query_pid, gallery_pid, query_camid, gallery_camid = (
        np.load(folder / f"{side}_{name}.npy") for name in ("pid", "camid") for side in ("query", "gallery")
    )
    return np.load(folder / "matrix.npy"), (query_pid, gallery_pid, query_camid, gallery_camid)


def _select(matrix: np.ndarray, labels: Labels, rows: np.ndarray) -> tuple[np.ndarray, Labels]:
    query_pid, gallery_pid, query_camid, gallery_camid = labels
    return matrix[rows], (query_pid[rows], gallery_pid, query_camid[rows], gallery_camid)


def _untied(matrix: np.ndarray, labels: Labels) -> tuple[np.ndarray, Labels]:
    """The queries with no other image as far away as a match: their scores do not depend on the sort."""
    query_pid, gallery_pid, query_camid, gallery_camid = labels
    untied = np.ones(len(matrix), bool)
    for i, row in enumerate(matrix):
        same = gallery_pid == query_pid[i]
        untied[i] = not np.isin(row[~same], row[same & (gallery_camid != query_camid[i])]).any()
    return _select(matrix, labels, untied)


def ours_ranking(folder: Path) -> dict[str, Any]:
    """Our ranking without the distances."""
    matrix, labels = _load_matrix(folder)
    _rank(*_select(matrix, labels, np.arange(2)))  # loads compiled code
    ranking, costs = measured(lambda: _rank(matrix, labels))
    untied_matrix, untied_labels = _untied(matrix, labels)
    untied = {"queries": len(untied_matrix), **_scores(_rank(untied_matrix, untied_labels))}
    return {**costs, "tied_queries": len(matrix) - len(untied_matrix), **_scores(ranking), "untied": untied}


def _rank(matrix: np.ndarray, labels: Labels) -> Ranking:
    query_pid, gallery_pid, query_camid, gallery_camid = labels
    return rank_distances(matrix, query_pid, query_camid, gallery_pid, gallery_camid)


# ------------------------------------------------------------------ peers


def peer_compiled(folder: Path, name: str, checkout: str) -> dict[str, Any]:
    """The Cython ranking of fast-reid or torchreid, without the distances."""
    package = {"fastreid": "fastreid/evaluation", "torchreid": "torchreid/metrics"}[name]
    sys.path.insert(0, str(Path(checkout) / package / "rank_cylib"))
    from rank_cy import evaluate_cy

    matrix, labels = _load_matrix(folder)
    result, costs = measured(lambda: evaluate_cy(matrix, *labels, DEPTH))
    untied_matrix, untied_labels = _untied(matrix, labels)
    untied = evaluate_cy(untied_matrix, *untied_labels, DEPTH)
    return {**costs, **_peer_scores(result), "untied": _peer_scores(untied)}


def torchreid_python(folder: Path, checkout: str) -> dict[str, Any]:
    """torchreid's ranking in Python, which sums in float64, run once."""
    ranking = _module("torchreid.metrics.rank", Path(checkout) / "torchreid/metrics/rank.py")
    matrix, labels = _load_matrix(folder)
    with Meter() as meter:
        result = ranking.evaluate_py(matrix, *labels, DEPTH, use_metric_cuhk03=False)
    untied_matrix, untied_labels = _untied(matrix, labels)
    untied = ranking.evaluate_py(untied_matrix, *untied_labels, DEPTH, use_metric_cuhk03=False)
    costs = {"cpu_s": meter.seconds, "peak_mb": meter.peak}
    return {**costs, **_peer_scores(result), "untied": _peer_scores(untied)}


def _peer_scores(result: tuple) -> dict[str, Any]:
    """CMC, AP or mAP and, of fast-reid, INP."""
    scores = {"mAP": result[1], "mINP": result[2]} if len(result) > 2 else {"mAP": result[1]}
    return {"cmc": np.asarray(result[0]).tolist(), **{n: float(np.mean(v)) for n, v in scores.items()}}


def bpbreid(folder: Path, checkout: str) -> dict[str, Any]:
    """BPBReID's distance with boolean visibilities, and its ranking, as its engine calls them."""
    sys.modules["torchreid.utils.writer"] = SimpleNamespace(
        Writer=SimpleNamespace(current_writer=lambda: None)
    )
    root = Path(checkout) / "torchreid"
    _module("torchreid.utils.tensortools", root / "utils/tensortools.py")
    distance = _module("torchreid.metrics.distance", root / "metrics/distance.py")
    ranking = _module("torchreid.metrics.rank", root / "metrics/rank.py")
    query, gallery = _load(folder, "query"), _load(folder, "gallery")
    features = (query.parts, gallery.parts, query.visibility.bool(), gallery.visibility.bool())
    (matrix, _), costs = measured(
        lambda: distance.compute_distance_matrix_using_bp_features(
            *features, batch_size_pairwise_dist_matrix=BATCH
        )
    )
    labels = (query.pid, gallery.pid, query.camid, gallery.camid)
    result, ranking_costs = measured(lambda: ranking.evaluate_rank(matrix.numpy(), *labels))
    return {
        "cpu_s": round(costs["cpu_s"] + ranking_costs["cpu_s"], 4),
        "first_cpu_s": round(costs["first_cpu_s"] + ranking_costs["first_cpu_s"], 4),
        "distance_cpu_s": costs["cpu_s"],
        "peak_mb": max(costs["peak_mb"], ranking_costs["peak_mb"]),
        "mAP": float(result["mAP"]),
        "cmc": np.asarray(result["cmc"]).tolist(),
    }


def reranking(folder: Path, checkout: str) -> dict[str, Any]:
    """Re-ranking by our code and torchreid's, from the same distances of a part of the set."""
    query, gallery = _load(folder, "query")[:300], _load(folder, "gallery")[:2500]
    pairs = ((query, gallery), (query, query), (gallery, gallery))
    matrices = [distances(*pair).numpy() for pair in pairs]
    labels = (query.pid, query.camid, gallery.pid, gallery.camid)
    first = rank_distances(matrices[0], *labels, top=len(gallery))
    options = Rerank(depth=len(gallery), k1=20, k2=6, original=0.3)
    ours, costs = measured(lambda: rerank_distances(*matrices, first, options))
    theirs = _module("rerank", Path(checkout) / "torchreid/utils/rerank.py")
    final, their_costs = measured(lambda: theirs.re_ranking(*matrices, k1=20, k2=6, lambda_value=0.3))
    listed = ours.top >= 0
    gap = np.abs(np.take_along_axis(final, ours.top.clip(0), 1) - ours.top_distance)[listed]
    return {
        **costs,
        "torchreid_cpu_s": their_costs["cpu_s"],
        "torchreid_peak_mb": their_costs["peak_mb"],
        "equal_to_1e-6": float((gap <= 1e-6).mean()),  # the others depend on the order of equal distances
    }


def _module(name: str, path: Path) -> ModuleType:
    """A file of a checkout as a module, without its package."""
    spec = importlib.util.spec_from_file_location(name, path)
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


EVALUATORS: dict[str, Callable[..., dict[str, Any]]] = {
    function.__name__: function
    for function in (ours, matrix, ours_ranking, peer_compiled, torchreid_python, bpbreid, reranking)
}

if __name__ == "__main__":
    main()
