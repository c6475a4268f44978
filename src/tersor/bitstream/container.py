"""The .tersor file: header, deflated manifest, sections. Normative text: docs/format.md.

    data = to_bytes([TensorRecord("w", "F32", (2, 3), section=0)], [(0, payload)], parameters=6)
    source = open_source(data)
    manifest = read_manifest(source)
    read_section(source, manifest, 0) == payload      # its CRC-32 is checked first

The manifest stands in front, so that the first bytes of a file show what is inside, and one more read
fetches one section. Every byte is covered by the header's CRC-32 or by that of a section.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..errors import ChecksumError, FormatError, LimitError, UnsupportedError
from ..limits import DEFAULT_LIMITS, Limits
from . import manifest as manifest_module
from .atomic import atomic_write
from .deflate import deflate, inflate
from .dictionary import DICTIONARY
from .manifest import Manifest, SectionRecord, TensorRecord
from .source import UNKNOWN_SIZE, PathLike, Source, open_source

__all__ = ["Manifest", "SectionRecord", "Source", "TensorRecord", "front", "open_source", "read_manifest",
           "read_section", "to_bytes", "write"]

MAGIC = bytes.fromhex("93 54 53 52 0D 0A 1A 0A")
"""Not text; a transfer that changes line ends or strips the eighth bit breaks it visibly (as in PNG)."""

CONTAINER_VERSION = 1
TOOLS_VERSION = 1
LIBRARY_VERSION = (0, 1, 0)
"""Written to the file for the curious; no reader decides anything by it."""

_HEADER = struct.Struct("<8s B B 3B B I I")
_CRC = struct.Struct("<I")
HEADER_BYTES = _HEADER.size + _CRC.size
"""26: where the stored manifest begins."""

_STRANGERS: list[tuple[bytes, str]] = [
    (b"PK\x03\x04", "a zip archive (a PyTorch .pt/.pth checkpoint or an .npz is one)"),
    (b"\x80\x02", "a Python pickle"), (b"\x80\x03", "a Python pickle"), (b"\x80\x04", "a Python pickle"),
    (b"\x80\x05", "a Python pickle"), (b"\x89HDF\r\n", "an HDF5 file (Keras .h5 is one)"),
    (b"\x93NUMPY", "a NumPy .npy array"), (b"GGUF", "a GGUF model"), (b"\x1f\x8b", "a gzip archive"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file"),
]


def to_bytes(tensors: Sequence[TensorRecord], sections: Sequence[tuple[int, bytes]], *, parameters: int,
             metadata: Mapping[str, str] | None = None,
             library_version: tuple[int, int, int] = LIBRARY_VERSION) -> bytes:
    """A whole file.

    tensors: in state-dict order; their `section` is an index into `sections`.
    sections: (tool id, payload) pairs.
    parameters: the model's parameter count, the denominator of bits/weight.
    Raises FormatError where the parts contradict each other (a duplicate name, an empty section, ...):
    what this function returns is always readable.
    """
    return b"".join([front(tensors, sections, parameters=parameters, metadata=metadata,
                           library_version=library_version), *(payload for _, payload in sections)])


def write(path: PathLike, tensors: Sequence[TensorRecord], sections: Sequence[tuple[int, bytes]], *,
          parameters: int, metadata: Mapping[str, str] | None = None, overwrite: bool = True,
          library_version: tuple[int, int, int] = LIBRARY_VERSION) -> int:
    """Write a file atomically (see `tersor.bitstream.atomic`) and return its size in bytes."""
    head = front(tensors, sections, parameters=parameters, metadata=metadata, library_version=library_version)
    with atomic_write(path, overwrite=overwrite) as file:
        file.write(head)
        for _, payload in sections:
            file.write(payload)
    return len(head) + sum(len(payload) for _, payload in sections)


def front(tensors: Sequence[TensorRecord], sections: Sequence[tuple[int, bytes]], *, parameters: int,
          metadata: Mapping[str, str] | None = None,
          library_version: tuple[int, int, int] = LIBRARY_VERSION) -> bytes:
    """Header and stored manifest: all that a file has besides its payloads. See `to_bytes`."""
    records = [SectionRecord(tool, 0, len(payload), zlib.crc32(payload)) for tool, payload in sections]
    inflated = manifest_module.pack(parameters, tensors, records, metadata or {})
    payload_bytes = sum(record.length for record in records)
    read_back = manifest_module.unpack(inflated, 0, payload_bytes, _UNLIMITED)
    if read_back.tensors != tuple(tensors):
        raise FormatError("a tensor has both a section and an alias, or a shape that is no tuple of integers")
    stored = deflate(inflated, DICTIONARY)
    if max(len(stored), len(inflated)) >= 1 << 32:
        raise FormatError("the manifest is larger than 4 GiB")
    header = _HEADER.pack(MAGIC, CONTAINER_VERSION, TOOLS_VERSION, *library_version, 0,
                          len(stored), len(inflated))
    return header + _CRC.pack(zlib.crc32(stored, zlib.crc32(header))) + stored


def read_manifest(source: Source, limits: Limits = DEFAULT_LIMITS) -> Manifest:
    """Read and check everything in front of the sections.

    Raises FormatError (not a .tersor file, truncated, contradictory), UnsupportedError (written by a
    newer tersor), ChecksumError, or LimitError.
    """
    if source.size < HEADER_BYTES:
        _refuse_strangers(source.read_at(0, source.size), source.label)
        raise FormatError(f"{source.label}: {source.size} bytes are too few for a .tersor file")
    start = source.read_at(0, HEADER_BYTES)
    _refuse_strangers(start, source.label)
    _, container, tools, *library, flags, stored_length, inflated_length = _HEADER.unpack_from(start)
    if container != CONTAINER_VERSION:
        raise UnsupportedError(f"{source.label}: container version {container}, and this tersor reads "
                               f"version {CONTAINER_VERSION}; install a newer one")
    if HEADER_BYTES + stored_length > source.size:
        raise FormatError(f"{source.label}: the manifest has {stored_length:,} bytes, which is more than "
                          f"there are: the file is truncated")
    limits.check("bytes of the inflated manifest", inflated_length, "max_manifest_bytes")
    known = source.size != UNKNOWN_SIZE
    if not known:
        limits.check("bytes of the stored manifest", stored_length, "max_manifest_bytes")
    stored = source.read_at(HEADER_BYTES, stored_length)
    if zlib.crc32(stored, zlib.crc32(start[: _HEADER.size])) != _CRC.unpack_from(start, _HEADER.size)[0]:
        raise ChecksumError(f"{source.label}: the checksum of header and manifest does not match; the file "
                            f"is damaged, fetch it again")
    if tools != TOOLS_VERSION or flags != 0:
        raise UnsupportedError(f"{source.label}: coding tools version {tools} with flags {flags:#x}, and "
                               f"this tersor reads version {TOOLS_VERSION} without flags; install a newer")
    try:
        inflated = inflate(stored, inflated_length, "the manifest", DICTIONARY)
        found = manifest_module.unpack(inflated, HEADER_BYTES + stored_length, source.size if known else None, limits)
    except (UnsupportedError, LimitError):
        raise
    except FormatError as error:
        raise FormatError(f"{source.label}: {error}") from None
    return replace(found, container_version=container, tools_version=tools,
                   library_version=(library[0], library[1], library[2]))


def read_section(source: Source, manifest: Manifest, index: int) -> bytes:
    """The payload of one section. Raises ChecksumError where its bytes are not those that were written."""
    section = manifest.sections[index]
    payload = source.read_at(section.offset, section.length)
    if zlib.crc32(payload) != section.crc32:
        names = ", ".join(record.name for record in manifest.records_of(index)[:3])
        raise ChecksumError(f"{source.label}: the checksum of section {index} ({names}, ...) at byte "
                            f"{section.offset:,} does not match; the file is damaged, fetch it again")
    return payload


_UNLIMITED = Limits(**dict.fromkeys(Limits.__dataclass_fields__, 1 << 62))


def _refuse_strangers(start: bytes, label: str) -> None:
    """FormatError unless the first bytes are those of a .tersor file; says what they look like instead."""
    if start[: len(MAGIC)] == MAGIC:
        return
    what = next((name for magic, name in _STRANGERS if start.startswith(magic)), None)
    if not start:
        what = "an empty file"
    elif what is None and len(start) >= 9 and start[8:9] == b"{" and start[6:8] == b"\0\0":
        what = "a .safetensors file (compress it first: tersor compress MODEL.safetensors -o MODEL.tersor)"
    elif what is None and start[:1] == b"\x08" and start[2:3] in (b"\x12", b"\x1a", b"\x22", b"\x3a"):
        what = "an ONNX model"
    elif what is None and MAGIC.startswith(start):
        what = "the first bytes of a .tersor file: it is truncated"
    elif what is None and start[1:4] == MAGIC[1:4]:
        what = "a .tersor file that was damaged in transfer (as text instead of as binary?)"
    raise FormatError(f"{label} is not a .tersor file" + (f"; it looks like {what}" if what else ""))
