"""Element types by their safetensors names, and their NumPy counterparts (ml_dtypes where NumPy has none)."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import numpy.typing as npt

from ..errors import ModelError

AnyDType = np.dtype[np.generic]

_TABLE: list[tuple[str, npt.DTypeLike]] = [  # the position is the code in the file: append only
    ("F32", np.float32),
    ("I64", np.int64),
    ("F16", np.float16),
    ("BF16", ml_dtypes.bfloat16),
    ("F64", np.float64),
    ("I32", np.int32),
    ("I16", np.int16),
    ("I8", np.int8),
    ("U64", np.uint64),
    ("U32", np.uint32),
    ("U16", np.uint16),
    ("U8", np.uint8),
    ("BOOL", np.bool_),
    ("F8_E4M3", ml_dtypes.float8_e4m3fn),
    ("F8_E5M2", ml_dtypes.float8_e5m2),
    ("C64", np.complex64),
]

NAMES: tuple[str, ...] = tuple(name for name, _ in _TABLE)
"""All names; the index in this tuple is the code in the manifest."""

CODES: dict[str, int] = {name: code for code, name in enumerate(NAMES)}

NUMPY: dict[str, AnyDType] = {name: np.dtype(kind) for name, kind in _TABLE}
"""Name -> NumPy dtype, in the machine's byte order (which equals the file's on little-endian machines)."""

FLOATS = frozenset(("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"))
"""Real floating-point types: what the lossy tools can restore."""

_BY_DTYPE = {dtype: name for name, dtype in NUMPY.items()}


def name_of(dtype: npt.DTypeLike) -> str:
    """The safetensors name of a NumPy dtype of either byte order; ModelError if there is none.

    >>> name_of(np.float32), name_of(">i8")
    ('F32', 'I64')
    """
    native = np.dtype(dtype).newbyteorder("=")
    name = _BY_DTYPE.get(native)
    if name is None:
        raise ModelError(f"element type {native} cannot be stored; tersor knows {', '.join(NAMES)}")
    return name


def to_bytes(array: npt.NDArray[np.generic]) -> bytes:
    """Little-endian bytes of the elements in C order.

    >>> to_bytes(np.array([1, 256], dtype=">u2")).hex()
    '01000001'
    """
    little = array.dtype.newbyteorder("<")
    return np.ascontiguousarray(array, dtype=little).tobytes()


def from_bytes(data: bytes | memoryview, name: str, shape: tuple[int, ...]) -> npt.NDArray[np.generic]:
    """An array over `data` (little-endian, C order), or of a copy where it is not aligned, of dtype `name`.

    The caller has checked that `data` has exactly the bytes of that shape.
    """
    little = NUMPY[name].newbyteorder("<")
    array = np.frombuffer(data, dtype=little).reshape(shape)
    if array.flags.aligned and array.dtype == NUMPY[name]:
        return array
    return array.astype(NUMPY[name])
