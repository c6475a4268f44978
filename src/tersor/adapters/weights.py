"""Weights from a file into a network that Python code has made."""

from __future__ import annotations

import os
from dataclasses import replace

from torch import Tensor, nn

from ..errors import ConfigError, ModelError
from .formats import OpenedModel, open_model
from .module import inventory_of_module, to_torch


def with_weights(opened: OpenedModel, path: str | os.PathLike[str]) -> OpenedModel:
    """The network of `opened` with the weights of a file or folder that `open_model` knows.

    Counters (`num_batches_tracked`) may be missing. Raises `ConfigError` where `opened` was not made by Python code,
    `ModelError` where names or shapes differ, and what `open_model` raises.
    """
    if opened.format != "module" or opened.module is None:
        raise ConfigError(f"{opened.spec} has weights of its own; others are for package.module:factory")
    found = open_model(path)
    tensors = found.inventory.tensors
    state = {name: to_torch(tensors[found.inventory.aliases.get(name, name)]) for name in found.inventory.names}
    _load(opened.module, state, os.fspath(path))
    return replace(opened, inventory=inventory_of_module(opened.module), bytes=found.bytes,
                   notes=[*opened.notes, *found.notes])


def _load(model: nn.Module, state: dict[str, Tensor], path: str) -> None:
    try:
        lacking, unknown = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise ModelError(f"{path} does not fit the network: {' '.join(str(error).split())}") from error
    missing = [name for name in lacking if not name.endswith("num_batches_tracked")]
    if missing or unknown:
        raise ModelError(f"{path} does not fit the network: it lacks {', '.join(missing[:3]) or 'nothing'}, and "
                         f"{', '.join(unknown[:3]) or 'nothing'} of it is not in the network")
