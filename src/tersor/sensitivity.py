"""Calibration: what an error in each weight costs at the network's output.

    stats = tersor.calibrate(model, batches)
    stats.save("statistics.safetensors")

Per batch one forward, and `vectors` backward passes of random +-1 vectors v over the logits y (Hutchinson):
E (d(v.y)/dw)^2 = sum_k (dy_k/dw)^2. Per layer, A = E u u^T of its inputs and G = E g g^T of its output
gradients: the Kronecker factors of the outputs' Gauss-Newton matrix (as in Martens and Grosse, KFAC, 2015,
and for convolutions Grosse and Martens, 2016, with the logits in the place of the loss). G is scaled so that
trace(A) trace(G) is the measured squared norm of the per-image weight gradients: then the layers compare
rightly under one lambda.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .adapters.calls import tensors_in, undisturbed
from .adapters.module import inventory_of_module
from .adapters.trace import trace
from .calibration.accumulators import MAX_FULL, Options
from .calibration.batches import Batch, Samples, device_of, read_batches
from .calibration.run import Run
from .calibration.saved import Saved
from .errors import StatisticsError
from .parallel import Team, everybody
from .statistics import Statistics, digests

PROBE = 4
"""Images that tell the sums' units."""
KEPT, KEPT_BYTES, FEWEST_KEPT = 1280, 256 << 20, 320
"""Inputs that are kept for the second walk. What it fits to 1,280 images holds for others better than what it fits to
320: ResNet-20 at 1.3 bits/weight is 0.3 dB nearer to the original on held-out images, 4% of the bytes."""

__all__ = ["Statistics", "calibrate", "memory_needed"]


def calibrate(model: nn.Module, batches: Iterable[Any] | Tensor, *, vectors: int = 1, keep: int | None = None,
              max_positions: int | None = None, seed: int = 0, output: Callable[[Any], Tensor] | None = None,
              progress: Callable[[int], None] | None = None, budget: int = 256 << 20,
              team: Team | None = None, state: str | os.PathLike[str] | None = None) -> Statistics:
    """Measure `Statistics` of `model` on calibration batches (training images, never the test images).

    * `batches`: input tensors [images, ...], or tuples or lists whose first element is the input, or dicts of
      keyword arguments. The results do not depend on how images are batched, up to rounding.
    * `vectors`: random sign vectors per image: more take longer and are less noisy.
    * `keep`: so many inputs are kept in `Statistics.samples` for the encoder's second pass. None: the first 1,280, or
      as many as 256 MB hold, but not fewer than 320.
    * `max_positions`: positions per image that A and G are averaged over (random ones; 1024 if None). The
      scale of G always uses all positions.
    * `output`: what to differentiate, from what the model returns; by default its first floating tensor. Its
      first axis must be the images; give the logits, before any softmax.
    * `progress`: called with the number of images done after each batch.
    * `budget`: bytes for unfolded patches and weight gradients at a time.
    * `team`: processes that share the work. None: all of torch.distributed, where it is initialised; all must call.
      Each gives batches of its own, and all get the same statistics. They are those of one process, bit for bit,
      if rank r of n gives batches r, r + n, r + 2n ... of that process' list, and all have the same kind of
      processor and number of threads. `tersor.parallel.ALONE`: this process by itself.
    * `state`: a folder where the sums are kept now and then (of each process its own). Called again with the same
      arguments and batches after an interruption, `calibrate` does not run again what is in them, and gives the same
      statistics. It is not removed.

    Memory: the activations of one batch as in training, the gradients of all layer outputs, `budget`, and
    `memory_needed(model)` for the sums. The model is run in eval mode and left as it was, also on errors.

    Raises `StatisticsError`, naming the layer where there is one: no images; NaN or infinity; a layer that
    takes part in the forward but gets no gradient; an output without one row per image. `WorkerError`: another
    process has died or failed. `StateError`: the state is of other arguments or batches, or damaged.
    """
    inventory = inventory_of_module(model)
    options = Options(budget, max_positions if max_positions is not None else 1024, seed)
    if vectors < 1 or options.max_positions < 1:
        raise StatisticsError(f"vectors={vectors} and max_positions={options.max_positions}: both must be at "
                              f"least 1")
    team = everybody() if team is None else team
    found = digests(inventory)
    with team.guarded(), torch.inference_mode(False), undisturbed(model):
        _check_equal(team, [vectors, keep, options, Statistics.fingerprint_of(found)])
        for parameter in model.parameters():
            if parameter.is_floating_point():
                _require_gradient(parameter)
        run = Run(model, inventory, options, vectors, output, team)
        source = read_batches(batches, model)
        batch = next(source, None)
        first = team.gather(None if batch is None else batch.part(slice(0, PROBE)).to(torch.device("cpu")))[0]
        if first is None:
            raise StatisticsError("there are no calibration images: `batches` is empty, or an iterator that is "
                                  "used up")
        first = first.to(device_of(model))
        samples = Samples(_kept(first) if keep is None else keep)
        run.graph = team.broadcast(trace(model, inventory, *first.part(slice(0, 1)).call) if team.rank == 0 else None)
        run.begin(first)
        saved = Saved(state, team, {"model": Statistics.fingerprint_of(found), "vectors": vectors, "keep": keep,
                                    "options": repr(options)})
        done, rounds = saved.resume(run), 0
        while True:
            votes = team.gather((batch is not None, saved.is_due()))
            if not any(more for more, _ in votes):
                break
            if rounds > done and votes[0][1]:  # all save the same rounds
                saved.save(run, rounds)
            number = run.add(batch) if rounds >= done else run.skip(batch)
            saved.see(batch)
            rounds += 1
            if rounds == done:
                saved.check()
            if batch is not None:
                samples.add(batch, number)
            if progress is not None:
                progress(run.images)
            batch = next(source, None)
        if rounds < done:
            saved.check()  # there are fewer batches than then
        if rounds > done:
            saved.save(run, rounds)
        run.join()
        samples.join(team)
        return run.statistics(found, samples.stacked())


def _kept(first: Batch) -> int:
    """How many inputs like those of a batch are kept."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors_in(first.part(slice(0, 1)).call))
    return min(KEPT, max(FEWEST_KEPT, KEPT_BYTES // max(1, size)))


def _check_equal(team: Team, what: list[Any]) -> None:
    """Raise `StatisticsError` unless all processes have the same options and the same model."""
    for rank, other in enumerate(team.gather(what)):
        if other != what:
            different = "another model" if other[:-1] == what[:-1] else "other options"
            raise StatisticsError(f"rank {rank} calibrates with {different} than rank {team.rank}; give all processes "
                                  f"the same")


def memory_needed(model: nn.Module) -> int:
    """Bytes of the sums of `calibrate` and its result: 8 per element of A and G while measuring, 4 after."""
    total = 0
    tensors = dict(model.named_parameters(remove_duplicate=False))
    for layer in inventory_of_module(model).layers:
        shape = tensors[layer.name].shape
        groups, taps = layer.groups, shape[2:].numel()
        if layer.kind == "embedding":
            m, n = shape[1], shape[0]
        elif layer.kind == "conv_transposed":
            m, n = shape[1] * taps, shape[0] // groups
        else:
            m, n = shape[0] // groups, shape[1] * taps
        full = [size * size if size <= MAX_FULL and not (layer.kind == "embedding" and size == n) else size
                for size in (m, n)]
        total += 12 * groups * (sum(full) + n)
    return total


def _require_gradient(parameter: nn.Parameter) -> None:
    try:
        parameter.requires_grad_(True)
    except RuntimeError as error:
        raise StatisticsError(f"the model's parameters cannot take part in autograd ({error}); build the "
                              f"model outside torch.inference_mode") from error
