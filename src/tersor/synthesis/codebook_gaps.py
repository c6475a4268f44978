"""Sparse tensors as the gaps between survivors: the encoder's choices, and the way back.

A gap symbol g < M says: g elements of the origin, then a survivor. The symbol M says: M elements of
the origin, and nothing else (Han, Mao and Dally, "Deep Compression", 2016, section 2).
docs/format.md, "Tool 4: codebook".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ..bitstream import huffman
from ..errors import FormatError
from .codebook_streams import Coder

Symbols: TypeAlias = npt.NDArray[np.int32]
Distances: TypeAlias = npt.NDArray[np.int64]

MAX_SKIP = (1 << 16) - 1
"""The largest M of the coders with a word for every symbol."""
UNBOUNDED_SKIP = 1 << 30
"""M of the other coders."""

_SKIPS: dict[Coder, tuple[int, ...]] = {
    "fixed": tuple((1 << bits) - 1 for bits in range(1, 15)),
    "huffman": (3, 7, 11, 15, 23, 31, 47, 63, 95, 127, 191, 255, 383, 511, 1023, 2047)}
_TABLE_BITS = 3
"""About what a code length costs in the table."""


def split(index: Symbols, origin: int) -> tuple[Distances, Symbols]:
    """Gaps before the survivors of a tensor, and the survivors' symbols without the origin."""
    flat = index.ravel()
    positions = np.flatnonzero(flat != origin)
    survivors = flat[positions]
    return np.diff(positions, prepend=-1) - 1, survivors - (survivors > origin)


def join(symbols: Symbols, survivors: Symbols, skip: int, origin: int, out: Symbols, what: str) -> None:
    """The inverse of `split` and `symbols_of`, into `out`, int32 [count].

    Raises FormatError where the gaps reach beyond `out`.
    """
    is_survivor = symbols < skip
    ends = np.cumsum(symbols.astype(np.int64) + is_survivor)
    if ends.size and int(ends[-1]) > out.size:
        raise FormatError(f"{what}: the gaps reach beyond the tensor: the file is corrupt")
    out.fill(origin)
    out[ends[is_survivor] - 1] = survivors + (survivors >= origin)


def symbols_of(gaps: Distances, skip: int) -> Symbols:
    """The gap symbols, int32.

    >>> symbols_of(np.array([0, 7, 8, 20]), 8).tolist()
    [0, 7, 8, 0, 8, 8, 4]
    """
    skips = gaps // skip
    out = np.full(int(skips.sum()) + gaps.size, skip, dtype=np.int32)
    out[np.cumsum(skips + 1) - 1] = gaps % skip
    return out


def choose_skip(gaps: Sequence[Distances], coder: Coder) -> int:
    """The M that makes the code of these gaps shortest."""
    if coder not in _SKIPS:
        return UNBOUNDED_SKIP
    distances, occurrences = np.unique(np.concatenate([np.empty(0, np.int64), *gaps]), return_counts=True)
    return min(_SKIPS[coder], key=lambda skip: _bits(distances, occurrences, skip, coder))


def _bits(distances: Distances, occurrences: Distances, skip: int, coder: Coder) -> int:
    counts = np.zeros(skip + 1, dtype=np.int64)
    np.add.at(counts, distances % skip, occurrences)
    counts[skip] += int((distances // skip * occurrences).sum())
    if coder == "fixed":
        return int(counts.sum()) * huffman.fixed_bits(skip + 1)
    return huffman.stream_bits(counts, huffman.code_lengths(counts)) + _TABLE_BITS * int((counts > 0).sum())
