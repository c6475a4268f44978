"""Folders as the Hugging Face hub has them -> Inventory: one model in several .safetensors files.

`model.safetensors.index.json` says which file has which tensor; a folder may also have one `model.safetensors`, or
PyTorch files of either kind. The small JSON files beside the weights (configuration, index) travel with the model.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from typing import Any

from ..bitstream.source import PathLike
from ..errors import ModelError
from . import safetensors
from .inventory import Inventory
from .skeleton import FileWithHoles, Skeleton, cut, safe_relative

FORMAT = "folder"
WEIGHTS = ("model.safetensors.index.json", "model.safetensors", "diffusion_pytorch_model.safetensors.index.json",
           "diffusion_pytorch_model.safetensors")
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
"""What a folder is searched for, in this order."""
_MOST_JSON = 1 << 20


def read(path: PathLike) -> tuple[Inventory, list[str]]:
    """All weights of a folder, with its JSON files of up to 1 MiB in the root.

    Tokenizers' and other files are not part of the model and are left where they are. Raises ModelError for a folder
    without weights, an index that names files outside the folder or tensors that are not there, OSError.
    """
    folder = os.fspath(path)
    present = [name for name in WEIGHTS if os.path.isfile(os.path.join(folder, name))]
    if not present:
        return _pickled(folder)
    shards = _shards(folder, present[0]) if present[0].endswith(".index.json") else {present[0]: None}
    tensors: dict[str, Any] = {}
    metadata: dict[str, str] = {}
    parts = [FileWithHoles(name, _bytes(folder, name)) for name in _json_files(folder)]
    for shard, expected in shards.items():
        found, about, data = safetensors.mapped(os.path.join(folder, shard))
        if expected is not None and set(found) != expected:
            odd = sorted(set(found) ^ expected)[0]
            raise ModelError(f"{folder}: {present[0]} and {shard} do not agree on tensor {odd!r}")
        twice = [name for name in found if name in tensors]
        if twice:
            raise ModelError(f"{folder}: tensor {twice[0]!r} is in two files")
        tensors |= found
        metadata |= about
        spans = [(start, length, name, None) for name, (start, length) in safetensors.spans(data).items() if length]
        parts.append(cut(shard, data, spans))
    inventory = safetensors.inventory_of_arrays(tensors, metadata)
    skeleton = Skeleton(FORMAT, parts)
    return replace(inventory, format=FORMAT, source=skeleton.to_bytes(inventory.names)), []


def _shards(folder: str, index: str) -> dict[str, set[str] | None]:
    """File -> its tensors, as the index says."""
    try:
        weight_map = json.loads(_bytes(folder, index))["weight_map"]
        shards: dict[str, set[str] | None] = {}
        for name, shard in weight_map.items():
            if not isinstance(shard, str):
                raise TypeError(f"{shard!r} is no file name")
            names = shards.setdefault(shard, set())
            assert names is not None
            names.add(name)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{os.path.join(folder, index)} is not an index of weights: {error}") from None
    for shard in shards:
        inside = os.path.realpath(folder)
        place = os.path.realpath(os.path.join(inside, shard))
        within = os.path.commonpath([inside, place]) == inside or _is_cached(folder, shard)
        if not safe_relative(shard) or not within:
            raise ModelError(f"{os.path.join(folder, index)} names {shard!r}, which is outside the folder; refused")
        if not os.path.isfile(place):
            raise ModelError(f"{os.path.join(folder, index)} names {shard!r}, which is not there")
    return shards


def _is_cached(folder: str, shard: str) -> bool:
    """The hub's own cache has links from snapshots/HASH/ to files in blobs/ of the same model."""
    snapshot = os.path.realpath(folder)
    blobs = os.path.join(os.path.dirname(os.path.dirname(snapshot)), "blobs")
    return os.path.basename(os.path.dirname(snapshot)) == "snapshots" \
        and os.path.dirname(os.path.realpath(os.path.join(snapshot, shard))) == blobs


def _pickled(folder: str) -> tuple[Inventory, list[str]]:
    """pytorch_model.bin. An index of several is left to the library that wrote it."""
    from . import state_dict
    present = [name for name in PICKLED if os.path.isfile(os.path.join(folder, name))]
    if present[:1] == ["pytorch_model.bin"]:
        return state_dict.read(os.path.join(folder, "pytorch_model.bin"))
    if present:
        raise ModelError(f"{folder} has its weights in several pickles; with transformers: "
                         f"AutoModel.from_pretrained({folder!r}).save_pretrained('other') writes .safetensors files")
    raise ModelError(f"{folder} has none of {', '.join((*WEIGHTS[:2], PICKLED[0]))}: it is no folder with a model")


def _json_files(folder: str) -> list[str]:
    return sorted(name for name in os.listdir(folder) if name.endswith(".json") and not name.startswith((".", "token"))
                  and os.path.isfile(os.path.join(folder, name))
                  and os.path.getsize(os.path.join(folder, name)) <= _MOST_JSON)


def _bytes(folder: str, name: str) -> bytes:
    with open(os.path.join(folder, name), "rb") as file:
        return file.read()
