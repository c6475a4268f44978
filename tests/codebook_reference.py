"""Decoder of the codebook tool in plain Python, as docs/format.md has it: slow, to be read.

The adaptive and the rANS coder are taken from the references that the tests of these have.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from math import prod

import context_reference
import rans_reference

from tersor.bitstream.integers import IntegerReader

Index = list[int]
Size = tuple[int, int, int, int]
"""Rows, columns, taps, width."""


class Corrupt(Exception):
    """The payload breaks a rule of the format."""


def need(condition: bool, rule: str) -> None:
    if not condition:
        raise Corrupt(rule)


class Bits:
    """Bits of bytes, the most significant first."""

    def __init__(self, data: bytes) -> None:
        self.text = "".join(f"{byte:08b}" for byte in data)
        self.at = 0

    def take(self, count: int) -> int:
        need(self.at + count <= len(self.text), "bits end")
        self.at += count
        return int(self.text[self.at - count : self.at] or "0", 2)

    def end(self) -> None:
        rest = self.text[self.at :]
        need(len(rest) < 8 and "1" not in rest, "bits are left")


class Stream:
    """Symbols of some matrices: reads its parameters at once, its bytes later."""

    def __init__(self, coder: int, alphabet: int, offset: int, reader: IntegerReader) -> None:
        self.coder, self.alphabet, self.offset = coder, alphabet, offset
        self.lengths: dict[int, int] = {}
        if coder == 1:
            flags = reader.take(alphabet, 8).tolist()
            need(set(flags) <= {0, 1}, "flags")
            length = 0
            for symbol in [s for s, flag in enumerate(flags) if flag == 0]:
                length += int(reader.take(1, 9)[0])
                need(1 <= length <= 20, "length")
                self.lengths[symbol] = length
        self.bypass = int(reader.take(1, 10)[0]) if coder == 2 else 0
        need(0 <= self.bypass <= 24, "bypass")

    def decode(self, data: bytes, sizes: Sequence[Size]) -> list[Index]:
        count = sum(rows * columns for rows, columns, _, _ in sizes)
        if self.coder == 0:
            bits, width = Bits(data), max(0, self.alphabet - 1).bit_length()
            flat = [bits.take(width) for _ in range(count)]
            bits.end()
        elif self.coder == 1:
            flat = self.huffman(data, count)
        elif self.coder == 2:
            shapes = [(*size, self.bypass, 0, 0) for size in sizes]
            found = context_reference.decode(data, shapes)[0]
            flat = [q + self.offset for matrix in found for q in flat_of(matrix)]
        else:
            plain = [(rows, columns) for rows, columns, _, _ in sizes]
            found = rans_reference.decode(data, plain)
            flat = [q + self.offset for matrix in found for q in flat_of(matrix)]
        need(all(0 <= symbol < self.alphabet for symbol in flat), "symbol")
        out, at = [], 0
        for rows, columns, _, _ in sizes:
            out.append(flat[at : at + rows * columns])
            at += rows * columns
        return out

    def huffman(self, data: bytes, count: int) -> Index:
        if len(self.lengths) < 2:
            need(not data and (bool(self.lengths) or not count), "empty")
            need(set(self.lengths.values()) <= {1}, "alone")
            return list(self.lengths) * count
        need(sum(2 ** (20 - length) for length in self.lengths.values()) == 2**20, "complete")
        words, word, before = {}, -1, 0
        for symbol, length in sorted(self.lengths.items(), key=lambda item: (item[1], item[0])):
            word = (word + 1) << (length - before)
            before = length
            words[length, word] = symbol
        bits, flat = Bits(data), []
        for _ in range(count):
            word = length = 0
            while (length, word) not in words:
                word, length = 2 * word + bits.take(1), length + 1
            flat.append(words[length, word])
        bits.end()
        return flat


def flat_of(matrix: object) -> Index:
    return [int(q) for row in matrix for q in row]  # type: ignore[attr-defined]


def parts_of(sizes: Sequence[Size], e: int) -> Iterator[list[tuple[int, int, int]]]:
    """(tensor, first row, last row + 1) of each part."""
    part: list[tuple[int, int, int]] = []
    held = 0
    for tensor, (rows, columns, _, _) in enumerate(sizes):
        if not columns:
            continue
        for row in range(rows):
            if part and part[-1][0] == tensor:
                part[-1] = (tensor, part[-1][1], row + 1)
            else:
                part.append((tensor, row, row + 1))
            held += columns
            if e and held >= 2**e:
                yield part
                part, held = [], 0
    if part:
        yield part


def decode(payload: bytes, shapes: Sequence[tuple[int, ...]]) -> list[list[float]]:
    """The elements of all tensors, in C order, before rounding to the element type."""
    h = shift = at = 0
    while True:
        byte = payload[at]
        h |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            break
    reader = IntegerReader(payload[at : at + h])
    payload = payload[at + h :]

    def one(context: int) -> int:
        return int(reader.take(1, context)[0])

    coder, k, half, o = one(0), one(1) + 1, one(2), one(3)
    need(coder in range(4) and 1 <= k <= 65536 and half in (0, 1) and 0 <= o < k, "head")
    symbols: list[int | None] = []
    for _ in shapes:
        symbols.append(one(5) if one(4) else None)
    sizes = [(shape[0] if shape else 1, prod(shape[1:]), max(prod(shape[2:]), 1),
              max(shape[-1], 1) if shape[2:] else 1) for shape in shapes]
    dense = [i for i, count in enumerate(symbols) if count is None]
    sparse = [i for i, count in enumerate(symbols) if count is not None]
    parts: list[list[tuple[int, int, int]]] = []
    if any(prod(shapes[i]) for i in dense):
        parts = list(parts_of([sizes[i] for i in dense], one(7)))
        indexes = Stream(coder, k, o, reader)
    any_gap = any(symbols[i] for i in sparse)
    if any_gap:
        m = one(6) if coder < 2 else 2**30
        gaps, survivors = Stream(coder, m + 1, 0, reader), Stream(coder, k - 1, o, reader)
    streams = len(parts) + 2 * any_gap
    lengths = [one(11) for _ in range(streams - 1)]
    reader.end()
    width, form = (2, "e") if half else (4, "f")
    values = struct.unpack(f"<{k}{form}", payload[: width * k])
    payload = payload[width * k :]
    data = []
    for length in lengths:
        need(0 <= length <= len(payload), "stream length")
        data.append(payload[:length])
        payload = payload[length:]
    need(bool(streams) or not payload, "bytes are left")
    data.append(payload)

    out: list[Index] = [[] for _ in shapes]
    for part, stream in zip(parts, data, strict=False):
        cut = [(last - first, *sizes[dense[tensor]][1:]) for tensor, first, last in part]
        for (tensor, _, _), found in zip(part, indexes.decode(stream, cut), strict=True):
            out[dense[tensor]] += found
    gap_rows: list[Index] = [[] for _ in sparse]
    alive: list[Index] = gap_rows
    if any_gap:
        gap_rows = gaps.decode(data[-2], [(1, symbols[i] or 0, 1, 1) for i in sparse])
        alive = survivors.decode(data[-1], [(1, sum(g < m for g in row), 1, 1) for row in gap_rows])
    for i, row, left in zip(sparse, gap_rows, alive, strict=True):
        left = list(left)
        for g in row:
            out[i] += [o] * g
            if g < m:
                s = left.pop(0)
                out[i].append(s if s < o else s + 1)
        need(len(out[i]) <= prod(shapes[i]), "gaps")
        out[i] += [o] * (prod(shapes[i]) - len(out[i]))
    return [[values[index] for index in tensor] for tensor in out]
