"""What a model file holds besides its weights: its bytes with holes, to be filled with restored tensors.

    skeleton = Skeleton("onnx", [file_with_holes("", data, holes)])
    inventory = replace(inventory, source=skeleton.to_bytes(inventory.names))
    ...
    Skeleton.from_bytes(source, names).write("back.onnx", tensors)

The same idea serves every format: a safetensors header, the graph of an ONNX model, the pickle of a state dict are
bytes between tensors. A file that is put together again is byte for byte the one that came in where the tensors are.
Zip archives (of PyTorch) have checksums over their tensors, which are computed anew. docs/format.md, "Source".
"""

from __future__ import annotations

import json
import lzma
import os
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np

from ..bitstream.atomic import atomic_write
from ..bitstream.dtypes import to_bytes
from ..bitstream.source import PathLike
from ..errors import FormatError, ModelError
from .inventory import Array

_XZ = b"\xfd7zXZ\0"
_MOST_WINDOW, _MOST_BYTES = 1 << 26, 1 << 31
"""Of an xz stream: bytes that it may look back, bytes that it may come to."""
_MOST_USES = 16
"""Places of one file that one tensor is written to."""


@dataclass(frozen=True)
class Hole:
    """Where a tensor was: `before` bytes of the file are kept between the hole before it and this one.

    `axes`: the order of the tensor's axes in the file, where it is not its own: a MatMul's weight [in, out] is
    coded as [out, in], so its axes are (1, 0).
    """

    before: int
    name: str
    axes: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Checksum:
    """A CRC-32 over the bytes start to start + length of the whole file, written at each of `places` (as u32)."""

    start: int
    length: int
    places: tuple[int, ...]


@dataclass(frozen=True)
class FileWithHoles:
    """One file. `path`: relative to the folder of the first, whose own path is empty; `kept`: its other bytes."""

    path: str
    kept: bytes
    holes: list[Hole] = field(default_factory=list)
    checksums: list[Checksum] = field(default_factory=list)

    def filled(self, tensors: Mapping[str, Array]) -> bytes:
        """The whole file. Raises FormatError where holes and tensors do not fit each other."""
        parts: list[bytes | memoryview] = []
        position = 0
        for hole in self.holes:
            parts.append(self.kept[position : position + hole.before])
            position += hole.before
            array = tensors[hole.name]
            if hole.axes is not None:
                if sorted(hole.axes) != list(range(array.ndim)):
                    raise FormatError(f"{hole.name}: axes {hole.axes} of a tensor with {array.ndim}: corrupt file")
                array = array.transpose(hole.axes)
            parts.append(to_bytes(np.ascontiguousarray(array)))
        parts.append(self.kept[position:])
        if not self.checksums:
            return b"".join(parts)
        whole = bytearray(b"".join(parts))
        for check in self.checksums:
            if check.start + check.length > len(whole) or any(place + 4 > len(whole) for place in check.places):
                raise FormatError(f"a checksum of {self.path or 'the source file'} is beyond its end: corrupt file")
            value = zlib.crc32(memoryview(whole)[check.start : check.start + check.length])
            for place in check.places:
                whole[place : place + 4] = value.to_bytes(4, "little")
        return bytes(whole)


@dataclass(frozen=True)
class Skeleton:
    """A model without its weights: `format` is the name of what it was, `files` the first one and its companions."""

    format: str
    files: list[FileWithHoles]

    def to_bytes(self, names: Sequence[str]) -> bytes:
        """As stored in a .tersor file whose tensors are `names`, in that order."""
        number = {name: i for i, name in enumerate(names)}
        files: list[dict[str, Any]] = []
        for file in self.files:
            holes = [[hole.before, number[hole.name], *([list(hole.axes)] if hole.axes else [])]
                     for hole in file.holes]
            checks = [[check.start, check.length, *check.places] for check in file.checksums]
            files.append({"path": file.path, "kept": len(file.kept), "holes": holes, "crc": checks})
        head = json.dumps({"format": self.format, "files": files}, separators=(",", ":")).encode()
        return _packed(head + b"\n" + b"".join(file.kept for file in self.files))

    @staticmethod
    def from_bytes(data: bytes, names: Sequence[str]) -> Skeleton:
        """The inverse. Raises FormatError for anything that `to_bytes` cannot have written, unsafe paths included."""
        head, newline, kept = _unpacked(data).partition(b"\n")
        try:
            described = json.loads(head)
            skeleton = Skeleton(_text(described["format"]), [])
            position = 0
            for file in described["files"]:
                size = _number(file["kept"])
                holes = [_hole(item, names) for item in file["holes"]]
                checks = [Checksum(_number(start), _number(length), tuple(map(_number, places)))
                          for start, length, *places in file["crc"]]
                if sum(hole.before for hole in holes) > size or position + size > len(kept):
                    _corrupt("its holes reach beyond its bytes")
                skeleton.files.append(FileWithHoles(_safe_path(file["path"], not skeleton.files),
                                                    kept[position : position + size], holes, checks))
                position += size
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise FormatError(f"the description of the source file is not readable ({error}): corrupt file") from None
        if not newline or position != len(kept) or not skeleton.files:
            _corrupt("its bytes are missing or too many")
        paths = [file.path for file in skeleton.files]
        if len(set(paths)) != len(paths):
            _corrupt("two files have one path")
        uses = Counter(hole.name for file in skeleton.files for hole in file.holes)
        if max(uses.values(), default=0) > _MOST_USES:  # small files would become as large as one likes
            _corrupt(f"{uses.most_common(1)[0][0]!r} is to be written {uses.most_common(1)[0][1]:,} times")
        return skeleton

    def filled(self, tensors: Mapping[str, Array]) -> dict[str, bytes]:
        """Path -> bytes of each file; all names that the holes have must be in `tensors`."""
        return {file.path: file.filled(tensors) for file in self.files}

    def write(self, path: PathLike, tensors: Mapping[str, Array], *, overwrite: bool = True) -> int:
        """Write all files, each atomically: the first as `path`, the others beside it; returns bytes in all.

        A folder (format "folder") has no first file: all its files go into the folder `path`, which is made.
        ONNX models name their data files: those keep their names. Raises FileExistsError, OSError.
        """
        target = os.fspath(path)
        folder = os.path.dirname(target)
        if self.is_folder:
            os.makedirs(target, exist_ok=True)
            folder = target
        total = 0
        places = {file.path: os.path.join(folder, file.path) if file.path else target for file in self.files}
        if not overwrite:
            for place in places.values():
                if os.path.lexists(place):
                    why = "" if place == target else " belongs to the model, under this name, and"
                    raise FileExistsError(f"{place}{why} exists; allow overwriting, or choose another folder")
        for file in self.files[::-1]:  # the first one last: it is complete when it is there
            place = places[file.path]
            os.makedirs(os.path.dirname(place) or ".", exist_ok=True)
            data = file.filled(tensors)
            with atomic_write(place, overwrite=overwrite) as out:
                out.write(data)
            total += len(data)
        return total

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder of files and not one file with companions."""
        return bool(self.files[0].path)


def _packed(data: bytes) -> bytes:
    """As an xz stream where that is shorter than what the raw tool can do: stack traces and names repeat over more
    than the 32 KiB that DEFLATE looks back."""
    window = min(max(1 << 12, 1 << (len(data) - 1).bit_length()), _MOST_WINDOW)
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": window}]
    small = lzma.compress(data, lzma.FORMAT_XZ, lzma.CHECK_NONE, filters=filters)
    return small if len(small) < len(zlib.compress(data, 9)) else data


def _unpacked(data: bytes) -> bytes:
    if not data.startswith(_XZ):
        return data
    try:
        reader = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=2 * _MOST_WINDOW)
        plain = reader.decompress(data, _MOST_BYTES)
    except (lzma.LZMAError, MemoryError) as error:
        raise FormatError(f"the description of the source file does not unpack: {error}") from None
    if not reader.eof or reader.unused_data:
        _corrupt("its xz stream is truncated, too long, or followed by other bytes")
    return plain


def safe_relative(path: str) -> bool:
    """Whether a path that a file states stays within the folder of that file, whatever the system.

    >>> safe_relative("a/b.data"), safe_relative("../x"), safe_relative("/etc/passwd"), safe_relative("C:x")
    (True, False, False, False)
    """
    parts = path.replace("\\", "/").split("/")
    return bool(path) and all(part not in ("", ".", "..") for part in parts) and not any(c in path for c in ":\0\\")


def cut(path: str, data: bytes | memoryview, spans: Sequence[tuple[int, int, str, tuple[int, ...] | None]],
        checksums: Sequence[Checksum] = ()) -> FileWithHoles:
    """The file with holes at `spans`: (offset, length, tensor name, axes), in any order, not overlapping."""
    holes, kept, end = [], [], 0
    for start, length, name, axes in sorted(spans):
        if start < end or start + length > len(data):
            raise ModelError(f"{name}: its data overlap others or end behind the file")
        holes.append(Hole(start - end, name, axes))
        kept.append(bytes(data[end:start]))
        end = start + length
    kept.append(bytes(data[end:]))
    return FileWithHoles(path, b"".join(kept), holes, list(checksums))


def _hole(item: Sequence[Any], names: Sequence[str]) -> Hole:
    before, number, *axes = item
    if _number(number) >= len(names) or len(axes) > 1:
        _corrupt(f"a hole is for tensor {number} of {len(names)}")
    return Hole(_number(before), names[number], tuple(map(_number, axes[0])) if axes else None)


def _safe_path(path: object, first: bool) -> str:
    if not isinstance(path, str) or not (safe_relative(path) or (first and not path)):
        _corrupt(f"the path {path!r} leads out of the folder")
    return path


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _number(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 63:
        raise TypeError(f"{value!r} is no size")
    return value


def _corrupt(why: str) -> NoReturn:
    raise FormatError(f"the description of the source file is not valid: {why}")
