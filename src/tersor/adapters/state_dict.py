"""PyTorch files (.pt, .pth, .bin) -> Inventory: state dicts, also within checkpoints, never running code of theirs.

`torch.load(weights_only=True)` reads the pickle; anything in it that is more than tensors and plain values is
refused. What is not a tensor (the pickle with its order of keys, `_metadata`, the epoch) is kept, so that a restored
file is the one that came in, but for the weights.
"""

from __future__ import annotations

import io
import os
import pickle
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..bitstream.source import PathLike
from ..errors import ModelError
from .archive import Record, records
from .inventory import Inventory
from .safetensors import inventory_of_arrays
from .skeleton import Checksum, Skeleton, cut

FORMAT = "pytorch"
NESTED = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "weights", "params",
          "ema_state_dict")
"""Keys under which checkpoints keep the state dict, in the order in which they are tried."""
_DANGEROUS = {"eval", "exec", "open", "getattr", "os", "posix", "nt", "subprocess", "builtins", "__builtin__", "sys",
              "socket", "shutil", "runpy", "importlib", "pty", "ctypes", "pickle", "code", "webbrowser", "urllib",
              "requests", "asyncio", "timeit"}
"""Modules and builtins that are in pickles only for attacks."""


def read(path: PathLike) -> tuple[Inventory, list[str]]:
    """The state dict in a file, and notes on what was left out.

    Names and shapes tell which tensors are layers, as in `adapters.safetensors`. Files of torch before 1.6, and
    checkpoints that hold tensors beside the state dict (an optimizer's), come back as a state dict in today's format.
    Raises ModelError for a pickle with code or a whole module in it (with what to do), for TorchScript, and where there
    is no state dict; OSError where the file cannot be read.
    """
    label = os.fspath(path)
    loaded = _load(label)
    state, key = find_state(loaded, label)
    notes = []
    others = sum(tensor.nbytes for tensor in _tensors_in(loaded)) - sum(tensor.nbytes for tensor in state.values())
    skeleton = None
    if others <= 0:
        with open(label, "rb") as file:
            skeleton = _skeleton(file.read(), state, label)
    else:
        notes.append(f"{label} holds {others:,} bytes of tensors beside its state dict {key!r} (an optimizer?): they "
                     f"are left out; it comes back as a state dict alone")
    if skeleton is None:
        if others <= 0:
            notes.append(f"{label} is not in the format of torch 1.6 and later, or has tensors that overlap: it comes "
                         f"back in today's format")
        skeleton = _canonical(state)
    inventory = inventory_of_arrays(state)
    return replace(inventory, format=FORMAT, source=skeleton.to_bytes(inventory.names)), notes


def find_state(loaded: object, label: str) -> tuple[dict[str, Tensor], str]:
    """The tensors of the state dict in what a file held, and the key that it was under ("" for none)."""
    candidates: list[tuple[str, object]] = [("", loaded)]
    if isinstance(loaded, Mapping):
        candidates += [(key, loaded[key]) for key in NESTED if key in loaded]
    for key, value in candidates:
        if isinstance(value, Mapping):
            found = {name: item for name, item in value.items() if isinstance(item, Tensor)}
            if found and all(isinstance(name, str) for name in found):
                return {name: tensor.detach() for name, tensor in found.items()}, key
    what = f"a mapping with the keys {', '.join(map(str, list(loaded)[:8]))}" if isinstance(loaded, Mapping) \
        else f"a {type(loaded).__name__}"
    raise ModelError(f"{label} holds {what}, and no state dict: in Python, torch.save(model.state_dict(), path) "
                     f"writes one")


def check_weights_only(data: bytes, label: str) -> object:
    """What a pickle of tensors and plain values holds. Raises ModelError where it would run code."""
    return _safely(lambda: torch.load(io.BytesIO(data), map_location="cpu", weights_only=True), label)


def _load(label: str) -> object:
    with open(label, "rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"
        if is_zip:
            file.seek(0)
            found = records(file.read(), label)
            if "constants.pkl" in found or any(name.startswith("code/") for name in found):
                raise ModelError(f"{label} is a TorchScript program, which holds code; in Python: "
                                 f"torch.save(torch.jit.load(path).state_dict(), 'weights.pt'), or compress the "
                                 f"module that it was made of")
    return _safely(lambda: torch.load(label, map_location="cpu", weights_only=True, mmap=is_zip or None), label)


def _safely(load: Callable[[], object], label: str) -> object:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of pickle protocols
            return load()
    except OSError:
        raise
    except Exception as error:  # whatever torch raises for hostile or damaged bytes
        raise _refusal(label, error) from None


def _refusal(label: str, error: Exception) -> ModelError:
    """Why a file was refused, in one line, and what to do."""
    text = str(error)
    named = re.search(r"GLOBAL ([\w.]+)|Unsupported (?:global|class) ([\w.]+)", text)
    what = (named[1] or named[2]) if named else ""
    if what and what.partition(".")[0] in _DANGEROUS:
        return ModelError(f"{label} is refused: its pickle calls {what}, which no model needs. Do not load it; ask for "
                          f"a .safetensors file")
    if what:
        return ModelError(f"{label} is refused: its pickle needs {what}, which is code. If it is a whole module that "
                          f"you trust, torch.save(torch.load(path, weights_only=False).state_dict(), 'weights.pt') "
                          f"makes a state dict of it; or give tersor the module as package.module:factory")
    reason = re.search(r"WeightsUnpickler error: *(.*)", text) if isinstance(error, pickle.UnpicklingError) else None
    lines = [reason[1] if reason else text, type(error).__name__]
    line = next(line for part in lines for line in part.strip().splitlines() if line)
    return ModelError(f"{label} is not a PyTorch file that can be read without running code: {line[:200]}")


def _skeleton(data: bytes, state: Mapping[str, Tensor], label: str) -> Skeleton | None:
    """The file with holes for the tensors; None where it is not one that can be put together again."""
    if not data.startswith(b"PK\x03\x04"):
        return None
    stored = [record for name, record in records(data, label).items() if name.startswith("data/") and record.length]
    base = _base(stored, state)
    if base is None:
        return None
    spans: dict[int, tuple[int, int, str, tuple[int, ...] | None]] = {}
    touched: list[Checksum] = []
    for name, tensor in state.items():
        if tensor.numel() == 0:
            continue
        start = tensor.data_ptr() - base
        axes = dense_axes(tensor)
        if axes is None or spans.get(start, (0, tensor.nbytes))[1] != tensor.nbytes:
            return None
        straight = axes == tuple(range(tensor.ndim))
        spans.setdefault(start, (start, tensor.nbytes, name, None if straight else axes))
        touched += [record.checksum for record in stored
                    if record.start <= start < record.start + record.length and record.checksum not in touched]
    try:
        skeleton = Skeleton(FORMAT, [cut("", data, list(spans.values()), touched)])
    except ModelError:  # overlapping views
        return None
    arrays = inventory_of_arrays(state)
    tensors = {name: arrays.tensors[arrays.aliases.get(name, name)] for name in arrays.names}
    return skeleton if skeleton.filled(tensors)[""] == data else None


def _canonical(state: Mapping[str, Tensor]) -> Skeleton:
    """Of the state dict alone, as torch writes it now, without views."""
    own = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "state.pt")
        torch.save(own, path)
        mapped = torch.load(path, weights_only=True, mmap=True)
        with open(path, "rb") as file:
            skeleton = _skeleton(file.read(), mapped, path)
        del mapped
    if skeleton is None:
        raise ModelError("the state dict cannot be written as a PyTorch file of this version; save it as .safetensors")
    return skeleton


def _base(stored: Sequence[Record], state: Mapping[str, Tensor]) -> int | None:
    """The address of the mapped file: the one at which all storages are records."""
    places = {(record.start, record.length) for record in stored}
    storages = {(tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes())
                for tensor in state.values() if tensor.numel()}
    if not storages:
        return 0
    first, length = min(storages)
    for start, size in sorted(places):
        if size == length and all((address - first + start, count) in places for address, count in storages):
            return first - start
    return None


def dense_axes(tensor: Tensor) -> tuple[int, ...] | None:
    """The order of axes in which the elements stand in memory; None where they are not dense."""
    if tensor.is_contiguous():
        return tuple(range(tensor.ndim))
    strides = tensor.stride()
    axes = tuple(sorted(range(tensor.ndim), key=lambda axis: -strides[axis] if tensor.shape[axis] > 1 else 0))
    return axes if tensor.permute(axes).is_contiguous() else None


def _tensors_in(value: object) -> Iterator[Tensor]:
    """All different tensors in nested containers."""
    seen: set[int] = set()
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, Tensor):
            if id(item) not in seen:
                seen.add(id(item))
                yield item
        elif isinstance(item, Mapping):
            pending += list(item.values())
        elif isinstance(item, list | tuple | set):
            pending += list(item)
