"""Small pieces for watching a forward pass: which torch calls are layers, and leaving the model as it was.

Layers are recognised by the *call* (`F.conv2d(x, weight)` with a weight that is in the inventory), not by the
module: functional use, weights used twice and subclasses with a forward of their own all look the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .inventory import Inventory, Kind

LAYER_CALLS: dict[Callable[..., Any], Kind] = {
    F.linear: "linear", F.embedding: "embedding", F.embedding_bag: "embedding",
    F.conv1d: "conv", F.conv2d: "conv", F.conv3d: "conv",
    F.conv_transpose1d: "conv_transposed", F.conv_transpose2d: "conv_transposed",
    F.conv_transpose3d: "conv_transposed",
}
"""Calls whose first two arguments are (input, weight) -> the kind of layer that they are."""


def argument(args: Sequence[Any], kwargs: Mapping[str, Any], position: int, name: str,
             default: Any = None) -> Any:
    """The argument called `name`, which may also be given by position."""
    return args[position] if position < len(args) else kwargs.get(name, default)


def tensors_in(value: object) -> Iterator[Tensor]:
    """All tensors in nested tuples, lists and mappings (and plain dataclass-like outputs), in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors_in(item)
    elif hasattr(value, "__dataclass_fields__") and not isinstance(value, type):
        yield from tensors_in(list(vars(value).values()))


def first_floating(value: object) -> Tensor | None:
    """The first floating tensor of what a model returns."""
    return next((tensor for tensor in tensors_in(value) if tensor.is_floating_point()), None)


def names_by_id(model: nn.Module, inventory: Inventory) -> dict[int, str]:
    """id(tensor object) -> its name in the inventory (that of the first, for tied weights)."""
    named = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    return {id(tensor): inventory.aliases.get(name, name) for name, tensor in named}


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; training flags, requires_grad and buffer values come back, also after an exception.

    Memory: a copy of all buffers, and of embeddings with `max_norm` (torch changes those in the forward).
    """
    flags = [(module, module.training) for module in model.modules()]
    gradients = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    kept = list(model.buffers())
    kept += [module.weight for module in model.modules()
             if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.max_norm is not None]
    copies = [tensor.detach().clone() for tensor in kept]
    slots = [(module, dict(module._buffers.items())) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training
        for parameter, requires_grad in gradients:
            parameter.requires_grad_(requires_grad)
        for module, buffers in slots:
            for name, buffer in buffers.items():
                if module._buffers[name] is not buffer and not isinstance(module, torch.jit.ScriptModule):
                    module._buffers[name] = buffer
        with torch.no_grad():
            for tensor, copy in zip(kept, copies, strict=True):
                if not torch.equal(tensor, copy):
                    tensor.copy_(copy)
