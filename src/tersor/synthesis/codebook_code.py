"""A codebook and the indexes into it: what tool 4 stores, and what the methods of quantisation produce."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class CodebookCode:
    """Shared values and, for each tensor, the index of the value of each element.

    values: float32 [k], ascending as `compact` makes them.
    indexes: one int32 array per tensor, in C order of its elements; usually [rows, columns] with one row
        for each output channel.
    zero: the index of the value that is exactly 0.0, or -1.
    """

    values: npt.NDArray[np.float32]
    indexes: list[npt.NDArray[np.int32]]
    zero: int

    @classmethod
    def of(cls, values: npt.ArrayLike, indexes: Sequence[npt.NDArray[np.integer]]) -> CodebookCode:
        """The code with `zero` found, values as float32 and indexes as int32.

        >>> CodebookCode.of([-1, 0, 1], [np.array([[0, 2]])]).zero
        1
        """
        table = np.asarray(values, dtype=np.float32)
        zeros = np.flatnonzero(table == 0)
        return cls(table, [np.asarray(index, dtype=np.int32) for index in indexes],
                   int(zeros[0]) if zeros.size else -1)

    @property
    def count(self) -> int:
        """Number of elements of all tensors."""
        return sum(index.size for index in self.indexes)

    @property
    def origin(self) -> int:
        """The index of the value nearest to zero: coders count from it, sparse tensors leave it out."""
        return int(np.argmin(np.abs(self.values)))

    def counts(self) -> npt.NDArray[np.int64]:
        """Members of each cluster, int64 [k]. Raises ValueError where an index is beyond the values."""
        out = np.zeros(self.values.size, dtype=np.int64)
        for index in self.indexes:
            if index.size and (int(index.min()) < 0 or int(index.max()) >= out.size):
                raise ValueError(f"an index is outside of 0..{out.size - 1}")
            out += np.bincount(index.ravel(), minlength=out.size)
        return out

    def tensors(self, shapes: Sequence[tuple[int, ...]]) -> list[npt.NDArray[np.float32]]:
        """What a decoder restores, float32 of the given shapes."""
        return [self.values[index].reshape(shape) for index, shape in zip(self.indexes, shapes, strict=True)]

    def halved(self) -> CodebookCode:
        """The code with its values rounded to 16-bit floats, which the file then stores as such.

        Raises ValueError for values beyond their range.
        """
        with np.errstate(over="ignore"):
            halves = self.values.astype(np.float16).astype(np.float32)
        if not np.isfinite(halves).all():
            raise ValueError("a shared value is beyond the range of 16-bit floats")
        return CodebookCode.of(halves, self.indexes).compact()

    def compact(self) -> CodebookCode:
        """The same tensors by a codebook in ascending order, without values that are equal or that nothing
        uses (-0.0 becomes 0.0). At least one value is left.

        Raises ValueError for values that are not finite, and for indexes beyond them.
        """
        values = np.asarray(self.values, dtype=np.float32) + np.float32(0)
        if values.ndim != 1 or not values.size or not np.isfinite(values).all():
            raise ValueError("a codebook must be a list of at least one finite value")
        used = self.counts() > 0
        used[0] |= not used.any()
        kept, place = np.unique(values[used], return_inverse=True)
        new_index = np.zeros(values.size, dtype=np.int32)
        new_index[used] = place
        if np.array_equal(new_index, np.arange(values.size)):
            return CodebookCode.of(values, self.indexes)
        return CodebookCode.of(kept, [new_index[index] for index in self.indexes])
