"""One SHA-256 for all tensors of a file, as they are decoded: docs/format.md, "Digest".

CRC-32 covers the bytes of the file; this covers what comes out of them, through every entropy coder and rounding.
It does not depend on how the tensors are coded, only on their names, types, shapes and values.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from . import varint
from .dtypes import CODES
from .manifest import TensorRecord

KEY = "tersor.sha256"
"""Metadata key: the digest in hexadecimal."""


def of_array(array: npt.NDArray[np.generic]) -> bytes:
    """SHA-256 (32 bytes) of the elements in C order, little-endian."""
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return hashlib.sha256(little.reshape(-1).view(np.uint8).data).digest()


def of_tensors(tensors: Iterable[tuple[TensorRecord, bytes]]) -> str:
    """The digest in hexadecimal, of (record, `of_array` of its elements) in the order of the manifest."""
    whole = hashlib.sha256()
    for record, content in tensors:
        name = record.name.encode("utf-8")
        whole.update(varint.encode([len(name)]) + name)
        whole.update(varint.encode([CODES[record.dtype], len(record.shape), *record.shape]) + content)
    return whole.hexdigest()
