"""Memory that tensors are decoded into: new, or what a caller gives.

    out = empty((512, 4608))                                # float32, large ones on large pages
    target = as_array("conv1.weight", tensor, "F32", (64, 3, 7, 7))     # a NumPy array or a torch tensor
"""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from .dtypes import NUMPY

_PAGE = 1 << 21
"""Bytes of a large page on x86-64 and most ARM systems."""


def empty(shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """A new float32 array of `shape`, C-contiguous, not initialised.

    From 4 MB on it begins where a large page does. NumPy asks the system for such pages there, and without them a
    fifth of the time of a decode goes into the first touch of small ones.
    """
    count = math.prod(shape)
    if 4 * count < 2 * _PAGE:
        return np.empty(shape, np.float32)
    raw = np.empty(4 * count + _PAGE, np.uint8)
    start = -raw.ctypes.data % _PAGE
    return raw[start : start + 4 * count].view(np.float32).reshape(shape)


def as_array(name: str, buffer: Any, dtype: str, shape: tuple[int, ...]) -> npt.NDArray[np.generic]:
    """A NumPy array that shares the memory of `buffer`, to decode tensor `name` into.

    buffer: a writable C-contiguous NumPy array, or a torch tensor in the CPU's memory, of the file's element type
    and shape. Raises ValueError where it is not, TypeError for anything else.
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(buffer, torch.Tensor):
        if buffer.device.type != "cpu" or not buffer.is_contiguous():
            raise ValueError(f"{name}: a tensor on {buffer.device} with strides {tuple(buffer.stride())} was given; "
                             f"decoding needs a contiguous one on the CPU")
        check_torch(name, buffer, dtype, shape)
        raw: npt.NDArray[np.uint8] = buffer.detach().reshape(-1).view(torch.uint8).numpy()
        return raw.view(NUMPY[dtype]).reshape(shape)
    if not isinstance(buffer, np.ndarray):
        raise TypeError(f"{name}: {type(buffer).__name__} was given; decoding needs a NumPy array or a torch tensor")
    if buffer.dtype != NUMPY[dtype] or buffer.shape != shape:
        raise ValueError(f"{name}: the file has {dtype} {list(shape)}, an array of {buffer.dtype} "
                         f"{list(buffer.shape)} was given")
    if not buffer.flags.c_contiguous or not buffer.flags.writeable:
        raise ValueError(f"{name}: the array is read-only or not C-contiguous; decoding needs one that is neither")
    return buffer


def check_torch(name: str, tensor: Any, dtype: str, shape: tuple[int, ...]) -> None:
    """Raise ValueError where a torch tensor, wherever it is, has not the file's element type and shape."""
    kind = str(tensor.dtype).removeprefix("torch.")
    if kind != _torch_name(dtype) or tuple(tensor.shape) != shape:
        raise ValueError(f"{name}: the file has {dtype} {list(shape)}, a {kind} tensor of shape "
                         f"{list(tensor.shape)} was given")


def torch_dtype(dtype: str) -> Any:
    """The torch.dtype of an element type of files; torch must be loaded."""
    return getattr(sys.modules["torch"], _torch_name(dtype))


def on_gpu(buffer: Any) -> bool:
    """Whether it is a torch tensor in the memory of a GPU."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(buffer, torch.Tensor) and buffer.device.type == "cuda"


def _torch_name(dtype: str) -> str:
    return _TORCH.get(dtype, NUMPY[dtype].name)


_TORCH = {"BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "BOOL": "bool"}
"""Element types that torch calls otherwise than NumPy does."""
