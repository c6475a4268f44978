"""Plain data with arrays in small files, for work that is to go on after an interruption.

    save(path, {"price": 0.5, "codes": {"conv.weight": ScalarCode(...)}})
    load(path, (ScalarCode,))

A file is written atomically and carries a SHA-256. Reading runs no code: there are numbers, texts, arrays, lists,
tuples, dicts, and the dataclasses that the reader names, whose fields are checked against their type hints.
"""

from __future__ import annotations

import hashlib
import json
import os
import types
import typing
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from .bitstream.atomic import atomic_write
from .errors import StateError

MAGIC = b"\x93tersor state 1\n"
_DIGEST = 32
_JSON = "json"
_WHOLE = ("int8", "int16", "int32", "int64")


def save(path: str | os.PathLike[str], value: object) -> None:
    """Write a value atomically. Raises TypeError for what has no place in such a file, OSError."""
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    text = json.dumps(_down(value, arrays), separators=(",", ":")).encode()
    arrays[_JSON] = np.frombuffer(text, dtype=np.uint8)
    body = safetensors.numpy.save(arrays)
    with atomic_write(path) as file:
        file.write(MAGIC + hashlib.sha256(body).digest() + body)


def load(path: str | os.PathLike[str], classes: Sequence[type] = ()) -> Any:
    """What `save` wrote. Raises StateError for anything else, OSError."""
    with open(path, "rb") as file:
        data = file.read()
    start = len(MAGIC) + _DIGEST
    try:
        if not data.startswith(MAGIC) or hashlib.sha256(data[start:]).digest() != data[len(MAGIC) : start]:
            raise ValueError("it is no state file of this version, or is damaged")
        arrays = safetensors.numpy.load(data[start:])
        tree = json.loads(arrays.pop(_JSON).tobytes())
        return _up(tree, arrays, {cls.__name__: cls for cls in classes})
    except (SafetensorError, ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError,
            RecursionError) as error:
        raise StateError(f"{os.fspath(path)}: cannot go on from this state ({error}); remove its folder to begin "
                         f"anew") from None


def _down(value: object, arrays: dict[str, np.ndarray[Any, Any]]) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.integer | np.floating | np.bool_):
        return value.item()
    if isinstance(value, np.ndarray):
        name = f"a{len(arrays)}"
        arrays[name] = np.ascontiguousarray(_narrow(value)).reshape(value.shape)
        return {"array": name, "dtype": value.dtype.name}
    if isinstance(value, bytes):
        return {"bytes": _down(np.frombuffer(value, dtype=np.uint8), arrays)}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [_down(item, arrays) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[_down(key, arrays), _down(item, arrays)] for key, item in value.items()]}
    if is_dataclass(value) and not isinstance(value, type):
        return {"class": type(value).__name__,
                "fields": {item.name: _down(getattr(value, item.name), arrays) for item in fields(value) if item.init}}
    raise TypeError(f"a {type(value).__name__} cannot be kept in a state")


def _up(tree: Any, arrays: dict[str, np.ndarray[Any, Any]], classes: dict[str, type]) -> Any:
    if not isinstance(tree, dict):
        if isinstance(tree, list):
            raise TypeError("a bare list")
        return tree
    if "array" in tree:
        array, dtype = arrays[tree["array"]], np.dtype(tree["dtype"])
        if dtype.hasobject:
            raise TypeError("an array of objects")
        return array if array.dtype == dtype else array.astype(dtype)
    if "bytes" in tree:
        return _up(tree["bytes"], arrays, classes).tobytes()
    for kind in (list, tuple):
        if kind.__name__ in tree:
            return kind(_up(item, arrays, classes) for item in tree[kind.__name__])
    if "dict" in tree:
        return {_up(key, arrays, classes): _up(item, arrays, classes) for key, item in tree["dict"]}
    cls: Any = classes[tree["class"]]
    given = {name: _up(item, arrays, classes) for name, item in tree["fields"].items()}
    hints = typing.get_type_hints(cls)
    given = {name: _numbered(value, hints[name]) for name, value in given.items()}
    for name, value in given.items():
        if not _fits(value, hints[name]):
            raise TypeError(f"{tree['class']}.{name} is a {type(value).__name__}")
    return cls(**given)


def _numbered(value: object, hint: Any) -> object:
    """A number as the member of the enumeration that a field with this type hint may hold."""
    if isinstance(value, int) and not isinstance(value, bool):
        for kind in typing.get_args(hint) or (hint,):
            if isinstance(kind, type) and issubclass(kind, IntEnum):
                return kind(value)
    return value


def _fits(value: object, hint: Any) -> bool:
    """Whether a value may stand in a field with this type hint."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or isinstance(hint, typing.TypeVar):
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if origin is typing.Literal:
        return value in arguments
    if origin is np.ndarray:
        wanted = typing.get_args(arguments[1])[0]
        known = isinstance(wanted, type) and issubclass(wanted, np.generic)
        return isinstance(value, np.ndarray) and (not known or issubclass(value.dtype.type, wanted))
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if arguments[1:] == (Ellipsis,):
            return all(_fits(item, arguments[0]) for item in value)
        return len(value) == len(arguments) and all(map(_fits, value, arguments))
    if origin is not None:
        return isinstance(value, origin)
    if hint is float:
        return isinstance(value, float | int) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint if hint is not None else type(None))


def _narrow(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Integers in as few bytes as they need."""
    if array.dtype.name not in _WHOLE or not array.size:
        return array
    low, high = int(array.min()), int(array.max())
    fitting = (name for name in _WHOLE if np.iinfo(name).min <= low and high <= np.iinfo(name).max)
    return array.astype(next(fitting))
