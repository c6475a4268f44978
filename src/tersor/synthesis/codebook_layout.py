"""Which tensors of a codebook section are sparse: whatever takes fewer bytes; and the paper's own count."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from ..bitstream import huffman
from ..errors import ConfigError
from . import codebook_gaps as gaps_of
from . import codebook_streams as streams
from .codebook_streams import Coder, Matrix

Layout: TypeAlias = Literal["auto", "dense", "sparse"]

_TRIAL = 1 << 22
"""The adaptive coder tries several layouts on sections of up to so many elements; on larger ones, dense."""
_LEAST_SHARE = 0.4
"""Where less than this share of all elements are the origin, nothing sparse can be shorter."""

Bits: TypeAlias = npt.NDArray[np.float64]


def candidates(matrices: Sequence[Matrix], k: int, origin: int, coder: Coder,
               layout: Layout) -> Iterator[list[bool]]:
    """The layouts to try, for each tensor whether it is sparse; without repetition."""
    if layout not in ("auto", "dense", "sparse"):
        raise ConfigError(f"unknown layout {layout!r}; there are auto, dense, sparse")
    everything, nothing = [True] * len(matrices), [False] * len(matrices)
    if layout != "auto":
        yield everything if layout == "sparse" else nothing
        return
    yield nothing
    total = sum(matrix.size for matrix in matrices)
    thin = sum(int(np.count_nonzero(matrix == origin)) for matrix in matrices) > _LEAST_SHARE * total
    if not thin or (coder == "arithmetic" and total > _TRIAL):
        return
    dense, sparse = estimate(matrices, k, origin, coder)
    mixed = (sparse < dense).tolist()
    if any(mixed):
        yield mixed
    if mixed != everything:
        yield everything


def estimate(matrices: Sequence[Matrix], k: int, origin: int, coder: Coder) -> tuple[Bits, Bits]:
    """Bits of each tensor by either layout, where all tensors share the code of either; float64 [tensors]."""
    pieces = [gaps_of.split(matrix, origin) for matrix in matrices]
    gaps = [gap for gap, _ in pieces]
    known: Coder = coder if coder == "fixed" else "huffman"  # entropies stand in for the other coders
    skip = gaps_of.choose_skip(gaps, known)
    symbols = [gaps_of.symbols_of(gap, skip) for gap in gaps]
    return (_each(matrices, k, known),
            _each(symbols, skip + 1, known) + _each([alive for _, alive in pieces], max(1, k - 1), known))


def _each(arrays: Sequence[Matrix], alphabet: int, coder: Coder) -> Bits:
    counts = np.array([streams.counts([one], alphabet) for one in arrays]).reshape(-1, alphabet)
    if coder == "fixed":
        return np.asarray(counts.sum(axis=1) * float(huffman.fixed_bits(alphabet)))
    share = counts.sum(axis=0) / max(1, counts.sum())
    return np.asarray(counts @ -np.log2(np.where(share > 0, share, 1.0)))


def counted_bits(matrices: Sequence[Matrix], k: int, origin: int, coder: Coder,
                 sparse: Sequence[bool]) -> float:
    """Bits of the words as the paper counts them, the table of values aside; coder "fixed" or "huffman"."""
    pieces = [gaps_of.split(matrix, origin) for matrix, thin in zip(matrices, sparse, strict=True) if thin]
    skip = gaps_of.choose_skip([gaps for gaps, _ in pieces], coder)
    dense = [matrix for matrix, thin in zip(matrices, sparse, strict=True) if not thin]
    symbols = [gaps_of.symbols_of(gaps, skip) for gaps, _ in pieces]
    total = 0
    alive = [survivors for _, survivors in pieces]
    for arrays, alphabet in ((dense, k), (symbols, skip + 1), (alive, max(1, k - 1))):
        counts = streams.counts(arrays, alphabet)
        if coder == "fixed":
            total += int(counts.sum()) * huffman.fixed_bits(alphabet)
        else:
            lengths = huffman.code_lengths(counts)
            total += huffman.stream_bits(counts + (counts > 0), lengths)
    return float(total)
