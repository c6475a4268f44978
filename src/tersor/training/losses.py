"""What a batch is, how a model is called on it, and the loss without labels: distance from the uncompressed network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..adapters.calls import first_floating, tensors_in
from ..errors import ConfigError

Loss: TypeAlias = Callable[[Any, Any], Tensor]
"""(outputs, targets) -> a scalar."""


def split(batch: Any, has_targets: bool) -> tuple[Any, Any]:
    """(inputs, targets) of a batch: a tensor or a dict of keyword arguments, or a tuple or list that begins with
    those. Raises `ConfigError` where there are no targets, but should be."""
    if isinstance(batch, tuple | list) and len(batch) >= 1:
        if has_targets and len(batch) < 2:
            raise ConfigError("a batch without targets: a loss needs (inputs, targets)")
        return batch[0], batch[1] if len(batch) > 1 else None
    if has_targets:
        raise ConfigError(f"a batch is a {type(batch).__name__}: a loss needs (inputs, targets)")
    return batch, None


def call(model: nn.Module, inputs: Any) -> Any:
    """The outputs of a model on inputs as `split` gives them."""
    return model(**inputs) if isinstance(inputs, Mapping) else model(inputs)


def count_of(inputs: Any) -> int:
    """Number of samples."""
    first = next(tensors_in(inputs), None)
    if first is None or first.ndim == 0:
        raise ConfigError("a batch holds no tensor with samples along its first axis")
    return len(first)


def distillation(outputs: Any, answers: Any) -> Tensor:
    """KL divergence in nats of softmax(outputs) from softmax(answers), mean over samples; both logits [..., classes],
    or what holds them as its first floating tensor."""
    own, other = logits_of(outputs), logits_of(answers)
    log_p, log_q = other.detach().float().log_softmax(-1), own.float().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean()


def taught(weight: float, smoothing: float = 0.05) -> Loss:
    """A loss for targets (answers, labels): `weight` times cross entropy to the labels, int64 [samples], smoothed; the
    rest `distillation` from the answers of the network that was compressed."""
    def loss(outputs: Any, targets: Any) -> Tensor:
        answers, labels = targets
        truth = F.cross_entropy(logits_of(outputs).float(), labels, label_smoothing=smoothing)
        return weight * truth + (1.0 - weight) * distillation(outputs, answers)

    return loss


def logits_of(outputs: Any) -> Tensor:
    """The first floating tensor of what a model returns."""
    found = first_floating(outputs)
    if found is None or found.ndim < 2 or found.shape[-1] < 2:
        raise ConfigError("without loss= the model must return logits [samples, ..., classes]; give loss= otherwise")
    return found


def autocast(dtype: torch.dtype | None, like: Any) -> torch.autocast:
    """For a forward pass on the device of the inputs `like`; without a dtype it does nothing."""
    first = next(tensors_in(like), None)
    device = "cpu" if first is None else first.device.type
    return torch.autocast(device, dtype or torch.bfloat16, enabled=dtype is not None)
