"""nn.Module -> Inventory, and named arrays -> the same nn.Module, in place.

    inventory = inventory_of_module(model)
    load_into(model, inventory.tensors)          # changes nothing: the round trip is exact
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import ml_dtypes
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from ..errors import ModelError
from .described import Described, in_order
from .inventory import Array, BatchNormLayer, Inventory, Kind, WeightLayer

_LAZY = (UninitializedParameter, UninitializedBuffer)
_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_CONV_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_VIEWED: dict[torch.dtype, tuple[torch.dtype, np.dtype[np.generic]]] = {
    torch.bfloat16: (torch.int16, np.dtype(ml_dtypes.bfloat16)),
    torch.float8_e4m3fn: (torch.uint8, np.dtype(ml_dtypes.float8_e4m3fn)),
    torch.float8_e5m2: (torch.uint8, np.dtype(ml_dtypes.float8_e5m2)),
}
"""Dtypes that NumPy lacks -> (the torch integer to pass the bits in, the ml_dtypes dtype)."""
_PLAIN = {torch.float64, torch.float32, torch.float16, torch.int64, torch.int32, torch.int16, torch.int8,
          torch.uint64, torch.uint32, torch.uint16, torch.uint8, torch.bool, torch.complex64}


def inventory_of_module(model: nn.Module) -> Inventory:
    """All parameters and persistent buffers of `model`, tied weights once, layers recognised.

    Names are state-dict keys. Raises `ModelError` for tensors that have no values yet (lazy modules,
    meta device), are sparse or quantised by torch, or have a dtype that .tersor files cannot hold.
    """
    entries = dict(_entries(model))
    described = model if isinstance(model, Described) else None
    if described is not None:
        entries = {name: entries[name] for name in in_order(entries, described.order)}
    aliases = _aliases(entries)
    kept = {name: tensor for name, tensor in entries.items() if name not in aliases}
    if described is not None:
        batchnorms = list(described.batchnorm_layers)
        layers = [layer for layer in described.weight_layers if layer.name in kept]
    else:
        batchnorms = _batchnorms(model, entries, aliases)
        layers = _layers(model, kept, aliases)
    known = {name for bn in batchnorms for name in bn.names}
    known |= {name for layer in layers for name in (layer.name, layer.bias) if name is not None}
    unknown = {name for name, tensor in kept.items() if not isinstance(tensor, nn.Parameter)} - known
    return Inventory(
        tensors={name: to_numpy(tensor, name) for name, tensor in kept.items()},
        names=list(entries),
        aliases=aliases,
        layers=layers,
        batchnorms=batchnorms,
        parameters=sum(p.numel() for p in model.parameters()),
        metadata=described.metadata if described is not None else {},
        exact=_overlapping(kept) | unknown,
        tied=bool(aliases),
        format=described.source_format if described is not None else "",
        source=described.source if described is not None else b"",
    )


def to_numpy(tensor: Tensor, name: str) -> Array:
    """A read-only array with the bits of `tensor` (no copy for contiguous CPU tensors)."""
    if isinstance(tensor, _LAZY):
        raise ModelError(f"{name}: the parameter is not initialised yet; run the model once")
    if tensor.device.type == "meta" or tensor.layout != torch.strided or tensor.is_quantized:
        raise ModelError(f"{name}: a tensor on {tensor.device} with layout {tensor.layout} and dtype "
                         f"{tensor.dtype} has no plain values to compress; give the dense fp32 model")
    tensor = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    if tensor.dtype in _VIEWED:
        bits, dtype = _VIEWED[tensor.dtype]
        array: Array = tensor.view(bits).numpy().view(dtype)
    elif tensor.dtype in _PLAIN:
        array = tensor.numpy()
    else:
        raise ModelError(f"{name}: dtype {tensor.dtype} cannot be stored; convert the model first")
    array = array.view()
    array.flags.writeable = False
    return array


def to_torch(array: Array) -> Tensor:
    """A CPU tensor with the bits of `array`; the inverse of `to_numpy` (copies read-only arrays)."""
    array = np.require(array, requirements=["C", "W", "A"])
    for dtype, (bits, viewed) in _VIEWED.items():
        if array.dtype == viewed:
            return torch.from_numpy(array.view(f"u{viewed.itemsize}")).view(bits).view(dtype)
    return torch.from_numpy(array)


def load_into(model: nn.Module, tensors: Mapping[str, Array],
              aliases: Mapping[str, str] | None = None) -> nn.Module:
    """Write named arrays into the parameters and buffers of `model`, in place; returns `model`.

    Devices, dtypes and storages of the model stay. Everything is checked before anything is written.
    `aliases` (name -> tied name) ties parameters again that were tied when the model was compressed
    and are separate in this one. An alias, or a name tied within `model`, may be absent from `tensors`.

    Raises `ModelError` listing missing and unexpected names, or naming the tensor whose shape or dtype
    differs, or two tied tensors that are given different values.
    """
    aliases = dict(aliases or {})
    entries = dict(_entries(model))
    ties = {**aliases, **_aliases(entries)}
    source = {name: name if name in tensors else ties.get(name, name) for name in entries}
    _check_names(source, tensors, ties)
    arrays = {name: tensors[key] for name, key in source.items()}
    for name, array in arrays.items():
        _check_tensor(name, entries[name], array)
        first = ties.get(name)
        if first in arrays and arrays[first] is not array and not _same_bits(arrays[first], array):
            raise ModelError(f"{name} and {first} are one tensor, but are given two different values")
    _tie(model, entries, aliases)
    with torch.no_grad():
        entries = dict(_entries(model))
        for name in entries.keys() - _aliases(entries).keys():
            _write(entries[name].detach(), to_torch(arrays[name]), name)
    return model


def _entries(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) in state-dict order: parameters, persistent buffers, children; repeats included."""
    for name, parameter in module._parameters.items():
        if parameter is not None:
            yield prefix + name, parameter
    for name, buffer in module._buffers.items():
        if buffer is not None and name not in getattr(module, "_non_persistent_buffers_set", ()):
            yield prefix + name, buffer
    for name, child in module._modules.items():
        if child is not None:
            yield from _entries(child, f"{prefix}{name}.")


def _identity(tensor: Tensor) -> tuple[object, ...]:
    """Equal for two tensors exactly when they are the same elements of the same memory."""
    if tensor.numel() == 0 or tensor.layout != torch.strided or tensor.device.type == "meta":
        return (id(tensor),)
    strides = tuple(stride if size > 1 else 0
                    for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, strides


def _aliases(entries: Mapping[str, Tensor]) -> dict[str, str]:
    """name -> first name of the same memory."""
    first: dict[tuple[object, ...], str] = {}
    aliases = {}
    for name, tensor in entries.items():
        # Lazy parameters have no shape to compare; `to_numpy` refuses them with a better message.
        key = (id(tensor),) if isinstance(tensor, _LAZY) else _identity(tensor)
        earlier = first.setdefault(key, name)
        if earlier != name:
            aliases[name] = earlier
    return aliases


def _overlapping(entries: Mapping[str, Tensor]) -> frozenset[str]:
    """Names whose bytes overlap another tensor's (or their own: expanded tensors)."""
    spans: dict[tuple[object, int], list[tuple[int, int, str]]] = {}
    found = set()
    for name, tensor in entries.items():
        if tensor.numel() == 0:
            continue
        if _expanded(tensor):
            found.add(name)
        reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        start = tensor.data_ptr()
        key = (tensor.device, tensor.untyped_storage().data_ptr())
        spans.setdefault(key, []).append((start, start + (reach + 1) * tensor.element_size(), name))
    for group in spans.values():
        end, owner = -1, ""
        for start, stop, name in sorted(group):
            if start < end:
                found |= {name, owner}
            if stop > end:
                end, owner = stop, name
    return frozenset(found)


def _expanded(tensor: Tensor) -> bool:
    return any(size > 1 and stride == 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def _layers(model: nn.Module, kept: Mapping[str, Tensor], aliases: Mapping[str, str]) -> list[WeightLayer]:
    """The quantisable weights, in state-dict order."""
    found: dict[str, WeightLayer] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        kind = _kind(module)
        dot = f"{prefix}." if prefix else ""
        if kind is None or getattr(module, "weight", None) is None:
            continue
        name = aliases.get(f"{dot}weight", f"{dot}weight")
        bias = f"{dot}bias" if getattr(module, "bias", None) is not None else None
        bias = aliases.get(bias or "", bias)
        layer = WeightLayer(name, kind, int(getattr(module, "groups", 1)), bias if bias in kept else None)
        earlier = found.setdefault(name, layer)
        # An embedding tied to an output layer is an embedding (its rows are words), whoever came first.
        chosen = layer if kind == "embedding" else earlier
        found[name] = replace(chosen, bias=earlier.bias or layer.bias)
    layers = []
    for name, tensor in kept.items():
        if tensor.ndim < 2 or tensor.numel() == 0 or not tensor.is_floating_point():
            continue
        if name in found:
            layers.append(found[name])
        elif isinstance(tensor, nn.Parameter):
            layers.append(WeightLayer(name, "matrix"))
    return layers


def _kind(module: nn.Module) -> Kind | None:
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, _CONV):
        return "conv"
    if isinstance(module, _CONV_TRANSPOSED):
        return "conv_transposed"
    return "embedding" if isinstance(module, nn.Embedding | nn.EmbeddingBag) else None


def _batchnorms(model: nn.Module, entries: Mapping[str, Tensor],
                aliases: Mapping[str, str]) -> list[BatchNormLayer]:
    """BatchNorms whose four tensors belong to them alone."""
    owners: dict[str, set[int]] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for name, _ in (*module._parameters.items(), *module._buffers.items()):
            full = f"{prefix}.{name}" if prefix else name
            owners.setdefault(aliases.get(full, full), set()).add(id(module))
    found = []
    for prefix, module in model.named_modules():
        if not isinstance(module, nn.modules.batchnorm._BatchNorm):
            continue
        dot = f"{prefix}." if prefix else ""
        names = [f"{dot}{part}" for part in ("weight", "bias", "running_mean", "running_var")]
        alone = all(name in entries and name not in aliases and len(owners[name]) == 1 for name in names)
        if alone and entries[names[0]].numel() > 0:
            found.append(BatchNormLayer(prefix, names[0], names[1], names[2], names[3], float(module.eps)))
    return found


def _check_names(source: Mapping[str, str], tensors: Mapping[str, Array], ties: Mapping[str, str]) -> None:
    missing = [name for name, key in source.items() if key not in tensors]
    unexpected = [name for name in tensors if name not in source]
    if missing or unexpected:
        raise ModelError("the tensors do not fit this model"
                         + _listed("; missing", missing) + _listed("; not in the model", unexpected))


def _listed(what: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return f"{what}: {', '.join(names[:10])}{more}"


def _check_tensor(name: str, target: Tensor, array: Array) -> None:
    if isinstance(target, _LAZY) or target.device.type == "meta":
        raise ModelError(f"{name}: the model has no memory for it yet (lazy or meta); initialise it first")
    if tuple(target.shape) != tuple(array.shape):
        raise ModelError(f"{name}: the model has shape {tuple(target.shape)}, the file {tuple(array.shape)}")
    if to_numpy(torch.empty(0, dtype=target.dtype), name).dtype != array.dtype:
        raise ModelError(f"{name}: the model has dtype {target.dtype}, the file {array.dtype}; convert the "
                         f"model to the file's dtype first, and back afterwards if you want")


def _same_bits(a: Array, b: Array) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def _tie(model: nn.Module, entries: Mapping[str, Tensor], aliases: Mapping[str, str]) -> None:
    """Let each alias be the same tensor object as its target, where the model has them apart."""
    for name, target in aliases.items():
        if name not in entries or target not in entries or entries[name] is entries[target]:
            continue
        one, other = entries[name], entries[target]
        if (_identity(one) == _identity(other) or one.device != other.device
                or isinstance(one, nn.Parameter) != isinstance(other, nn.Parameter)):
            continue
        path, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(path), leaf, entries[target])


def _write(target: Tensor, value: Tensor, name: str) -> None:
    """Copy; an expanded target (stride 0) is written through its one real element per such axis."""
    for axis, (size, stride) in enumerate(zip(target.shape, target.stride(), strict=True)):
        if size > 1 and stride == 0:
            first = value.narrow(axis, 0, 1)
            if not torch.equal(first.expand_as(value), value):
                raise ModelError(f"{name}: the model repeats one value along axis {axis}, the file does not")
            target, value = target.narrow(axis, 0, 1), first
    target.copy_(value)
