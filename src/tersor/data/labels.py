"""Files that say which class each input belongs to."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np
import numpy.typing as npt

from ..errors import DataError

Labels = npt.NDArray[np.int64]


def read_labels(path: str | os.PathLike[str], names: Sequence[str] | int) -> Labels:
    """Class indexes, int64 [N], of inputs called `names` (paths with /), or just of so many inputs.

    * .csv: lines `name,index`, a header or not; names as paths below the folder, or as file names where these differ.
    * .npy, or any other text: an index per input, in the order of the inputs.

    Raises `DataError` naming an input without a label, or a line that is none.
    """
    path = os.fspath(path)
    count = names if isinstance(names, int) else len(names)
    if path.lower().endswith(".csv"):
        if isinstance(names, int):
            raise DataError(f"{path}: arrays have no names; give labels as .npy or .txt, one index per input in order")
        return _by_name(path, names)
    if path.lower().endswith(".npy"):
        try:
            found = np.load(path, allow_pickle=False)
        except ValueError as error:
            raise DataError(f"{path} cannot be read: {error}") from error
    else:
        with open(path, encoding="utf-8") as file:
            found = np.array([_index(line, path, i) for i, line in enumerate(file, 1) if line.strip()], np.int64)
    if found.shape != (count,) or found.dtype.kind not in "iu":
        raise DataError(f"{path} holds labels of shape {found.shape} and type {found.dtype}, there are {count} inputs")
    return np.asarray(found, np.int64)


def _by_name(path: str, names: Sequence[str]) -> Labels:
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = [(i, row) for i, row in enumerate(csv.reader(file), 1) if row]
    if rows and (len(rows[0][1]) < 2 or not _is_index(rows[0][1][1])):
        rows = rows[1:]  # a header
    known: dict[str, int] = {}
    for i, row in rows:
        if len(row) < 2:
            raise DataError(f"{path}, line {i}: wanted is NAME,CLASS INDEX")
        known[row[0].strip()] = _index(row[1], path, i)
    found = [known.get(name, known.get(PurePosixPath(name).name)) for name in names]
    missing = [name for name, label in zip(names, found, strict=True) if label is None]
    if missing:
        raise DataError(f"{path} has no label for {missing[0]} ({len(missing)} of {len(names)} images lack one)")
    return np.array(found, np.int64)


def _is_index(text: str) -> bool:
    return text.strip().isascii() and text.strip().isdigit()


def _index(text: str, path: str, line: int) -> int:
    if not _is_index(text):
        raise DataError(f"{path}, line {line}: {text.strip()!r} is no class index")
    return int(text)
