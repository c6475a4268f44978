"""What every second walk through one model needs: inputs, memory, what the original network answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .adapters.calls import first_floating, undisturbed
from .adapters.inventory import Inventory
from .adapters.lockstep import Recipe
from .adapters.module import to_torch
from .adapters.trace import trace_with_recipes
from .columns import PATCHES
from .plan import Plan
from .statistics import Statistics

MEMORY = 2 << 30
"""Bytes that the widest activation of the doubled batch may take, before fewer samples are used."""

CHECKED = 64
"""Samples on which the original network is run by itself, to see that it does the same beside the compressed one."""

SCOUTS, FEWEST_SCOUTS, MOST_SCOUTS = 4, 32, 80
"""A trial that only looks for lambda takes one sample in so many; but no fewer than that, and no more than these."""

WEIGHT = 3e4
"""Multiply-adds of a convolution in the time that one weight takes to be quantised and coded, about."""

Samples = Tensor | dict[str, Tensor]


class Mismatch(Exception):
    """The doubled batch does not split at this layer or did not reproduce the original network."""


@dataclass
class Stage:
    """What every walk through one model needs, prepared once: the inputs, how to make shortcuts that the model
    computes late, and the original network's outputs on the first of them, `checked`, float64.

    outputs: the original network's outputs on all samples, float64, once a walk has computed them.
    """

    samples: Samples
    recipes: Mapping[int, Recipe]
    checked: Tensor
    outputs: Tensor | None = None

    def __len__(self) -> int:
        return _count(self.samples)

    def scout(self, plan: Plan) -> Stage | None:
        """The same with some of the samples, for trials that only look for lambda: sizes hardly depend on how many
        there are. None unless the networks take four times as long to run as layers to encode."""
        count = min(len(self) // SCOUTS, MOST_SCOUTS)
        assert plan.statistics is not None
        measured = [(plan.inventory.tensors[name].size, found) for name in plan.layers
                    if (found := plan.statistics.layers.get(name)) is not None]
        run = 2.0 * len(self) * sum(size * found.positions for size, found in measured)
        encode = sum(WEIGHT * size + (float(found.A.shape[-1]) ** 3 + float(found.G.shape[-1]) ** 3) * len(found.A)
                     for size, found in measured)
        if count < FEWEST_SCOUTS or run < 4.0 * encode:
            return None
        return Stage(map_samples(self.samples, lambda t: t[:count]), self.recipes, self.checked[:count])


def prepare(statistics: Statistics, model: nn.Module, inventory: Inventory) -> Stage | None:
    """The stage for second walks with as many of the samples as memory allows; None without samples or graph."""
    samples = statistics.samples
    if samples is None or statistics.graph.reason is not None or not statistics.graph.calls:
        return None
    one = map_samples(samples, lambda t: t[:1])
    count = max(8, MEMORY // max(1, 2 * _widest(model, one)))
    chosen = map_samples(samples, lambda t: t[:count])
    _, recipes = trace_with_recipes(model, inventory, *(((), one) if isinstance(one, dict) else ((one,), None)))
    with undisturbed(model):
        return Stage(chosen, recipes, forward(model, map_samples(chosen, lambda t: t[:CHECKED])))


def walk_bytes(statistics: Statistics, model: nn.Module) -> int:
    """About what activations and patches of a second walk take; 0 where there will be none."""
    samples = statistics.samples
    if samples is None or statistics.graph.reason is not None or not statistics.graph.calls:
        return 0
    wide = 2 * _widest(model, map_samples(samples, lambda t: t[:1]))
    count = min(_count(samples), max(8, MEMORY // max(1, wide)))
    # The layer's input and output and a shortcut; patches of both networks and their float64 products.
    return 4 * wide * count + min(4 * PATCHES, 9 * wide * count)


def forward(model: nn.Module, samples: Samples, batch: int = 64) -> Tensor:
    """float64 outputs (the first tensor) of a model on samples, in batches; call it under `undisturbed`."""
    total = _count(samples)
    outputs = []
    with torch.no_grad():
        for start in range(0, total, batch):
            part = map_samples(samples, lambda t, start=start: t[start : start + batch])  # type: ignore[misc]
            y = first_floating(model(**part) if isinstance(part, dict) else model(part))
            if y is None:
                raise Mismatch("the model returns no tensor")
            outputs.append(y.double())
    return torch.cat(outputs)


class _Widest(torch.overrides.TorchFunctionMode):
    """Notes the largest tensor that any call returns."""

    nbytes = 0

    def __torch_function__(self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (),
                           kwargs: Mapping[str, Any] | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.nbytes = max(self.nbytes, result.numel() * result.element_size())
        return result


def _widest(model: nn.Module, one: Samples) -> int:
    """Bytes of the largest tensor in the forward of one sample."""
    watch = _Widest()
    with undisturbed(model), torch.no_grad(), watch:
        _ = model(**one) if isinstance(one, dict) else model(one)
    return watch.nbytes


def _count(samples: Samples) -> int:
    return len(next(iter(samples.values())) if isinstance(samples, dict) else samples)


def map_samples(samples: Samples, function: Callable[[Tensor], Tensor]) -> Any:
    """The samples with the function of each tensor in its place."""
    if isinstance(samples, dict):
        return {key: function(value) if isinstance(value, Tensor) else value for key, value in samples.items()}
    return function(samples)


def signal_to_noise(y: Tensor, y_hat: Tensor) -> float:
    """10 log10(|y|^2 / |y_hat - y|^2) in dB; infinite where they are equal."""
    signal, noise = float((y**2).sum()), float(((y_hat - y) ** 2).sum())
    if noise == 0.0:
        return math.inf
    return 10.0 * math.log10(signal / noise) if signal > 0 else -math.inf


def forward_restored(model: nn.Module, tensors: Mapping[str, Any], samples: Any) -> Tensor:
    """Outputs of `model` with other tensors in place of its own; the model itself is not touched."""
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}  # tied ones once
    replaced = {name: to_torch(tensors[name]).to(value.device) for name, value in own.items() if name in tensors}

    class _Replaced(nn.Module):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return torch.func.functional_call(model, replaced, args, kwargs, tie_weights=True)

    return forward(_Replaced(), samples)
