"""What people do today, measured on equal terms: every byte that is needed to restore the model is counted.

| peer          | weights                                                      | coded by               |
|---------------|--------------------------------------------------------------|------------------------|
| `int8_zstd`   | 8 bits, scale by the largest magnitude of an output channel  | zstd -19, a real file  |
| `rtn_zstd`    | nearest multiple of a step: deviation of channel or layer    | zstd -19, a real file  |
| `rtn_entropy` | the same                                                     | *ideal* code, no table |
| `kmeans_zstd` | k-means codebook per layer                                   | zstd -19, a real file  |
| NNCodec       | nncodec_peer.py                                              | a real file            |

"Weights" are the floating-point tensors of two or more axes; everything else (biases, BatchNorm) is
stored in fp16 where that is harmless, otherwise in fp32. Names and shapes stand in a JSON header, which
is compressed too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np

from tersor.sweep.baselines import (
    Arrays,
    Coded,
    decode,
    deviation,
    entropy,
    half,
    int8_zstd,
    is_weight,
    pack,
    rounded,
    rtn_entropy,
    shapes_of,
)

__all__ = ["Coded", "at_bytes", "curves", "decode", "entropy", "int8_zstd", "is_weight", "kmeans_zstd", "rtn_entropy",
           "rtn_zstd"]


def rtn_zstd(tensors: Arrays, step: float, per: str = "channel") -> Coded:
    """Step = `step` * the standard deviation of the output channel (or of the layer), then zstd -19."""
    quantised, small = rounded(tensors, deviation(step, per))
    blob = pack(shapes_of(tensors), quantised, small)
    return Coded(
        f"RTN per {per} + zstd -19",
        f"step {step:g} deviations",
        len(blob),
        decode(blob),
        blob=blob,
    )


def kmeans_zstd(tensors: Arrays, clusters: int, *, rounds: int = 30) -> Coded:
    """Lloyd's k-means on the weights of each layer (at most 256 clusters), indexes packed by zstd -19."""
    quantised: Arrays = {}
    small: Arrays = {}
    for name, array in tensors.items():
        if is_weight(array):
            centres, index = _kmeans(array.ravel().astype(np.float64), clusters, rounds)
            small[f"{name}/centres"] = half(centres)
            quantised[name] = (index - 128).astype(np.int8).reshape(len(array), -1)
        else:
            small[name] = half(array)
    blob = pack(shapes_of(tensors), quantised, small)
    return Coded("k-means per layer + zstd -19", f"{clusters} clusters", len(blob), decode(blob), blob=blob)


def at_bytes(code: Callable[[float], Coded], target: float, low: float, high: float) -> Coded:
    """Search the setting in low..high (bytes fall as it grows) that comes closest below `target` bytes."""
    best = code(high)
    for _ in range(24):
        middle = math.sqrt(low * high)
        coded = code(middle)
        if coded.size <= target:
            best, high = coded, middle
        else:
            low = middle
    return best


def _kmeans(values: np.ndarray, clusters: int, rounds: int) -> tuple[np.ndarray, np.ndarray]:
    """1-D k-means from an even grid (Deep Compression, section 3.2): ascending centres [k], indexes [N]."""
    low, high = values.min(), values.max()
    centres = low + (high - low) * (np.arange(clusters) + 0.5) / clusters
    for _ in range(rounds):
        index = np.searchsorted((centres[1:] + centres[:-1]) / 2, values)
        counts = np.bincount(index, minlength=len(centres))
        sums = np.bincount(index, values, minlength=len(centres))
        centres = np.where(counts > 0, sums / np.maximum(counts, 1), centres)
    return centres, np.searchsorted((centres[1:] + centres[:-1]) / 2, values)


def curves(tensors: Arrays) -> Iterable[Coded]:
    """Points of all simple peers from about 0.5 to 8 bits/weight."""
    yield int8_zstd(tensors)
    for step in (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0, 1.2):
        for per in ("channel", "layer"):
            yield rtn_zstd(tensors, step, per)
            yield rtn_entropy(tensors, step, per)
    for clusters in (4, 8, 12, 16, 20, 24, 32, 48, 64):
        yield kmeans_zstd(tensors, clusters)
