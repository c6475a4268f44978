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

import json
import math
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import zstandard

Arrays = dict[str, np.ndarray]
LEVEL = 19


@dataclass(frozen=True)
class Coded:
    """What a peer made of a network: `size` in bytes; `ideal` says that it is a code length, not a file."""

    peer: str
    setting: str
    size: int
    tensors: Arrays
    ideal: bool = False
    blob: bytes = b""


def int8_zstd(tensors: Arrays) -> Coded:
    """8 bits per weight, scale = largest magnitude of the output channel / 127, then zstd -19."""
    quantised, small = _rounded(tensors, lambda rows: np.abs(rows).max(axis=1) / 127)
    blob = _pack(_shapes(tensors), quantised, small)
    return Coded("int8 per channel + zstd -19", "8 bits", len(blob), decode(blob), blob=blob)


def rtn_zstd(tensors: Arrays, step: float, per: str = "channel") -> Coded:
    """Step = `step` * the standard deviation of the output channel (or of the layer), then zstd -19."""
    quantised, small = _rounded(tensors, _deviation(step, per))
    blob = _pack(_shapes(tensors), quantised, small)
    return Coded(
        f"RTN per {per} + zstd -19",
        f"step {step:g} deviations",
        len(blob),
        decode(blob),
        blob=blob,
    )


def rtn_entropy(tensors: Arrays, step: float, per: str = "layer") -> Coded:
    """Steps as in `rtn_zstd`; the weights cost their empirical entropy, layer by layer.

    A length that no coder can reach: the code tables are free. Everything else is counted as zstd -19
    packs it.
    """
    quantised, small = _rounded(tensors, _deviation(step, per))
    bits = sum(symbols.size * entropy(symbols) for symbols in quantised.values())
    rest = len(_pack(_shapes(tensors), {}, small))
    restored = decode(_pack(_shapes(tensors), quantised, small, level=1))
    return Coded(
        f"RTN per {per} + ideal entropy",
        f"step {step:g} deviations",
        rest + math.ceil(bits / 8),
        restored,
        ideal=True,
    )


def kmeans_zstd(tensors: Arrays, clusters: int, *, rounds: int = 30) -> Coded:
    """Lloyd's k-means on the weights of each layer (at most 256 clusters), indexes packed by zstd -19."""
    quantised: Arrays = {}
    small: Arrays = {}
    for name, array in tensors.items():
        if is_weight(array):
            centres, index = _kmeans(array.ravel().astype(np.float64), clusters, rounds)
            small[f"{name}/centres"] = _half(centres)
            quantised[name] = (index - 128).astype(np.int8).reshape(len(array), -1)
        else:
            small[name] = _half(array)
    blob = _pack(_shapes(tensors), quantised, small)
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


def is_weight(array: np.ndarray) -> bool:
    """True for the tensors that are quantised."""
    return array.ndim >= 2 and array.size > 0 and array.dtype.kind == "f"


def entropy(symbols: np.ndarray) -> float:
    """Empirical order-0 entropy in bits per symbol.

    >>> entropy(np.array([0, 1, 1, 0]))
    1.0
    """
    counts = np.unique(symbols, return_counts=True)[1]
    share = counts / symbols.size
    return float(-(share * np.log2(share)).sum())


# ------------------------------------------------------------------------------------------ the peers' file


def _shapes(tensors: Arrays) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in tensors.items()}


def _deviation(step: float, per: str) -> Callable[[np.ndarray], np.ndarray]:
    """Steps [outputs] or [1] of a matrix [outputs, inputs * taps]: a multiple of its standard deviation."""
    axis = {"channel": 1, "layer": None}[per]
    return lambda rows: np.atleast_1d(rows.std(axis=axis) * step)


def _rounded(tensors: Arrays, steps: Callable[[np.ndarray], np.ndarray]) -> tuple[Arrays, Arrays]:
    """Round every weight to multiples of its step: (symbols by name, small tensors with "<name>/step")."""
    quantised: Arrays = {}
    small: Arrays = {}
    for name, array in tensors.items():
        if not is_weight(array):
            small[name] = _half(array)
            continue
        rows = array.reshape(len(array), -1)
        step = _half(np.maximum(steps(rows), 1e-9))
        symbols = np.rint(rows / step[:, None].astype(np.float32))
        fits = np.abs(symbols).max() <= 127
        quantised[name] = symbols.astype(np.int8 if fits else np.int16)
        small[f"{name}/step"] = step
    return quantised, small


def _pack(shapes: dict[str, tuple[int, ...]], quantised: Arrays, small: Arrays, level: int = LEVEL) -> bytes:
    """One zstd frame: length of the header, JSON header, small tensors, symbols."""
    header = {
        "shapes": shapes,
        "symbols": {name: array.dtype.str for name, array in quantised.items()},
        "small": [[name, array.dtype.str, array.size] for name, array in small.items()],
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    parts = [struct.pack("<I", len(text)), text]
    parts += [array.tobytes() for array in small.values()] + [array.tobytes() for array in quantised.values()]
    return zstandard.ZstdCompressor(level=level).compress(b"".join(parts))


def decode(blob: bytes) -> Arrays:
    """The tensors of a file of `int8_zstd`, `rtn_zstd` or `kmeans_zstd`, as float32."""
    data = zstandard.ZstdDecompressor().decompress(blob)
    position = 4 + struct.unpack_from("<I", data)[0]
    header = json.loads(data[4:position])
    small: Arrays = {}
    for name, dtype, size in header["small"]:
        small[name] = np.frombuffer(data, dtype, size, position)
        position += small[name].nbytes
    tensors: Arrays = {}
    symbols = header["symbols"]
    for name, shape in header["shapes"].items():
        if name not in symbols:
            tensors[name] = small[name].astype(np.float32).reshape(shape)
            continue
        index = np.frombuffer(data, symbols[name], math.prod(shape), position)
        position += index.nbytes
        if f"{name}/centres" in small:
            values = small[f"{name}/centres"].astype(np.float32)[index.astype(np.int16) + 128]
        else:
            values = index.reshape(shape[0], -1) * small[f"{name}/step"].astype(np.float32)[:, None]
        tensors[name] = values.reshape(shape)
    return tensors


def _half(array: np.ndarray) -> np.ndarray:
    """fp16 if no value loses more than its rounding (overflow, denormals), otherwise fp32."""
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    harmless = np.allclose(half.astype(np.float32), array, rtol=1e-3, atol=0)
    return half if harmless else array.astype(np.float32)


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
