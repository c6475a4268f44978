"""An ONNX graph as a torch network: to measure sensitivities with gradients, and to follow errors through it.

    network = OnnxNetwork(graph, ...)
    stats = tersor.calibrate(network, batches)

The graph is interpreted node by node (ONNX Runtime has no gradients). Its parameters and buffers are the initializers;
weights that the graph has as [in, out] are held as [out, in], so that the layer is `F.linear`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...errors import ModelError
from ..described import Described
from ..inventory import BatchNormLayer, WeightLayer
from ..module import to_torch
from .layers import LAYERS
from .operators import OPERATORS, Operator, optional
from .roles import Roles

_OUTPUT_ACTIVATIONS = ("Softmax", "LogSoftmax")


class OnnxNetwork(Described):
    """`nodes`: NodeProtos of the main graph, functions inlined. `weights`: initializer -> array, to be parameters (in
    `roles`) or buffers; `constants`: the other initializers. `inputs`, `outputs`: names of the graph's.

    forward(*inputs) gives the graph's first output, or all as a tuple where there are several. A Softmax that ends the
    graph is left out: calibration differentiates logits. Raises ModelError, when it is run, for operators that it
    does not know; `unsupported` names them.
    """

    def __init__(self, nodes: Sequence[Any], weights: Mapping[str, Any], constants: Mapping[str, Any],
                 inputs: Sequence[str], outputs: Sequence[str], roles: Roles) -> None:
        super().__init__()
        self.external_bytes = 0  # of data files beside the model
        self.roles, self.inputs = roles, list(inputs)
        self.steps = [_Step(number, node) for number, node in enumerate(nodes)]
        self.outputs = _before_softmax(self.steps, list(outputs))
        self.unsupported = sorted({step.kind for step in self.steps if step.operator is None})
        found = {name: _tensor(array) for name, array in constants.items()}
        self.constants = {name: tensor for name, tensor in found.items() if tensor is not None}
        self.held: dict[str, str] = {}
        self._hold(weights)
        held = self.held
        self.weight_layers = [WeightLayer(held[name], use.kind, use.groups, held.get(use.bias or ""))
                              for name, use in roles.layers.items() if name in held]
        place = {name: i for i, name in enumerate(self.order)}
        self.weight_layers.sort(key=lambda layer: place[layer.name])
        for prefix, names, eps in roles.batchnorms:
            if all(name in held for name in names):
                scale, bias, mean, variance = (held[name] for name in names)
                self.batchnorm_layers.append(BatchNormLayer(prefix, scale, bias, mean, variance, eps))
        self.last_use = _last_uses(self.steps, self.outputs)

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        if self.unsupported:
            raise ModelError(f"the ONNX graph has operators that tersor cannot differentiate: "
                             f"{', '.join(self.unsupported)}; compress it without calibration (data-free)")
        if len(inputs) != len(self.inputs):
            raise ModelError(f"the graph has {len(self.inputs)} inputs ({', '.join(self.inputs)}), {len(inputs)} given")
        values: dict[str, Tensor | None] = {"": None, **dict(zip(self.inputs, inputs, strict=True))}
        fused: dict[int, Tensor] = {}
        for step in self.steps:
            try:
                self._run(step, values, fused)
            except (NotImplementedError, AssertionError) as error:
                raise ModelError(f"node {step.name or step.number} ({step.kind}): {error}") from error
            for name in self.last_use.get(step.number, ()):
                values.pop(name, None)
        results = [self._value(name, values) for name in self.outputs]
        found = tuple(value for value in results if value is not None)
        return found[0] if len(found) == 1 else found

    @property
    def can_run(self) -> bool:
        """Whether all operators are known."""
        return not self.unsupported

    def flipped(self, name: str) -> bool:
        """Whether an initializer is held transposed."""
        use = self.roles.layers.get(name)
        return use is not None and use.flipped

    def _run(self, step: _Step, values: dict[str, Tensor | None], fused: dict[int, Tensor]) -> None:
        if step.number in fused:
            values[step.outputs[0]] = fused.pop(step.number)
            return
        weight = self.roles.linear.get(step.number)
        if weight is not None:
            y = self._linear(step, weight, values)
            addition = self.roles.fused.get(step.number)
            if addition is not None:
                fused[addition] = y
            values[step.outputs[0]] = y
            return
        inputs = [self._value(name, values) for name in step.inputs]
        if step.kind == "Gather" and step.inputs[0] in self.roles.layers and inputs[0] is not None:
            index = inputs[1]
            assert index is not None
            values[step.outputs[0]] = F.embedding(torch.where(index < 0, index + len(inputs[0]), index), inputs[0])
            return
        assert step.operator is not None
        found = step.operator(step.attributes, inputs)
        outputs = [found] if isinstance(found, Tensor) else list(found)
        values.update(zip(step.outputs, outputs, strict=False))

    def _linear(self, step: _Step, name: str, values: dict[str, Tensor | None]) -> Tensor:
        x = self._value(step.inputs[0], values)
        assert x is not None
        weight, attributes = self._held(name), step.attributes
        use = self.roles.layers[name]
        if step.kind == "MatMul":
            addition = self.roles.fused.get(step.number)
            bias = self._bias_of(addition, step.outputs[0], values) if addition is not None else None
            return F.linear(x, weight, bias)
        alpha, beta = float(attributes.get("alpha", 1.0)), float(attributes.get("beta", 1.0))
        c = optional([self._value(item, values) for item in step.inputs], 2)
        if alpha == 1.0 and (c is None or (use.bias == step.inputs[2] and beta == 1.0)):
            return F.linear(x, weight, c)
        y = F.linear(x, weight) * alpha
        return y if c is None else y + c * beta

    def _bias_of(self, number: int, product: str, values: dict[str, Tensor | None]) -> Tensor | None:
        names = [name for name in self.steps[number].inputs if name != product]
        return self._value(names[0], values)

    def _hold(self, weights: Mapping[str, Any]) -> None:
        """Register what the graph calls initializers, BatchNorms with their four tensors in a row."""
        together = {names[0]: names for _, names, _ in self.roles.batchnorms if set(names) <= weights.keys()}
        statistics = {name for _, names, _ in self.roles.batchnorms for name in names[2:]}
        later = {name for names in together.values() for name in names[1:]}
        lossy = set(self.roles.layers) | self.roles.vectors
        lossy |= {name for names in together.values() for name in names[:2]}
        for first in weights:
            if first in later:
                continue
            for name in together.get(first, (first,)):
                tensor = to_torch(weights[name]).reshape(weights[name].shape)
                if self.flipped(name):
                    tensor = tensor.t().contiguous()
                parameter = name in lossy and name not in statistics and tensor.is_floating_point()
                self.held[name] = self.hold(name, tensor, parameter)

    def _held(self, name: str) -> Tensor:
        path, _, leaf = self.held[name].rpartition(".")
        tensor: Tensor = getattr(self.get_submodule(path), leaf)
        return tensor

    def _value(self, name: str, values: Mapping[str, Tensor | None]) -> Tensor | None:
        if name in values:
            return values[name]
        if name in self.held:
            tensor = self._held(name)
            return tensor.t() if self.flipped(name) else tensor
        if name in self.constants:
            return self.constants[name]
        raise ModelError(f"the graph uses {name!r} before anything gives it")


class _Step:
    """A node, read once."""

    def __init__(self, number: int, node: Any) -> None:
        self.number, self.name, self.kind = number, str(node.name), str(node.op_type)
        self.inputs, self.outputs = list(node.input), list(node.output)
        known = node.domain in ("", "ai.onnx") and not any(item.HasField("g") for item in node.attribute)
        self.operator: Operator | None = (LAYERS.get(self.kind) or OPERATORS.get(self.kind)) if known else None
        self.attributes: dict[str, Any] = _attributes(node) if known else {}
        self.attributes["outputs"] = len(self.outputs)
        if self.kind == "Constant" and known:
            self.operator = _constant
        if self.kind in ("BatchNormalization", "MaxPool") and len([name for name in self.outputs if name]) > 1:
            self.operator = None


def _constant(attributes: Mapping[str, Any], inputs: Sequence[Tensor | None]) -> Tensor:
    for key, value in attributes.items():
        if key == "value":
            tensor: Tensor = value
            return tensor
        if key in ("value_int", "value_ints", "value_float", "value_floats"):
            return torch.tensor(value, dtype=torch.int64 if "int" in key else torch.float32)
    raise NotImplementedError("a Constant without a number")


def _attributes(node: Any) -> dict[str, Any]:
    from onnx import helper, numpy_helper
    found = {}
    for item in node.attribute:
        value = helper.get_attribute_value(item)
        found[item.name] = _tensor(numpy_helper.to_array(value)) if item.type == item.TENSOR else value
    return found


def _tensor(array: Any) -> Tensor | None:
    """None for element types that torch lacks (texts, 4-bit integers)."""
    try:
        return to_torch(array).reshape(array.shape)
    except TypeError:
        return None


def _before_softmax(steps: Sequence[_Step], outputs: list[str]) -> list[str]:
    made = {step.outputs[0]: step for step in steps}
    final = {name for name in outputs if name in made and made[name].kind in _OUTPUT_ACTIVATIONS}
    return [made[name].inputs[0] if name in final else name for name in outputs]


def _last_uses(steps: Sequence[_Step], outputs: Sequence[str]) -> dict[int, list[str]]:
    """Number of a step -> values that nothing needs after it."""
    last = {name: step.number for step in steps for name in (*step.outputs, *step.inputs) if name}
    found: dict[int, list[str]] = {}
    for name, number in last.items():
        if name not in outputs:
            found.setdefault(number, []).append(name)
    return found
