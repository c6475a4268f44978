"""From a .tersor file back to the format that the model came in.

    with tersor.load("model.tersor") as file:
        restored.write(file, "back.onnx")

Needs neither torch nor onnx: what is no weight is in the .tersor file as bytes. docs/format.md, "Source".
"""

from __future__ import annotations

import os

from ..bitstream.source import PathLike, Readable
from ..decoder import TersorFile, load
from ..errors import ConfigError
from ..limits import Limits
from . import safetensors
from .skeleton import Skeleton

SUFFIXES = {"safetensors": (".safetensors",), "pytorch": (".pt", ".pth", ".bin", ".ckpt"), "onnx": (".onnx",),
            "pt2": (".pt2",), "folder": ("",)}
"""Format -> suffixes of its files, the usual one first."""


def format_of(file: TersorFile) -> str:
    """What the model was: "onnx", "pytorch", "pt2", "folder", or "safetensors" where the file has only tensors."""
    return file.source_format or "safetensors"


def suffix_of(file: TersorFile) -> str:
    """The usual suffix of that format; empty for a folder."""
    return SUFFIXES.get(format_of(file), ("",))[0]


def is_folder(file: TersorFile, path: PathLike) -> bool:
    """Whether `write` would make a folder of this path."""
    return format_of(file) == "folder" and not os.fspath(path).lower().endswith(".safetensors")


def restore_file(file: Readable, path: PathLike, *, overwrite: bool = True, limits: Limits | None = None,
                 threads: int | None = None) -> int:
    """Restore a .tersor file (path, bytes or binary file) as the model file that it came from; returns bytes written.

    See `write` for what is written and what is raised, and `tersor.load` for `limits` and `threads`.
    """
    with load(file, limits, threads) as found:
        return write(found, path, overwrite=overwrite)


def write(file: TersorFile, path: PathLike, *, overwrite: bool = True) -> int:
    """Write the model as it came in, each file atomically; returns bytes in all.

    The same bytes as the original where the weights are not, in the same format: a path that ends in .safetensors gives
    only the tensors, of any model. Data files of ONNX models keep their names and come into the same folder.
    Raises ConfigError for a suffix that belongs to another format, FormatError for a damaged file, FileExistsError
    where a file is there and `overwrite` is False, OSError.
    """
    known, name = format_of(file), os.fspath(path)
    suffix = os.path.splitext(name)[1].lower()
    if file.source_format is None or (suffix == ".safetensors" and known != "safetensors"):
        return safetensors.write(path, file.read_all(), file.metadata, overwrite=overwrite)
    others = {item for kind, items in SUFFIXES.items() if kind != known for item in items if item}
    if suffix in others and suffix not in SUFFIXES.get(known, ()):
        raise ConfigError(f"the model was {_article(known)}, which {suffix} is not: give a name with "
                          f"{' or '.join(item for item in SUFFIXES.get(known, ()) if item) or 'no suffix'}, or "
                          f".safetensors for the tensors alone")
    skeleton = Skeleton.from_bytes(file.source, list(file))
    return skeleton.write(path, file.read_all(), overwrite=overwrite)


def in_memory(file: TersorFile) -> dict[str, bytes]:
    """Relative path -> bytes of all files of the model; "" for the first. Of models with a source only."""
    return Skeleton.from_bytes(file.source, list(file)).filled(file.read_all())


def _article(kind: str) -> str:
    return {"onnx": "an ONNX file", "pytorch": "a PyTorch state dict", "pt2": "a program of torch.export",
            "folder": "a folder", "safetensors": "a .safetensors file"}.get(kind, f"of format {kind!r}")
