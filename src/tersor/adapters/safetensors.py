"""Safetensors files in and out, every element type that .tersor files hold, without torch.

The `safetensors` library checks a file's header; the tensors are then views of the mapped file, because
the library's NumPy side has no bfloat16 and no float8. The order of names is that of the data in the
file, which is how the library writes and lists them, so that a lossless round trip gives the same bytes.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from ..bitstream.atomic import atomic_write
from ..bitstream.dtypes import FLOATS, NUMPY, from_bytes, name_of, to_bytes
from ..bitstream.source import PathLike
from ..errors import ModelError
from .inventory import Array, Inventory, WeightLayer
from .skeleton import Skeleton, cut

FORMAT = "safetensors"
_LENGTH = struct.Struct("<Q")
_RUNNING = ("running_mean", "running_var")
"""Kept bit for bit: a small variance that was rounded to zero would multiply a channel by hundreds."""
_ALIAS_BYTES = 1024
"""Equal matrices of at least so many bytes are taken for one tied tensor."""


def read(path: PathLike) -> Inventory:
    """The tensors of a safetensors file, with what their names and shapes tell about them.

    Floating-point tensors with two or more axes whose name ends in "weight" are layers: "conv" with three
    or more axes, else "linear". BatchNorms are not known to be such (eps is not in the file). Matrices of
    1 KiB or more with equal dtype, shape and bytes are stored once, as aliases (that is what tied weights
    become when they are saved), unless all their elements are equal. `parameters` counts floating-point
    elements without running statistics, each tied tensor once. The arrays are read-only views of the file.
    A header that `write` would write differently is kept in the inventory's `source`.

    Raises ModelError where it is not a valid safetensors file or has an element type that tersor does
    not know (it names the tensor); OSError where it cannot be read.
    """
    arrays, metadata, whole = mapped(path)
    inventory = _inventory(arrays, metadata)
    front = _header(arrays, metadata)[0]
    if whole[: len(front)] == front:
        return inventory
    places = [(start, length, name, None) for name, (start, length) in spans(whole).items() if length]
    skeleton = Skeleton(FORMAT, [cut("", whole, places)])
    return replace(inventory, format=FORMAT, source=skeleton.to_bytes(inventory.names))


def mapped(path: PathLike) -> tuple[dict[str, Array], dict[str, str], memoryview]:
    """Tensors in the order of the data, as read-only views of the mapped file, which is read where they are; its
    metadata; all its bytes. Raises as `read`."""
    header, data, whole = _open(path)
    metadata = header.pop("__metadata__", {})
    arrays: dict[str, Array] = {}
    for name in sorted(header, key=lambda key: header[key]["data_offsets"]):
        entry = header[name]
        if entry["dtype"] not in NUMPY:
            raise ModelError(f"{os.fspath(path)}: tensor {name!r} has element type {entry['dtype']}, which "
                             f"tersor cannot store; it knows {', '.join(NUMPY)}")
        start, end = entry["data_offsets"]
        array = from_bytes(data[start:end], entry["dtype"], tuple(entry["shape"]))
        array.flags.writeable = False
        arrays[name] = array
    return arrays, metadata, whole


def spans(data: bytes | memoryview) -> dict[str, tuple[int, int]]:
    """Name -> offset and length in bytes of each tensor in a safetensors file that has been checked."""
    (length,) = _LENGTH.unpack_from(data)
    header = json.loads(bytes(data[8 : 8 + length]).decode("utf-8"))
    header.pop("__metadata__", None)
    places = {name: entry["data_offsets"] for name, entry in header.items()}
    return {name: (8 + length + start, end - start) for name, (start, end) in places.items()}


def inventory_of_arrays(tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> Inventory:
    """The same of a state dict: names -> torch tensors or NumPy arrays (one dict may have both).

    The arrays of the inventory are read-only views where the values are contiguous in memory. torch is not
    imported: where there are torch tensors, it has been. Raises ModelError for a name that is no text, a
    value that is neither (a checkpoint with the state dict inside, say), an element type that cannot be
    stored.
    """
    arrays = {}
    for name, value in tensors.items():
        if not isinstance(name, str):
            raise ModelError(f"a state dict has names as keys, not {name!r}")
        arrays[name] = _as_array(name, value)
    return _inventory(arrays, metadata or {})


def write(path: PathLike, tensors: Mapping[str, npt.NDArray[np.generic]],
          metadata: Mapping[str, str] | None = None, *, overwrite: bool = True) -> int:
    """Write named arrays as a safetensors file, atomically; returns its size in bytes.

    The data stand in the order of `tensors` where that keeps every tensor aligned to its element size (as
    it does for the names of a file that the safetensors library wrote), else with larger elements first.
    Tied tensors are written in full each: the format has no aliases.
    Raises ModelError for an element type or a name that the format cannot hold.
    """
    if "__metadata__" in tensors:
        raise ModelError("a tensor is called '__metadata__', which safetensors files reserve")
    try:
        front, order, offset = _header(tensors, metadata)
    except UnicodeEncodeError:
        raise ModelError("a tensor name or metadata text is not valid Unicode") from None
    with atomic_write(path, overwrite=overwrite) as file:
        file.write(front)
        for name in order:
            file.write(to_bytes(tensors[name]))
    return len(front) + offset


def _header(tensors: Mapping[str, npt.NDArray[np.generic]],
            metadata: Mapping[str, str] | None) -> tuple[bytes, Sequence[str], int]:
    """The bytes before the data, the order of the tensors, and the bytes of the data."""
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    order = _aligned_order(tensors)
    offset = 0
    for name in order:
        array = tensors[name]
        place = [offset, offset + array.nbytes]
        entries[name] = {"dtype": name_of(array.dtype), "shape": list(array.shape), "data_offsets": place}
        offset += array.nbytes
    header = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    header += b" " * (-len(header) % 8)
    return _LENGTH.pack(len(header)) + header, order, offset


def _as_array(name: str, value: object) -> Array:
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        from .module import to_numpy
        return to_numpy(value, name)
    if isinstance(value, Mapping):
        raise ModelError(f"{name} is a {type(value).__name__}, not a tensor: if it is the state dict of a "
                         f"checkpoint, give that")
    if not isinstance(value, np.ndarray | np.generic):
        raise ModelError(f"{name} is a {type(value).__name__}, not a torch tensor or NumPy array")
    array = np.asarray(value)
    try:
        kind = name_of(array.dtype)
    except ModelError as error:
        raise ModelError(f"{name}: {error}") from None
    array = np.require(array, NUMPY[kind], ["C", "A"]).view()
    array.flags.writeable = False
    return array.reshape(np.shape(value))  # np.require gives scalars an axis


def _inventory(arrays: dict[str, Array], metadata: Mapping[str, str]) -> Inventory:
    """What names, shapes and values alone tell."""
    aliases = _equal_tensors(arrays)
    tensors = {name: array for name, array in arrays.items() if name not in aliases}
    return Inventory(tensors=tensors, names=list(arrays), aliases=aliases, layers=_layers(tensors),
                     batchnorms=[], parameters=_parameters(tensors), metadata=dict(metadata),
                     exact=frozenset(name for name in tensors if name.endswith(_RUNNING)))


def _open(path: PathLike) -> tuple[dict[str, Any], memoryview, memoryview]:
    """The header as JSON, the data part of the mapped file, and all of it. The library has checked both."""
    name = os.fspath(path)
    with open(name, "rb") as file:
        try:
            with safe_open(name, framework="np"):
                pass
        except (SafetensorError, ValueError) as error:
            raise ModelError(f"{name} is not a valid .safetensors file: {error}") from None
        whole = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    (length,) = _LENGTH.unpack_from(whole)
    header = json.loads(bytes(whole[8 : 8 + length]).decode("utf-8"))
    return header, whole[8 + length :], whole


def _aligned_order(tensors: Mapping[str, npt.NDArray[np.generic]]) -> Sequence[str]:
    offset = 0
    for array in tensors.values():
        if offset % array.dtype.itemsize:
            return sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize)
        offset += array.nbytes
    return list(tensors)


def _equal_tensors(arrays: Mapping[str, Array]) -> dict[str, str]:
    """Name -> earlier name of a large matrix with equal dtype, shape and bits.

    Vectors and constants are left alone: untrained biases and LayerNorm weights are equal without being tied.
    """
    seen: dict[tuple[str, tuple[int, ...], bytes], list[str]] = {}
    aliases = {}
    for name, array in arrays.items():
        if array.nbytes < _ALIAS_BYTES or array.ndim < 2:
            continue
        elements = np.ascontiguousarray(array).reshape(-1, 1).view(np.uint8)  # a row of bytes per element
        sample = elements[:: max(1, len(elements) // 1024)]
        if (sample == sample[0]).all() and (elements == elements[0]).all():
            continue
        key = (array.dtype.name, array.shape, sample.tobytes())
        for earlier in seen.setdefault(key, []):
            if np.array_equal(elements, np.ascontiguousarray(arrays[earlier]).reshape(-1, 1).view(np.uint8)):
                aliases[name] = earlier
                break
        else:
            seen[key].append(name)
    return aliases


def _layers(tensors: Mapping[str, Array]) -> list[WeightLayer]:
    layers = []
    for name, array in tensors.items():
        if not name.endswith("weight") or array.ndim < 2 or name_of(array.dtype) not in FLOATS:
            continue
        bias = name.removesuffix("weight") + "bias"
        known = bias in tensors and tensors[bias].shape == array.shape[:1]
        layers.append(WeightLayer(name, "conv" if array.ndim > 2 else "linear", bias=bias if known else None))
    return layers


def _parameters(tensors: Mapping[str, Array]) -> int:
    return sum(array.size for name, array in tensors.items()
               if name_of(array.dtype) in FLOATS and not name.endswith(_RUNNING))
