"""A .tersor file taken apart into the columns of its manifest and its payloads, and put together again.

    parts = take_apart(data)
    parts.dims[0] = 1 << 40
    data = parts.join()             # lengths, checksums and the header are right again

So a mutation gets past the checksums and is judged by what comes after them. Nothing is checked here: `join`
makes invalid files of invalid parts.
"""

from __future__ import annotations

import copy
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field

from tersor.bitstream.container import HEADER_BYTES, MAGIC
from tersor.bitstream.deflate import inflate
from tersor.bitstream.dictionary import DICTIONARY
from tersor.bitstream.varint import ByteReader


def varints(values: Iterable[int]) -> bytes:
    """LEB128 of any non-negative numbers, also those of more than 63 bits, which no reader accepts."""
    out = bytearray()
    for value in values:
        while value > 127:
            out.append(value & 127 | 128)
            value >>= 7
        out.append(value)
    return bytes(out)


def deflated(data: bytes, dictionary: bytes = b"") -> bytes:
    """Quickly, not well."""
    coder = zlib.compressobj(1, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, dictionary) if dictionary else \
        zlib.compressobj(1, zlib.DEFLATED, -15)
    return coder.compress(data) + coder.flush()


@dataclass
class Parts:
    """Every field of a file; the lists are the manifest's columns (docs/format.md, "Manifest")."""

    header: list[int]
    """Container version, tools version, major, minor, patch, flags."""
    parameters: int
    names: list[tuple[int, bytes]]
    types: list[int]
    axes: list[int]
    dims: list[int]
    homes: list[int]
    targets: list[int]
    tools: list[int]
    payloads: list[bytes]
    metadata: list[tuple[bytes, bytes]]
    tail: bytes = b""
    """Bytes after the manifest's last column."""
    lies: dict[str, int] = field(default_factory=dict)
    """Numbers to be written in place of the right ones: "tensors", "sections", "pairs", "inflated", "length"."""

    def manifest(self) -> bytes:
        """Inflated."""
        lengths = [len(payload) for payload in self.payloads]
        if lengths and "length" in self.lies:
            lengths[0] = self.lies["length"]
        pairs = [text for pair in self.metadata for text in pair]
        return b"".join([
            varints([self.parameters, self.lies.get("tensors", len(self.names))]),
            varints(shared for shared, _ in self.names),
            *(suffix + b"\0" for _, suffix in self.names),
            varints([*self.types, *self.axes, *self.dims, *self.homes, *self.targets]),
            varints([self.lies.get("sections", len(self.tools)), *self.tools, *lengths]),
            *(struct.pack("<I", zlib.crc32(payload)) for payload in self.payloads),
            varints([self.lies.get("pairs", len(self.metadata))]),
            *(varints([len(text)]) + text for text in pairs), self.tail])

    def join(self, manifest: bytes | None = None) -> bytes:
        """The file; `manifest` replaces the inflated manifest."""
        inflated = self.manifest() if manifest is None else manifest
        stored = deflated(inflated, DICTIONARY)
        head = MAGIC + bytes(byte & 255 for byte in self.header)
        head += struct.pack("<II", len(stored), self.lies.get("inflated", len(inflated)) & 0xFFFFFFFF)
        return b"".join([head, struct.pack("<I", zlib.crc32(stored, zlib.crc32(head))), stored, *self.payloads])

    def copy(self) -> Parts:
        return copy.deepcopy(self)

    def only(self, section: int) -> Parts:
        """A file of one section with its tensors, without aliases."""
        members = [i for i, home in enumerate(self.homes) if home == section + 1]
        names, shapes = self._names(), self._shapes()
        dims, axes = [], []
        previous: tuple[int, ...] = ()
        for i in members:
            shape = shapes[i]
            dims += [0 if axis < len(previous) and previous[axis] == size else size + 1
                     for axis, size in enumerate(shape)]
            axes.append(len(shape))
            previous = shape or previous
        stored, before = [], b""
        for i in members:
            shared = next((j for j, (a, b) in enumerate(zip(before, names[i], strict=False)) if a != b),
                          min(len(before), len(names[i])))
            stored.append((shared, names[i][shared:]))
            before = names[i]
        return Parts(list(self.header), 1, stored, [self.types[i] for i in members], axes, dims, [1] * len(members), [],
                     [self.tools[section]], [self.payloads[section]], [])

    def _names(self) -> list[bytes]:
        out, before = [], b""
        for shared, suffix in self.names:
            before = before[:shared] + suffix
            out.append(before)
        return out

    def _shapes(self) -> list[tuple[int, ...]]:
        out: list[tuple[int, ...]] = []
        previous: tuple[int, ...] = ()
        left = iter(self.dims)
        for count in self.axes:
            codes = [next(left) for _ in range(count)]
            out.append(tuple(code - 1 if code else previous[axis] for axis, code in enumerate(codes)))
            previous = out[-1] or previous
        return out


def take_apart(data: bytes) -> Parts:
    """The parts of a valid container. Raises FormatError, ValueError or struct.error for other bytes."""
    stored, length = struct.unpack_from("<II", data, 14)
    reader = ByteReader(inflate(data[HEADER_BYTES : HEADER_BYTES + stored], length, "the manifest", DICTIONARY), "")
    parameters, count = reader.varint(), reader.varint()
    names = []
    for shared in reader.varints(count):
        end = reader.data.index(b"\0", reader.position)
        names.append((shared, reader.take(end - reader.position)))
        reader.take(1)
    types, axes = reader.varints(count), reader.varints(count)
    dims, homes = reader.varints(sum(axes)), reader.varints(count)
    targets = reader.varints(homes.count(0))
    sections = reader.varint()
    tools, lengths = reader.varints(sections), reader.varints(sections)
    reader.take(4 * sections)
    metadata = [(reader.take(reader.varint()), reader.take(reader.varint())) for _ in range(reader.varint())]
    payloads, at = [], HEADER_BYTES + stored
    for size in lengths:
        payloads.append(data[at : at + size])
        at += size
    return Parts(list(data[8:14]), parameters, names, types, axes, dims, homes, targets, tools, payloads, metadata)
