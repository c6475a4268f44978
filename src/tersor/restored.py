"""A compressed file into a model again."""

from __future__ import annotations

from typing import Any

from torch import nn

from .adapters.module import load_into
from .decoder import load
from .limits import Limits


def restore(file: Any, into: nn.Module, *, limits: Limits | None = None,
            threads: int | None = None) -> nn.Module:
    """Load a .tersor file (path, bytes or binary file) into a model of the same architecture.

    Returns the model. Weights that were tied when the model was compressed are tied again. Raises
    `FormatError` for a bad file, `ModelError` naming tensors that are missing, unexpected or of another shape;
    the model is then unchanged.
    """
    with load(file, limits, threads) as found:
        return load_into(into, found.read_all(), found.aliases if found.tied else None)
