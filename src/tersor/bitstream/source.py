"""Where the bytes of a file come from: a path, bytes in memory (mapped files too), an open binary file, or a pipe.

All sources but pipes read at an offset, are safe to use from several threads, and are of a fixed size.
"""

from __future__ import annotations

import io
import mmap
import os
import sys
import threading
from typing import BinaryIO, Protocol, TypeAlias

from ..errors import FormatError

PathLike: TypeAlias = str | os.PathLike[str]
Readable: TypeAlias = PathLike | bytes | bytearray | memoryview | mmap.mmap | BinaryIO

UNKNOWN_SIZE = sys.maxsize
"""The size of a pipe."""
_CHUNK = 1 << 20


class Source(Protocol):
    """Random access to the bytes of one .tersor file."""

    label: str
    """What to call the file in messages."""
    size: int
    """Number of bytes."""

    def read_at(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`; FormatError where the file ends earlier."""

    def close(self) -> None:
        """Release the file. Reading afterwards is an error."""


class BytesSource:
    """Bytes in memory; not copied as a whole."""

    def __init__(self, data: bytes | bytearray | memoryview | mmap.mmap, label: str = "<bytes>") -> None:
        self._data = memoryview(data).cast("B")
        self.label = label
        self.size = self._data.nbytes

    def read_at(self, offset: int, length: int) -> bytes:
        """See `Source.read_at`."""
        _check_inside(offset, length, self.size, self.label)
        return bytes(self._data[offset : offset + length])

    def close(self) -> None:
        """Nothing to release."""


class PipeSource:
    """A binary file that can only be read from front to back; for one thread."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._position = 0
        self.label = str(getattr(file, "name", "<stream>"))
        self.size = UNKNOWN_SIZE

    def read_at(self, offset: int, length: int) -> bytes:
        """See `Source.read_at`; `offset` must be where the last call ended. Memory grows only with what arrives."""
        if offset != self._position:
            raise ValueError(f"{self.label} is at byte {self._position:,} and cannot go to {offset:,}")
        data = bytearray()
        while len(data) < length:
            part = self._file.read(min(_CHUNK, length - len(data)))
            if not part:
                break
            data += part
        self._position += len(data)
        _check_inside(offset, length, self._position, self.label)
        return bytes(data)

    def more(self) -> bool:
        """Whether there are bytes left; waits for one, or for the end."""
        return bool(self._file.read(1))

    def close(self) -> None:
        """Nothing to release: the file is its owner's."""


class FileSource:
    """An open, seekable binary file: read by `pread` where there is one, else by seek + read under a lock."""

    def __init__(self, file: BinaryIO, label: str, owned: bool) -> None:
        self._file = file
        self._owned = owned
        self._lock = threading.Lock()
        self.label = label
        try:
            self.size = file.seek(0, os.SEEK_END)
        except (OSError, AttributeError) as error:  # pipes, sockets
            raise FormatError(f"{label} has no random access ({error}); use tersor.stream, or read it into "
                              f"bytes first") from None
        self._descriptor = _descriptor(file)

    def read_at(self, offset: int, length: int) -> bytes:
        """See `Source.read_at`."""
        _check_inside(offset, length, self.size, self.label)  # before `length` bytes are allocated
        if self._descriptor is not None and not self._file.closed:
            parts, have = [], 0
            while have < length:  # one pread returns 2 GiB at most
                part = os.pread(self._descriptor, length - have, offset + have)
                if not part:
                    break
                parts.append(part)
                have += len(part)
            data = parts[0] if len(parts) == 1 else b"".join(parts)
        else:
            with self._lock:
                self._file.seek(offset)
                data = self._file.read(length)
        _check_inside(offset, length, offset + len(data), self.label)  # it may have shrunk meanwhile
        return data

    def close(self) -> None:
        """Close the file if it was opened here."""
        if self._owned:
            self._file.close()

    def __del__(self) -> None:
        """`tersor.load(path)["name"]` without a `with` block closes the file when it is let go of."""
        if getattr(self, "_owned", False):
            self._file.close()


def open_source(readable: Readable) -> BytesSource | FileSource:
    """A source for a path, bytes-like object, or open binary file. OSError if a path cannot be opened."""
    if isinstance(readable, (bytes, bytearray, memoryview, mmap.mmap)):
        return BytesSource(readable)
    if isinstance(readable, (str, os.PathLike)):
        path = os.fspath(readable)
        return FileSource(open(path, "rb"), path, owned=True)  # closed by FileSource.close
    if isinstance(readable, io.TextIOBase):
        raise TypeError("a text file was given; open it in binary mode ('rb')")
    return FileSource(readable, str(getattr(readable, "name", "<file>")), owned=False)


def _descriptor(file: BinaryIO) -> int | None:
    """The file descriptor for `pread`, or None where there is none."""
    if not hasattr(os, "pread") or not isinstance(file, (io.BufferedReader, io.FileIO, io.BufferedRandom)):
        return None
    try:
        return file.fileno()
    except OSError:
        return None


def _check_inside(offset: int, length: int, size: int, label: str) -> None:
    if offset + length > size:
        raise FormatError(f"{label}: {length:,} bytes are needed from byte {offset:,} on, but only "
                          f"{max(0, size - offset):,} are there: the file is truncated")
