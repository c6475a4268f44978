"""ONNX operators as torch functions: convolutions, pools, norms, resizing.

Where torch has the operator as one call it is that call, with the weight as it is held: calibration knows layers by
`F.conv2d(x, weight)`, `F.linear`, `F.batch_norm` and `F.embedding`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .operators import Attributes, Inputs, Operator, integers, need, optional

_CONV: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSED: dict[int, Callable[..., Tensor]] = {1: F.conv_transpose1d, 2: F.conv_transpose2d,
                                                      3: F.conv_transpose3d}
_MAX_POOL: dict[int, Callable[..., Tensor]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE_POOL: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def _conv(attributes: Attributes, inputs: Inputs) -> Tensor:
    x, weight, bias = need(inputs, 0), need(inputs, 1), optional(inputs, 2)
    axes = weight.ndim - 2
    strides, dilations = _each(attributes, "strides", axes), _each(attributes, "dilations", axes)
    before, after = _pads(attributes, x.shape[2:], weight.shape[2:], strides, dilations)
    if before != after:
        x, before = F.pad(x, _flat(before, after)), [0] * axes
    return _CONV[axes](x, weight, bias, strides, before, dilations, int(attributes.get("group", 1)))


def _conv_transpose(attributes: Attributes, inputs: Inputs) -> Tensor:
    x, weight, bias = need(inputs, 0), need(inputs, 1), optional(inputs, 2)
    axes = weight.ndim - 2
    strides, dilations = _each(attributes, "strides", axes), _each(attributes, "dilations", axes)
    more = list(attributes.get("output_padding", [0] * axes))
    auto, wanted = _text(attributes.get("auto_pad", "NOTSET")), attributes.get("output_shape")
    if wanted is None and auto.startswith("SAME"):
        wanted = [size * stride for size, stride in zip(x.shape[2:], strides, strict=True)]
    pads = list(attributes.get("pads", [0] * 2 * axes))
    before, after = pads[:axes], pads[axes:]
    if wanted is not None:
        for i in range(axes):
            total = strides[i] * (x.shape[2 + i] - 1) + more[i] + (weight.shape[2 + i] - 1) * dilations[i] + 1
            total -= list(wanted)[-axes:][i]
            small, large = total // 2, total - total // 2
            before[i], after[i] = (small, large) if auto == "SAME_UPPER" else (large, small)
    groups = int(attributes.get("group", 1))
    call = _CONV_TRANSPOSED[axes]
    if before == after and min(before) >= 0:
        return call(x, weight, bias, strides, before, more, groups, dilations)
    y = call(x, weight, bias, strides, 0, more, groups, dilations)
    return F.pad(y, [-size for size in _flat(before, after)])


def _max_pool(attributes: Attributes, inputs: Inputs) -> Tensor:
    x, kernel = need(inputs, 0), list(attributes["kernel_shape"])
    strides, dilations = _each(attributes, "strides", len(kernel)), _each(attributes, "dilations", len(kernel))
    before, after = _pads(attributes, x.shape[2:], kernel, strides, dilations)
    if before != after or any(2 * pad > size for pad, size in zip(before, kernel, strict=True)):
        x, before = F.pad(x, _flat(before, after), value=-math.inf), [0] * len(kernel)
    return _MAX_POOL[len(kernel)](x, kernel, strides, before, dilations, bool(attributes.get("ceil_mode", 0)))


def _average_pool(attributes: Attributes, inputs: Inputs) -> Tensor:
    x, kernel = need(inputs, 0), list(attributes["kernel_shape"])
    strides = _each(attributes, "strides", len(kernel))
    before, after = _pads(attributes, x.shape[2:], kernel, strides, [1] * len(kernel))
    ceil, whole = bool(attributes.get("ceil_mode", 0)), bool(attributes.get("count_include_pad", 0))
    pool = _AVERAGE_POOL[len(kernel)]
    if before == after:
        return pool(x, kernel, strides, before, ceil, whole)
    padded = pool(F.pad(x, _flat(before, after)), kernel, strides, 0, ceil)
    if whole:
        return padded
    return padded / pool(F.pad(torch.ones_like(x), _flat(before, after)), kernel, strides, 0, ceil)


def _global(function: Callable[..., Tensor]) -> Operator:
    return lambda attributes, inputs: function(need(inputs, 0), list(range(2, need(inputs, 0).ndim)), keepdim=True)


def _batch_norm(attributes: Attributes, inputs: Inputs) -> Tensor:
    x, weight, bias, mean, variance = (need(inputs, i) for i in range(5))
    return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, float(attributes.get("epsilon", 1e-5)))


def _layer_norm(attributes: Attributes, inputs: Inputs) -> Tensor:
    x = need(inputs, 0)
    axis = int(attributes.get("axis", -1)) % x.ndim
    return F.layer_norm(x, x.shape[axis:], need(inputs, 1), optional(inputs, 2), float(attributes.get("epsilon", 1e-5)))


def _rms_norm(attributes: Attributes, inputs: Inputs) -> Tensor:
    x = need(inputs, 0)
    axis = int(attributes.get("axis", -1)) % x.ndim
    return F.rms_norm(x, x.shape[axis:], need(inputs, 1), float(attributes.get("epsilon", 1e-5)))


def _instance_norm(attributes: Attributes, inputs: Inputs) -> Tensor:
    return F.instance_norm(need(inputs, 0), None, None, need(inputs, 1), need(inputs, 2), True, 0.0,
                           float(attributes.get("epsilon", 1e-5)))


def _group_norm(attributes: Attributes, inputs: Inputs) -> Tensor:
    return F.group_norm(need(inputs, 0), int(attributes["num_groups"]), need(inputs, 1), need(inputs, 2),
                        float(attributes.get("epsilon", 1e-5)))


def _lrn(attributes: Attributes, inputs: Inputs) -> Tensor:
    return F.local_response_norm(need(inputs, 0), int(attributes["size"]), float(attributes.get("alpha", 1e-4)),
                                 float(attributes.get("beta", 0.75)), float(attributes.get("bias", 1.0)))


def _gemm(attributes: Attributes, inputs: Inputs) -> Tensor:
    """Of two activations; with a weight it is `F.linear`, see network.py."""
    a, b, c = need(inputs, 0), need(inputs, 1), optional(inputs, 2)
    a = a.t() if attributes.get("transA", 0) else a
    b = b.t() if attributes.get("transB", 0) else b
    y = a @ b * float(attributes.get("alpha", 1.0))
    return y if c is None else y + c * float(attributes.get("beta", 1.0))


def _resize(attributes: Attributes, inputs: Inputs) -> Tensor:
    x, scales, sizes = need(inputs, 0), optional(inputs, 2), optional(inputs, 3)
    if attributes.get("axes") is not None or attributes.get("antialias", 0):
        raise NotImplementedError("Resize with axes or antialias")
    if sizes is not None:
        wanted = integers(sizes)[2:]
    else:
        assert scales is not None
        wanted = [math.floor(size * scale) for size, scale in zip(x.shape, scales.tolist(), strict=True)][2:]
    mode = _text(attributes.get("mode", "nearest"))
    place = _text(attributes.get("coordinate_transformation_mode", "half_pixel"))
    rounding = _text(attributes.get("nearest_mode", "round_prefer_floor"))
    if mode == "nearest" and place == "asymmetric" and rounding == "floor":
        return F.interpolate(x, wanted, mode="nearest")
    whole = all(large % small == 0 for large, small in zip(wanted, x.shape[2:], strict=True))
    if mode == "nearest" and place in ("half_pixel", "pytorch_half_pixel") and whole:
        return F.interpolate(x, wanted, mode="nearest-exact")
    kinds = {1: "linear", 2: "bilinear", 3: "trilinear"}
    if mode == "linear" and place in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        return F.interpolate(x, wanted, mode=kinds[x.ndim - 2], align_corners=place == "align_corners")
    raise NotImplementedError(f"Resize with mode {mode}, {place}, {rounding}")


def _each(attributes: Attributes, name: str, axes: int) -> list[int]:
    return [int(value) for value in attributes.get(name, [1] * axes)]


def _pads(attributes: Attributes, sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int],
          dilations: Sequence[int]) -> tuple[list[int], list[int]]:
    """Padding before and after each axis."""
    auto = _text(attributes.get("auto_pad", "NOTSET"))
    if not auto.startswith("SAME"):
        pads = [int(value) for value in attributes.get("pads", [0] * 2 * len(kernel))]
        return (pads[: len(kernel)], pads[len(kernel) :]) if auto != "VALID" else ([0] * len(kernel),) * 2
    before, after = [], []
    for size, width, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        total = max(0, (-(-size // stride) - 1) * stride + (width - 1) * dilation + 1 - size)
        small, large = total // 2, total - total // 2
        before.append(large if auto == "SAME_LOWER" else small)
        after.append(small if auto == "SAME_LOWER" else large)
    return before, after


def _flat(before: Sequence[int], after: Sequence[int]) -> list[int]:
    """As F.pad takes them: the last axis first."""
    return [size for pair in zip(reversed(before), reversed(after), strict=True) for size in pair]


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


LAYERS: dict[str, Operator] = {
    "Conv": _conv, "ConvTranspose": _conv_transpose, "Gemm": _gemm, "MaxPool": _max_pool, "AveragePool": _average_pool,
    "GlobalAveragePool": _global(torch.mean), "GlobalMaxPool": _global(torch.amax),
    "BatchNormalization": _batch_norm, "LayerNormalization": _layer_norm, "RMSNormalization": _rms_norm,
    "InstanceNormalization": _instance_norm, "GroupNormalization": _group_norm, "LRN": _lrn, "Resize": _resize,
}
"""Operator -> what it does."""
