"""Several processes at one training: each on batches of its own, all with the same parameters."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..parallel import Team


def agree(team: Team, value: str, what: str) -> None:
    """Raise `ConfigError` on all processes where `value` is not the same on each."""
    values = team.gather(value)
    if other := [rank for rank, one in enumerate(values) if one != values[0]]:
        raise ConfigError(f"{what}: rank {other[0]} has another file or other options than rank 0 "
                          f"({values[other[0]]}, {values[0]}); give all processes the same")


@torch.no_grad()
def average_gradients(team: Team, parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its mean over the processes. One that has none counts as zero."""
    if team.is_alone:
        return
    every = [parameter for parameter in parameters if parameter.requires_grad]
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in every]
    flat = torch.cat([grad.ravel() for grad in grads])
    team.add(flat)
    flat /= team.size
    for parameter, part in zip(every, torch.split(flat, [p.numel() for p in every]), strict=True):
        parameter.grad = part.view_as(parameter).to(parameter.dtype, copy=True)


@torch.no_grad()
def equalise(team: Team, tensors: Iterable[Tensor]) -> None:
    """Give all processes the tensors of rank 0: processors of two kinds round differently."""
    if team.is_alone:
        return
    every = list(tensors)
    values = team.broadcast([tensor.detach().cpu() for tensor in every] if team.rank == 0 else None)
    for tensor, value in zip(every, values, strict=True):
        tensor.copy_(value)


def mean_over(team: Team, total: float, count: int) -> float:
    """Sum of `total` over all processes, by the sum of `count`."""
    both = torch.tensor([total, count], dtype=torch.float64)
    team.add(both)
    return float(both[0]) / max(float(both[1]), 1.0)
