"""The last step of every lossy tool: float64 values to the tensor's own element type, the same everywhere."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..bitstream.dtypes import FLOATS, NUMPY
from ..errors import FormatError


def to_dtype(values: npt.NDArray[np.float64], dtype: str, what: str) -> npt.NDArray[np.generic]:
    """`values` (float64, any shape) as `dtype` ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2").

    Rounds to nearest, ties to even: F64 not at all, F32 once, the narrower types from the *float32*
    (two roundings, because that is what every library does). Raises FormatError naming `what` where
    the type is not a float or a value is beyond its range.
    """
    if dtype not in FLOATS:
        raise FormatError(f"{what} has element type {dtype}, which only the raw tool can hold")
    with np.errstate(over="ignore", invalid="ignore"):
        single = values if dtype == "F64" else values.astype(np.float32)
        out = np.asarray(single.astype(NUMPY[dtype], copy=False))  # axes () must not become a NumPy scalar
    if not np.isfinite(out).all():
        raise FormatError(f"{what} has a value that {dtype} cannot hold: the file is corrupt")
    return out
