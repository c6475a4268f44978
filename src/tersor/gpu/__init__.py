"""Decoding on a GPU, by Triton: weights of tool scalar in mode fast, straight to where they are wanted.

    with tersor.load("model.tersor") as file:
        tensors = tersor.gpu.read_all(file, "cuda")         # torch tensors by name
        file.read_into(dict(model.state_dict()))            # or into tensors on a GPU that are there already

The bits are those of the CPU's decoder. Only the coded words travel. All other tools, and all files where Triton or a
GPU is missing, are decoded on the CPU and copied; so is what the kernels refuse: the CPU has the last word, and raises
its errors. Each part of a file (2^20 weights, or 2^21 of one layer) is a program with as many lanes as its words have,
up to 64: large models keep a GPU busy, small ones do not. Besides the results, decoding takes the words and a byte for
each weight, of up to 2^28 weights at a time, and for one tensor at a time up to 12 bytes for each of its weights.

Kernels have been run in Triton's interpreter, and compiled for CUDA; not yet run on a GPU.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from ..bitstream import buffers
from ..decoder import TersorFile, tool_name

__all__ = ["decodes_on", "read_all", "read_into"]


def decodes_on(device: torch.device | str) -> bool:
    """Whether kernels run there: on a CUDA device with Triton installed; with TRITON_INTERPRET=1 on the CPU too."""
    kind = torch.device(device).type
    if importlib.util.find_spec("triton") is None:
        return False
    return kind == "cuda" or (kind == "cpu" and os.environ.get("TRITON_INTERPRET") == "1")


def read_all(file: TersorFile, device: torch.device | str = "cuda") -> dict[str, Tensor]:
    """All tensors of a file on a device, in state-dict order; tied names give the same tensor.

    Raises FormatError for a bad file.
    """
    out: dict[str, Tensor] = {}
    aliases = file.aliases
    for name in file:
        if name in aliases and aliases[name] in out:
            out[name] = out[aliases[name]]
        else:
            record = file.record(name)
            out[name] = torch.empty(record.shape, dtype=buffers.torch_dtype(record.dtype), device=device)
    read_into(file, {name: tensor for name, tensor in out.items() if name not in aliases})
    return out


def read_into(file: TersorFile, tensors: Mapping[str, Tensor]) -> set[int]:
    """Decode into torch tensors of the file's element types and shapes, on any devices; keeps nothing.

    Returns the sections that kernels have decoded. Raises KeyError for an unknown name, ValueError for a tensor that
    does not fit, before anything is written; after a FormatError the content of the tensors means nothing.
    """
    wanted: dict[int, dict[int, list[str]]] = {}
    for name, tensor in tensors.items():
        record = file.record(name)
        buffers.check_torch(name, tensor, record.dtype, record.shape)
        section, place = file.place(name)
        wanted.setdefault(section, {}).setdefault(place, []).append(name)
    done: set[int] = set()
    for section, found in _by_kernels(file, wanted, tensors):
        for place, tensor in found.items():
            for name in wanted[section][place]:
                if tensors[name] is not tensor:
                    tensors[name].detach().copy_(tensor)
        done.add(section)
    rest = [name for section, places in wanted.items() if section not in done
            for names in places.values() for name in names]
    staged = {name: torch.empty(tensors[name].shape, dtype=tensors[name].dtype) for name in rest}
    file.read_into(staged)
    for name, host in staged.items():
        tensors[name].detach().copy_(host)
    return done


def _by_kernels(file: TersorFile, wanted: Mapping[int, Mapping[int, list[str]]],
                tensors: Mapping[str, Tensor]) -> Iterator[tuple[int, dict[int, Tensor]]]:
    """The sections that kernels can decode, on the device where the first of their tensors is wanted."""
    by_device: dict[torch.device, dict[int, dict[int, Tensor]]] = {}
    for section, places in wanted.items():
        targets = {place: tensors[names[0]] for place, names in places.items()}
        device = next(iter(targets.values())).device
        if decodes_on(device) and tool_name(file.manifest.sections[section].tool) == "scalar":
            by_device.setdefault(device, {})[section] = targets
    for device, sections in by_device.items():
        from . import decode  # loads Triton
        yield from decode.decode(file, sections, device)
