"""Where single inputs come from: a folder of images, or arrays in a file.

A source has names, labels if there are any, and reads one input at a time; what cannot be read is a `BadInput`, which
`tersor.data.datasets` counts and tells.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..errors import DataError
from .labels import read_labels
from .preprocess import Preprocess

Array = npt.NDArray[Any]
Labels = npt.NDArray[np.int64]

SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"))
"""Files that are taken for images; all others in a folder are passed over."""
ARRAY_SUFFIXES = (".npz", ".npy", ".safetensors")
INPUT_KEYS = ("images", "inputs", "input", "x", "data")
LABEL_KEYS = ("labels", "label", "targets", "y")


class BadInput(Exception):
    """An input that cannot be used; the message says why."""


class Source(Protocol):
    """Inputs by number."""

    names: Sequence[str]
    labels: Labels | None

    def read(self, index: int) -> Array:
        """One input, without an axis for the batch. Raises `BadInput`."""


@dataclass
class ImageFolder:
    """All images below a folder in the order of their paths; sub-folders, sorted by name, are the classes."""

    folder: Path
    preprocess: Preprocess
    names: Sequence[str]
    labels: Labels | None = None
    classes: tuple[str, ...] = ()

    @staticmethod
    def open(folder: Path, preprocess: Preprocess, labels: str | os.PathLike[str] | None = None) -> ImageFolder:
        """Find the images. `labels`: a file that names their classes, in place of the sub-folders.

        Raises `DataError`: no images; Pillow is not installed; labels that do not fit.
        """
        _need_pillow()
        paths = sorted((path.relative_to(folder) for path in folder.rglob("*")
                        if path.suffix.lower() in SUFFIXES and path.is_file()), key=lambda path: path.as_posix())
        if not paths:
            raise DataError(f"{folder} holds no images ({', '.join(sorted(SUFFIXES))})")
        names = [path.as_posix() for path in paths]
        if labels is not None:
            return ImageFolder(folder, preprocess, names, read_labels(labels, names))
        classes = tuple(sorted({path.parts[0] for path in paths if len(path.parts) > 1}))
        if not classes or any(len(path.parts) == 1 for path in paths):  # images beside the folders: no classes
            return ImageFolder(folder, preprocess, names)
        number = {name: i for i, name in enumerate(classes)}
        return ImageFolder(folder, preprocess, names, np.array([number[path.parts[0]] for path in paths]), classes)

    def read(self, index: int) -> Array:
        """float32 [channels, height, width]."""
        from PIL import Image
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                with Image.open(self.folder / self.names[index]) as image:
                    if image.mode.startswith(("I", "F")):
                        raise BadInput(f"pixels of mode {image.mode}; 8 bits per channel are wanted")
                    return self.preprocess.image(image)
        except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombWarning,
                Image.DecompressionBombError) as error:
            raise BadInput(f"{error or type(error).__name__}".splitlines()[0]) from error


@dataclass
class Arrays:
    """Rows of an array: uint8 [N, height, width(, channels)] are pixels, all else goes to the network as it is."""

    array: Array
    preprocess: Preprocess
    labels: Labels | None = None
    names: Sequence[str] = field(init=False)

    def __post_init__(self) -> None:
        self.names = _Numbered(len(self.array))

    @staticmethod
    def open(path: Path, preprocess: Preprocess, labels: str | os.PathLike[str] | None = None) -> Arrays:
        """The inputs of an .npz, .npy or .safetensors file, and its labels where it has them (`INPUT_KEYS`,
        `LABEL_KEYS`). Raises `DataError`."""
        found = _read_arrays(path)
        key = next((key for key in INPUT_KEYS if key in found), None)
        rest = [name for name in found if name not in LABEL_KEYS]
        if key is None and len(rest) != 1:
            raise DataError(f"{path} holds {', '.join(sorted(found)) or 'nothing'}: call the inputs "
                            f"{INPUT_KEYS[0]!r} (and their labels {LABEL_KEYS[0]!r})")
        array = found[key if key is not None else rest[0]]
        if array.ndim < 2 or array.dtype.kind not in "biuf" or len(array) == 0:
            raise DataError(f"{path}: inputs of shape {array.shape} and type {array.dtype}; wanted are numbers "
                            f"[N, ...], as float [N, channels, height, width] or uint8 [N, height, width, channels]")
        own = next((found[name] for name in LABEL_KEYS if name in found), None)
        known = read_labels(labels, len(array)) if labels is not None else own
        if known is not None and (known.shape != (len(array),) or known.dtype.kind not in "iu"):
            raise DataError(f"{path}: labels of shape {known.shape} and type {known.dtype} for {len(array)} inputs; "
                            f"one class index each is wanted")
        return Arrays(array, preprocess, None if known is None else known.astype(np.int64))

    @property
    def are_pixels(self) -> bool:
        return self.array.dtype == np.uint8 and self.array.ndim in (3, 4)

    def read(self, index: int) -> Array:
        """One row, as the network wants it."""
        row = self.array[index]
        if self.are_pixels:
            try:
                return self.preprocess.pixels(row)
            except ValueError as error:
                raise BadInput(str(error)) from error
        if row.dtype.kind == "f" and not np.isfinite(row).all():
            raise BadInput("NaN or infinity")
        return np.ascontiguousarray(row, dtype=np.float32 if row.dtype.kind == "f" else row.dtype)


class _Numbered(Sequence[str]):
    """"input 0", "input 1" ..."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        return f"input {range(self._count)[index]}"


def _read_arrays(path: Path) -> dict[str, Array]:
    """Name -> array of a file; "input" for the only one of an .npy file."""
    try:
        if path.suffix == ".safetensors":
            import safetensors.numpy
            return dict(safetensors.numpy.load_file(path))
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"input": loaded}
        with loaded:
            return {name: loaded[name] for name in loaded.files}
    except OSError:
        raise
    except Exception as error:  # whatever the three readers raise for damaged files
        raise DataError(f"{path} cannot be read: {error}") from error


def _need_pillow() -> None:
    try:
        import PIL.Image  # noqa: F401
    except ModuleNotFoundError as error:
        raise DataError("reading images needs Pillow, which is not installed: pip install 'tersor[images]'") from error
