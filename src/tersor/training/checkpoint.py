"""The state of a training on disk: numbers and tensors, no code."""

from __future__ import annotations

import hashlib
import io
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..bitstream.atomic import atomic_write
from ..errors import ConfigError

if TYPE_CHECKING:
    from .loop import Run


def fingerprint(run: Run) -> str:
    """Of what must be the same for a run to go on."""
    what = (hashlib.sha256(run.job.packed.data).hexdigest(), run.total, run.every, run.job.seed,
            run.pricing.limit, run.pricing.fixed, run.reassign)
    return repr((*what, len(run.judges)) if run.team.is_alone else (*what, run.team.size))


def save(run: Run, path: Path) -> None:
    """Everything that a run needs to go on; of several processes rank 0 writes, for all."""
    own = [run.epoch, run.place, torch.get_rng_state(), run.epoch_began]
    places = run.team.gather(own)
    if run.team.rank:
        return
    best = b"" if run.best is None else run.best.data
    state = {
        "fingerprint": fingerprint(run), "parts": run.job.trainable.parts.state_dict(),
        "optimizer": run.optimizer.state_dict(), "schedule": run.schedule.state_dict(),
        "places": places, "pricing": run.pricing.state(),
        "best": torch.frombuffer(bytearray(best or b"\0"), dtype=torch.uint8), "has_best": run.best is not None,
        "numbers": [run.step, run.smallest, run.idle, 0 if run.best is None else run.best.weight_bytes],
        "losses": [run.best_loss, run.first_loss],
    }
    with atomic_write(path) as file:
        torch.save(state, file)


def resume(run: Run, path: Path) -> None:
    """Take up a run where it was saved, if it was: rank 0 reads, for all. Raises `ConfigError` for a file of another
    run, or none."""
    team = run.team
    data = team.broadcast(path.read_bytes() if team.rank == 0 and path.exists() else None)
    if data is None:
        return
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:
        raise ConfigError(f"{path}: no checkpoint of fine-tuning ({error}); remove it to begin anew") from error
    if not isinstance(state, dict) or state.get("fingerprint") != fingerprint(run):
        raise ConfigError(f"{path}: a checkpoint of another file or of other options; remove it to begin anew")
    run.job.trainable.parts.load_state_dict(state["parts"])
    run.optimizer.load_state_dict(state["optimizer"])
    run.schedule.load_state_dict(state["schedule"])
    run.pricing.load(state["pricing"])
    run.step, run.smallest, run.idle, weight_bytes = state["numbers"]
    run.best_loss, run.first_loss = state["losses"]
    run.best = None
    if state["has_best"]:
        best = bytes(state["best"].numpy().tobytes())
        packed = run.job.packed
        trained = replace(packed, data=best, weight_bytes=weight_bytes, snr=None)
        run.best = packed if best == packed.data else trained
    run.job.trainable.fit()
    run.epoch, run.place, generator, run.epoch_began = state["places"][team.rank]
    torch.set_rng_state(generator)
