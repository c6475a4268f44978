"""How far a .tersor file is from the model that it was made of, on data, by what runs such models."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from . import onnx
from .adapters.formats import OpenedModel
from .errors import ModelError
from .evaluate import compare, logits
from .restored import restore


def difference(opened: OpenedModel, file: str | os.PathLike[str], data: Iterable[Any]) -> onnx.Difference:
    """Run both on `data`, batches of inputs [n, ...] or (inputs, labels [n]), and compare the logits.

    ONNX models run in ONNX Runtime, all others in PyTorch. Raises ModelError for a model that is only weights, and what
    `tersor.restore` and `tersor.onnx.session` raise.
    """
    inputs, labels = _read(data)
    if opened.format == "onnx":
        return onnx.difference(opened.spec, file, inputs, labels)
    if opened.module is None:
        raise ModelError(f"{opened.spec} holds only weights and no network that could be run")
    y = logits(opened.module, inputs)
    z = logits(restore(os.fspath(file), into=copy.deepcopy(opened.module)), inputs)
    return onnx.Difference(compare(y, z, labels), float((y - z).abs().max()))


def _read(data: Iterable[Any]) -> tuple[list[Tensor], Tensor | None]:
    """Batches of inputs, and all labels where every batch has some."""
    inputs: list[Tensor] = []
    labels: list[Tensor] = []
    for batch in data:
        pair = batch if isinstance(batch, tuple | list) else (batch,)
        inputs.append(pair[0])
        labels += list(pair[1:2])
    return inputs, torch.cat(labels) if labels and len(labels) == len(inputs) else None
