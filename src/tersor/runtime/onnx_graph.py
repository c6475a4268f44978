"""ONNX models that hold compressed weights: DequantizeLinear of small integers, Gather from a table of values.

    data = compressed_model(file)        # bytes of a single .onnx file

ONNX Runtime computes the weights from them, with the same numbers as in the dense model. A weight becomes

* scalar tool: int8 (int4 where all fit and the operator set is 21 or later) with a scale for the tensor or for each
  output channel. Reconstruction points that are no multiples of the step: uint8 indexes into a table, times the scales;
* codebook tool: uint8 indexes into the shared values,

where that is smaller than its float32; all other tensors stay as they are. Integers of convolutions go through
DequantizeLinear. Those of other layers are cast and multiplied: of DequantizeLinear and MatMul ONNX Runtime makes one
operation that rounds the *activations* to 8 bits, which costs about a per cent and is not what was asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..adapters.onnx.file import canonical_bytes, library, open_bytes
from ..adapters.restored import in_memory
from ..codes import codes_of, shared_codes_of
from ..decoder import TersorFile
from ..errors import ConfigError
from ..synthesis.codebook import CodebookCode
from ..synthesis.scalar import ScalarCode, unview

_LEAST_OPSET, _INT4_OPSET = 13, 21
_OVERHEAD = 160
"""Bytes of a node and of the headers of its tensors, about."""


@dataclass(frozen=True)
class _Integers:
    """A weight = integers * scales along `axis`; or table[integers] (* scales, where there are some)."""

    integers: npt.NDArray[np.generic]
    scales: npt.NDArray[np.float32] | None
    axis: int
    table: npt.NDArray[np.float32] | None = None
    bits: int = 8

    @property
    def nbytes(self) -> int:
        count = -(-self.integers.size * self.bits // 8)
        return count + sum(array.nbytes for array in (self.scales, self.table) if array is not None) + _OVERHEAD

    def turned(self) -> _Integers:
        """Of the transposed matrix."""
        return _Integers(np.ascontiguousarray(self.integers.T), self.scales, 1 - self.axis, self.table, self.bits)


def compressed_model(file: TersorFile) -> bytes:
    """The restored model of a .tersor file that was made from an .onnx file, with weights that stay compressed.

    One file, also where the original had its data outside. Raises ConfigError where the model was no ONNX model or has
    an operator set before 13, or without the onnx package, FormatError for a damaged file.
    """
    if file.source_format != "onnx":
        raise ConfigError(f"this file was made from a model of format {file.source_format or 'safetensors'}, and not "
                          f"from an .onnx file")
    onnx = library()
    model, network, tensors = open_bytes(in_memory(file))
    opset = max([item.version for item in model.opset_import if item.domain in ("", "ai.onnx")], default=0)
    if opset < _LEAST_OPSET:
        raise ConfigError(f"the model has operator set {opset}; DequantizeLinear with scales per channel needs "
                          f"{_LEAST_OPSET}: convert it with onnx.version_converter first")
    names = {held: name for name, held in network.held.items()}
    codes = _codes(file, opset)
    for held, code in codes.items():
        name = names.get(held)
        if name is None or tensors[name].array.dtype != np.float32:
            continue
        code = code.turned() if network.flipped(name) else code
        if code.nbytes < tensors[name].array.nbytes and np.array_equal(_values(code), tensors[name].array):
            _replace(onnx, model, name, code)
            del tensors[name]
    return canonical_bytes(model, tensors)


def _codes(file: TersorFile, opset: int) -> dict[str, _Integers]:
    found: dict[str, _Integers] = {}
    for name, code in codes_of(file, ("scalar",)).items():
        if isinstance(code, ScalarCode):
            integers = _of_scalar(code, file.record(name).shape, opset)
            if integers is not None:
                found[name] = integers
    for shared, codebook in shared_codes_of(file):
        found |= _of_codebook(file, shared, codebook)
    return found


def _of_scalar(code: ScalarCode, shape: tuple[int, ...], opset: int) -> _Integers | None:
    steps, axis = code.row_steps(), 1 if code.swapped else 0
    if not np.isfinite(steps).all() or (steps == 0).any():
        return None
    scales = steps[:1] if (steps == steps[:1]).all() else steps
    matrix = code.matrix()
    if not any(code.shift):
        levels = np.rint(matrix / steps[:, None])
        if np.abs(levels).max(initial=0) > 127:
            return None
        bits = 4 if opset >= _INT4_OPSET and levels.min(initial=0) >= -8 and levels.max(initial=0) <= 7 else 8
        return _Integers(unview(levels.astype(np.int8), shape, code.swapped), scales, axis, None, bits)
    low = int(code.q.min(initial=0))
    if int(code.q.max(initial=0)) - low > 255:
        return None
    reach = np.arange(low, int(code.q.max(initial=0)) + 1, dtype=np.int32)
    table = ScalarCode(reach[None], 0, None, shift=code.shift).matrix()[0]  # step 1
    return _Integers(unview((code.q - low).astype(np.uint8), shape, code.swapped), scales, axis, table)


def _of_codebook(file: TersorFile, names: tuple[str, ...], code: CodebookCode) -> dict[str, _Integers]:
    if code.values.size > 256:
        return {}
    return {name: _Integers(np.asarray(index).astype(np.uint8).reshape(file.record(name).shape), None, 0,
                            np.asarray(code.values, dtype=np.float32))
            for name, index in zip(names, code.indexes, strict=True)}


def _values(code: _Integers) -> npt.NDArray[np.float32]:
    """What the runtime computes."""
    levels = code.integers.astype(np.float32) if code.table is None else code.table[code.integers.astype(np.intp)]
    return levels if code.scales is None else levels * _along(code.scales, code.axis, code.integers.ndim)


def _along(scales: npt.NDArray[np.float32], axis: int, axes: int) -> npt.NDArray[np.float32]:
    shape = [1] * axes
    shape[axis] = scales.size
    return scales.reshape(shape)


def _replace(onnx: Any, model: Any, name: str, code: _Integers) -> None:
    """Take the initializer (or Constant node) `name` out, and put nodes in that compute it."""
    helper, graph = onnx.helper, model.graph
    convolutions = all(node.op_type in ("Conv", "ConvTranspose") for node in graph.node if name in node.input)
    kept = [node for node in graph.node if not (node.op_type == "Constant" and name in node.output)]
    others = [tensor for tensor in graph.initializer if tensor.name != name]
    inputs = [item for item in graph.input if item.name != name]
    nodes, fresh = [], []

    def tensor(part: str, array: npt.NDArray[np.generic], kind: int | None = None) -> str:
        full = f"{name}.{part}"
        if kind is None:
            fresh.append(onnx.numpy_helper.from_array(np.require(array, requirements="C").reshape(array.shape), full))
        else:
            flat = array.reshape(-1).astype(np.int16) & 15
            flat = np.append(flat, [0] * (flat.size % 2))
            packed = (flat[0::2] | flat[1::2] << 4).astype(np.uint8)
            fresh.append(helper.make_tensor(full, kind, array.shape, packed.tobytes(), raw=True))
        return full

    if code.table is None:
        assert code.scales is not None
        kind = onnx.TensorProto.INT4 if code.bits == 4 else None
        scalar = code.scales.size == 1
        scale = np.asarray(code.scales[0]) if scalar else code.scales
        integers = tensor("integers", code.integers, kind)
        if convolutions:
            axis = {} if scalar else {"axis": code.axis}
            nodes.append(helper.make_node("DequantizeLinear", [integers, tensor("scale", scale)], [name],
                                          name=f"{name}.dequantize", **axis))
        else:
            scale = scale if scalar else _along(code.scales, code.axis, code.integers.ndim)
            nodes.append(helper.make_node("Cast", [integers], [f"{name}.levels"], name=f"{name}.cast",
                                          to=onnx.TensorProto.FLOAT))
            nodes.append(helper.make_node("Mul", [f"{name}.levels", tensor("scale", scale)], [name],
                                          name=f"{name}.scale_by"))
    else:
        looked_up = name if code.scales is None else f"{name}.levels"
        nodes.append(helper.make_node("Cast", [tensor("index", code.integers)], [f"{name}.index32"],
                                      name=f"{name}.cast", to=onnx.TensorProto.INT32))
        nodes.append(helper.make_node("Gather", [tensor("values", code.table), f"{name}.index32"], [looked_up],
                                      name=f"{name}.gather"))
        if code.scales is not None:
            scales = _along(code.scales, code.axis, code.integers.ndim)
            nodes.append(helper.make_node("Mul", [looked_up, tensor("scale", scales)], [name], name=f"{name}.scale_by"))
    for item, values in ((graph.node, nodes + kept), (graph.initializer, others + fresh), (graph.input, inputs)):
        copies = [type(value)() for value in values]
        for copy, value in zip(copies, values, strict=True):
            copy.CopyFrom(value)
        del item[:]
        item.extend(copies)
