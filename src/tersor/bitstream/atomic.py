"""Writing a file so that whoever looks sees the old file or the whole new one, never a part.

The bytes go to a temporary file in the same folder, are forced to the disk, and take the name in one
step. A process killed in between leaves the old file, and perhaps a `.NAME.xxxx.tmp` beside it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator
from typing import BinaryIO

from .source import PathLike

_EXISTS = "{} exists; allow overwriting, or choose another output name"


@contextlib.contextmanager
def atomic_write(path: PathLike, *, overwrite: bool = True) -> Iterator[BinaryIO]:
    """A binary file to write to; it becomes `path` when the block ends without an exception.

    A symbolic link is followed, and an existing file's permissions are kept. Raises FileExistsError if
    there is a file and `overwrite` is False, or if `path` is a folder or device; OSError as the system
    reports it (no space, no permission). The temporary file is removed in all these cases.
    """
    final = os.path.realpath(path)
    mode = _mode_of_existing(final, overwrite)
    folder, name = os.path.split(final)
    temporary = os.path.join(folder, f".{name[:200]}.{secrets.token_hex(4)}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    descriptor = os.open(temporary, flags, 0o666)  # the umask applies, as for any new file
    try:
        with os.fdopen(descriptor, "wb") as file:
            if mode is not None:
                with contextlib.suppress(OSError):  # not our file, or a file system without modes
                    os.chmod(temporary, mode)
            yield file
            file.flush()
            os.fsync(file.fileno())
        _publish(temporary, final, overwrite)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    _sync_folder(folder)


def _mode_of_existing(final: str, overwrite: bool) -> int | None:
    try:
        found = os.stat(final)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(found.st_mode):
        raise FileExistsError(f"{final} is not a regular file; choose another output name")
    if not overwrite:
        raise FileExistsError(_EXISTS.format(final))
    return stat.S_IMODE(found.st_mode)


def _publish(temporary: str, final: str, overwrite: bool) -> None:
    """Give the finished file its name, in one step."""
    if not overwrite:
        try:
            os.link(temporary, final)  # unlike replace, this fails if somebody else was faster
        except FileExistsError:
            raise FileExistsError(_EXISTS.format(final)) from None
        except OSError:  # a file system without hard links
            if os.path.lexists(final):
                raise FileExistsError(_EXISTS.format(final)) from None
        else:
            os.unlink(temporary)
            return
    os.replace(temporary, final)


def _sync_folder(folder: str) -> None:
    """Make the new name itself survive a power cut, where the system can."""
    if os.name != "posix":
        return
    with contextlib.suppress(OSError):
        descriptor = os.open(folder or ".", os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
