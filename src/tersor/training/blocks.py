"""The blocks of a network, found by watching it run: what is reconstructed one after another.

"BRECQ: Pushing the limit of post-training quantization by block reconstruction" (Li et al., ICLR 2021): residual blocks
and their like depend much within and little between each other. Here a block is a module of the lowest level that holds
at least two weights of the file and makes one tensor of one tensor; what lies in no such module is a layer with its
BatchNorm and activation.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters.calls import undisturbed
from . import losses

BATCHNORMS: tuple[type[nn.Module], ...] = (nn.modules.batchnorm._BatchNorm,)
ACTIVATIONS: tuple[type[nn.Module], ...] = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.SiLU, nn.GELU, nn.Hardswish, nn.ELU)
"""Modules that belong to the layer before them."""
DRAWS, TEMPERATURE = 2, 4.0
"""Of slopes, see `output_of`."""


@dataclass(frozen=True)
class Block:
    """`modules`: names of those that run one after another, the output of one being the input of the next. Each is
    called once, with one floating tensor and nothing else, and gives one."""

    modules: tuple[str, ...]

    def holds(self, name: str) -> bool:
        """Is a tensor of this name (in the whole model) within?"""
        return any(_below(name, module) for module in self.modules)


@dataclass
class _Seen:
    """What was seen of one module: the place of its first call among all, tensors that it took and gave."""

    name: str
    module: nn.Module
    place: int
    calls: int = 0
    takes: Tensor | None = None
    gives: Tensor | None = None

    def fits(self) -> bool:
        return self.calls == 1 and self.takes is not None and self.gives is not None


def find_blocks(model: nn.Module, inputs: Any, coded: Collection[str]) -> list[Block]:
    """Blocks in the order of execution; no tensor is in two of them.

    inputs: what `model` is called with, a batch of few samples. coded: names of the weights that count.
    """
    own = dict(model.named_parameters(remove_duplicate=False))
    wanted = {id(own[name]) for name in coded if name in own}
    seen = _watched(model, inputs)
    held = {run.name: {id(p) for p in run.module.parameters()} & wanted for run in seen}
    whole = [run for run in seen if run.name and run.fits() and len(held[run.name]) >= 2
             and type(run.module).forward is not nn.Sequential.forward]
    lowest = [run for run in whole if not any(_below(other.name, run.name) for other in whole)]
    covered = set().union(*(held[run.name] for run in lowest)) if lowest else set()
    found = [(run.place, Block((run.name,))) for run in lowest]
    free = [run for run in seen if run.fits()
            and not any(run.name == other.name or _below(run.name, other.name) for other in lowest)]
    for run in free:
        direct = {id(p) for p in run.module.parameters(recurse=False)} & wanted
        if run.name and direct and not direct & covered:
            covered |= direct
            found.append((run.place, Block(tuple(_chain(run, free)))))
    return [block for _, block in sorted(found, key=lambda pair: pair[0])]


def _below(name: str, module: str) -> bool:
    return name.startswith(f"{module}.")


def _chain(first: _Seen, others: list[_Seen]) -> Iterator[str]:
    """The layer, its BatchNorm, its activation."""
    last = first
    yield last.name
    for kinds in (BATCHNORMS, ACTIVATIONS):
        after = next((run for run in others if run.place > last.place and run.takes is last.gives
                      and isinstance(run.module, kinds)), None)
        if after is not None:
            last = after
            yield last.name


@torch.no_grad()
def _watched(model: nn.Module, inputs: Any) -> list[_Seen]:
    """All modules that are called, in the order of their first calls."""
    seen: dict[nn.Module, _Seen] = {}
    names = {module: name for name, module in model.named_modules()}

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        run = seen.setdefault(module, _Seen(names[module], module, len(seen)))
        run.calls += 1
        run.takes = _only(args) if not kwargs else None

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        seen[module].gives = _only((output,))

    hooks = [hook for module in names for hook in (module.register_forward_pre_hook(before, with_kwargs=True),
                                                   module.register_forward_hook(after))]
    try:
        with undisturbed(model):
            losses.call(model, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return list(seen.values())


def _only(values: tuple[Any, ...]) -> Tensor | None:
    """The one floating tensor that they are, with samples along its first axis; None if they are anything else."""
    first = values[0] if len(values) == 1 else None
    return first if isinstance(first, Tensor) and first.is_floating_point() and first.ndim >= 2 else None


class _Reached(Exception):
    """A forward pass has come as far as it was wanted."""


@contextmanager
def _hooked(*hooks: Any) -> Iterator[None]:
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def input_of(block: Block, model: nn.Module, call: Any) -> Tensor:
    """What the block gets where `call()` runs the model; the pass ends there."""
    kept: list[Tensor] = []

    def before(module: nn.Module, args: tuple[Any, ...]) -> None:
        kept.append(args[0].detach().clone())  # a later layer may work in place
        raise _Reached

    with _hooked(model.get_submodule(block.modules[0]).register_forward_pre_hook(before)):
        try:
            call()
        except _Reached:
            return kept[0]
    raise AssertionError("the block was not called")


def output_of(block: Block, model: nn.Module, inputs: Any, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """What the block gives [N, ...], and slopes [N, `DRAWS`, ...] of the network's output along random directions.

    H = J^T (diag p - p p^T) J, J of the logits, says to second order which divergence errors of the block make; its
    diagonal is the Fisher information of BRECQ, equation (10). H is the mean of s s^T over s = J^T v, v = r sqrt p - p
    (r . sqrt p), r random signs: draws of these instead of draws of a label, which at a confident answer would nearly
    always have no slope. And p is softened by `TEMPERATURE`: images that the network is sure of count little in H, but
    most where an error changes the answer, which second order does not see.
    """
    kept: list[Tensor] = []

    def after(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        kept.append(output.detach().clone().requires_grad_())
        return kept[0].clone()  # a leaf must not be worked on in place

    slopes = []
    with torch.enable_grad(), _hooked(model.get_submodule(block.modules[-1]).register_forward_hook(after)):
        logits = losses.logits_of(losses.call(model, inputs))
        p = (logits.detach().float() / TEMPERATURE).softmax(-1)
        for _ in range(DRAWS):
            signed = torch.randint(0, 2, p.shape, generator=generator).to(p).mul(2.0).sub(1.0) * p.sqrt()
            direction = signed - p * signed.sum(-1, keepdim=True)
            (slope,) = torch.autograd.grad((logits * direction).sum(), kept[0], retain_graph=True)
            slopes.append(slope.float())
    return kept[0].detach(), torch.stack(slopes, 1)
