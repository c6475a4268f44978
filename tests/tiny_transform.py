"""Tool 5 for tiny_decoder.py: written from docs/format-transform.md alone, in the same style.

Names are those of the document. Sums are taken one term after the other, as the document has them.
"""

from __future__ import annotations

import itertools
import math
import re
import struct
from pathlib import Path

import numpy as np
import tiny_decoder as tiny


def transform(payload: bytes, tensors: list[tiny.Tensor]) -> list[np.ndarray]:
    reader = tiny.Reader(payload)
    code = tiny.IntegerCode(reader.take(reader.varint()))
    coder = code.within(0, 0, 2)
    step = [0, 0]
    heads = [Head(code, coder, step, tensor) for tensor in tensors]
    rows_per_part = code.within(13, 0, 2**40) if len(tensors) == 1 and coder < 2 else 0
    code.decoder.end()

    if coder == 2:
        integers = [unpack(reader, *about) for head in heads for about in head.parameters]
        tiny.must(reader.at == len(payload), "bytes after the last block")
    else:
        groups = [[matrix for head in heads for matrix in head.matrices]]
        if rows_per_part > 0:
            *bases, coefficients = groups[0]
            starts = range(0, coefficients.rows, rows_per_part)
            sizes = [min(rows_per_part, coefficients.rows - start) for start in starts]
            groups = [bases, *([coefficients._replace(rows=rows)] for rows in sizes)]
        lengths = reader.varints(len(groups) - 1)
        parts = [reader.take(length) for length in lengths] + [reader.rest()]
        part_decoder = tiny.context_part if coder == 1 else tiny.rans
        decoded = [part_decoder(part, group) for part, group in zip(parts, groups, strict=True)]
        integers = decoded[0]
        if rows_per_part > 0:
            none = np.zeros((0, coefficients.columns), np.int64)
            integers = [*decoded[0], np.concatenate([none, *(part[0] for part in decoded[1:])])]

    left = iter(integers)
    return [head.restore(tensor, [next(left) for _ in head.matrices])
            for head, tensor in zip(heads, tensors, strict=True)]


class Head:
    """What the parameters say about one tensor."""

    def __init__(self, code: tiny.IntegerCode, coder: int, step: list[int], tensor: tiny.Tensor):
        shape = tensor.shape
        tiny.must(len(shape) >= 1, "axes")
        tiny.must(tensor.dtype in tiny.LOSSY, "element type of a lossy tool")
        self.coder = coder
        layout = code.within(1, 0, 1 if coder == 2 else 5)
        self.swapped, self.t = layout % 2, layout // 2
        tiny.must(len(shape) > 1 or not self.swapped, "a vector cannot be swapped")
        self.r, self.inner = code.within(2, 0, 1), code.within(3, 0, 2)
        self.k = code.within(4, 0, 5) if self.inner < 2 else 0
        whole = tiny.matrix_of(shape, self.swapped)
        m, taps, width = whole.rows, whole.taps, whole.width
        n = whole.columns // taps
        self.scales = None
        if self.k > 3:
            tiny.must(math.prod(shape) > 0, "scaled frequencies of no elements")
            self.k -= 3
            exponents = list(itertools.accumulate(code.integer(15) for _ in range(taps)))
            tiny.must(max(map(abs, exponents)) <= 256, "exponent of a frequency")
            self.scales = np.array([tiny.value(8 * e) for e in exponents])
        tiny.must(self.k not in (1, 2) or all(1 <= d <= 32 for d in shape[2:]), "size of a DCT")
        rank = [m, n, taps]
        largest = [min(m, n * taps), min(n * taps, m) if self.inner == 2 else min(n, m * taps), min(taps, m * n)]
        stored = [self.r == 1, self.inner > 0, self.k == 3]
        for i in range(3):
            if stored[i]:
                rank[i] = largest[i] - code.within(5, 0, largest[i])
        joint = tiny.Matrix(rank[1], n * taps, taps, width, 0)
        bases = [tiny.Matrix(rank[0], m, 1, 1, 0), joint if self.inner == 2 else tiny.Matrix(rank[1], n, 1, 1, 0),
                 tiny.Matrix(rank[2], taps, taps, width, 0)]
        self.matrices = [basis._replace(kind=1) for basis, there in zip(bases, stored, strict=True) if there]
        self.rank = rank if self.inner < 2 else [rank[0], rank[1], 1]
        inside = max(self.rank[2], 1)
        plain = self.k != 3 and self.inner < 2
        self.matrices.append(
            tiny.Matrix(rank[0], rank[1] * self.rank[2], inside, width if plain else inside, 0))
        kinds = [0] * (len(self.matrices) - 1) + [1]
        read = self.blocks if coder == 2 else self.rows
        self.parameters = [read(code, step, i, kind) for i, kind in enumerate(kinds)]

    def rows(self, code: tiny.IntegerCode, step: list[int], i: int, kind: int) -> tuple:
        """Steps of the rows and shifts of a matrix of coders 0 and 1."""
        step[kind] += code.integer(6 + kind)
        t = self.t * kind
        s1, s2 = (0, 0) if t else (code.within(8, 0, 48), code.within(8, 0, 48))
        if self.coder == 1:
            self.matrices[i] = self.matrices[i]._replace(bypass=code.within(9, 0, 24), trellis=t)
        rows = self.matrices[i].rows
        j = code.within(10, -1, 5)
        exponents = code.list(rows, 11 + kind, 16 + 8 * kind) if j != -1 else [0] * rows
        if kind == 0:
            exponents = list(itertools.accumulate(exponents))
        tiny.must(max(map(abs, exponents), default=0) <= 28800, "row exponent")
        tiny.must(abs(step[kind]) <= 28800 or (j != -1 and rows > 0), "step index")
        ks = [step[kind] + 2 ** (5 - max(j, 0)) * exponent for exponent in exponents]
        with np.errstate(over="ignore"):
            return np.array([tiny.value(k) for k in ks], np.float64).astype(np.float32), s1, s2, t

    def blocks(self, code: tiny.IntegerCode, step: list[int], i: int, kind: int) -> tuple:
        """Places of the elements of each block in C order, depths and steps, and the shape of a matrix of coder 2."""
        rows, columns, taps = self.matrices[i][:3]
        axis = code.within(14, 0, 2)
        parts = [1 + code.within(14, 0, 254) for _ in range(3 if axis == 2 else 1)]
        parts = [[*parts, 1, 1], [1, *parts, 1], parts][axis]
        b = math.prod(parts)
        tiny.must(b <= 255, "number of blocks")
        depths = np.cumsum([code.integer(15) for _ in range(b)]).tolist()
        tiny.must(all(0 <= depth <= 16 for depth in depths), "depth of a block")
        steps = [0] * b
        for block, depth in enumerate(depths):
            if depth:
                step[kind] += code.integer(6 + kind)
                tiny.must(abs(step[kind]) <= 28800, "step index")
                steps[block] = step[kind]
        taps = taps if kind else 1
        shape = rows, columns // taps, taps
        places = np.arange(rows * columns).reshape(shape)
        cuts = [[i * size // part for i in range(part + 1)] for size, part in zip(shape, parts, strict=True)]
        blocks = [places[r:r1, c:c1, t:t1].ravel() for r, r1 in itertools.pairwise(cuts[0])
                  for c, c1 in itertools.pairwise(cuts[1]) for t, t1 in itertools.pairwise(cuts[2])]
        return blocks, depths, steps, (rows, columns)

    def elements(self, q: np.ndarray, about: tuple) -> np.ndarray:
        """The elements of a matrix, binary64."""
        with np.errstate(all="ignore"):
            if self.coder < 2:
                steps, s1, s2, t = about
                levels = tiny.trellis_levels(q, tiny.TRELLIS[t]) if t else tiny.level(q, s1, s2)
                found = levels * steps[:, None]
            else:
                found = np.zeros(q.shape, np.float32)
                for block, depth, step in zip(*about[:3], strict=True):
                    if depth:
                        found.flat[block] = q.flat[block].astype(np.float32) * np.float32(tiny.value(step))
        tiny.must(bool(np.isfinite(found).all()), "an element that is not finite")
        return found.astype(np.float64)

    def restore(self, tensor: tiny.Tensor, integers: list[np.ndarray]) -> np.ndarray:
        found = [self.elements(q, about) for q, about in zip(integers, self.parameters, strict=True)]
        whole = tiny.matrix_of(tensor.shape, self.swapped)
        values, left = found[-1], iter(found[:-1])
        r = next(left) if self.r else None
        b = next(left) if self.inner else None
        rows, channels, taps = self.rank
        if self.k == 3:
            values = mapped(values.reshape(rows * channels, taps, 1), next(left))
        elif self.k:
            before, after = rows * channels, taps
            if self.scales is not None:
                values = values.reshape(before, taps) * self.scales
            for size in tensor.shape[2:]:
                after //= size
                values = mapped(values.reshape(before, size, after), dct(self.k, size))
                before *= size
        taps = 1 if self.inner == 2 else whole.taps
        if b is not None:
            values = mapped(values.reshape(rows, channels, taps), b)
        if r is not None:
            values = mapped(values.reshape(1, rows, whole.columns), r)
        if self.swapped:
            shape = (tensor.shape[1], tensor.shape[0], *tensor.shape[2:])
            values = values.reshape(shape).swapaxes(0, 1)
        return tiny.rounded(values, tensor)


def unpack(reader: tiny.Reader, blocks: list, depths: list[int], steps: list[int],
           shape: tuple[int, int]) -> np.ndarray:
    """The integers of a matrix of coder 2."""
    q = np.zeros(shape, np.int64)
    for block, depth in zip(blocks, depths, strict=True):
        if depth:
            size = (len(block) * depth + 7) // 8
            bits = tiny.BitString(reader.take(size), "big")
            numbers = []
            for _ in block:
                number = 0
                for _ in range(depth):
                    number = 2 * number + bits.number(1)
                numbers.append(number - 2 ** (depth - 1))
            tiny.must(bits.end() == size, "end of a block")
            q.flat[block] = numbers
    return q


def mapped(x: np.ndarray, m: np.ndarray) -> np.ndarray:
    """Y[a, j, b] of X[a, i, b]: a sum over i, term by term."""
    y = np.zeros((x.shape[0], m.shape[1], x.shape[2]))
    for i in range(m.shape[0]):
        y = y + m[i][None, :, None] * x[:, i, :][:, None, :]
    return y


# Cosine transforms

def table() -> dict[tuple[int, int], float]:
    """cos(pi p / q) by (p, q), from the document."""
    text = (Path(__file__).parents[1] / "docs" / "format-transform.md").read_text(encoding="utf-8")
    block = text.split("\n## Cosines\n")[1].split("```")[1]
    result = {}
    for line in re.split(r"\n(?= *\d+:)", block.strip("\n")):
        q, numbers = line.split(":")
        ps = [p for p in range(1, int(q)) if 2 * p < int(q) and math.gcd(p, int(q)) == 1]
        for p, number in zip(ps, numbers.split(), strict=True):
            result[p, int(q)] = struct.unpack(">d", bytes.fromhex(number))[0]
    return result


COSINES = table()


def cosine(p: int, q: int) -> float:
    p %= 2 * q
    if p > q:
        p = 2 * q - p
    if 2 * p > q:
        return -cosine(q - p, q)
    if p == 0:
        return 1.0
    divisor = math.gcd(p, q)
    return 0.0 if 2 * p == q else COSINES[p // divisor, q // divisor]


def dct(kind: int, n: int) -> np.ndarray:
    k = np.ones((n, n))
    for i in range(n):
        for j in range(n):
            if kind == 2:
                k[i, j] = math.sqrt((1 if i == 0 else 2) / n) * cosine(i * (2 * j + 1), 2 * n)
            elif n > 1:
                h = [2, 1, 0.5][(i in (0, n - 1)) + (j in (0, n - 1))]
                k[i, j] = math.sqrt(h / (n - 1)) * cosine(i * j, n - 1)
    return k
