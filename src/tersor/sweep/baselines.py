"""What people do without a codec, for comparison: every byte that is needed to restore the model is counted.

    int8_zstd(tensors)            8 bits, scale by the largest magnitude of an output channel; zstd -19, a real file
    rtn_entropy(tensors, 0.5)     nearest multiple of half a standard deviation of the layer; *ideal* code, no table

"Weights" are the floating-point tensors of two or more axes; everything else (biases, BatchNorm) is stored in fp16
where that is harmless, otherwise in fp32. Names and shapes stand in a JSON header, which is compressed too. More peers,
built of the same parts, are in benchmarks/peers.py. The files need zstandard (the extra `report`).
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError

Array = npt.NDArray[Any]
Arrays = dict[str, Array]
LEVEL = 19
STEPS = (0.12, 0.2, 0.33, 0.55, 0.9, 1.4)
"""Of `rtn_entropy` in a sweep: from about 5 to about 1.5 bits/weight."""


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
    quantised, small = rounded(tensors, lambda rows: np.abs(rows).max(axis=1) / 127)
    blob = pack(shapes_of(tensors), quantised, small)
    return Coded("int8 per channel + zstd -19", "8 bits", len(blob), decode(blob), blob=blob)


def rtn_entropy(tensors: Arrays, step: float, per: str = "layer") -> Coded:
    """Weights as the nearest multiples of `step` times the deviation of their layer (or output channel).

    They cost their empirical entropy, layer by layer: a length that no coder can reach, the code tables are free.
    Everything else is counted as zstd -19 packs it.
    """
    quantised, small = rounded(tensors, deviation(step, per))
    bits = sum(symbols.size * entropy(symbols) for symbols in quantised.values())
    rest = len(pack(shapes_of(tensors), {}, small))
    restored = decode(pack(shapes_of(tensors), quantised, small, level=1))
    return Coded(
        f"RTN per {per} + ideal entropy",
        f"step {step:g} deviations",
        rest + math.ceil(bits / 8),
        restored,
        ideal=True,
    )


def is_weight(array: Array) -> bool:
    """True for the tensors that are quantised."""
    return array.ndim >= 2 and array.size > 0 and array.dtype.kind == "f"


def entropy(symbols: Array) -> float:
    """Empirical order-0 entropy in bits per symbol.

    >>> entropy(np.array([0, 1, 1, 0]))
    1.0
    """
    counts = np.unique(symbols, return_counts=True)[1]
    share = counts / symbols.size
    return float(-(share * np.log2(share)).sum())


def shapes_of(tensors: Arrays) -> dict[str, tuple[int, ...]]:
    """Name -> shape."""
    return {name: array.shape for name, array in tensors.items()}


def deviation(step: float, per: str) -> Callable[[Array], Array]:
    """Steps [outputs] or [1] of a matrix [outputs, inputs * taps]: a multiple of its standard deviation."""
    axis = {"channel": 1, "layer": None}[per]
    return lambda rows: np.atleast_1d(rows.std(axis=axis) * step)


def rounded(tensors: Arrays, steps: Callable[[Array], Array]) -> tuple[Arrays, Arrays]:
    """Round every weight to multiples of its step: (symbols by name, small tensors with "<name>/step")."""
    quantised: Arrays = {}
    small: Arrays = {}
    for name, array in tensors.items():
        if not is_weight(array):
            small[name] = half(array)
            continue
        rows = array.reshape(len(array), -1)
        step = half(np.maximum(steps(rows), 1e-9))
        symbols = np.rint(rows / step[:, None].astype(np.float32))
        fits = np.abs(symbols).max() <= 127
        quantised[name] = symbols.astype(np.int8 if fits else np.int16)
        small[f"{name}/step"] = step
    return quantised, small


def pack(shapes: dict[str, tuple[int, ...]], quantised: Arrays, small: Arrays, level: int = LEVEL) -> bytes:
    """One zstd frame: length of the header, JSON header, small tensors, symbols."""
    header = {
        "shapes": shapes,
        "symbols": {name: array.dtype.str for name, array in quantised.items()},
        "small": [[name, array.dtype.str, array.size] for name, array in small.items()],
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    parts = [struct.pack("<I", len(text)), text]
    parts += [array.tobytes() for array in small.values()] + [array.tobytes() for array in quantised.values()]
    return bytes(zstd().ZstdCompressor(level=level).compress(b"".join(parts)))


def decode(blob: bytes) -> Arrays:
    """The tensors of a file that `pack` made, as float32."""
    data = zstd().ZstdDecompressor().decompress(blob)
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


def half(array: Array) -> Array:
    """fp16 if no value loses more than its rounding (overflow, denormals), otherwise fp32."""
    with np.errstate(over="ignore"):
        smaller = array.astype(np.float16)
    harmless = np.allclose(smaller.astype(np.float32), array, rtol=1e-3, atol=0)
    return smaller if harmless else array.astype(np.float32)


def zstd() -> Any:
    """The module. Raises `ConfigError` where it is not installed."""
    try:
        import zstandard
    except ModuleNotFoundError as error:
        raise ConfigError("baselines need zstandard, which is not installed: pip install 'tersor[report]'") from error
    return zstandard
