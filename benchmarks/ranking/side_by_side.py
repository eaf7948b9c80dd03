"""Every evaluator in turn, each in a process of its own; the best of several rounds, and the agreement."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import ROOT
from benchmarks.ranking.random_features import SIZES


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Everything that is printed."""
    threads = options.threads
    runs = {"ours": ["ours", str(threads), str(options.memory)]}  # evaluator and its arguments
    if options.bpbreid:
        runs["bpbreid"] = ["bpbreid", str(options.bpbreid)]
    peers = {name: getattr(options, name) for name in ("fastreid", "torchreid") if getattr(options, name)}
    if peers:
        _run_evaluator(folder, 1, "matrix")
        runs["ours_ranking"] = ["ours_ranking"]
        runs |= {name: ["peer_compiled", name, str(path)] for name, path in peers.items()}
    results: dict[str, list[dict]] = {}
    if options.torchreid:
        results["torchreid_python"] = [_run_evaluator(folder, 1, "torchreid_python", str(options.torchreid))]
        runs["reranking"] = ["reranking", str(options.torchreid)]
    for _ in range(options.rounds):
        for name, arguments in runs.items():
            count = threads if name == "ours" else 1
            results.setdefault(name, []).append(_run_evaluator(folder, count, *arguments))
    best = {name: _best(rounds) for name, rounds in results.items()}
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


def _run_evaluator(folder: Path, threads: int, *arguments: str) -> dict[str, Any]:
    environment = {f"{name}_NUM_THREADS": str(threads) for name in ("OMP", "OPENBLAS", "MKL")}
    command = [sys.executable, "-m", "benchmarks.ranking.evaluators", str(folder), *arguments]
    process = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True
    )
    if process.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed: {process.stderr[-2000:]}")
    return json.loads(process.stdout.splitlines()[-1])


def _best(results: list[dict[str, Any]]) -> dict[str, Any]:
    """The least CPU time, the most memory and the largest share of the limit; the rest is the last run's."""
    least = {name: min(r[name] for r in results) for name in results[0] if name.endswith("cpu_s")}
    peak = {name: max(r[name] for r in results) for name in results[0] if name.endswith("_mb")}
    best = {**results[-1], **least, **peak}
    if "gflop" in best:
        rate = max(r["product_gflop_per_s"] for r in results)
        best |= {"product_gflop_per_s": rate, "limit_cpu_s": round(best["gflop"] / rate, 3)}
        best["share_of_limit"] = round(best["limit_cpu_s"] / best["cpu_s"], 3)
        best["share_of_limit_each_run"] = [
            round(r["gflop"] / r["product_gflop_per_s"] / r["cpu_s"], 3) for r in results
        ]
    return best


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
    """Largest differences of mAP, mINP and CMC between ours and each peer, from one matrix where possible.

    With a common matrix, also for the queries that no tie decides.
    """
    differences = {}
    for name in ("bpbreid", "fastreid", "torchreid", "torchreid_python"):
        if name in best:
            ours = best["ours" if name == "bpbreid" else "ours_ranking"]
            differences |= _gaps(name, best[name], ours)
            differences |= _gaps(f"{name}.untied", best[name].get("untied", {}), ours.get("untied", {}))
    return differences


def _gaps(name: str, theirs: dict[str, Any], ours: dict[str, Any]) -> dict[str, float]:
    scores = [score for score in ("mAP", "mINP", "cmc") if score in theirs]
    return {
        f"{name}.{score}": float(np.abs(np.subtract(theirs[score], ours[score])).max()) for score in scores
    }
