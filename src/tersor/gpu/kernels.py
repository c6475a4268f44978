"""The kernels, in Triton: words to symbols, symbols to weights, weights of a trellis.

All integers are those of docs/format-rans.md; floats are made by one conversion and one product in float32, rounded to
nearest even, so that every processor makes the same bits. Nothing is read or written out of the bounds that the
launcher gives, whatever the words are.
"""

from __future__ import annotations

import triton
import triton.language as tl

JOB_FIELDS = tl.constexpr(8)
SEGMENT_FIELDS = tl.constexpr(3)

# NEXT and QUANTIZER of tersor.synthesis.trellis: three bits for each state and parity, state 0 with parity 0 lowest,
# and one bit for each state.
NEXT_4, QUANTIZER_4 = tl.constexpr(0o13_31_02_20), tl.constexpr(0b1100)
NEXT_8, QUANTIZER_8 = tl.constexpr(0o57_13_64_02_46_31_75_20), tl.constexpr(0b10101010)


@triton.jit
def decode_symbols(words, states, jobs, segments, symbol_of, range_of, symbols, read_words, LANES: tl.constexpr):
    """One program a payload, one vector element a lane. Lanes that need a word take the next ones in their order: a
    lane's place among the words is the number of needy lanes before it.

    words: int16. states: int32 [.., LANES], uint32 by their bits; read and written. jobs: int64 [.., 8]: the place of
    the words, how many, place of the states, place of the symbols, number of the symbol that goes there, first and last
    segment, precision. segments: int64 [.., 3]: table, and first and last symbol. symbol_of: uint8 [tables, 2^14].
    range_of: int32 [tables, 256], frequency | start << 16. symbols: uint8, written. read_words: int32 [..], written;
    more than there are where the words do not suffice.
    """
    job = jobs + tl.program_id(0) * JOB_FIELDS
    words += tl.load(job)
    count = tl.load(job + 1).to(tl.int32)
    states += tl.load(job + 2)
    symbols += tl.load(job + 3)
    origin = tl.load(job + 4).to(tl.int32)
    precision = tl.load(job + 7).to(tl.uint32)
    one = precision * 0 + 1
    lane = tl.arange(0, LANES)
    x = tl.load(states + lane).to(tl.uint32, bitcast=True)
    read = count * 0
    for s in range(tl.load(job + 5).to(tl.int32), tl.load(job + 6).to(tl.int32)):
        table = tl.load(segments + s * SEGMENT_FIELDS)
        begin = tl.load(segments + s * SEGMENT_FIELDS + 1).to(tl.int32)
        end = tl.load(segments + s * SEGMENT_FIELDS + 2).to(tl.int32)
        # The sweeps at both ends are shared with the segments beside this one.
        for sweep in range(begin // LANES, (end + LANES - 1) // LANES):
            t = sweep * LANES + lane
            active = (t >= begin) & (t < end)
            slot = x & ((one << precision) - 1)
            symbol = tl.load(symbol_of + table * 16384 + slot)
            span = tl.load(range_of + table * 256 + symbol).to(tl.uint32, bitcast=True)
            y = (span & 0xFFFF) * (x >> precision) + slot - (span >> 16)
            need = active & (y < 65536)
            place = read + tl.cumsum(need.to(tl.int32), 0) - 1
            word = tl.load(words + place, mask=need & (place < count), other=0).to(tl.uint32) & 0xFFFF
            x = tl.where(need, (y << 16) | word, tl.where(active, y, x))
            read += tl.sum(need.to(tl.int32), 0)
            tl.store(symbols + (t - origin), symbol, mask=active)
    tl.store(states + lane, x.to(tl.int32, bitcast=True))
    tl.store(read_words + tl.program_id(0), read)


@triton.jit
def restore_rows(symbols, row_source, row_table, row_low, row_step, first_of, lows, levels, out, columns, low_bytes,
                 reach, LOW: tl.constexpr, FLOATS: tl.constexpr, BLOCK: tl.constexpr):
    """Elements of a matrix [rows, columns]: programs are (row, block of columns). Escapes come out as nonsense, and
    are put right afterwards.

    symbols: uint8. row_source: int64 [rows], the place of a row's first symbol. row_table: int32 [rows]. row_low: int64
    [rows], the first bit of a row in lows, where there are LOW raw bits an element. row_step: float32 [rows]. first_of:
    int64 [tables]. levels: float32 [2 * reach + 1]; beyond it, and with reach = -1, an integer is its own level.
    out: float32, or without FLOATS int32.
    """
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    q = tl.load(symbols + tl.load(row_source + row) + column, mask=inside, other=0).to(tl.int64)
    q += tl.load(first_of + tl.load(row_table + row))
    if LOW > 0:
        bit = tl.load(row_low + row) + column.to(tl.int64) * LOW
        byte = bit >> 3
        window = tl.zeros([BLOCK], tl.uint32)
        for i in tl.static_range(4):
            part = tl.load(lows + byte + i, mask=inside & (byte + i < low_bytes), other=0).to(tl.uint32)
            window = window | (part << (8 * i))
        low = (window >> (bit & 7).to(tl.uint32)) & ((1 << LOW) - 1)
        q = q * (1 << LOW) + low.to(tl.int64) - (1 << (LOW - 1))
    at = row * columns + column
    if FLOATS:
        near = (q >= -reach) & (q <= reach)
        level = tl.load(levels + q + reach, mask=inside & near, other=0.0)
        level = tl.where(near, level, q.to(tl.int32).to(tl.float32))
        tl.store(out + at, level * tl.load(row_step + row), mask=inside)
    else:
        tl.store(out + at, q.to(tl.int32), mask=inside)


@triton.jit
def restore_trellis(q, row_step, out, rows, columns, NEXT: tl.constexpr, QUANTIZER: tl.constexpr,
                    BLOCK: tl.constexpr):
    """Weights float32 [rows, columns] of integers int32 [rows, columns]: one row a vector element, since the parities
    in a row lead from state to state. row_step: float32 [rows], sub-steps."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = row < rows
    step = tl.load(row_step + row, mask=inside, other=0.0)
    at = row.to(tl.int64) * columns
    state = tl.zeros([BLOCK], tl.int64)
    for column in range(columns):
        value = tl.load(q + at + column, mask=inside, other=0).to(tl.int64)
        sign = (value > 0).to(tl.int64) - (value < 0).to(tl.int64)
        level = 2 * value - sign * ((QUANTIZER >> state) & 1)
        tl.store(out + at + column, level.to(tl.float32) * step, mask=inside)
        state = (NEXT >> (3 * (2 * state + (value & 1)))) & 7
