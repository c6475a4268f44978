"""The orchestrator: a model, its statistics and a target in, a compressed model out.

    stats = tersor.calibrate(model, batches)
    packed = tersor.compress(model, stats, bits=2.4)
    packed.save("model.tersor")
    model = tersor.restore("model.tersor", into=model)
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from . import __version__
from .adapters import safetensors as safetensors_adapter
from .adapters.formats import OpenedModel, open_model
from .adapters.inventory import Inventory
from .adapters.module import inventory_of_module
from .config import Config, make_config
from .errors import ConfigError, ModelError
from .job import Job, PublishedJob
from .journal import Journal, task
from .memory import Footprint, footprint_of
from .packed import Packed
from .parallel import ALONE, Team
from .plan import Plan
from .published import is_wanted
from .stage import walk_bytes
from .statistics import Statistics
from .threads import chosen, using

Model = nn.Module | OpenedModel | Inventory | Mapping[str, Any] | str | os.PathLike[str]


def compress(model: Model, stats: Statistics | None = None, *, bits: float | None = None,
             size: int | None = None, snr: float | None = None, max_drop: float | None = None,
             evaluate: Callable[[nn.Module], Tensor] | None = None, drop_end: str = "worst",
             config: Config | None = None, sensitivity: Mapping[str, Any] | None = None,
             progress: Callable[[str], None] | None = None, state: str | os.PathLike[str] | None = None,
             team: Team = ALONE, threads: int | None = None, **options: Any) -> Packed:
    """Compress a model to exactly one of four targets.

    * `model`: an nn.Module (never changed), a state dict of tensors or arrays, an `Inventory`, what `open_model`
      gives, or what it opens: the path of a .safetensors, .pt, .onnx or .pt2 file, a folder, `package.module:factory`.
    * `stats`: from `tersor.calibrate` on this very model; None for data-free compression.
    * `bits`: bits/weight, 8 * file bytes / parameters. `size`: bytes of the file. Both are met within 1% and
      never exceeded (shared values, of which there are only so many, may leave a few per cent).
    * `snr`: signal-to-noise ratio at the model's output in dB on the calibration samples, at least this and at
      most 1% more (where files of a small network jump over that, a note says so); needs an nn.Module and statistics
      with samples.
    * `max_drop`: points of accuracy that may be lost (0.5 is half a per cent), by really restoring the network and
      asking `evaluate(network)` for the score of each sample, 0..1, [N]; the smallest file within. `drop_end`: what of
      the paired difference must be within: the "worst" end of its 95% confidence interval, or its "mean".
      Give labelled data that is neither calibrated nor tested on: the search adapts to it. Needs an nn.Module.
    * `config`, and any field of `Config` as a keyword: tools, mode, effort, keep_exact, layers.
    * `sensitivity`: weight name -> array of its shape, >= 0 (see `tersor.diagonals`): the weights h of the codebook
      tool in place of what `stats` say. Layers that are missing count as the others do on average.
    * `progress`: called with a line of text after each trial encoding.
    * `state`: a folder that keeps what is finished, layer by layer and trial by trial. Called again with the same
      arguments after an interruption, `compress` goes on from there and makes the same file. It is not removed.

    * `team`: `tersor.parallel.everybody()` shares the work among all processes of torch.distributed; all must call with
      the same arguments, and all get the same file, that of one process. `state` is then kept by rank 0.
    * `threads`: of this process; None for as many as torch would use (torch.get_num_threads(): all cores, or
      OMP_NUM_THREADS of the environment). The file does not depend on it.

    Raises `ConfigError` (options), `TargetError` (out of reach; says what is reachable), `StatisticsError`
    (measured on another model), `ModelError` (a tensor that cannot be read), `StateError` (a state of other arguments,
    or damaged), `WorkerError` (another process has died, failed, or made other bytes).
    """
    settings = make_config(config, options)
    if stats is not None and not isinstance(stats, Statistics):
        raise ConfigError(f"stats must be a Statistics (tersor.calibrate, Statistics.load), not a "
                          f"{type(stats).__name__}")
    given = {"bits": bits, "size": size, "snr": snr, "max_drop": max_drop}
    targets = {name: value for name, value in given.items() if value is not None}
    if len(targets) != 1:
        raise ConfigError(f"give exactly one of bits=, size=, snr=, max_drop=; got {', '.join(targets) or 'none'}")
    (kind, wanted), = targets.items()
    is_number = isinstance(wanted, int | float) and not isinstance(wanted, bool)
    if not (is_number and math.isfinite(wanted) and (wanted > 0 or kind == "snr")):
        raise ConfigError(f"{kind}={wanted!r} must be a finite positive number")
    if max_drop is not None and (evaluate is None or drop_end not in ("worst", "mean")):
        raise ConfigError(f"max_drop= needs evaluate=, a function of the restored network that returns the score of "
                          f"each sample, and drop_end={drop_end!r} must be worst or mean")
    if isinstance(model, str | os.PathLike | OpenedModel):
        model = opened(model).model
    inventory = inventory_of(model)
    if stats is not None:
        stats.check(inventory)
        if not isinstance(model, nn.Module):
            inventory = stats.explain(inventory)
    plan = Plan(inventory, stats, settings, _diagonals(sensitivity, inventory))
    network = model if isinstance(model, nn.Module) else None
    with team.guarded(), using(threads) as count:
        job = PublishedJob(plan, network, progress) if is_wanted(settings) else Job(plan, network)
        job.team, job.threads = team, count
        return _run(job, kind, float(wanted), evaluate, drop_end, progress, state)


def _run(job: Job, kind: str, wanted: float, evaluate: Callable[[nn.Module], Tensor] | None, drop_end: str,
         progress: Callable[[str], None] | None, state: str | os.PathLike[str] | None) -> Packed:
    """`compress`, once the arguments are known to be right."""
    inventory, stats, settings = job.plan.inventory, job.plan.statistics, job.plan.config
    own = [kind, wanted, repr(settings), inventory.names, stats is None, state is None]
    for rank, other in enumerate(job.team.gather(own)):
        if other != own:
            raise ConfigError(f"rank {rank} compresses another model or with other options than rank {job.team.rank}; "
                              f"give all processes the same")
    if state is not None:
        about = task(inventory, stats, settings, (kind, wanted), job.plan.diagonals, __version__)
        job.journal = Journal.open(state, about, job.team)
    expected = {"bits": inventory.parameters / 8.0, "size": 1.0}.get(kind, 0.0) * wanted
    job.tell_memory(expected, progress)
    if evaluate is not None and kind == "max_drop":
        packed = job.to_drop(wanted, evaluate, drop_end, progress)
    elif kind == "snr":
        packed = job.to_snr(wanted, progress)
    else:
        target = wanted if kind == "size" else wanted * inventory.parameters / 8.0
        packed = job.to_size(target - (Packed.DIGEST_BYTES if settings.digest else 0), progress)
    return packed.with_digest() if settings.digest else packed


def footprint(model: Model, stats: Statistics | None = None, *, bits: float = 4.0, config: Config | None = None,
              threads: int | None = None, **options: Any) -> Footprint:
    """How much memory `compress` would take with the same arguments, estimated from shapes; nothing is encoded.

    bits: bits/weight of the file. Raises what `compress` raises for the model, the statistics and the options.
    """
    if isinstance(model, str | os.PathLike | OpenedModel):
        model = opened(model).model
    inventory = inventory_of(model)
    if stats is not None and not isinstance(model, nn.Module):
        inventory = stats.explain(inventory)
    plan = Plan(inventory, stats, make_config(config, options))
    walk = 0
    if plan.config.corrected and stats is not None and isinstance(model, nn.Module):
        walk = walk_bytes(stats, model)
    return footprint_of(plan, bits * inventory.parameters / 8.0, walk, chosen(threads))


def _diagonals(given: Mapping[str, Any] | None, inventory: Inventory) -> dict[str, Any]:
    """Sensitivities as arrays, each checked against its weight."""
    checked = {}
    for name, value in (given or {}).items():
        array = np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value, dtype=np.float64)
        if name not in inventory.tensors:
            continue  # biases and whatever else a diagonal was measured for
        if array.shape != inventory.tensors[name].shape:
            raise ConfigError(f"sensitivity[{name!r}] has shape {array.shape}, the weight has "
                              f"{inventory.tensors[name].shape}")
        if not (np.isfinite(array).all() and (array >= 0).all()):
            raise ConfigError(f"sensitivity[{name!r}] must be finite and not negative; see tersor.diagonals.usable")
        checked[name] = array
    return checked


def inventory_of(model: Model) -> Inventory:
    """What a model consists of, from whatever form it was given in."""
    if isinstance(model, Inventory):
        return model
    if isinstance(model, nn.Module):
        return inventory_of_module(model)
    if isinstance(model, str | os.PathLike | OpenedModel):
        return opened(model).inventory
    if isinstance(model, Mapping):
        return safetensors_adapter.inventory_of_arrays(model)
    raise ModelError(f"cannot compress a {type(model).__name__}: give an nn.Module, a state dict or the path of a "
                     f"model")


def opened(model: OpenedModel | str | os.PathLike[str]) -> OpenedModel:
    """The model of a path or name, opened."""
    return model if isinstance(model, OpenedModel) else open_model(model)
