"""What one `compress` has finished so far, in a folder, so that it can go on after an interruption.

    FOLDER/state             what the task is: model, statistics, options, target
    FOLDER/trial-2           a finished trial of the search for lambda, and trial-2.tersor, its file
    FOLDER/layers-3/0007     a finished layer of the trial that is under way

An interrupted run that is started again with the same arguments takes the same steps, and finds what is here instead
of computing it: the file that comes out is the same.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import records
from .adapters.inventory import Inventory
from .bitstream.atomic import atomic_write
from .choice import Chooser, Decision, Known, Variant
from .config import Config
from .encoding import Encoding
from .errors import FormatError, ModelError, StateError
from .parallel import Team
from .statistics import Statistics, digests
from .synthesis.kernel_code import KernelCode
from .synthesis.scalar import ScalarCode
from .synthesis.transform_blocks import BlockCode, Cuts
from .synthesis.transform_code import TransformCode
from .synthesis.transform_maps import Dct
from .tools.kernel_choice import Book

VERSION = 1
CLASSES = (ScalarCode, TransformCode, BlockCode, Cuts, Dct, KernelCode, Decision, Known, Variant, Book)
"""What may be in a folder besides numbers, texts and arrays."""


def task(inventory: Inventory, statistics: Statistics | None, config: Config, target: tuple[str, float],
         sensitivity: Mapping[str, Any], library: str) -> dict[str, Any]:
    """What must be the same for an interrupted run to go on, as digests and texts."""
    return {"version": VERSION, "tersor": library,
            "model": [Statistics.fingerprint_of(digests(inventory)), list(inventory.names)],
            "statistics": _digest(statistics), "options": repr(config), "target": list(target),
            "sensitivity": _digest(dict(sensitivity))}


@dataclass
class Journal:
    """The folder. On many processes, that of rank 0 counts, and the others learn from it."""

    folder: Path
    team: Team

    @staticmethod
    def open(folder: str | os.PathLike[str], about: Mapping[str, Any], team: Team) -> Journal:
        """Begin, or go on. Raises StateError where the folder belongs to another task, or to none."""
        journal = Journal(Path(folder), team)
        if team.rank == 0:
            place = journal.folder / "state"
            if place.exists():
                _compare(records.load(place), about, journal.folder)
            elif journal.folder.exists() and any(journal.folder.iterdir()):
                raise StateError(f"{folder} is a folder with other things in it; name one that is empty or not there")
            else:
                journal.folder.mkdir(parents=True, exist_ok=True)
                records.save(place, dict(about))
        return journal

    def trial(self, number: int, log_price: float) -> tuple[dict[str, Any], bytes] | None:
        """A finished trial and its file, or None."""
        found = self._read_trial(number, log_price) if self.team.rank == 0 else None
        return self.team.broadcast(found)  # type: ignore[no-any-return]

    def finish(self, number: int, record: Mapping[str, Any], data: bytes) -> None:
        """Keep a trial; its layers are not needed any more."""
        if self.team.rank == 0:
            with atomic_write(self.folder / f"trial-{number}.tersor") as file:
                file.write(data)
            records.save(self.folder / f"trial-{number}", {**record, "sha256": hashlib.sha256(data).hexdigest()})
            shutil.rmtree(self.folder / f"layers-{number}", ignore_errors=True)

    def layers(self, number: int) -> LayerJournal:
        """For the layers of one trial."""
        return LayerJournal(self, self.folder / f"layers-{number}")

    def _read_trial(self, number: int, log_price: float) -> tuple[dict[str, Any], bytes] | None:
        place = self.folder / f"trial-{number}"
        if not place.exists():
            return None
        record = records.load(place, CLASSES)
        file = self.folder / f"trial-{number}.tersor"
        data = file.read_bytes() if file.exists() else b""
        try:
            if record["log_price"] != log_price:
                raise ValueError(f"it is of another lambda, 2^{record['log_price']} and not 2^{log_price}")
            if hashlib.sha256(data).hexdigest() != record["sha256"]:
                raise ValueError("its .tersor file is missing or damaged")
        except (KeyError, TypeError, ValueError) as error:
            raise StateError(f"{place}: cannot go on from this trial ({error}); remove the folder to begin "
                             f"anew") from None
        return record, data


@dataclass
class LayerJournal:
    """The finished layers of one trial."""

    journal: Journal
    folder: Path

    def recall(self, encoding: Encoding, name: str, generator: torch.Generator | None = None) -> bool:
        """Put a layer into the encoding as it was; whether it was there. generator: of the walk, set to what it was
        after the layer."""
        team, place = self.journal.team, self._place(encoding, name)
        found = team.broadcast([records.load(place, CLASSES)] if team.rank == 0 and place.exists() else None)
        if found is None:
            return False
        record = found[0]
        try:
            if record["name"] != name:
                raise ValueError(f"it is layer {record['name']!r}")
            for key, kinds in (("code", (ScalarCode, TransformCode, KernelCode)), ("decision", (Decision, type(None))),
                               ("known", (Known, type(None))), ("book", (Book, type(None)))):
                if not isinstance(record[key], kinds):
                    raise TypeError(f"its {key} is a {type(record[key]).__name__}")
            encoding.put(name, record["code"])
            if encoding.restored(name).shape != encoding.plan.inventory.tensors[name].shape:
                raise ValueError("another shape")
            chooser = encoding.plan.chooser
            if record["decision"] is not None:
                encoding.decisions[name] = record["decision"]
            chooser.recall({name: record["known"]} if record["known"] is not None else {},
                           {name: record["book"]} if record["book"] is not None else {})
            if generator is not None:
                generator.set_state(torch.from_numpy(record["generator"].copy()))
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError, FormatError,
                ModelError) as error:
            raise StateError(f"{place}: cannot go on from this layer ({error}); remove the folder to begin "
                             f"anew") from None
        encoding.fitted.add(name)
        return True

    def note(self, encoding: Encoding, name: str, generator: torch.Generator | None = None) -> None:
        """Keep a layer that is finished."""
        if self.journal.team.rank != 0:
            return
        self.folder.mkdir(exist_ok=True)
        known, books = encoding.plan.chooser.memory(name)
        records.save(self._place(encoding, name), {
            "name": name, "code": encoding.code(name), "decision": encoding.decisions.get(name),
            "known": known.get(name), "book": books.get(name),
            "generator": None if generator is None else generator.get_state().numpy()})

    def fallback(self) -> dict[str, Any] | None:
        """The record of `fall_back`, if there is one."""
        team, place = self.journal.team, self.folder / "fallback"
        found = records.load(place, CLASSES) if team.rank == 0 and place.exists() else None
        return team.broadcast(found)  # type: ignore[no-any-return]

    def fall_back(self, chooser: Chooser, note: str) -> None:
        """The walk has failed: forget its layers, and keep why."""
        if self.journal.team.rank == 0:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir()
            known, books = chooser.memory()
            records.save(self.folder / "fallback", {"note": note, "known": known, "books": books})

    def _place(self, encoding: Encoding, name: str) -> Path:
        return self.folder / f"{list(encoding.plan.layers).index(name):04d}"


def _compare(found: Any, about: Mapping[str, Any], folder: Path) -> None:
    """Raise StateError naming what differs."""
    if not isinstance(found, dict):
        raise StateError(f"{folder} holds no state of compress; name another folder")
    for key, value in about.items():
        if found.get(key) != value:
            what = {"version": "another version of states", "tersor": "another version of tersor"}.get(
                key, f"another {key}" if key != "statistics" else "other statistics")
            raise StateError(f"{folder} is the state of another task: it has {what}. Give the same arguments as then "
                             f"to go on, or another folder")


def _digest(value: object) -> str:
    """SHA-256 over data with arrays and tensors in it."""
    state = hashlib.sha256()

    def add(item: object) -> None:
        if isinstance(item, torch.Tensor):
            item = item.detach().cpu().contiguous().view(torch.uint8).numpy() if item.numel() else np.zeros(0)
        if isinstance(item, np.ndarray):
            state.update(f"{item.dtype}{item.shape}".encode())
            state.update(np.ascontiguousarray(item).reshape(-1).view(np.uint8).data)
        elif is_dataclass(item) and not isinstance(item, type):
            for part in fields(item):
                state.update(part.name.encode())
                add(getattr(item, part.name))
        elif isinstance(item, Mapping):
            for key, part in item.items():
                state.update(repr(key).encode())
                add(part)
        elif isinstance(item, list | tuple):
            for part in item:
                add(part)
        else:
            state.update(repr(item).encode())

    add(value)
    return state.hexdigest()
