"""Zip archives as PyTorch writes them (state dicts, exported programs): where each record's bytes and checksums are.

The records are stored, not deflated. The standard library checks the directory; this adds the offsets of the data and
of every copy of their CRC-32, so that records can be replaced in place.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import ModelError
from .skeleton import Checksum

_LOCAL = struct.Struct("<4s2B4HL2L2H")
_CENTRAL = struct.Struct("<4s4B4HL2L5H2L")
_DESCRIPTOR = b"PK\x07\x08"


@dataclass(frozen=True)
class Record:
    """A stored file of an archive: its bytes are data[start : start + length]."""

    name: str
    start: int
    length: int
    checksum: Checksum


def records(data: bytes, label: str) -> dict[str, Record]:
    """Name without the archive's own folder -> record. Raises ModelError for an archive that is not well-formed."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries, central = archive.infolist(), archive.start_dir
        found = {}
        for entry in entries:
            local = _LOCAL.unpack_from(data, entry.header_offset)
            position = central
            central += _CENTRAL.size + sum(_CENTRAL.unpack_from(data, central)[12:15])
            start = entry.header_offset + _LOCAL.size + local[10] + local[11]
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size \
                    or start + entry.file_size > len(data):
                raise ModelError(f"{label}: record {entry.filename!r} is compressed or truncated; PyTorch stores "
                                 f"records as they are")
            crc = entry.CRC.to_bytes(4, "little")
            end = start + entry.file_size
            places = [entry.header_offset + 14, position + 16]
            if data[end : end + 4] == _DESCRIPTOR:
                places.append(end + 4)
            places = [place for place in places if data[place : place + 4] == crc]
            name = entry.filename.partition("/")[2]
            found[name] = Record(name, start, entry.file_size, Checksum(start, entry.file_size, tuple(places)))
    except (zipfile.BadZipFile, struct.error, ValueError, NotImplementedError) as error:
        raise ModelError(f"{label} is not a whole archive: {error}") from None
    return found


def content(data: bytes, found: Mapping[str, Record], name: str, label: str) -> bytes:
    """The bytes of one record. Raises ModelError where there is none."""
    if name not in found:
        raise ModelError(f"{label} has no record {name!r}")
    record = found[name]
    return data[record.start : record.start + record.length]
