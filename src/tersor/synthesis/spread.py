"""Lists of integers whose size varies from list to list: a base, a size class, and residuals.

Shared by the batchnorm and the vector tool. The size class of a list selects the context in which its
residuals are coded, so that lists of like spread learn their probabilities together.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from ..bitstream.integers import IntegerReader, IntegerWriter

CLASSES = 8
"""Number of size classes, hence of contexts that one kind of list occupies."""

POOLINGS = (1, 2, CLASSES)
"""Octaves of spread that an encoder puts into one class; it tries them all, the decoder need not know."""


def size_class(residuals: npt.NDArray[np.int64], pooling: int) -> int:
    """The encoder's choice of class: octaves of the median magnitude, `pooling` of them to a class.

    >>> size_class(np.array([3, -4, 90]), 1), size_class(np.array([3, -4, 90]), 8)
    (3, 0)
    """
    if residuals.size == 0:
        return 0
    return min(CLASSES - 1, int(np.median(np.abs(residuals)) + 0.5).bit_length() // pooling)


def put(writer: IntegerWriter, residuals: npt.NDArray[np.int64], pooling: int, class_context: int,
        first_context: int) -> None:
    """Write the class in `class_context`, then the residuals in context `first_context` + class."""
    chosen = size_class(residuals, pooling)
    writer.put([chosen], class_context)
    writer.put(residuals, first_context + chosen)


def take(reader: IntegerReader, count: int, class_context: int, first_context: int,
         what: str) -> npt.NDArray[np.int64]:
    """The inverse of `put`: int64 [count]."""
    chosen = reader.one(class_context, 0, CLASSES - 1, f"the size class of {what}")
    return reader.take(count, first_context + chosen)


def median(values: npt.NDArray[np.int64]) -> int:
    """The base that an encoder sends: the median rounded down, 0 for no values."""
    return int(np.floor(np.median(values))) if values.size else 0


def shortest(candidates: Iterable[bytes]) -> bytes:
    """The first of the shortest encodings: the same choice in every run."""
    return min(candidates, key=len)
