"""Linear maps from coefficients to weights, the same bits on every machine.

    W[r, c, t] = sum over r', c', t' of R[r', r] * B[c', c] * K[t', t] * C[r', c', t']

over output rows, input channels and taps; each map may be absent, and K may have factors, one for each of its
rows, with which coefficients are multiplied first. In float64, in the order taps, channels, rows; every sum
starts with 0 and takes its terms in increasing order, each product rounded before it is added.
docs/format-transform.md, "Restoring a tensor".
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ..bitstream import native

Matrix: TypeAlias = npt.NDArray[np.float64]

MAX_DCT = 32
"""The longest kernel axis that a DCT is defined for."""

_LINES_PER_TASK = 512
_FRACTION = 256
_ONE = 1 << _FRACTION

_mix = native.function("tersor_mix", [
    native.array(np.float64), native.INT64, native.array(np.float64), native.INT64,
    native.array(np.float64, writable=True), native.INT64, native.INT64, native.INT64, native.INT64,
    native.INT64, native.INT64, native.INT64, native.INT32])


class Dct(IntEnum):
    """The fixed transforms of a kernel axis, both orthonormal."""

    I = 1  # noqa: E741 - that is its name
    II = 2


@dataclass(frozen=True)
class Maps:
    """Matrices of a transform, float64, one row for each basis vector; None where a map is absent.

    * `rows`: R [rows', rows]. `channels`: B [channels', channels], or where `joint`, [k, channels * taps].
    * `taps`: K, one matrix for each kernel axis [extent', extent] (the DCTs, which are separable), or one
      [taps', taps] for all of them; () where absent.
    * `tap_scale`: [taps'], factors on the coefficients of each basis vector of K; None for 1.
    """

    rows: Matrix | None = None
    channels: Matrix | None = None
    taps: tuple[Matrix, ...] = ()
    joint: bool = False
    tap_scale: Matrix | None = None

    def kernel(self) -> Matrix | None:
        """K as one matrix [taps', taps] (the Kronecker product, its rows times `tap_scale`; not bit-exact), or
        None."""
        if not self.taps:
            return None
        whole = np.ones((1, 1))
        for matrix in self.taps:
            whole = np.asarray(np.kron(whole, matrix), dtype=np.float64)
        return whole if self.tap_scale is None else whole * self.tap_scale[:, None]


def apply_maps(coefficients: Matrix, maps: Maps, threads: int = 1) -> Matrix:
    """The weights float64 [rows, channels * taps] of coefficients float64 [rows', channels', taps'].

    With a joint basis the coefficients are [rows', k, 1]. All numbers must be finite. Bit-exact: this is what
    a decoder computes. Raises ValueError where sizes do not fit each other.
    """
    rows, channels, _ = coefficients.shape
    values = coefficients if maps.tap_scale is None else coefficients * maps.tap_scale
    outer = rows * channels
    taps = math.prod(matrix.shape[1] for matrix in maps.taps) if maps.taps else coefficients.shape[2]
    for i, matrix in enumerate(maps.taps):
        inner = math.prod(len(later) for later in maps.taps[i + 1 :])
        values = mix(values.reshape(outer, matrix.shape[0], inner), matrix, threads)
        outer *= matrix.shape[1]
    if maps.channels is not None:
        values = mix(values.reshape(rows, channels, taps), maps.channels, threads)
        channels = maps.channels.shape[1]
    if maps.rows is not None:
        values = mix(values.reshape(1, rows, channels * taps), maps.rows, threads)
        rows = maps.rows.shape[1]
    return np.ascontiguousarray(values, dtype=np.float64).reshape(rows, channels * taps)


def mix(values: Matrix, basis: Matrix, threads: int = 1) -> Matrix:
    """out[a, j, b] = sum over i of values[a, i, b] * basis[i, j], the sums as in the module's text.

    values: finite float64 [outer, terms, inner]; basis: finite float64 [terms, outputs].
    """
    values, basis = (np.ascontiguousarray(x, dtype=np.float64) for x in (values, basis))
    outer, terms, inner = values.shape
    if basis.shape[0] != terms:
        raise ValueError(f"a basis of {basis.shape[0]} vectors was given for {terms} coefficients")
    outputs = basis.shape[1]
    out = np.empty((outer, outputs, inner))
    lines = outer * inner
    task = max(_LINES_PER_TASK, -(-lines // max(threads, 1)))

    def run(first: int) -> None:
        native.check(_mix(values, values.size, basis, basis.size, out, out.size, outer, terms, inner, outputs,
                          first, min(first + task, lines), native.simd_level()), "mixing")

    starts = range(0, lines, task)
    if len(starts) == 1:
        run(0)
    else:
        with ThreadPoolExecutor(max(threads, 1)) as pool:
            list(pool.map(run, starts))
    return out


def dct_matrix(kind: Dct, size: int) -> Matrix:
    """K[t', t], float64 [size, size]: row t' is the basis vector of frequency t'; orthonormal to rounding.

    DCT-I: sqrt(h / (size - 1)) cos(pi t' t / (size - 1)), h = 2, 1 or 1/2 where none, one or both of t' and t
    are at an end (0 or size - 1); [[1]] for size 1. DCT-II: sqrt(h / size) cos(pi t' (2 t + 1) / (2 size)),
    h = 1 for t' = 0, else 2. Cosines are correctly rounded, all else is rounded operation by operation.
    Raises ValueError for sizes outside 1..32.

    >>> dct_matrix(Dct.II, 2).round(4).tolist()
    [[0.7071, 0.7071], [0.7071, -0.7071]]
    """
    if not 1 <= size <= MAX_DCT:
        raise ValueError(f"there is no DCT of {size} taps, only of 1 to {MAX_DCT}")
    return _dct_matrix(Dct(kind), size).copy()


@cache
def _dct_matrix(kind: Dct, size: int) -> Matrix:
    out = np.ones((size, size))
    ends = (0, size - 1)
    for i in range(size):
        for j in range(size):
            if kind == Dct.II:
                scale, angle = math.sqrt((2.0 if i else 1.0) / size), (i * (2 * j + 1), 2 * size)
            elif size > 1:
                h = 2.0 / (1 << (i in ends) + (j in ends))
                scale, angle = math.sqrt(h / (size - 1)), (i * j, size - 1)
            else:
                continue
            out[i, j] = scale * cosine(*angle)
    return out


def cosine(numerator: int, denominator: int) -> float:
    """cos(pi * numerator / denominator), correctly rounded; +0 where it is zero.

    >>> [cosine(p, 6) for p in (0, 2, 3, 4, 6)]
    [1.0, 0.5, 0.0, -0.5, -1.0]
    """
    turn = 2 * denominator
    p = min(numerator % turn, -numerator % turn)  # cos is even: 0 .. denominator
    sign = 1.0
    if 2 * p > denominator:
        p, sign = denominator - p, -1.0
    return 0.0 if 2 * p == denominator else sign * _cosine(p // math.gcd(p, denominator),
                                                           denominator // math.gcd(p, denominator))


@cache
def _cosine(p: int, q: int) -> float:
    """Of an angle below a right one, by its power series in fixed point."""
    square = (_pi() * p // q) ** 2 >> _FRACTION
    term = total = _ONE
    k = 0
    while term:
        k += 2
        term = (term * square >> _FRACTION) // (k * (k - 1))
        total += term if k % 4 == 0 else -term
    return total / _ONE  # int / int is correctly rounded


@cache
def _pi() -> int:
    """pi in fixed point (Machin's formula)."""
    def arctangent(inverse: int) -> int:
        power = total = _ONE // inverse
        k = 1
        while power:
            power //= inverse * inverse
            k += 2
            total += power // k if k % 4 == 1 else -(power // k)
        return total

    return 4 * (4 * arctangent(5) - arctangent(239))
