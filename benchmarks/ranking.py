"""What ranking costs: `uv run python -m benchmarks.ranking --size occluded_duke` prints one JSON object.

Features are drawn, in the number of queries, gallery images, identities, cameras and visible parts of the
real set.  Every side runs in a process of its own on the same files, in turn, and twice in it (`first_cpu_s`
is the first run); of several rounds the least CPU time counts; memory is the most that a process takes beside
the features.  The limit is the bare products of the queries' visible parts with the whole gallery, at the
speed measured in the process that ranks.

Peers sort as numpy does, so that of equal distances any may come first: `tied_queries` are those with another
image as far away as a match, by which CMC and mAP may differ; `untied` is the agreement on all others.
torchreid's compiled ranking sums in float32, the one in Python (`torchreid_python`, run once) does not.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.worlds import ROOT

PARTS, CHANNELS, NOISE, CAMERA = 9, 768, 4.5, 0.5


@dataclass(frozen=True)
class Size:
    """A real test set; `seen` are the shares of body parts that queries and gallery images show."""

    queries: int
    gallery: int
    identities: int
    nobody: int  # gallery images that match no query
    cameras: int
    seen: tuple[float, float]


SIZES = {
    "tiny": Size(60, 400, 20, 50, 3, (0.5, 0.9)),
    "market": Size(3368, 19732, 750, 6617, 6, (0.88, 0.88)),
    "occluded_duke": Size(2210, 17661, 519, 9126, 8, (0.48, 0.85)),
    "msmt17": Size(11659, 82161, 3060, 0, 15, (0.85, 0.86)),
}


def main() -> None:
    """Measure what the command line asks for."""
    options = _options()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        draw(Path(folder), SIZES[options.size])
        print(json.dumps(measure(options, Path(folder)), indent=1))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=list(SIZES), default="occluded_duke")
    parser.add_argument("--rounds", type=int, default=3, help="times that every side is run")
    parser.add_argument("--threads", type=int, default=1, help="of our side; peers always have one")
    parser.add_argument("--memory", type=int, default=256, help="MB, our bound")
    parser.add_argument("--folder", type=Path, help="where features are kept meanwhile: up to 2.7 GB")
    for name, repository in PEERS.items():
        parser.add_argument(
            f"--{name}", type=Path, help=f"checkout of {repository}, its Cython built in place"
        )
    return parser.parse_args()


PEERS = {
    "bpbreid": "VlSomers/bpbreid",
    "fastreid": "JDAI-CV/fast-reid",
    "torchreid": "KaiyangZhou/deep-person-reid",
}


# ------------------------------------------------------------------ features


def draw(folder: Path, size: Size) -> None:
    """Write features of length 1, visibilities, identities and cameras of both sides; part 0 is global."""
    rng = np.random.default_rng(0)
    people = rng.standard_normal((size.identities + 1, PARTS, CHANNELS), np.float32)
    cameras = rng.standard_normal((size.cameras, PARTS, CHANNELS), np.float32)
    for side, count in (("query", size.queries), ("gallery", size.gallery)):
        pid = 1 + np.arange(count) % size.identities
        if side == "gallery":
            pid[: size.nobody] = 0
        pid, camid = rng.permutation(pid), rng.integers(0, size.cameras, count)
        seen = rng.random((count, PARTS)) < size.seen[side == "gallery"]
        seen[:, 0] = True
        shape = (count, PARTS, CHANNELS)
        parts = np.lib.format.open_memmap(folder / f"{side}_parts.npy", "w+", np.float32, shape)
        for i in range(count):
            who = people[pid[i]] if pid[i] else rng.standard_normal((PARTS, CHANNELS), np.float32)
            drawn = who + CAMERA * cameras[camid[i]]
            drawn += NOISE * rng.standard_normal((PARTS, CHANNELS), np.float32)
            parts[i] = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
        parts.flush()
        for name, values in (("seen", seen), ("pid", pid), ("camid", camid)):
            np.save(folder / f"{side}_{name}.npy", values)


# ------------------------------------------------------------------ side by side


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Everything that is printed."""
    threads = options.threads
    runs = {"ours": ["ours", str(threads), str(options.memory)]}
    if options.bpbreid:
        runs["bpbreid"] = ["bpbreid", str(options.bpbreid)]
    peers = {name: getattr(options, name) for name in ("fastreid", "torchreid") if getattr(options, name)}
    if peers:
        _side(folder, 1, "matrix")
        runs["ours_ranking"] = ["ours_ranking"]
        runs |= {name: ["compiled", name, str(path)] for name, path in peers.items()}
    found: dict[str, list[dict]] = {}
    if options.torchreid:
        found["torchreid_python"] = [_side(folder, 1, "interpreted", str(options.torchreid))]
        runs["reranking"] = ["reranking", str(options.torchreid)]
    for _ in range(options.rounds):
        for name, words in runs.items():
            found.setdefault(name, []).append(_side(folder, threads if name == "ours" else 1, *words))
    best = {name: _best(results) for name, results in found.items()}
    size = SIZES[options.size]
    return {
        "size": options.size,
        "queries": size.queries,
        "gallery": size.gallery,
        "threads": threads,
        "rounds": options.rounds,
        **best,
        "ratios": _ratios(best),
        "greatest_difference": _differences(best),
    }


def _side(folder: Path, threads: int, *words: str) -> dict[str, Any]:
    count = {f"{name}_NUM_THREADS": str(threads) for name in ("OMP", "OPENBLAS", "MKL")}
    command = [sys.executable, "-m", "benchmarks.ranking_sides", str(folder), *words]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **count}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _best(results: list[dict[str, Any]]) -> dict[str, Any]:
    """The least CPU time, the greatest memory, the greatest share of the limit; the rest of the last run."""
    least = {name: min(r[name] for r in results) for name in results[0] if name.endswith("cpu_s")}
    peak = {name: max(r[name] for r in results) for name in results[0] if name.endswith("_mb")}
    found = {**results[-1], **least, **peak}
    if "gflop" in found:
        rate = max(r["product_gflop_per_s"] for r in results)
        found |= {"product_gflop_per_s": rate, "limit_cpu_s": round(found["gflop"] / rate, 3)}
        found["share_of_limit"] = round(found["limit_cpu_s"] / found["cpu_s"], 3)
        found["share_of_limit_each_run"] = [
            round(r["gflop"] / r["product_gflop_per_s"] / r["cpu_s"], 3) for r in results
        ]
    return found


def _ratios(best: dict[str, dict[str, Any]]) -> dict[str, float]:
    pairs = {}
    if "bpbreid" in best:
        pairs["bpbreid / ours"] = (best["bpbreid"]["cpu_s"], best["ours"]["cpu_s"])
        for name in ("fastreid", "torchreid"):
            if name in best:
                both = best["bpbreid"]["distance_cpu_s"] + best[name]["cpu_s"]
                pairs[f"bpbreid's distance and {name}'s ranking / ours"] = (both, best["ours"]["cpu_s"])
    for name in ("fastreid", "torchreid"):
        if name in best:
            pairs[f"{name} / ours, ranking alone"] = (best[name]["cpu_s"], best["ours_ranking"]["cpu_s"])
    return {name: round(a / b, 2) for name, (a, b) in pairs.items()}


def _differences(best: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Of mAP, mINP and the CMC, between ours and each peer; on the same matrix where there is one.

    There also of the queries that no tie decides.
    """
    answers = {}
    for name in ("bpbreid", "fastreid", "torchreid", "torchreid_python"):
        if name in best:
            ours = best["ours" if name == "bpbreid" else "ours_ranking"]
            answers |= _gaps(name, best[name], ours)
            answers |= _gaps(f"{name}.untied", best[name].get("untied", {}), ours.get("untied", {}))
    return answers


def _gaps(name: str, theirs: dict[str, Any], ours: dict[str, Any]) -> dict[str, float]:
    scores = [score for score in ("mAP", "mINP", "cmc") if score in theirs]
    return {
        f"{name}.{score}": float(np.abs(np.subtract(theirs[score], ours[score])).max()) for score in scores
    }


if __name__ == "__main__":
    main()
