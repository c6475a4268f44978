"""The table of contents: which tensors there are, and which section holds each. Bytes <-> dataclasses.

Everything is stored in columns (all names, then all dtypes, ...), because equal things beside each
other deflate well: the 116 tensors of a ResNet-20 take about 160 bytes. docs/format.md, "Manifest".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from ..errors import FormatError, UnsupportedError
from ..limits import Limits
from . import varint
from .dtypes import CODES, NAMES, NUMPY


@dataclass(frozen=True)
class TensorRecord:
    """One named tensor. Exactly one of `section` and `alias_of` (an index into the tensors) is not None."""

    name: str
    dtype: str
    """A safetensors name: see `tersor.bitstream.dtypes.NAMES`."""
    shape: tuple[int, ...]
    section: int | None
    alias_of: int | None = None

    @property
    def count(self) -> int:
        """Number of elements; 1 for a scalar."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Decoded size in bytes."""
        return self.count * NUMPY[self.dtype].itemsize


@dataclass(frozen=True)
class SectionRecord:
    """One section: the coding tool that wrote it, and where its bytes are in the file."""

    tool: int
    offset: int
    length: int
    crc32: int


@dataclass(frozen=True)
class Manifest:
    """Everything that is known of a file before any tensor is decoded."""

    parameters: int
    """Number of the model's parameters: the denominator of bits/weight."""
    tensors: tuple[TensorRecord, ...]
    sections: tuple[SectionRecord, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)
    container_version: int = 1
    tools_version: int = 1
    library_version: tuple[int, int, int] = (0, 0, 0)

    @cached_property
    def members(self) -> list[list[int]]:
        """For each section the indices of its tensors, in tensor order."""
        members: list[list[int]] = [[] for _ in self.sections]
        for index, record in enumerate(self.tensors):
            if record.section is not None:
                members[record.section].append(index)
        return members

    def records_of(self, section: int) -> list[TensorRecord]:
        """The tensors that `section` holds, in tensor order."""
        return [self.tensors[index] for index in self.members[section]]

    @property
    def payload_bytes(self) -> int:
        """Sum of the sections' lengths."""
        return sum(section.length for section in self.sections)


def pack(parameters: int, tensors: Sequence[TensorRecord], sections: Sequence[SectionRecord],
         metadata: Mapping[str, str]) -> bytes:
    """The manifest before deflation. Consistency is `unpack`'s business: writers check by reading back."""
    varints = varint.encode
    prefixes, suffixes, previous = [], [], b""
    for record in tensors:
        name = _utf8(record.name, "a tensor name")
        shared = _shared_prefix(previous, name)
        prefixes.append(shared)
        suffixes.append(name[shared:] + b"\0")
        previous = name
    out = [varints([parameters, len(tensors), *prefixes]), *suffixes]
    out.append(varints(CODES[record.dtype] for record in tensors))
    out.append(varints(len(record.shape) for record in tensors))
    out.append(varints(_relative_dimensions([record.shape for record in tensors])))
    out.append(varints(0 if record.section is None else record.section + 1 for record in tensors))
    out.append(varints(record.alias_of for record in tensors if record.alias_of is not None))
    out.append(varints([len(sections), *(section.tool for section in sections),
                        *(section.length for section in sections)]))
    out.extend(section.crc32.to_bytes(4, "little") for section in sections)
    out.append(varints([len(metadata)]))
    for key, value in metadata.items():
        for text in (key, value):
            data = _utf8(text, f"metadata {key!r}")
            out.append(varints([len(data)]) + data)
    return b"".join(out)


def unpack(data: bytes, first_offset: int, file_size: int | None, limits: Limits) -> Manifest:
    """Parse and check an inflated manifest whose first section starts at `first_offset` of the file.

    `file_size`: None where it is not known before the file was read to its end.

    The versions are left at their defaults. Raises FormatError for anything that `pack` cannot have
    written, LimitError for what `limits` forbids; nothing is allocated that was not checked before.
    """
    reader = varint.ByteReader(data, "manifest")
    parameters, count = reader.varint(), reader.varint()
    limits.check("tensors in the manifest", count, "max_tensors")
    reader.require(5 * count, "bytes of tensor columns")  # prefix, end of name, dtype, axes, section
    names = _unpack_names(reader, count, limits)
    dtypes = [_dtype_name(code) for code in reader.varints(count)]
    shapes = _unpack_shapes(reader, count, limits)
    homes = reader.varints(count)
    targets = iter(reader.varints(homes.count(0)))
    tensors = tuple(
        TensorRecord(name, dtype, shape, home - 1 if home else None, None if home else next(targets))
        for name, dtype, shape, home in zip(names, dtypes, shapes, homes, strict=True))
    sections = _unpack_sections(reader, first_offset, file_size, limits)
    metadata = _unpack_metadata(reader)
    if reader.left:
        raise reader.fail(f"{reader.left:,} bytes follow the end of the manifest")
    _check_homes(tensors, len(sections))
    _check_sizes(tensors, limits)
    return Manifest(parameters, tensors, sections, metadata)


def _utf8(text: str, what: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise FormatError(f"{what}, {text!r}, cannot be stored as UTF-8: {error.reason}") from None


def _shared_prefix(a: bytes, b: bytes) -> int:
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))


def _unpack_names(reader: varint.ByteReader, count: int, limits: Limits) -> list[str]:
    prefixes = reader.varints(count)
    names: list[str] = []
    seen: set[bytes] = set()
    previous, total = b"", 0
    for shared in prefixes:
        end = reader.data.find(b"\0", reader.position)
        if end < 0:
            raise reader.fail("a tensor name has no end")
        if shared > len(previous):
            raise reader.fail(f"a tensor name shares {shared} bytes with {previous!r}, which is shorter")
        suffix = reader.data[reader.position : end]
        limits.check("bytes of a tensor name", shared + len(suffix), "max_name_bytes")
        total += shared + len(suffix)
        limits.check("bytes of all tensor names", total, "max_manifest_bytes")
        name = previous[:shared] + suffix
        if not name:
            raise reader.fail("a tensor name is empty")
        if name in seen or _shared_prefix(previous[shared:], suffix):
            raise reader.fail(f"tensor name {name!r} is stored twice, or not in its shortest form")
        try:
            names.append(name.decode("utf-8"))
        except UnicodeDecodeError:
            raise reader.fail(f"tensor name {name!r} is not valid UTF-8") from None
        seen.add(name)
        previous = name
        reader.position = end + 1
    return names


def _dtype_name(code: int) -> str:
    if code >= len(NAMES):
        raise UnsupportedError(f"the file has an element type (code {code}) that this version of tersor does "
                               f"not know; install a newer one")
    return NAMES[code]


def _relative_dimensions(shapes: Sequence[tuple[int, ...]]) -> list[int]:
    """0 where a dimension equals that of the previous tensor with axes, at the same axis; else 1 + itself."""
    out: list[int] = []
    previous: tuple[int, ...] = ()
    for shape in shapes:
        for axis, size in enumerate(shape):
            out.append(0 if axis < len(previous) and previous[axis] == size else size + 1)
        previous = shape or previous
    return out


def _unpack_shapes(reader: varint.ByteReader, count: int, limits: Limits) -> list[tuple[int, ...]]:
    axes = reader.varints(count)
    limits.check("axes of a tensor", max(axes, default=0), "max_dimensions")
    reader.require(sum(axes), "dimensions")
    shapes: list[tuple[int, ...]] = []
    previous: tuple[int, ...] = ()
    for length in axes:
        shape = []
        for axis in range(length):
            code = reader.varint()
            same = previous[axis] if axis < len(previous) else -1
            if code - 1 == same:
                raise reader.fail("a dimension refers to an axis that is not there, or should refer to it")
            shape.append(code - 1 if code else same)
        shapes.append(tuple(shape))
        previous = shapes[-1] or previous
    return shapes


def _unpack_sections(reader: varint.ByteReader, offset: int, file_size: int | None,
                     limits: Limits) -> tuple[SectionRecord, ...]:
    count = reader.varint()
    limits.check("sections in the manifest", count, "max_sections")
    reader.require(6 * count, "bytes of section columns")  # tool, length, CRC
    tools, lengths = reader.varints(count), reader.varints(count)
    sections = []
    for tool, length in zip(tools, lengths, strict=True):
        sections.append(SectionRecord(tool, offset, length, int.from_bytes(reader.take(4), "little")))
        offset += length
    if file_size is not None and offset != file_size:
        state = "truncated" if offset > file_size else "followed by bytes that do not belong to it"
        raise FormatError(f"the sections end at byte {offset:,} but the file ends at byte {file_size:,}: "
                          f"it is {state}")
    return tuple(sections)


def _unpack_metadata(reader: varint.ByteReader) -> dict[str, str]:
    count = reader.varint()
    reader.require(2 * count, "bytes of metadata")
    metadata: dict[str, str] = {}
    for _ in range(count):
        try:
            key = reader.take(reader.varint()).decode("utf-8")
            value = reader.take(reader.varint()).decode("utf-8")
        except UnicodeDecodeError:
            raise reader.fail("metadata is not valid UTF-8") from None
        if key in metadata:
            raise reader.fail(f"metadata key {key!r} is stored twice")
        metadata[key] = value
    return metadata


def _check_homes(tensors: Sequence[TensorRecord], sections: int) -> None:
    """Every tensor has its one home, every section has tensors, every alias is of a plain equal tensor."""
    used = set()
    for record in tensors:
        if record.section is not None:
            if record.section >= sections:
                raise FormatError(f"tensor {record.name!r} is in section {record.section} of {sections}")
            used.add(record.section)
            continue
        if record.alias_of is None or record.alias_of >= len(tensors):
            raise FormatError(f"tensor {record.name!r} is an alias of tensor {record.alias_of} of "
                              f"{len(tensors)}")
        target = tensors[record.alias_of]
        if target.alias_of is not None:
            raise FormatError(f"tensor {record.name!r} is an alias of {target.name!r}, an alias itself")
        if (target.dtype, target.shape) != (record.dtype, record.shape):
            raise FormatError(f"tensor {record.name!r} ({record.dtype} {list(record.shape)}) is an alias of "
                              f"{target.name!r} ({target.dtype} {list(target.shape)})")
    if len(used) != sections:
        unused = next(i for i in range(sections) if i not in used)
        raise FormatError(f"section {unused} holds no tensor")


def _check_sizes(tensors: Sequence[TensorRecord], limits: Limits) -> None:
    total = elements = 0
    for record in tensors:
        # A zero-size tensor must also have axes that an array library can represent.
        extent = math.prod(max(1, size) for size in record.shape)
        bound = extent * NUMPY[record.dtype].itemsize
        limits.check(f"bytes of tensor {record.name!r} {list(record.shape)}", bound, "max_tensor_bytes")
        total += record.nbytes  # of aliases too: they take no memory, but room in what is written from them
        elements += extent if record.section is not None else 0
    limits.check("elements of all tensors", elements, "max_elements")
    limits.check("decoded bytes of all tensors", total, "max_bytes")
