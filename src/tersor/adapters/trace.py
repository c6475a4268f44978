"""One traced forward: which BatchNorm follows which layer alone, and what is added to its output.

Every torch call is seen by a TorchFunctionMode. Two things could escape it: autograd functions and scripted
modules. A dispatch mode underneath sees their operations, so that a hidden consumer of a layer's output is
never overlooked (it would make the encoder move a scale into a BatchNorm that does not see all uses).

Only *values* are followed, not tensor objects: an in-place call consumes the old value and makes a new one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from .calls import LAYER_CALLS, argument, names_by_id, tensors_in, undisturbed
from .inventory import INPUT, Graph, Inventory
from .lockstep import CallCounter, Recipe, Step

__all__ = ["CallCounter", "Recipe", "trace", "trace_with_recipes"]

_ADDITIONS = {"add", "add_", "__add__", "__radd__", "__iadd__"}
_READERS = {"numpy", "__array__", "tolist", "data_ptr", "__dlpack__", "untyped_storage", "storage"}
"""Calls that return no tensor and run no operation, and yet hand out the values."""


def trace(model: nn.Module, inventory: Inventory, args: Sequence[Any] = (),
          kwargs: Mapping[str, Any] | None = None) -> Graph:
    """The `Graph` of `model(*args, **kwargs)`, run once in eval mode without gradients.

    Give one sample: all its intermediate tensors are kept until the end. Never raises for what the model
    does: a model that cannot be traced has an empty graph with a `reason`.
    """
    return trace_with_recipes(model, inventory, args, kwargs)[0]


def trace_with_recipes(model: nn.Module, inventory: Inventory, args: Sequence[Any] = (),
                       kwargs: Mapping[str, Any] | None = None) -> tuple[Graph, dict[int, Recipe]]:
    """`trace`, and how to make the residual operands that the model computes only after the layer has run."""
    tracer = _Tracer(names_by_id(model, inventory))
    try:
        with undisturbed(model), torch.no_grad(), _Hidden(tracer), tracer:
            with tracer.unwatched():
                tracer.name_input(args, kwargs or {})
            output = model(*args, **(kwargs or {}))
        tracer.consume_output(output)
        reader = _Reader(tracer, inventory)
        return reader.graph(), reader.recipes
    except Exception as error:  # whatever a model's forward may raise: the graph is an optional help
        return Graph(reason=f"{type(error).__name__}: {error}"), {}


@dataclass(eq=False)
class _Value:
    """The contents of one tensor between two writes; `call` made it, where nothing was written in place."""

    number: int | None = None
    call: _Call | None = None
    consumers: list[_Call] = field(default_factory=list)
    named: bool = False  # a parameter or buffer


@dataclass(eq=False)
class _Call:
    """One call that read tensors; `number` counts the tensor-producing ones only."""

    func: Callable[..., Any] | None
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    number: int | None = None
    inputs: list[_Value] = field(default_factory=list)
    output: _Value | None = None
    shape: tuple[int, ...] = ()

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        return argument(self.args, self.kwargs, position, name, default)


class _Hidden(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Tells the tracer of operations that no traced call stands for."""

    def __init__(self, tracer: _Tracer) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tracer = tracer

    def __torch_dispatch__(self, func: Any, types: Sequence[type], args: Sequence[Any] = (),
                           kwargs: Mapping[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if self.tracer.inside:
            self.tracer.touched = True
            return func(*args, **kwargs)
        with self.tracer.unwatched():
            result = func(*args, **kwargs)
            inputs = list(tensors_in((args, kwargs)))
            written = inputs if func._schema.is_mutable else []
            self.tracer.record(_Call(None, args, kwargs), inputs, list(tensors_in(result)), written)
        return result


class _Tracer(TorchFunctionMode):
    """Records the calls of one forward."""

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()
        self.names = names
        self.calls = 0
        self.inside = False
        self.touched = False
        self.layer_calls: list[tuple[str, _Call]] = []
        self.readers: dict[str, list[_Call]] = {}
        self.values: dict[int, _Value] = {}
        self.alive: list[Tensor] = []  # so that ids and storages are not used again
        self.storages: dict[int, list[Tensor]] = {}

    def __torch_function__(self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (),
                           kwargs: Mapping[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if self.inside:
            return func(*args, **kwargs)
        inputs = list(tensors_in((args, kwargs)))
        versions = [tensor._version for tensor in inputs]
        with self.unwatched():
            result = func(*args, **kwargs)
        outputs = list(tensors_in(result))
        written = [tensor for tensor, version in zip(inputs, versions, strict=True)
                   if tensor._version != version]
        if outputs or self.touched or getattr(func, "__name__", "") in _READERS:
            call = _Call(func, args, kwargs)
            if outputs:
                call.number = self.calls
                self.calls += 1
            self.record(call, inputs, outputs, written)
        return result

    @contextmanager
    def unwatched(self) -> Iterator[None]:
        """Operations inside belong to a known call, or are our own."""
        self.inside, self.touched = True, False
        try:
            yield
        finally:
            self.inside = False

    def name_input(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """The first tensor is `INPUT`; the others have no number."""
        for index, tensor in enumerate(tensors_in((args, kwargs))):
            self._bind(tensor, _Value(INPUT if index == 0 else None))

    def record(self, call: _Call, inputs: list[Tensor], outputs: list[Tensor], written: list[Tensor]) -> None:
        """One call: who reads, what is made, what is overwritten."""
        untouched = {id(tensor) for tensor in inputs} - {id(tensor) for tensor in written}
        if outputs and not written and all(id(tensor) in untouched for tensor in outputs):
            return  # returns its argument as it is (dropout in eval mode, .contiguous()): no consumer
        call.inputs = [self._value(tensor) for tensor in inputs]
        for tensor, value in zip(inputs, call.inputs, strict=True):
            value.consumers.append(call)
            if (name := self.names.get(id(tensor))) is not None:
                self.readers.setdefault(name, []).append(call)
        weight = call.argument(1, "weight")
        if call.func in LAYER_CALLS and id(weight) in self.names:
            self.layer_calls.append((self.names[id(weight)], call))
        for tensor in written:
            for sharing in self.storages.get(tensor.untyped_storage().data_ptr(), []):
                self._bind(sharing, _Value())
        fresh = [tensor for tensor in outputs if id(tensor) not in untouched]
        for tensor in fresh:
            pure = call if len(outputs) == 1 and not written else None
            value = _Value(call.number if len(outputs) == 1 else None, pure)
            self._bind(tensor, value)
            if len(outputs) == 1:
                call.output, call.shape = value, tuple(tensor.shape)

    def consume_output(self, output: object) -> None:
        """What the model returns is read by its caller."""
        inputs = [self._value(tensor) for tensor in tensors_in(output)]
        for value in inputs:
            value.consumers.append(_Call(None, (), {}))

    def _value(self, tensor: Tensor) -> _Value:
        if id(tensor) not in self.values:
            self._bind(tensor, _Value(named=id(tensor) in self.names))
        return self.values[id(tensor)]

    def _bind(self, tensor: Tensor, value: _Value) -> None:
        if id(tensor) not in self.values:
            self.alive.append(tensor)
            if tensor.layout == torch.strided:
                self.storages.setdefault(tensor.untyped_storage().data_ptr(), []).append(tensor)
        self.values[id(tensor)] = value


class _Reader:
    """The recorded calls -> the graph."""

    def __init__(self, tracer: _Tracer, inventory: Inventory) -> None:
        self.tracer = tracer
        self.batchnorms = {bn.running_mean: bn for bn in inventory.batchnorms}
        self.weights = {layer.name for layer in inventory.layers}
        self.recipes: dict[int, Recipe] = {}

    def graph(self) -> Graph:
        graph = Graph(calls=self.tracer.calls)
        for name, call in self.tracer.layer_calls:
            if name not in self.weights:
                continue
            if name not in graph.order:
                graph.order.append(name)
            if len(self.tracer.readers[name]) != 1 or call.output is None or call.number is None:
                continue
            key, end = name, call.output
            after = self._batchnorm(call)
            if after is not None and after[1].output is not None:
                graph.absorb[name] = key = after[0]
                end = after[1].output
            addition = self._addition(end, call.number)
            if addition is not None:
                operand, last = addition
                graph.residual[key] = operand
                graph.last_use[operand] = max(last, graph.last_use.get(operand, INPUT))
        return graph

    def _batchnorm(self, layer: _Call) -> tuple[str, _Call] | None:
        """(prefix, call) of the BatchNorm in eval mode that alone consumes this layer's output."""
        call = _only_consumer(layer.output)
        if call is None or call.func is not F.batch_norm or call.inputs[0] is not layer.output:
            return None
        mean = self.tracer.names.get(id(call.argument(1, "running_mean")), "")
        bn = self.batchnorms.get(mean)
        if bn is None or call.argument(5, "training", False):
            return None
        once = all(self.tracer.readers.get(name) == [call] for name in bn.names)
        # A 3-d output of a linear layer has its channels last, where BatchNorm1d does not look for them.
        aligned = len(layer.shape) == 2 or layer.func != F.linear
        return (bn.prefix, call) if once and aligned else None

    def _addition(self, value: _Value, before: int) -> tuple[int, int] | None:
        """(number of the other operand, number of the addition) if `value` only goes into an addition."""
        call = _only_consumer(value)
        if call is None or getattr(call.func, "__name__", "") not in _ADDITIONS or call.number is None:
            return None
        operands = list(tensors_in((call.args, call.kwargs)))
        if len(operands) != 2 or operands[0].shape != operands[1].shape or call.kwargs.get("alpha", 1) != 1:
            return None
        other = call.inputs[0] if call.inputs[1] is value else call.inputs[1]
        if other.number is None or not (other.number < before or self._late(other, before)):
            return None
        return other.number, call.number

    def _late(self, value: _Value, before: int) -> bool:
        """Whether a value made after the layer is a parameter-free function of one made before; note how."""
        steps: list[_Call] = []
        bases: list[_Value] = []
        pending = [value]
        while pending:
            current = pending.pop()
            if current.number is not None and current.number < before:
                bases.append(current)
                continue
            call = current.call
            if call is None or call.func is None or any(operand.named for operand in call.inputs):
                return False
            if call not in steps:
                steps.append(call)
                pending += call.inputs
        if len(set(bases)) != 1 or bases[0].number is None or value.number is None:
            return False
        steps.sort(key=lambda call: call.number or 0)
        slot = {bases[0]: 0}
        slot |= {call.output: index for index, call in enumerate(steps, 1) if call.output is not None}
        self.recipes[value.number] = Recipe(bases[0].number, tuple(
            Step(call.func, call.args, call.kwargs, tuple(slot[v] for v in call.inputs))
            for call in steps if call.func is not None))
        return True


def _only_consumer(value: _Value | None) -> _Call | None:
    return value.consumers[0] if value is not None and len(value.consumers) == 1 else None
