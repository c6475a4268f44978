"""The adaptive context coder's decoder: native/context.cpp, docs/format.md "Adaptive context coder"."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from . import BAD_ARGUMENT, CORRUPT
from .binary import AdaptiveBit, BitDecoder
from .maps import NEXT, QUANTIZER
from .mixing import RECIPROCAL, SQUASH, STRETCH, probability

_UNARY = 18
_SIGN = _UNARY + 1
_SHAPE = 7
_LARGEST = 0x7FFFFFFF

_COARSE = (2, 4, 6, 8, 11, 14, 18, 23, 29, 37, 48, 64, 90, 128, 200)
_BOUNDS = [(512, 609, 724, 861)[level & 3] << (level >> 2) for level in range(32)]
_LEVEL = [sum(v >= bound for bound in _COARSE) for v in range(1024)]
_FINE = [sum(v * 128 >= bound for bound in _BOUNDS[1:]) for v in range(2048)]

_TASTE = (
    (0, 0, 0, 0, 0, 0), (29819, 0, 0, 0, 0, 0), (29819, 0, 0, 0, 0, 0), (29819, 0, 0, 0, 0, 0),
    (0, 0, 26214, 0, 3277, 0), (24904, 0, 18350, -8520, 3932, 0), (24904, -1311, 19661, -6554, 1966, 0),
    (23593, -1311, 23265, -4588, 0, 0), (0, 0, 28180, 0, 1311, -6554), (28180, 0, 19005, -3932, 3277, -5898),
    (27525, 0, 21627, -5243, 1966, -4588), (26214, 1311, 24248, -6554, 0, -3277))

_NEIGHBOURLESS, _KERNEL, _PLANE = range(3)


def _wrap(x: int) -> int:
    """The number equal to x modulo 2^32 in -2^31 .. 2^31 - 1."""
    return (x + 0x80000000 & 0xFFFFFFFF) - 0x80000000


def _clip(x: int, low: int, high: int) -> int:
    return low if x < low else high if x > high else x


def _level(mean: int) -> int:
    return _LEVEL[min(mean >> 7, 1023)]


def _towards(mean: int, value: int, count: int, limit: int) -> int:
    return mean + ((value - mean) * RECIPROCAL[min(count, limit)] >> 16)


def _kind(value: int) -> int:
    return 1 if value > 0 else 2 if value < 0 else 0


class _Set:
    """Weights of a mixer, 2^28 = 1, and how often they learned."""

    __slots__ = ("count", "weight")

    def __init__(self) -> None:
        self.weight, self.count = [115 << 18] * 4, 0


class _State:
    """What adapts to the matrices of one kind."""

    def __init__(self) -> None:
        self.slots: dict[int, list[int]] = {}
        self.by_bin = [_Set() for _ in range(_SIGN + 1)]
        self.by_place = [[_Set() for _ in range(32)] for _ in range(_SIGN + 1)]
        self.by_level = [[_Set() for _ in range(16)] for _ in range(_SIGN + 1)]
        self.taste = [list(row) for row in _TASTE]
        self.spread = [40632, 13107, 22938, 11141]
        self.escape = [AdaptiveBit() for _ in range(31)]

    def slot(self, bin_: int, table: int, context: int) -> list[int]:
        key = bin_ << 16 | table << 13 | context
        found = self.slots.get(key)
        if found is None:
            found = self.slots[key] = [1 << 21, 0]
        return found


@dataclass
class _Matrix:
    """A matrix on its way: its layout, and means over what has been decoded."""

    rows: int
    columns: int
    taps: int
    width: int
    bypass: int
    trellis: int
    basis: int
    column_error: list[int] = field(init=False, default_factory=list)
    channel_error: list[int] = field(init=False, default_factory=list)
    channel_size: list[int] = field(init=False, default_factory=list)
    row_size: int = field(init=False, default=1024)
    row_error: int = field(init=False, default=1024)

    @property
    def near(self) -> int:
        return _KERNEL if self.taps > 1 else _PLANE if self.basis else _NEIGHBOURLESS

    def begin(self, factors: list[int]) -> None:
        """Means as at the start; `factors`: of the rows of the matrix before, if those are the channels of this."""
        channels = self.columns // self.taps
        fits = not self.basis and len(factors) == channels
        start = list(factors) if fits else [1024] * channels
        self.channel_error, self.channel_size = start, list(start)
        self.column_error = [start[c // self.taps] for c in range(self.columns)]


class _Escape(Exception):
    """No encoder writes such a number."""


class _Decoder:
    """One part."""

    def __init__(self, data: bytes) -> None:
        self.coder = BitDecoder(data)
        self.states: dict[int, _State] = {}
        self.factors: list[int] = []

    def matrix(self, m: _Matrix) -> list[list[int]]:
        """The rows of a matrix. Raises _Escape."""
        state = self.states.setdefault(m.basis, _State())
        m.begin(self.factors)
        blank = [0] * (m.columns + 3)  # with room for two columns before the first and one after the last
        above, above2, out, factors = blank, blank, [], []
        for r in range(m.rows):
            here, row, factor = self._row(state, m, r, above, above2)
            above, above2 = here, above
            out.append(row)
            factors.append(factor)
        if not m.basis:
            self.factors = factors
        return out

    def _row(self, state: _State, m: _Matrix, r: int, above: list[int],
             above2: list[int]) -> tuple[list[int], list[int], int]:
        """Values in half steps, integers, and the row's factor. Column c is at place c + 2 of values."""
        here, row = [0] * (m.columns + 3), []
        near, taps, width = m.near, m.taps, m.width
        found = expected = left_error = kernel_found = kernel_expected = kernel_error = 0
        factor, trellis = 4096, 0
        for c in range(m.columns):
            channel, tap = divmod(c, taps)
            y, x = divmod(tap, width)
            at = c + 2
            neighbours, place, mu = (0, 0, 0, 0, 0, 0), 0, 0
            if near == _KERNEL:
                place = 4 * min(y, 2) + (0 if x == 0 else 3 if x == width - 1 else 1 if x == 1 else 2)
                neighbours = (here[at - 1] if x > 0 else 0, here[at - 2] if x > 1 else 0,
                              here[at - width] if y > 0 else 0, here[at - width - 1] if y > 0 and x > 0 else 0,
                              here[at - width + 1] if y > 0 and x < width - 1 else 0,
                              here[at - 2 * width] if y > 1 else 0)
            elif near == _PLANE:
                neighbours = (here[at - 1], here[at - 2], above[at], above[at - 1], above[at + 1], above2[at])
            taste = state.taste[place]
            if near != _NEIGHBOURLESS:
                mu = _clip(_wrap(sum(w * v for w, v in zip(taste, neighbours, strict=True))) >> 9, -4095, 4095)

            if tap == 0:
                kernel_error = m.row_error
            block = tap & 63
            if block == 0:
                kernel_found = kernel_expected = 0
            if c & 7 == 0:
                factor = min(1 << 18, (found + 256) * 4096 // (expected + 256))
            usual = (m.column_error[c] + m.channel_error[channel]) >> 1
            scaled = _clip(usual * factor >> 16, 1, 4095)
            excess = (kernel_found - kernel_expected) * (65536 // (block + 6)) >> 16
            features = (scaled, excess, abs(mu) >> 1, left_error)
            guess = _wrap(sum(w * e for w, e in zip(state.spread, features, strict=True))) >> 16
            sigma_level, row_level = _FINE[_clip(guess, 4, 2047)], _level(m.row_size)
            quantizer = QUANTIZER[m.trellis][trellis] if m.trellis else 0
            pull = _clip((mu + 16) >> 5, -15, 15)
            where = place + 16 * quantizer, sigma_level >> 1
            scaled_base = 512 * quantizer + _FINE[min(scaled, 2047)]
            kernel_base = _level(kernel_error)
            shared = (16 * row_level + _level(m.channel_size[channel]), 16 * sigma_level + row_level)
            pattern = 512 + sum(min((abs(v) + 1) >> 1, 3) << 6 - 2 * i
                                for i, v in enumerate((here[at - 1], here[at - 2], above[at], above2[at])))

            def contexts(u: int, base: int = scaled_base, kernel: int = kernel_base, alone: int = pattern,
                         rest: tuple[int, int] = shared) -> tuple[int, int, int, int]:
                return base + 32 * (u >> 1), alone if near == _NEIGHBOURLESS else kernel + 16 * u, *rest

            magnitude = negative = 0
            if self._decide(state, 0, contexts(abs(pull)), where):
                ratio = _clip(mu * (38480000 // _BOUNDS[sigma_level]) >> 15, -31, 31) + 32
                pair = 9 * _kind(here[at - 1]) + 3 * _kind(above[at])
                signs = (ratio, pair + _kind(above2[at]), 32 * (pull + 16) + sigma_level, pair + _kind(here[at - 2])) \
                    if near == _NEIGHBOURLESS else \
                    (ratio, 16 * ratio + place, 32 * (pull + 16) + sigma_level, 16 * (pull + 16) + place)
                negative = self._decide(state, _SIGN, signs, where)
                magnitude = self._magnitude(state, contexts((-pull if negative else pull) + 16), where)
            q = self._with_low_bits(-magnitude if negative else magnitude, m.bypass)
            row.append(q)

            half = 2 * min(magnitude, 16) - (quantizer if magnitude else 0)
            here[at] = -min(half, 15) if negative else min(half, 15)
            miss = (-half if negative else half) * 128 - mu
            error = min(abs(miss) >> 1, 1920)
            if near != _NEIGHBOURLESS:
                norm = 8 + sum(v * v for v in neighbours)
                gain = _clip(miss, -2047, 2047) * (87381 // norm) >> 6
                for i, v in enumerate(neighbours):
                    taste[i] = _wrap(taste[i] + (gain * v >> 7))
            energy = min((8192 + sum(e * e for e in features)) >> 11, 4095)
            gain = _clip(error - guess, -512, 512) * (335544 // energy) >> 8
            for i, e in enumerate(features):
                state.spread[i] = _wrap(state.spread[i] + (gain * e >> 12))
            left_error = min(error, 896)
            found, expected = found + error, expected + (usual >> 4)
            if max(found, expected) > 128000:
                found, expected = found >> 1, expected >> 1
            kernel_found, kernel_expected = kernel_found + error, kernel_expected + scaled
            size, seen = min(magnitude, 16) << 11, r * taps + tap
            m.row_size = _towards(m.row_size, size, c, 120)
            if near != _NEIGHBOURLESS:
                m.row_error = _towards(m.row_error, error << 4, c, 120)
                kernel_error = _towards(kernel_error, error << 4, block, 60)
            m.channel_size[channel] = _towards(m.channel_size[channel], size, seen, 250)
            m.channel_error[channel] = _towards(m.channel_error[channel], error << 4, seen, 250)
            m.column_error[c] = _towards(m.column_error[c], error << 4, r, 100)
            if m.trellis:
                trellis = NEXT[m.trellis][trellis][q & 1]
        return here, row, min(64000, found * 1024 // max(1, expected))

    def _with_low_bits(self, value: int, bypass: int) -> int:
        if bypass:
            low = 0
            for _ in range(bypass):
                low = low << 1 | self.coder.decode(32768)
            value = (value << bypass) + low - (1 << bypass - 1)
            if not -_LARGEST - 1 <= value <= _LARGEST:
                raise _Escape
        return value

    def _magnitude(self, state: _State, contexts: tuple[int, ...], where: tuple[int, int]) -> int:
        for m in range(1, _UNARY + 1):
            if self._decide(state, m, contexts, where):
                return m
        e = 0
        while state.escape[e].decode(self.coder):
            e += 1
            if e > 30:
                raise _Escape
        u = 1
        for _ in range(e):
            u = u << 1 | self.coder.decode(32768)
        if u > _LARGEST - _UNARY:
            raise _Escape
        return u + _UNARY

    def _decide(self, state: _State, bin_: int, contexts: tuple[int, ...], where: tuple[int, int]) -> int:
        """One binary decision: four slots mixed by the sum of three sets of weights, which all learn from it."""
        slots = [state.slot(bin_, table, context) for table, context in enumerate(contexts)]
        inputs = [STRETCH[slot[0] >> 10] for slot in slots]
        a, b, c = state.by_bin[bin_], state.by_place[bin_][where[0]], state.by_level[bin_][where[1]]
        total = sum((_wrap(u + v + w) >> 16) * t
                    for u, v, w, t in zip(a.weight, b.weight, c.weight, inputs, strict=True))
        x = _clip(total >> 12, -2047, 2047)
        bit = self.coder.decode(probability(x))
        a.count = min(a.count + 1, 65535)
        rate = 1000 + 64000 // ((a.count >> 6) + 16)
        error = (((65535 if bit else 0) - SQUASH[x + 2048]) * rate + 32768) >> 16
        for one in (a, b, c):
            one.weight = [_wrap(w + t * error) for w, t in zip(one.weight, inputs, strict=True)]
        target = (1 << 22) - 1 if bit else 0
        for slot in slots:
            slot[0] += (target - slot[0]) * RECIPROCAL[slot[1]] >> 16
            slot[1] += slot[1] < 255
        return bit


def context_decode(data: bytes, size: int, matrices: int, shape: npt.NDArray[np.int64],
                   out: npt.NDArray[np.int32]) -> int:
    """Integers of all matrices, shape [matrices, 7]; the bytes consumed, or an error code."""
    decoder = _Decoder(data)
    at = 0
    for layout in shape[:matrices].reshape(-1, _SHAPE).tolist():
        matrix = _Matrix(*layout)
        if matrix.bypass > 24 or matrix.trellis not in (0, *NEXT) or matrix.columns % matrix.taps:
            return BAD_ARGUMENT
        try:
            for row in decoder.matrix(matrix):
                out[at : at + matrix.columns] = row
                at += matrix.columns
        except _Escape:
            return CORRUPT
    return decoder.coder.position
