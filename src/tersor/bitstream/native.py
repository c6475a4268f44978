"""The door to the native kernel: finds the library, declares signatures, maps error codes to errors.

Each wrapper module declares what it calls, once, at its top:

    _sum = native.function("tersor_sum", [native.array(np.int32), native.INT64])
    native.check(_sum(values, values.size), "sum")

ctypes releases the GIL during every call. Where there is no library, decoding goes on in Python: see
`tersor.bitstream.fallback`.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from ..errors import FormatError, KernelError
from . import fallback

ABI_VERSION = 2
"""Must equal `tersor_abi_version()` of the library that is found."""

INT32, INT64, FLOAT32, FLOAT64 = ctypes.c_int32, ctypes.c_int64, ctypes.c_float, ctypes.c_double
BYTES = ctypes.c_char_p
"""A Python `bytes` object as `const uint8_t *`, without a copy."""
POINTER = ctypes.c_void_p
"""An address as an integer, or None for null."""

NO_ROOM = -4
"""The error code for an output buffer that is too small: a caller may enlarge it and try again."""

_MESSAGES: dict[int, tuple[type[Exception], str]] = {
    -1: (KernelError, "the kernel refused its arguments; this is a bug in tersor"),
    -2: (FormatError, "the stream ends before its content does: the file is truncated or corrupt"),
    -3: (FormatError, "the stream contradicts itself: the file is corrupt"),
    -4: (KernelError, "the output buffer is too small; this is a bug in tersor"),
    -5: (MemoryError, "the kernel could not allocate its working memory"),
}


def array(dtype: DTypeLike, writable: bool = False) -> Any:
    """Argument type of a C-contiguous NumPy array of `dtype`; anything else is an `ArgumentError`."""
    return np.ctypeslib.ndpointer(dtype=dtype, flags=("C", "W") if writable else "C")


def bytes_of(data: bytes | memoryview) -> Any:
    """`data` for a BYTES argument, without a copy of what is a view of other bytes; the caller keeps it alive."""
    if isinstance(data, bytes) or not len(data) or library() is None:
        return bytes(data)
    return ctypes.c_char_p(np.frombuffer(data, np.uint8).ctypes.data)


def pointer(array: np.ndarray[Any, Any] | None) -> int | None:
    """The address of a C-contiguous array for a POINTER argument, or None; the caller keeps it alive."""
    if array is None:
        return None
    if not array.flags.c_contiguous:
        raise ValueError("a kernel argument must be C-contiguous")
    return int(array.ctypes.data)


@cache
def library() -> ctypes.CDLL | None:
    """The loaded kernel; None where it was not built, or the environment says TERSOR_KERNEL=none.

    Raises `KernelError` for a kernel of another version.
    """
    package = __name__.split(".")[0]
    spec = importlib.util.find_spec(f"{package}._kernel")
    if spec is None or spec.origin is None or os.environ.get("TERSOR_KERNEL") == "none":
        return None
    loaded = ctypes.CDLL(spec.origin)
    version = int(loaded.tersor_abi_version())
    if version != ABI_VERSION:
        raise KernelError(f"the native kernel at {spec.origin} has version {version}, "
                          f"tersor needs {ABI_VERSION}; install tersor again")
    return loaded


def function(name: str, argtypes: Sequence[Any], restype: Any = INT64) -> Callable[..., Any]:
    """The kernel's function `name` with its signature declared, or what stands for it; loads the library at the
    first call, which raises KernelError where there is none and the function only serves encoders."""
    @cache
    def bound() -> Any:
        kernel = library()
        if kernel is None:
            return fallback.function(name)
        try:
            found = getattr(kernel, name)
        except AttributeError:
            raise KernelError(f"the native kernel has no function {name}; install tersor again") from None
        found.argtypes = list(argtypes)
        found.restype = restype
        return found

    return lambda *arguments: bound()(*arguments)


def check(result: int, what: str) -> int:
    """`result` itself when it is not an error code; else raises, naming `what` was being done."""
    if result >= 0:
        return result
    error, message = _MESSAGES.get(result, (KernelError, f"unknown kernel error {result}"))
    raise error(f"{what}: {message}")


_cpu = function("tersor_simd_level", [], INT32)


def simd_level() -> int:
    """2 to use AVX-512, 1 for AVX2, 0 for the portable reference, as far as this CPU can.

    The environment may ask for less: `TERSOR_SIMD=1`, or `TERSOR_PORTABLE=1` for the reference.
    """
    if os.environ.get("TERSOR_PORTABLE") == "1":
        return 0
    wanted = os.environ.get("TERSOR_SIMD", "")
    return min(int(_cpu()), int(wanted)) if wanted.isdigit() else int(_cpu())
