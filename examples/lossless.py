"""A .tersor file that keeps a network bit for bit: what `tersor.compress` is for is anything but this.

Pruned networks and networks with few values are stored as one codebook of all values that occur, with
Huffman-coded indexes and gaps, others as plain arrays.
"""

from __future__ import annotations

import numpy as np
from torch import nn

from tersor.adapters.module import inventory_of_module
from tersor.bitstream import container
from tersor.bitstream.dtypes import name_of
from tersor.bitstream.manifest import TensorRecord
from tersor.synthesis import codebook, raw
from tersor.synthesis.codebook import CodebookCode

MOST_VALUES = 1 << 14
"""More different values than this are not worth a codebook."""


def lossless(model: nn.Module, coder: codebook.Coder = "huffman") -> bytes:
    """A file with every tensor of the state dict bit for bit, in the shorter of the two forms."""
    tensors = inventory_of_module(model).tensors
    plain = _one_section(model, 0, raw.encode(list(tensors.values())))
    if any(array.dtype != np.float32 for array in tensors.values()):
        return plain
    values = np.unique(np.concatenate([array.ravel() for array in tensors.values()]))
    if len(values) > MOST_VALUES:
        return plain
    indexes = [np.searchsorted(values, a).astype(np.int32).reshape(len(a), -1) for a in tensors.values()]
    shapes = [array.shape for array in tensors.values()]
    payload, _ = codebook.encode(CodebookCode.of(values, indexes), shapes, coder)
    return min(plain, _one_section(model, 4, payload), key=len)


def _one_section(model: nn.Module, tool: int, payload: bytes) -> bytes:
    tensors = inventory_of_module(model).tensors
    records = [TensorRecord(name, name_of(a.dtype), a.shape, 0) for name, a in tensors.items()]
    count = sum(p.numel() for p in model.parameters())
    return container.to_bytes(records, [(tool, payload)], parameters=count)
