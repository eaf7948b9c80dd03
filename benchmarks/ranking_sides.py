"""One side of `benchmarks.ranking`, in a process of its own: FOLDER SIDE WORDS... prints one JSON object."""

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
BATCH = 500  # gallery images at a time, BPBReID's default
MB = 1e6


def main(folder: str, side: str, *words: str) -> None:
    """Run one side and print what it took."""
    torch.set_num_threads(1)
    print(json.dumps(SIDES[side](Path(folder), *words)))


class Meter:
    """CPU seconds and peak memory of what runs inside the block, above what was held before."""

    def __enter__(self) -> "Meter":
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        self.before, self.start = _memory("VmRSS"), time.process_time()
        return self

    def __exit__(self, *_: Any) -> None:
        self.seconds = round(time.process_time() - self.start, 4)
        self.peak = round((_memory("VmHWM") - self.before) / MB, 1)


T = TypeVar("T")


def measured(run: Callable[[], T]) -> tuple[T, dict[str, float]]:
    """The answer, the less CPU time of two runs and the greater peak of memory.

    The first also pays for memory that the machine has not handed out before.
    """
    meters = Meter(), Meter()
    for meter in meters:
        with meter:
            answer = run()
    costs = {
        "cpu_s": min(meter.seconds for meter in meters),
        "first_cpu_s": meters[0].seconds,
        "peak_mb": max(meter.peak for meter in meters),
    }
    return answer, costs


def _memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def _load(folder: Path, side: str) -> Embedded:
    parts, seen, pid, camid = (np.load(folder / f"{side}_{n}.npy") for n in ("parts", "seen", "pid", "camid"))
    return Embedded(torch.from_numpy(parts), torch.from_numpy(seen).float(), pid, camid)


def _scores(ranking: Ranking) -> dict[str, Any]:
    ap, inp = ranking.ap[ranking.valid], ranking.inp[ranking.valid]
    return {"mAP": float(ap.mean()), "mINP": float(inp.mean()), "cmc": cmc(ranking, DEPTH).tolist()}


# ------------------------------------------------------------------ ours


def ours(folder: Path, threads: str, memory: str) -> dict[str, Any]:
    """Distances and ranking, and beside them the speed of the bare product."""
    query, gallery = _load(folder, "query"), _load(folder, "gallery")
    rank(query[:9], gallery[:9], workers=1)  # compiled code is loaded
    speed = _speed(query.parts.shape[2])
    found, costs = measured(lambda: rank(query, gallery, memory=int(memory), workers=int(threads)))
    return {
        **costs,
        "gflop": 2 * query.visibility.sum().item() * len(gallery) * query.parts.shape[2] / 1e9,
        "product_gflop_per_s": round(max(speed, _speed(query.parts.shape[2])), 1),
        **_scores(found),
    }


def _speed(width: int) -> float:
    """GFLOP/s of PyTorch's product, at the sizes that it is fastest at."""
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
    """Our distances, for those that only rank."""
    np.save(folder / "matrix.npy", distances(_load(folder, "query"), _load(folder, "gallery")).numpy())
    return {}


Who = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # pid of both sides, camid of both


def _given(folder: Path) -> tuple[np.ndarray, Who]:
    query_pid, gallery_pid, query_camid, gallery_camid = (
        np.load(folder / f"{side}_{name}.npy") for name in ("pid", "camid") for side in ("query", "gallery")
    )
    return np.load(folder / "matrix.npy"), (query_pid, gallery_pid, query_camid, gallery_camid)


def _some(table: np.ndarray, who: Who, which: np.ndarray) -> tuple[np.ndarray, Who]:
    """Those queries alone."""
    query_pid, gallery_pid, query_camid, gallery_camid = who
    return table[which], (query_pid[which], gallery_pid, query_camid[which], gallery_camid)


def _untied(table: np.ndarray, who: Who) -> tuple[np.ndarray, Who]:
    """The queries with no other image as far away as a match: whatever sorts them, they score the same."""
    query_pid, gallery_pid, query_camid, gallery_camid = who
    clear = np.ones(len(table), bool)
    for i, row in enumerate(table):
        own = gallery_pid == query_pid[i]
        clear[i] = not np.isin(row[~own], row[own & (gallery_camid != query_camid[i])]).any()
    return _some(table, who, clear)


def ours_ranking(folder: Path) -> dict[str, Any]:
    """Ranking alone."""
    table, who = _given(folder)
    _rank(*_some(table, who, np.arange(2)))  # compiled code is loaded
    found, costs = measured(lambda: _rank(table, who))
    clear, whose = _untied(table, who)
    untied = {"queries": len(clear), **_scores(_rank(clear, whose))}
    return {**costs, "tied_queries": len(table) - len(clear), **_scores(found), "untied": untied}


def _rank(table: np.ndarray, who: Who) -> Ranking:
    query_pid, gallery_pid, query_camid, gallery_camid = who
    return rank_distances(table, query_pid, query_camid, gallery_pid, gallery_camid)


# ------------------------------------------------------------------ peers


def compiled(folder: Path, name: str, checkout: str) -> dict[str, Any]:
    """The Cython ranking of fast-reid or torchreid alone."""
    inside = {"fastreid": "fastreid/evaluation", "torchreid": "torchreid/metrics"}[name]
    sys.path.insert(0, str(Path(checkout) / inside / "rank_cylib"))
    from rank_cy import evaluate_cy

    table, who = _given(folder)
    answer, costs = measured(lambda: evaluate_cy(table, *who, DEPTH))
    clear, whose = _untied(table, who)
    return {**costs, **_theirs(answer), "untied": _theirs(evaluate_cy(clear, *whose, DEPTH))}


def interpreted(folder: Path, checkout: str) -> dict[str, Any]:
    """torchreid's ranking in Python, which sums in float64, run once."""
    ranking = _module("torchreid.metrics.rank", Path(checkout) / "torchreid/metrics/rank.py")
    table, who = _given(folder)
    with Meter() as meter:
        answer = ranking.evaluate_py(table, *who, DEPTH, use_metric_cuhk03=False)
    clear, whose = _untied(table, who)
    untied = ranking.evaluate_py(clear, *whose, DEPTH, use_metric_cuhk03=False)
    return {"cpu_s": meter.seconds, "peak_mb": meter.peak, **_theirs(answer), "untied": _theirs(untied)}


def _theirs(answer: tuple) -> dict[str, Any]:
    """CMC, AP or mAP and, of fast-reid, INP."""
    named = {"mAP": answer[1], "mINP": answer[2]} if len(answer) > 2 else {"mAP": answer[1]}
    return {"cmc": np.asarray(answer[0]).tolist(), **{n: float(np.mean(v)) for n, v in named.items()}}


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
    (table, _), costs = measured(
        lambda: distance.compute_distance_matrix_using_bp_features(
            *features, batch_size_pairwise_dist_matrix=BATCH
        )
    )
    who = (query.pid, gallery.pid, query.camid, gallery.camid)
    answer, more = measured(lambda: ranking.evaluate_rank(table.numpy(), *who))
    return {
        "cpu_s": round(costs["cpu_s"] + more["cpu_s"], 4),
        "first_cpu_s": round(costs["first_cpu_s"] + more["first_cpu_s"], 4),
        "distance_cpu_s": costs["cpu_s"],
        "peak_mb": max(costs["peak_mb"], more["peak_mb"]),
        "mAP": float(answer["mAP"]),
        "cmc": np.asarray(answer["cmc"]).tolist(),
    }


def reranking(folder: Path, checkout: str) -> dict[str, Any]:
    """Re-ranking by our code and torchreid's, from the same distances of a corner of the set."""
    query, gallery = _load(folder, "query")[:300], _load(folder, "gallery")[:2500]
    sides = ((query, gallery), (query, query), (gallery, gallery))
    matrices = [distances(*some).numpy() for some in sides]
    who = (query.pid, query.camid, gallery.pid, gallery.camid)
    plain = rank_distances(matrices[0], *who, top=len(gallery))
    options = Rerank(depth=len(gallery), k1=20, k2=6, original=0.3)
    ours, costs = measured(lambda: rerank_distances(*matrices, plain, options))
    theirs = _module("rerank", Path(checkout) / "torchreid/utils/rerank.py")
    final, their_costs = measured(lambda: theirs.re_ranking(*matrices, k1=20, k2=6, lambda_value=0.3))
    listed = ours.top >= 0
    gap = np.abs(np.take_along_axis(final, ours.top.clip(0), 1) - ours.at)[listed]
    return {
        **costs,
        "torchreid_cpu_s": their_costs["cpu_s"],
        "torchreid_peak_mb": their_costs["peak_mb"],
        "equal_to_1e-6": float((gap <= 1e-6).mean()),  # the others hang on the order of equal distances
    }


def _module(name: str, path: Path) -> ModuleType:
    """A file of a checkout, without the package around it."""
    spec = importlib.util.spec_from_file_location(name, path)
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SIDES: dict[str, Callable[..., dict[str, Any]]] = {
    side.__name__: side for side in (ours, matrix, ours_ranking, compiled, interpreted, bpbreid, reranking)
}

if __name__ == "__main__":
    main(*sys.argv[1:])
