"""A sweep: the same model at many rates, each a file that is restored and measured; the record of it as JSON.

    document = sweep(model, stats, [1.6, 2, 3], "sweep", batches=labelled)

sweep/sweep.json is written after each point: what is finished is kept when the same sweep is started again, as long as
its file is there and unchanged. Each file is the one that `tersor.compress(model, stats, bits=...)` gives.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import __version__
from ..adapters.inventory import Inventory
from ..adapters.module import inventory_of_module, load_into
from ..bitstream.atomic import atomic_write
from ..config import Config
from ..encoder import compress
from ..errors import ConfigError, DataError, TargetError
from ..evaluate import compare, logits
from ..statistics import Statistics, digests
from . import baselines

FILE = "sweep.json"
KIND = "tersor sweep"
VERSION = 1

Document = dict[str, Any]


def sweep(model: nn.Module | Inventory, stats: Statistics | None, bits: Sequence[float],
          folder: str | os.PathLike[str], *, batches: Iterable[Any] | None = None, config: Config | None = None,
          name: str = "", notes: Sequence[str] = (), peers: bool = True,
          progress: Callable[[str], None] | None = None) -> Document:
    """Compress `model` at each of `bits` (bits/weight) into `folder`, measure each file, return what sweep.json holds.

    * `model`: an nn.Module, or the tensors of a model that cannot be run (then nothing is measured but size).
    * `stats`: from `tersor.calibrate`, or None for data-free compression.
    * `batches`: inputs, or (inputs, labels), iterated once for each network: the outputs are compared with those of the
      model itself, and the accuracy where there are labels. Images that were not calibrated on.
    * `name`, `notes`: of the model and how it was measured, for readers. `peers`: baselines as well (`baselines`).

    A rate that is out of reach becomes a point with an "error". Raises `ConfigError`, `DataError` (the folder holds
    another sweep), OSError, and whatever `tersor.compress` does.
    """
    if not bits or not all(isinstance(b, int | float) and 0 < b < math.inf for b in bits):
        raise ConfigError(f"bits={list(bits)!r} must be positive numbers of bits/weight")
    network = model if isinstance(model, nn.Module) else None
    inventory = inventory_of_module(model) if isinstance(model, nn.Module) else model
    if batches is not None and network is None:
        raise ConfigError("batches are for a network that can be run; these are only its tensors")
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    measure = _Measure(network, batches)
    key = _key(inventory, stats, config or Config(), measure)
    old: Document = read(place) if (place / FILE).exists() else {"points": [], "key": key}
    if old["key"] != key:
        raise DataError(f"{place / FILE} is of another sweep (other weights, statistics, options, evaluation data or "
                        f"version of tersor): give another folder, or delete it")
    document: Document = {
        "kind": KIND, "version": VERSION, "tersor": __version__, "key": key, "name": name, "notes": list(notes),
        "parameters": inventory.parameters, "tensors": len(inventory.tensors),
        "fp32_bytes": 4 * inventory.parameters,
        "raw_bytes": sum(array.nbytes for array in inventory.tensors.values()),
        "calibration_images": None if stats is None else stats.images, "options": _told(config or Config()),
        "samples": measure.count, "top1": measure.top1, "points": [], "baselines": old.get("baselines", []),
    }
    kept = {point["asked_bits"]: point for point in old["points"] if _is_whole(place, point)}
    for rate in sorted(set(map(float, bits)) | set(kept)):
        if (point := kept.get(rate)) is None:
            if progress is not None:
                progress(f"{rate:g} bits/weight")
            point = _point(model, stats, rate, place, config, measure)
        document["points"].append(point)
        _write(place, document)
    if peers and not document["baselines"]:
        if progress is not None:
            progress("baselines")
        document["baselines"] = _baselines(inventory, measure)
    _write(place, document)
    return document


def read(folder: str | os.PathLike[str]) -> Document:
    """The record of a sweep. Raises `DataError` where there is none that this version can read."""
    path = Path(folder) / FILE
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, ValueError) as error:
        raise DataError(f"{path} is no JSON: {error}") from error
    if not isinstance(document, dict) or document.get("kind") != KIND or document.get("version") != VERSION:
        raise DataError(f"{path} is no record of a sweep of version {VERSION}")
    return document


class _Measure:
    """A network against the one that it came from, on the same inputs."""

    def __init__(self, model: nn.Module | None, batches: Iterable[Any] | None) -> None:
        self.model, self.batches = model, batches
        self.reference: Tensor | None = None
        self.labels: Tensor | None = None
        self.count, self.top1 = 0, None
        if model is not None and batches is not None:
            self.reference = logits(model, batches)
            found = [batch[1] for batch in batches if isinstance(batch, tuple | list) and len(batch) > 1]
            if found:
                self.labels = torch.cat([torch.as_tensor(part) for part in found])
            first = compare(self.reference, self.reference, self.labels)
            self.count, self.top1 = first.count, first.top1

    def __call__(self, tensors: Any, aliases: Any = None) -> dict[str, Any] | None:
        """Of the network with other tensors; None where nothing can be measured."""
        if self.model is None or self.reference is None or self.batches is None:
            return None
        other = load_into(copy.deepcopy(self.model), tensors, aliases)
        return compare(self.reference, logits(other, self.batches), self.labels).as_dict()

    def digest(self) -> str:
        if self.reference is None:
            return ""
        labels = b"" if self.labels is None else self.labels.numpy().tobytes()
        return hashlib.sha256(self.reference.numpy().tobytes() + labels).hexdigest()


def _point(model: nn.Module | Inventory, stats: Statistics | None, rate: float, place: Path, config: Config | None,
           measure: _Measure) -> dict[str, Any]:
    """One file, and all that is known of it."""
    start = time.perf_counter()
    try:
        packed = compress(model, stats, bits=rate, config=config)
    except TargetError as error:
        return {"asked_bits": rate, "error": str(error)}
    seconds = time.perf_counter() - start
    path = place / f"{rate:g}-bits.tersor"
    packed.save(path)
    size = path.stat().st_size
    with packed.load() as file:
        measured = measure(file.read_all(), file.aliases if file.tied else None)
    return {"asked_bits": rate, "file": path.name, "sha256": hashlib.sha256(packed.data).hexdigest(), "bytes": size,
            "bits_per_weight": 8 * size / max(1, packed.parameters), "encode_seconds": round(seconds, 3),
            "measured": measured, **packed.report()}


def _is_whole(place: Path, point: dict[str, Any]) -> bool:
    """Whether a point is finished and its file as it was."""
    if "error" in point:
        return True
    path = place / Path(str(point["file"])).name
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == point["sha256"]


def _baselines(inventory: Inventory, measure: _Measure) -> list[dict[str, Any]]:
    tensors = {name: array.astype(np.float32) for name, array in inventory.tensors.items()
               if _is_float(array) and array.size}
    rest = {name: array for name, array in inventory.tensors.items() if name not in tensors}
    found = []
    for coded in (baselines.int8_zstd(tensors), *(baselines.rtn_entropy(tensors, step) for step in baselines.STEPS)):
        restored = {name: array.astype(inventory.tensors[name].dtype) for name, array in coded.tensors.items()}
        found.append({"codec": coded.peer, "setting": coded.setting, "bytes": coded.size, "ideal": coded.ideal,
                      "bits_per_weight": 8 * coded.size / max(1, inventory.parameters),
                      "measured": measure(restored | rest)})
    return found


def _is_float(array: Any) -> bool:
    return str(array.dtype).startswith(("float", "bfloat"))


def _key(inventory: Inventory, stats: Statistics | None, config: Config, measure: _Measure) -> str:
    """SHA-256 of all that the points depend on."""
    head = hashlib.sha256(json.dumps([VERSION, __version__, repr(config), digests(inventory), measure.digest()],
                                     sort_keys=True).encode())
    for name, layer in sorted(stats.layers.items()) if stats is not None else ():
        head.update(name.encode())
        for array in (layer.A, layer.G):
            head.update(np.ascontiguousarray(array).data)
    return head.hexdigest()


def _told(config: Config) -> str:
    """What is not as by default, and the effort."""
    default = Config()
    changed = [f"{each.name}={getattr(config, each.name)!r}" for each in fields(config)
               if each.name != "effort" and getattr(config, each.name) != getattr(default, each.name)]
    return ", ".join([f"effort={config.effort}", *changed])


def _write(place: Path, document: Document) -> None:
    with atomic_write(place / FILE) as file:
        file.write((json.dumps(_plain(document), indent=1, sort_keys=True) + "\n").encode())


def _plain(value: Any) -> Any:
    """JSON has no infinities and no NaN: null stands for them."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
