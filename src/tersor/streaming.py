"""From a pipe, a socket or any other file without random access to named arrays, in bounded memory.

    with urllib.request.urlopen(address) as response:
        for name, array in tersor.stream(response):
            ...

Sections come in the order of the file; one section is in memory at a time, as bytes and as tensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from .bitstream.container import read_manifest, read_section
from .bitstream.manifest import Manifest
from .bitstream.source import PipeSource
from .decoder import Array, cores, decode_section
from .errors import FormatError
from .limits import DEFAULT_LIMITS, Limits


def stream(file: BinaryIO, limits: Limits | None = None, threads: int | None = None) -> Iterator[tuple[str, Array]]:
    """The tensors of a .tersor file that can only be read from front to back, each as soon as its bytes are there.

    file: anything with `read(n)` that returns bytes; it is read up to its end and not closed. Tensors come in the order
    of the sections, which is not that of the state dict; an alias comes after its target, as the same read-only array.
    limits, threads: as in `tersor.load`.

    The header is read at once, and FormatError is raised for a bad one; damage and missing bytes further on show while
    one iterates. What came before is then sound.
    """
    source = PipeSource(file)
    bounds = limits or DEFAULT_LIMITS
    return _tensors(source, read_manifest(source, bounds), bounds, threads or cores())


def _tensors(source: PipeSource, manifest: Manifest, limits: Limits, threads: int) -> Iterator[tuple[str, Array]]:
    aliases: dict[int, list[str]] = {}
    for record in manifest.tensors:
        if record.alias_of is not None:
            aliases.setdefault(record.alias_of, []).append(record.name)
    for section, members in enumerate(manifest.members):
        payload = read_section(source, manifest, section)
        arrays = decode_section(manifest, section, payload, limits, threads)
        del payload
        for index, array in zip(members, arrays, strict=True):
            for name in (manifest.tensors[index].name, *aliases.get(index, ())):
                yield name, array
        del arrays, array
    if source.more():
        raise FormatError(f"{source.label}: bytes follow the end of the last section: this is not a .tersor file alone")
