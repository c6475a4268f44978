"""Where results go: the name of an output, and what would keep it from being written."""

from __future__ import annotations

import errno
import os

from ..errors import ConfigError


def output_path(given: str | None, source: str, suffix: str, other: str) -> str:
    """The file to write: as given, else the source's name with the other suffix.

    >>> output_path(None, "nets/a.v2.tersor", ".tersor", ".safetensors")
    'nets/a.v2.safetensors'
    """
    return given if given is not None else source.removesuffix(suffix) + other


def check_output(output: str, sources: list[str], force: bool) -> None:
    """Find out before a long computation what would keep its result from being written."""
    if not os.path.lexists(output):
        folder = os.path.dirname(output) or "."
        if not os.path.isdir(folder):
            raise FileNotFoundError(errno.ENOENT, "there is no such folder to write to", folder)
    elif os.path.isdir(output):
        raise IsADirectoryError(errno.EISDIR, "is a folder; -o names a file", output)
    elif any(os.path.exists(source) and os.path.exists(output) and os.path.samefile(source, output)
             for source in sources):
        raise ConfigError(f"{output} is an input; sources are kept, so -o must name another file")
    elif not force:
        raise FileExistsError(errno.EEXIST, "exists already; -f overwrites it, -o names another", output)
