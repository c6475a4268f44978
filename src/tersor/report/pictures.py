"""What the integers of a file look like: histograms, codebooks of kernels and of values, bases of transforms."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..codes import codes_of, shared_codes_of
from ..limits import Limits
from ..synthesis.kernels import KernelCode
from ..synthesis.scalar import ScalarCode
from ..synthesis.transform import TransformCode
from .charts import Chart, grid_picture, histograms
from .collect import Coded, Layer

MOST_HISTOGRAMS = 9
MOST_PICTURES = 6
MOST_KERNELS = 128
LARGEST_BASIS = 128
"""Rows and columns of a basis that are drawn."""
BINS = 17
"""Of a histogram, at most, odd: 0 is in the middle of one."""


def pictures_of(coded: Coded, key: str, limits: Limits | None = None) -> list[tuple[Chart, str]]:
    """(chart, text beside it, which may hold names from the file) for the layers with the most bytes of a file."""
    if coded.path is None:
        return []
    numbers = {layer.name: i for i, layer in enumerate(coded.layers, 1)}
    largest = sorted(coded.layers, key=lambda layer: -(layer.bytes or 0))
    codes = codes_of(coded.path, limits=limits)
    found = _histograms(largest, codes, numbers, key)
    found += _kernels(largest, codes, numbers, key)
    found += _bases(largest, codes, numbers, key)
    return found + _books(coded.path, numbers, key, limits)


def _histograms(largest: Sequence[Layer], codes: dict[str, Any], numbers: dict[str, int],
                key: str) -> list[tuple[Chart, str]]:
    counted: list[tuple[int, int, dict[int, int]]] = []
    for layer in largest:
        code = codes.get(layer.name)
        integers = code.coefficients if isinstance(code, TransformCode) else code
        if isinstance(integers, ScalarCode) and integers.q.size and len(counted) < MOST_HISTOGRAMS:
            counted.append((numbers[layer.name], *_binned(integers.q)))
    if not counted:
        return []
    names = {number: name for name, number in numbers.items()}
    text = "; ".join(f"layer {number} is {names[number]}" for number, *_ in counted)
    return [(histograms(counted, key + "-histograms"), f"The layers that take the most bytes: {text}.")]


def _binned(q: npt.NDArray[np.int32]) -> tuple[int, dict[int, int]]:
    """Width of a bin (odd), and counts by the middle of the bin."""
    reach = int(np.quantile(np.abs(q), 0.998))
    width = 2 * (reach // BINS) + 1
    middles, counts = np.unique(np.rint(q[np.abs(q) <= max(reach, 1)] / width).astype(np.int64), return_counts=True)
    return width, {int(middle) * width: int(count) for middle, count in zip(middles, counts, strict=True)}


def _kernels(largest: Sequence[Layer], codes: dict[str, Any], numbers: dict[str, int],
             key: str) -> list[tuple[Chart, str]]:
    """Codebooks of kernels, most used first; one that layers share is drawn once."""
    found: list[tuple[Chart, str]] = []
    seen: list[KernelCode] = []
    for layer in largest:
        code = codes.get(layer.name)
        if not isinstance(code, KernelCode) or len(found) == MOST_PICTURES or not code.values.size \
                or any(code.same_codebook(other) for other in seen):
            continue
        seen.append(code)
        use = np.bincount(code.index.ravel(), minlength=len(code.values))
        order = np.argsort(-use, kind="stable")[:MOST_KERNELS]
        images = [_square(code.values[i].astype(np.float64)) for i in order]
        number = numbers[layer.name]
        label = f"{len(images)} kernels of {code.taps} taps as small images, most used first."
        found.append((grid_picture(images, f"{key}-kernels{number}", f"Codebook of kernels, layer {number}", label),
                      f"Layer {number}, {layer.name}: the {len(images)} most used of {len(code.values)} kernels."))
    return found


def _bases(largest: Sequence[Layer], codes: dict[str, Any], numbers: dict[str, int],
           key: str) -> list[tuple[Chart, str]]:
    """Stored bases: vectors over taps as small images, those over channels as rows of one image."""
    found: list[tuple[Chart, str]] = []
    for layer in largest:
        code = codes.get(layer.name)
        if not isinstance(code, TransformCode):
            continue
        number = numbers[layer.name]
        for basis, what in ((code.taps, "taps"), (code.channels, "inputs"), (code.rows, "outputs")):
            if not isinstance(basis, ScalarCode) or not basis.q.size or len(found) == MOST_PICTURES:
                continue
            vectors = basis.matrix().astype(np.float64)
            images = [_square(row) for row in vectors] if what == "taps" else \
                [vectors[:LARGEST_BASIS, :LARGEST_BASIS]]
            label = f"{len(vectors)} basis vectors over {what}" + \
                (" as small images." if what == "taps" else ", each a row of the image.")
            chart = grid_picture(images, f"{key}-basis{number}{what}", f"Basis over {what}, layer {number}", label)
            found.append((chart, f"Layer {number}, {layer.name}: {len(vectors)} vectors of {vectors.shape[1]}."))
    return found


def _books(path: Path, numbers: dict[str, int], key: str, limits: Limits | None) -> list[tuple[Chart, str]]:
    """Shared values as a strip from the lowest to the highest, each as wide as it is used."""
    found = []
    for i, (names, code) in enumerate(shared_codes_of(path, limits=limits)[:MOST_PICTURES]):
        counts = code.counts()
        if not counts.sum():
            continue
        widths = np.maximum(1, np.rint(counts / counts.sum() * 256)).astype(int)
        strip = np.repeat(code.values.astype(np.float64), widths)
        where = ", ".join(str(numbers[name]) for name in names[:12] if name in numbers)
        label = f"{len(code.values)} shared values, ascending, as a strip of colours, each as wide as it is used."
        found.append((grid_picture([np.tile(strip, (24, 1))], f"{key}-values{i}",
                                   f"Codebook of {len(code.values)} values", label),
                      f"Values from {code.values.min():.4g} to {code.values.max():.4g}, shared by layers {where}"
                      + (" and more." if len(names) > 12 else ".")))
    return found


def _square(kernel: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """[taps] as an image: 9 as 3 x 3, what is no square as one row."""
    side = round(len(kernel) ** 0.5)
    return kernel.reshape(side, side) if side * side == len(kernel) else kernel[None]
