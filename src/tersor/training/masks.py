"""Weights that stay pruned while a network is trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import ModelError


@contextmanager
def keep_masks(
    model: nn.Module, masks: Mapping[str, Any], optimizer: torch.optim.Optimizer
) -> Iterator[None]:
    """Within the block, `optimizer.step()` leaves pruned weights at exactly zero, whatever its momentum says.

    `masks`: parameter name -> bool array or tensor of its shape, True where a weight lives. The weights are
    set to zero at once. Raises `ModelError` naming a mask that fits no parameter.
    """
    known = dict(model.named_parameters())
    pairs: list[tuple[nn.Parameter, Tensor]] = []
    for name, mask in masks.items():
        live = torch.as_tensor(np.asarray(mask) if not isinstance(mask, Tensor) else mask, dtype=torch.bool)
        if name not in known or known[name].shape != live.shape:
            raise ModelError(f"{name}: a mask of shape {tuple(live.shape)} fits no parameter of the model")
        pairs.append((known[name], ~live.to(known[name].device)))

    def clear(*_: Any) -> None:
        with torch.no_grad():
            for weight, dead in pairs:
                weight.masked_fill_(dead, 0.0)

    def clear_gradients(*_: Any) -> None:
        for weight, dead in pairs:
            if weight.grad is not None:
                weight.grad.masked_fill_(dead, 0.0)

    clear()
    handles = [optimizer.register_step_pre_hook(clear_gradients), optimizer.register_step_post_hook(clear)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
