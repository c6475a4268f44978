"""Tool 6 for tiny_decoder.py: written from docs/format-kernels.md alone, in the same style. Names are those of the
document."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tiny_decoder as tiny


class Codebook(NamedTuple):
    t: int
    k: int
    bits: int
    decay: int


class Head(NamedTuple):
    swapped: int
    book: int
    rows: int
    columns: int
    channels: int
    step_index: int
    steps: np.ndarray
    gains: tuple[int, ...] | None  # least and span, or bypass


def kernels(payload: bytes, tensors: list[tiny.Tensor]) -> list[np.ndarray]:
    reader = tiny.Reader(payload)
    code = tiny.IntegerCode(reader.take(reader.varint()))
    coder, adaptive_values = code.within(0, 0, 2), code.within(1, 0, 1)
    books: list[Codebook] = []
    heads: list[Head] = []
    for tensor in tensors:
        heads.append(head(code, tensor, coder, adaptive_values, books, heads))
    sizes = [code.within(14, 0, 2**40) for _ in range(2)]
    code.decoder.end()
    for b, book in enumerate(books):
        kernel_count = sum(head.rows * head.channels for head in heads if head.book == b)
        tiny.must(book.k <= max(1, kernel_count), "size of a codebook")

    matrices = [tiny.Matrix(book.k, book.t, book.t, 1, book.bits) for book in books]
    data = reader.take(sizes[0])
    if adaptive_values:
        values = tiny.context_part(data, matrices)
    else:
        values = [fixed - 2 ** (m.bypass - 1) for fixed, m in
                  zip(numbers(data, [(m.rows, m.columns, m.bypass) for m in matrices]), matrices, strict=True)]
    tiny.must(all(v.size == 0 or (v.min() >= -32768 and v.max() <= 32767) for v in values), "a value")
    gains = read_gains(reader.take(sizes[1]), coder, heads)
    indexes = read_indexes(reader.rest(), coder, heads, books, gains)

    arrays = []
    for tensor, one, gain, index in zip(tensors, heads, gains, indexes, strict=True):
        product = gain[:, :, None] * values[one.book][index]
        rows = product.reshape(one.rows, one.channels * books[one.book].t)[:, : one.columns]
        elements = rows.astype(np.float64) * one.steps[:, None]
        if one.swapped:
            shape = (tensor.shape[1], tensor.shape[0], *tensor.shape[2:])
            elements = elements.reshape(shape).swapaxes(0, 1)
        arrays.append(tiny.rounded(elements, tensor))
    return arrays


def head(code: tiny.IntegerCode, tensor: tiny.Tensor, coder: int, adaptive_values: int, books: list[Codebook],
         before: list[Head]) -> Head:
    axes = len(tensor.shape)
    tiny.must(axes >= 1, "axes in tool 6")
    swapped = code.within(2, 0, 1 if axes > 1 else 0)
    rows, columns, *_ = tiny.matrix_of(tensor.shape, swapped)
    book = len(books) + code.within(3, -len(books), 0)
    if book == len(books):
        t = (books[-1].t if books else 0) + code.integer(4)
        tiny.must(1 <= t <= 2**40, "taps")
        k = 1 + code.within(5, 0, 65535)
        bits = code.within(6, 0, 24) if adaptive_values else code.within(6, 1, 16)
        books.append(Codebook(t, k, bits, code.within(7, 0, 256) if coder == 1 else 0))
    tiny.must(books[book].t <= max(1, columns), "taps")
    index = (before[-1].step_index if before else 0) + code.integer(8)
    j = code.within(9, -1, 5)
    exponents = code.list(rows, 10, 16) if j != -1 else [0] * rows
    tiny.must(max(map(abs, exponents), default=0) <= 28800, "row exponent")
    tiny.must(abs(index) <= 28800 or (j != -1 and rows > 0), "step index")
    steps = np.array([tiny.value(index + 2 ** (5 - max(j, 0)) * exponent) for exponent in exponents], np.float64)
    gains: tuple[int, ...] | None = None
    if code.within(11, 0, 1):
        gains = (0,)
        if coder == 0:
            gains = (code.within(12, -(2**20), 2**20), code.within(13, 0, 65535))
        elif coder == 1:
            gains = (code.within(12, 0, 24),)
    return Head(swapped, book, rows, columns, -(-columns // books[book].t), index, steps, gains)


def numbers(data: bytes, lists: list[tuple[int, int, int]]) -> list[np.ndarray]:
    """Matrices of (rows, columns) of fixed-length numbers of so many bits, each from a byte of its own."""
    result, at = [], 0
    for rows, columns, bits in lists:
        size = -(-rows * columns * bits // 8)
        tiny.must(at + size <= len(data), "a stream ends early")
        string = tiny.BitString(data[at : at + size], "big")
        flat = []
        for _ in range(rows * columns):
            number = 0
            for _ in range(bits):
                number = 2 * number + string.number(1)
            flat.append(number)
        tiny.must(string.end() == size, "end of a list")
        result.append(np.array(flat, np.int64).reshape(rows, columns))
        at += size
    tiny.must(at == len(data), "end of a stream")
    return result


def width(symbols: int) -> int:
    return (symbols - 1).bit_length()


def read_gains(data: bytes, coder: int, heads: list[Head]) -> list[np.ndarray]:
    with_gains = [one for one in heads if one.gains is not None]
    if coder == 0:
        lists = [(one.rows, one.channels, width(one.gains[1] + 1)) for one in with_gains]
        found = numbers(data, lists)
        for gain, one in zip(found, with_gains, strict=True):
            tiny.must(bool((gain <= one.gains[1]).all()), "largest gain")
        found = [gain + one.gains[0] for gain, one in zip(found, with_gains, strict=True)]
    else:
        decoder = tiny.context_part if coder == 1 else tiny.rans
        found = decoder(data, [tiny.Matrix(one.rows, one.channels, 1, 1, one.gains[0]) for one in with_gains])
    tiny.must(all((abs(gain) <= 2**20).all() for gain in found), "a gain")
    rest = iter(found)
    return [np.ones((one.rows, one.channels), np.int64) if one.gains is None else next(rest) for one in heads]


def read_indexes(
    data: bytes, coder: int, heads: list[Head], books: list[Codebook], gains: list[np.ndarray]
) -> list[np.ndarray]:
    if coder == 1:
        return adaptive(data, heads, books, gains)
    shapes = [gain.shape if one.gains is None else (1, int((gain != 0).sum()))
              for one, gain in zip(heads, gains, strict=True)]
    if coder == 0:
        lists = [(rows, columns, width(books[one.book].k)) for one, (rows, columns) in zip(heads, shapes, strict=True)]
        found = numbers(data, lists)
    else:
        found = tiny.rans(data, [tiny.Matrix(rows, columns, 1, 1, 0) for rows, columns in shapes])
    result = []
    for index, one, gain in zip(found, heads, gains, strict=True):
        tiny.must(bool(((index >= 0) & (index < books[one.book].k)).all()), "an index")
        full = np.zeros(gain.shape, np.int64)
        full[gain != 0] = index.ravel()
        result.append(full)
    return result


class Nodes:
    """What adapts to one codebook."""

    def __init__(self, book: Codebook):
        self.k, self.d = book.k, width(book.k)
        w = [2**24]
        while len(w) < book.k:
            w.append(max(w[-1] * book.decay >> 8, 256))
        self.sums = np.cumsum([0, *w]).tolist()
        self.slots: dict[tuple[int, int, int], tiny.Slot] = {}

    def total(self, a: int, b: int) -> int:
        return self.sums[min(b, self.k)] - self.sums[a]

    def slot(self, table: int, node: int, context: int) -> tiny.Slot:
        if (table, node, context) not in self.slots:
            level = node.bit_length() - 1
            i, span = node - 2**level, 2 ** (self.d - level)
            ones = self.total(i * span + span // 2, (i + 1) * span)
            slot = tiny.Slot()
            slot.p, slot.n = ones * 2**22 // self.total(i * span, (i + 1) * span), 12
            self.slots[table, node, context] = slot
        return self.slots[table, node, context]


def adaptive(data: bytes, heads: list[Head], books: list[Codebook], gains: list[np.ndarray]) -> list[np.ndarray]:
    coded = sum(int((gain != 0).sum()) for one, gain in zip(heads, gains, strict=True) if books[one.book].k > 1)
    tiny.must(coded <= 12000 * (4 * len(data) + 64), "too many indexes")
    decoder = tiny.ArithmeticDecoder(data)
    mixers = [tiny.Mixer() for _ in range(16)]
    for mixer in mixers:
        mixer.weight = [10922] * 6
    result = [np.zeros(gain.shape, np.int64) for gain in gains]
    for b, book in enumerate(books):
        nodes = Nodes(book)
        e = max(0, nodes.d - 4)
        for one, gain, index in zip(heads, gains, result, strict=True):
            if one.book != b:
                continue
            means, above = [1024] * one.channels, [0] * one.channels
            for r in range(one.rows):
                row_mean, left = 1024, 0
                for c in range(one.channels):
                    if gain[r, c] == 0:
                        continue
                    g = min(abs(int(gain[r, c])), 15)
                    contexts = [0, g, left >> e, above[c] >> e, row_mean >> 7, means[c] >> 7]
                    q = one_index(decoder, mixers, nodes, contexts)
                    left = above[c] = index[r, c] = q
                    place = q * 2048 // book.k
                    row_mean += ((place - row_mean) * tiny.RECIP[min(c, 30)]) >> 16
                    means[c] += ((place - means[c]) * tiny.RECIP[min(r, 30)]) >> 16
    decoder.end()
    return result


def one_index(decoder: tiny.ArithmeticDecoder, mixers: list[tiny.Mixer], nodes: Nodes, contexts: list[int]) -> int:
    node, low = 1, 0
    for place in reversed(range(nodes.d)):
        middle = low + 2**place
        bit = 0
        if middle < nodes.k:
            slots = [nodes.slot(table, node, context) for table, context in enumerate(contexts)]
            mixer, t = mixers[nodes.d - 1 - place], [tiny.STRETCH[slot.p >> 10] for slot in slots]
            x = mixer.logit(t)
            bit = decoder.decode(tiny.clip(tiny.SQUASHED[x + 2047], 32, 65504))
            mixer.update(t, x, bit)
            for slot in slots:
                slot.update(bit)
        node = 2 * node + bit
        low = middle if bit else low
    return low
