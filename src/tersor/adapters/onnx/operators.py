"""ONNX operators as torch functions: arithmetic, reductions, shapes. Layers are in layers.py.

Semantics: https://onnx.ai/onnx/operators/, versions 13 to 24 of the default domain. Each takes the node's attributes
and its inputs (None for one that is left out).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

Attributes: TypeAlias = Mapping[str, Any]
Inputs: TypeAlias = Sequence[Tensor | None]
Outputs: TypeAlias = Tensor | Sequence[Tensor]
Operator: TypeAlias = Callable[[Attributes, Inputs], Outputs]

DTYPES: dict[int, torch.dtype] = {
    1: torch.float32, 2: torch.uint8, 3: torch.int8, 4: torch.uint16, 5: torch.int16, 6: torch.int32, 7: torch.int64,
    9: torch.bool, 10: torch.float16, 11: torch.float64, 12: torch.uint32, 13: torch.uint64, 16: torch.bfloat16}
"""TensorProto.DataType -> torch."""


def need(inputs: Inputs, index: int) -> Tensor:
    """An input that may not be left out."""
    value = inputs[index]
    assert value is not None, f"input {index} is left out"
    return value


def optional(inputs: Inputs, index: int) -> Tensor | None:
    """An input that may be left out, or not be listed at all."""
    return inputs[index] if index < len(inputs) else None


def integers(tensor: Tensor) -> list[int]:
    """A small tensor of sizes or axes as a list."""
    return [int(value) for value in tensor.reshape(-1).tolist()]


def integers_at(attributes: Attributes, inputs: Inputs, index: int, name: str) -> list[int] | None:
    """What newer versions have as input `index` and older ones as attribute `name`; None if neither is there."""
    given = optional(inputs, index)
    if given is not None:
        return integers(given)
    value = attributes.get(name)
    return list(value) if value is not None else None


def _unary(function: Callable[[Tensor], Tensor]) -> Operator:
    return lambda attributes, inputs: function(need(inputs, 0))


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    return lambda attributes, inputs: function(need(inputs, 0), need(inputs, 1))


def _folded(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    def run(attributes: Attributes, inputs: Inputs) -> Tensor:
        result = need(inputs, 0)
        for index in range(1, len(inputs)):
            result = function(result, need(inputs, index))
        return result
    return run


def _mean(attributes: Attributes, inputs: Inputs) -> Tensor:
    total = need(inputs, 0)
    for index in range(1, len(inputs)):
        total = total + need(inputs, index)
    return total / len(inputs)


def _divide(a: Tensor, b: Tensor) -> Tensor:
    if a.is_floating_point() or b.is_floating_point():
        return torch.div(a, b)
    return torch.div(a, b, rounding_mode="trunc")


def _reduction(function: Callable[[Tensor, list[int], bool], Tensor]) -> Operator:
    def run(attributes: Attributes, inputs: Inputs) -> Tensor:
        x = need(inputs, 0)
        axes = integers_at(attributes, inputs, 1, "axes")
        if not axes:
            if attributes.get("noop_with_empty_axes", 0):
                return x
            axes = list(range(x.ndim))
        return function(x, axes, bool(attributes.get("keepdims", 1)))
    return run


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def _extreme(function: Callable[..., Tensor]) -> Operator:
    def run(attributes: Attributes, inputs: Inputs) -> Tensor:
        axis, keep = int(attributes.get("axis", 0)), bool(attributes.get("keepdims", 1))
        return function(need(inputs, 0), dim=axis, keepdim=keep)
    return run


def _clip(attributes: Attributes, inputs: Inputs) -> Tensor:
    return torch.clamp(need(inputs, 0), optional(inputs, 1), optional(inputs, 2)) if any(
        optional(inputs, i) is not None for i in (1, 2)) else need(inputs, 0)


def _gelu(attributes: Attributes, inputs: Inputs) -> Tensor:
    kind = attributes.get("approximate", b"none")
    return F.gelu(need(inputs, 0), approximate=kind.decode() if isinstance(kind, bytes) else kind)


def _prelu(attributes: Attributes, inputs: Inputs) -> Tensor:
    x, slope = need(inputs, 0), need(inputs, 1)
    return torch.where(x < 0, x * slope, x)


def _hard_sigmoid(attributes: Attributes, inputs: Inputs) -> Tensor:
    return torch.clamp(need(inputs, 0) * attributes.get("alpha", 0.2) + attributes.get("beta", 0.5), 0, 1)


def _softmax(function: Callable[..., Tensor]) -> Operator:
    return lambda attributes, inputs: function(need(inputs, 0), dim=int(attributes.get("axis", -1)))


def _cast(attributes: Attributes, inputs: Inputs) -> Tensor:
    return need(inputs, 0).to(DTYPES[int(attributes["to"])])


def _reshape(attributes: Attributes, inputs: Inputs) -> Tensor:
    x, wanted = need(inputs, 0), integers(need(inputs, 1))
    if not attributes.get("allowzero", 0):
        wanted = [x.shape[axis] if size == 0 else size for axis, size in enumerate(wanted)]
    return x.reshape(wanted)


def _flatten(attributes: Attributes, inputs: Inputs) -> Tensor:
    x, axis = need(inputs, 0), int(attributes.get("axis", 1))
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), -1)


def _transpose(attributes: Attributes, inputs: Inputs) -> Tensor:
    x = need(inputs, 0)
    return x.permute(list(attributes.get("perm", range(x.ndim)[::-1])))


def _concat(attributes: Attributes, inputs: Inputs) -> Tensor:
    return torch.cat([tensor for tensor in inputs if tensor is not None], dim=int(attributes["axis"]))


def _split(attributes: Attributes, inputs: Inputs) -> Sequence[Tensor]:
    x, axis = need(inputs, 0), int(attributes.get("axis", 0))
    sizes = integers_at(attributes, inputs, 1, "split")
    if sizes is None:
        size = -(-x.shape[axis] // int(attributes["outputs"]))
        return torch.split_with_sizes(x, [min(size, x.shape[axis] - i) for i in range(0, x.shape[axis], size)], axis)
    return torch.split_with_sizes(x, sizes, axis)


def _slice(attributes: Attributes, inputs: Inputs) -> Tensor:
    x = need(inputs, 0)
    starts, ends = integers(need(inputs, 1)), integers(need(inputs, 2))
    axes = integers_at({}, inputs, 3, "") or list(range(len(starts)))
    steps = integers_at({}, inputs, 4, "") or [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step > 0:
            index: list[Any] = [slice(None)] * x.ndim
            index[axis] = slice(start, min(end, x.shape[axis]), step)
            x = x[tuple(index)]
        else:
            rows = range(x.shape[axis])[max(start, -x.shape[axis] - 1):None if end < -x.shape[axis] else end:step]
            x = x.index_select(axis, torch.tensor(list(rows), dtype=torch.long, device=x.device))
    return x


def _squeeze(attributes: Attributes, inputs: Inputs) -> Tensor:
    x, axes = need(inputs, 0), integers_at(attributes, inputs, 1, "axes")
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


def _unsqueeze(attributes: Attributes, inputs: Inputs) -> Tensor:
    x, axes = need(inputs, 0), integers_at(attributes, inputs, 1, "axes") or []
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _expand(attributes: Attributes, inputs: Inputs) -> Tensor:
    x, wanted = need(inputs, 0), integers(need(inputs, 1))
    shape = torch.broadcast_shapes(x.shape, tuple(wanted))  # type: ignore[no-untyped-call]
    return x.expand(shape)


def _pad(attributes: Attributes, inputs: Inputs) -> Tensor:
    x, pads = need(inputs, 0), integers(need(inputs, 1))
    mode = _text(attributes.get("mode", "constant"))
    axes = integers_at({}, inputs, 3, "") or list(range(x.ndim))
    before, after = dict(zip(axes, pads, strict=False)), dict(zip(axes, pads[len(axes):], strict=True))
    before, after = ({axis % x.ndim: size for axis, size in side.items()} for side in (before, after))
    flat = [size for axis in reversed(range(x.ndim)) for size in (before.get(axis, 0), after.get(axis, 0))]
    if mode != "constant":
        while len(flat) > 2 * (x.ndim - 2) and flat[-2:] == [0, 0]:
            flat = flat[:-2]
        return F.pad(x, flat, mode={"edge": "replicate", "wrap": "circular"}.get(mode, mode))
    value = optional(inputs, 2)
    return F.pad(x, flat, value=float(value.reshape(-1)[0]) if value is not None and value.numel() else 0.0)


def _gather(attributes: Attributes, inputs: Inputs) -> Tensor:
    x, index, axis = need(inputs, 0), need(inputs, 1).long(), int(attributes.get("axis", 0))
    axis %= x.ndim
    index = torch.where(index < 0, index + x.shape[axis], index)
    found = x.index_select(axis, index.reshape(-1))
    return found.reshape(x.shape[:axis] + index.shape + x.shape[axis + 1 :])


def _shape(attributes: Attributes, inputs: Inputs) -> Tensor:
    shape = list(need(inputs, 0).shape)[attributes.get("start", 0) : attributes.get("end")]
    return torch.tensor(shape, dtype=torch.int64)


def _constant_of_shape(attributes: Attributes, inputs: Inputs) -> Tensor:
    value = attributes.get("value")
    filling = value.reshape(()) if isinstance(value, Tensor) else torch.tensor(0.0)
    return filling.expand(integers(need(inputs, 0))).clone()


def _range(attributes: Attributes, inputs: Inputs) -> Tensor:
    start, end, step = (need(inputs, i) for i in range(3))
    return torch.arange(start.item(), end.item(), step.item(), dtype=start.dtype)


def _trilu(attributes: Attributes, inputs: Inputs) -> Tensor:
    k = optional(inputs, 1)
    diagonal = int(k) if k is not None else 0
    return need(inputs, 0).triu(diagonal) if attributes.get("upper", 1) else need(inputs, 0).tril(diagonal)


def _depth_to_space(attributes: Attributes, inputs: Inputs) -> Tensor:
    x, size = need(inputs, 0), int(attributes["blocksize"])
    if _text(attributes.get("mode", "DCR")) == "CRD":
        return F.pixel_shuffle(x, size)
    n, c, h, w = x.shape
    x = x.reshape(n, size, size, c // size**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return x.reshape(n, c // size**2, h * size, w * size)


def _space_to_depth(attributes: Attributes, inputs: Inputs) -> Tensor:
    x, size = need(inputs, 0), int(attributes["blocksize"])
    n, c, h, w = x.shape
    x = x.reshape(n, c, h // size, size, w // size, size).permute(0, 3, 5, 1, 2, 4)
    return x.reshape(n, c * size**2, h // size, w // size)


def _einsum(attributes: Attributes, inputs: Inputs) -> Tensor:
    return torch.einsum(_text(attributes["equation"]), *(need(inputs, i) for i in range(len(inputs))))


def _dropout(attributes: Attributes, inputs: Inputs) -> Sequence[Tensor]:
    x = need(inputs, 0)
    return x, torch.ones_like(x, dtype=torch.bool)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


OPERATORS: dict[str, Operator] = {
    "Abs": _unary(torch.abs), "Neg": _unary(torch.neg), "Exp": _unary(torch.exp), "Log": _unary(torch.log),
    "Sqrt": _unary(torch.sqrt), "Reciprocal": _unary(torch.reciprocal), "Floor": _unary(torch.floor),
    "Ceil": _unary(torch.ceil), "Round": _unary(torch.round), "Sign": _unary(torch.sign), "Erf": _unary(torch.erf),
    "Sin": _unary(torch.sin), "Cos": _unary(torch.cos), "Not": _unary(torch.logical_not), "IsNaN": _unary(torch.isnan),
    "Relu": _unary(torch.relu), "Sigmoid": _unary(torch.sigmoid), "Tanh": _unary(torch.tanh),
    "Softplus": _unary(F.softplus), "Softsign": _unary(F.softsign), "Mish": _unary(F.mish),
    "HardSwish": _unary(F.hardswish), "HardSigmoid": _hard_sigmoid, "Gelu": _gelu, "PRelu": _prelu, "Clip": _clip,
    "Swish": lambda a, i: need(i, 0) * torch.sigmoid(a.get("alpha", 1.0) * need(i, 0)),
    "LeakyRelu": lambda a, i: F.leaky_relu(need(i, 0), a.get("alpha", 0.01)),
    "Elu": lambda a, i: F.elu(need(i, 0), a.get("alpha", 1.0)), "Selu": _unary(F.selu),
    "Softmax": _softmax(torch.softmax), "LogSoftmax": _softmax(torch.log_softmax),
    "Add": _binary(torch.add), "Sub": _binary(torch.sub), "Mul": _binary(torch.mul), "Div": _binary(_divide),
    "Pow": _binary(torch.pow), "Equal": _binary(torch.eq), "Greater": _binary(torch.gt), "Less": _binary(torch.lt),
    "GreaterOrEqual": _binary(torch.ge), "LessOrEqual": _binary(torch.le), "And": _binary(torch.logical_and),
    "Or": _binary(torch.logical_or), "Xor": _binary(torch.logical_xor), "MatMul": _binary(torch.matmul),
    "Mod": lambda a, i: (torch.fmod if a.get("fmod") else torch.remainder)(need(i, 0), need(i, 1)),
    "Min": _folded(torch.minimum), "Max": _folded(torch.maximum), "Sum": _folded(torch.add),
    "Mean": _mean,
    "Where": lambda a, i: torch.where(need(i, 0), need(i, 1), need(i, 2)),
    "ReduceMean": _reduction(lambda x, axes, keep: x.mean(axes, keepdim=keep)),
    "ReduceSum": _reduction(lambda x, axes, keep: x.sum(axes, keepdim=keep)),
    "ReduceMax": _reduction(lambda x, axes, keep: x.amax(axes, keepdim=keep)),
    "ReduceMin": _reduction(lambda x, axes, keep: x.amin(axes, keepdim=keep)),
    "ReduceL1": _reduction(lambda x, axes, keep: x.abs().sum(axes, keepdim=keep)),
    "ReduceL2": _reduction(lambda x, axes, keep: x.square().sum(axes, keepdim=keep).sqrt()),
    "ReduceSumSquare": _reduction(lambda x, axes, keep: x.square().sum(axes, keepdim=keep)),
    "ReduceLogSumExp": _reduction(lambda x, axes, keep: x.logsumexp(axes, keepdim=keep)),
    "ReduceProd": _reduction(_product),
    "ArgMax": _extreme(torch.argmax), "ArgMin": _extreme(torch.argmin),
    "CumSum": lambda a, i: need(i, 0).cumsum(int(need(i, 1))),
    "Cast": _cast, "CastLike": lambda a, i: need(i, 0).to(need(i, 1).dtype), "Identity": lambda a, i: need(i, 0),
    "Reshape": _reshape, "Flatten": _flatten, "Transpose": _transpose, "Concat": _concat, "Split": _split,
    "Slice": _slice, "Squeeze": _squeeze, "Unsqueeze": _unsqueeze, "Expand": _expand, "Pad": _pad, "Gather": _gather,
    "Tile": lambda a, i: need(i, 0).repeat(integers(need(i, 1))), "Shape": _shape,
    "Size": lambda a, i: torch.tensor(need(i, 0).numel()), "ConstantOfShape": _constant_of_shape, "Range": _range,
    "GatherElements": lambda a, i: need(i, 0).gather(int(a.get("axis", 0)), need(i, 1).long()),
    "Trilu": _trilu, "DepthToSpace": _depth_to_space, "SpaceToDepth": _space_to_depth, "Einsum": _einsum,
    "Dropout": _dropout,
}
"""Operator -> what it does."""
