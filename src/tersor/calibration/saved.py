"""The sums of an unfinished calibration on disk, for each process its own, so that it can go on after an interruption.

Batches that were done are read again (the kept inputs are among them, and a checksum tells whether they are the same)
but not run again.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .. import records
from ..adapters.calls import tensors_in
from ..errors import StateError
from ..parallel import Team
from .batches import Batch
from .run import Run

INTERVAL = 30.0
"""Seconds between saves, at least; and at least SHARE times what a save takes."""
SHARE = 20.0


class Saved:
    """The folder of a calibration: the last two saves of each process, in case one is killed while it saves."""

    def __init__(self, folder: str | os.PathLike[str] | None, team: Team, about: Mapping[str, Any]) -> None:
        self.folder = None if folder is None else Path(folder)
        self.team, self.about = team, dict(about)
        self._last, self._took = time.monotonic(), 0.0
        self._seen = hashlib.sha256()
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)

    def resume(self, run: Run) -> int:
        """Take up the newest save that every process has; how many batches of each it holds. Raises StateError."""
        own = {} if self.folder is None else {int(path.name.rpartition("-")[2]): path for path in self._files()}
        common = set.intersection(*(set(rounds) for rounds in self.team.gather(list(own))))
        if not common:
            return 0
        path = own[max(common)]
        found = records.load(path)
        try:
            if found["about"] != self.about:
                different = next(key for key in self.about if found["about"].get(key) != self.about[key])
                raise StateError(f"{path} is of another calibration (its {different} differ); name another folder")
            run.restore(found["run"])
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
            raise StateError(f"{path}: cannot go on from this calibration ({error}); remove it to begin anew") from None
        self._wanted = found["batches"]
        return int(max(common))

    def see(self, batch: Batch | None) -> None:
        """Take note of a batch that is done."""
        if self.folder is not None:
            for tensor in tensors_in(list(batch.call) if batch is not None else []):
                flat = tensor.detach().cpu().contiguous().reshape(-1)
                self._seen.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
                self._seen.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")

    def check(self) -> None:
        """Raise StateError unless the batches that were passed over are those that were done."""
        if self._seen.hexdigest() != self._wanted:
            raise StateError(f"{self.folder} is of a calibration on other batches; give the same, in the same order, "
                             f"or another folder")

    def is_due(self) -> bool:
        """Whether to save now."""
        return self.folder is not None and time.monotonic() - self._last >= max(INTERVAL, SHARE * self._took)

    def save(self, run: Run, rounds: int) -> None:
        """Keep the sums after so many batches of this process."""
        if self.folder is None:
            return
        began = time.monotonic()
        old = sorted(self._files(), key=lambda path: int(path.name.rpartition("-")[2]))
        records.save(self.folder / f"{self._prefix}{rounds}",
                     {"about": self.about, "batches": self._seen.hexdigest(), "run": run.saved()})
        for path in old[:-1]:
            path.unlink(missing_ok=True)
        self._last = time.monotonic()
        self._took = self._last - began

    @property
    def _prefix(self) -> str:
        return f"calibration-{self.team.rank}-of-{self.team.size}-"

    def _files(self) -> list[Path]:
        assert self.folder is not None
        return [path for path in self.folder.glob(f"{self._prefix}*") if path.name.rpartition("-")[2].isdecimal()]

