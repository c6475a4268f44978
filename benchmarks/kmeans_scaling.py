"""Clustering of 25 million weights: seconds, and ratios to a NumPy sort and to scikit-learn in the same run.

    python benchmarks/kmeans_scaling.py [--weights 25000000] [--clusters 32] [--sample 500000]

Weights are Laplacian, sensitivities log-normal (a spread of e^2, as diagonals have), both float32.
scikit-learn's KMeans (one k-means++ start, at most 100 iterations and at most as many as ours from the
optimal start) runs on a sample, ours beside it; its seconds are scaled up linearly to all weights. `relative`
is wall time over that of one `numpy.argsort` of the weights (which is part of k-means here); process time is
given too, for machines that are shared. ECSQ is at a fixed price. Prints a table, writes
benchmarks/results/kmeans_scaling.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
from sklearn.cluster import KMeans

from tersor.tools.ecsq import ecsq
from tersor.tools.kmeans import kmeans
from tersor.tools.uniform import step_for_entropy, uniform

RESULT = Path(__file__).parent / "results" / "kmeans_scaling.json"


def timed(function: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """Result, and wall and process seconds."""
    wall, process = time.perf_counter(), time.process_time()
    result = function()
    return result, {"wall_s": time.perf_counter() - wall, "process_s": time.process_time() - process}


def measure(n: int, k: int, sample: int) -> dict[str, dict[str, float]]:
    """One row per method."""
    rng = np.random.default_rng(0)
    w = rng.laplace(size=n).astype(np.float32)
    h = np.exp(2 * rng.standard_normal(n, dtype=np.float32))
    rows: dict[str, dict[str, float]] = {}
    _, rows["numpy argsort"] = timed(lambda: np.argsort(w))

    def run(name: str, function: Callable[[], Any]) -> Any:
        clusters, seconds = timed(function)
        mean = float(h.sum(dtype=np.float64))
        rows[name] = seconds | {"iterations": len(clusters.history), "clusters": clusters.values.size,
                                "bits": clusters.entropy, "distortion": clusters.distortion(w, h) / mean}
        return clusters

    start = run(f"k-means, k = {k}, ++", lambda: kmeans(w, h, k))
    best = run(f"k-means, k = {k}, optimal start", lambda: kmeans(w, h, k, start="optimal"))
    step = step_for_entropy(w[:sample], 2.0)
    run("uniform, 2 bits", lambda: uniform(w, h, step))
    price = 0.3
    found = run(f"ECSQ, k = {k}, after its k-means", lambda: ecsq(w, h, k, price, start=start))
    row = rows[f"ECSQ, k = {k}, after its k-means"]
    row["process_s_per_iteration"] = row["process_s"] / len(found.history)
    iterations = min(len(best.history), 100)
    part = np.sort(rng.choice(n, min(sample, n), replace=False))
    ours, seconds = timed(lambda: kmeans(w[part], h[part], k, start="optimal"))
    mass = float(h[part].sum(dtype=np.float64))
    rows["k-means on the sample"] = seconds | {"iterations": len(ours.history), "clusters": k,
                                               "sample_distortion": ours.history[-1] / mass}
    theirs = KMeans(k, n_init=1, max_iter=iterations, tol=0.0, random_state=0)
    fitted, seconds = timed(lambda: theirs.fit(w[part, None], sample_weight=h[part]))
    scale = n / part.size
    rows["scikit-learn KMeans, scaled up"] = {name: value * scale for name, value in seconds.items()} | {
        "iterations": int(fitted.n_iter_), "clusters": k,
        "sample_distortion": float(fitted.inertia_) / mass}
    for row in rows.values():
        row["relative"] = row["wall_s"] / rows["numpy argsort"]["wall_s"]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=int, default=25_000_000)
    parser.add_argument("--clusters", type=int, default=32)
    parser.add_argument("--sample", type=int, default=500_000)
    options = parser.parse_args()
    rows = measure(options.weights, options.clusters, options.sample)
    for name, row in rows.items():
        print(f"{name:34s}" + "".join(f"  {key} {value:.4g}" for key, value in row.items()))
    content = {"weights": options.weights, "sample": options.sample, "machine": platform.machine(),
               "cores": os.cpu_count(), "numpy": np.__version__, "scikit-learn": sklearn.__version__,
               "python": platform.python_version(), "rows": rows}
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
