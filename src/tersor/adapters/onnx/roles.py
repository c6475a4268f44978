"""What the initializers of an ONNX graph are, from the operators that consume them.

A weight of Conv is a convolution's, the B of Gemm or MatMul a linear layer's, as [out, in] or [in, out]; four vectors
of one BatchNormalization belong together. Of all others only small ones next to an activation are taken for biases and
scales, which may be rounded; the rest must stay exact.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..inventory import Kind

INSIDE = -1
"""Stands for the number of a node where a name is used in the body of one (If, Loop), or is an output of the graph."""
_NORMS = {"LayerNormalization": (1, 2), "InstanceNormalization": (1, 2), "GroupNormalization": (1, 2),
          "RMSNormalization": (1,), "PRelu": (1,)}


@dataclass(frozen=True)
class Use:
    """One weight as a layer. `flipped`: it is stored as [in, out]."""

    kind: Kind
    groups: int = 1
    flipped: bool = False
    bias: str | None = None


@dataclass
class Roles:
    """`layers`: weight -> use. `linear`: number of a Gemm or MatMul -> its weight, where that is held so that the node
    is `F.linear`. `fused`: number of a MatMul -> that of the Add of its bias. `batchnorms`: prefix, names of scale,
    bias, mean and variance, eps. `vectors`: biases, scales and the like."""

    layers: dict[str, Use] = field(default_factory=dict)
    linear: dict[int, str] = field(default_factory=dict)
    fused: dict[int, int] = field(default_factory=dict)
    batchnorms: list[tuple[str, tuple[str, str, str, str], float]] = field(default_factory=list)
    vectors: set[str] = field(default_factory=set)


def find_roles(nodes: Sequence[Any], outputs: Sequence[str], shapes: Mapping[str, tuple[int, ...]]) -> Roles:
    """`nodes`: NodeProtos of the main graph. `shapes`: of its floating-point initializers (and large constants)."""
    return _Finder(nodes, outputs, shapes).roles


def attribute(node: Any, name: str, default: Any) -> Any:
    """The value of an integer or float attribute."""
    for item in node.attribute:
        if item.name == name:
            return item.i if item.type == item.INT else item.f if item.type == item.FLOAT else list(item.ints)
    return default


class _Finder:
    def __init__(self, nodes: Sequence[Any], outputs: Sequence[str], shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.nodes, self.shapes = nodes, shapes
        self.producer = {name: number for number, node in enumerate(nodes) for name in node.output if name}
        self.consumers: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for number, node in enumerate(nodes):
            for place, name in enumerate(node.input):
                self.consumers[name].append((number, place))
            for name in _names_inside(node):
                self.consumers[name].append((INSIDE, 0))
        for name in outputs:
            self.consumers[name].append((INSIDE, 0))
        self.roles = Roles()
        for number, node in enumerate(nodes):
            self._visit(number, node)

    def _visit(self, number: int, node: Any) -> None:
        names = list(node.input)
        known = [name if name in self.shapes else "" for name in names]
        kind = node.op_type
        if kind in ("Conv", "ConvTranspose") and len(names) > 1 and known[1]:
            bias = known[2] if len(known) > 2 and known[2] else None
            self._layer(names[1], Use("conv" if kind == "Conv" else "conv_transposed",
                                      int(attribute(node, "group", 1)), bias=bias))
        elif kind in ("Gemm", "MatMul") and len(names) > 1:
            self._linear(number, node)
        elif kind == "Gather" and known[0] and len(self.shapes[names[0]]) == 2 and attribute(node, "axis", 0) == 0:
            self._layer(names[0], Use("embedding"))
        elif kind == "BatchNormalization" and all(known[1:5]) and not attribute(node, "training_mode", 0):
            self._batchnorm(node)
        elif kind in ("LSTM", "GRU", "RNN"):
            for name in known[1:3]:
                self._layer(name, Use("matrix"))
            self.roles.vectors.update(name for name in known[3:4] if name)
        elif kind in _NORMS:
            self.roles.vectors.update(known[place] for place in _NORMS[kind] if place < len(known) and known[place])
        elif kind in ("Add", "Sub", "Mul", "Div"):
            for name in known:
                shape = self.shapes.get(name, ())
                if shape and max(shape) >= 8 and max(shape) == _count(shape):
                    self.roles.vectors.add(name)

    def _layer(self, name: str, use: Use) -> None:
        if not name:
            return
        earlier = self.roles.layers.get(name)
        if earlier is None or (use.kind == "embedding" and earlier.kind == "linear" and not earlier.flipped):
            bias = use.bias or (earlier.bias if earlier else None)
            self.roles.layers[name] = Use(use.kind, use.groups, use.flipped, bias)
            if bias:
                self.roles.vectors.add(bias)

    def _linear(self, number: int, node: Any) -> None:
        found = self._weight(node.input[1])
        if found is None or (node.op_type == "Gemm" and attribute(node, "transA", 0)):
            return
        name, turned = found
        flipped = turned == bool(node.op_type == "Gemm" and attribute(node, "transB", 0))
        bias, outputs = None, self.shapes[name][1 if flipped else 0]
        if node.op_type == "Gemm" and len(node.input) > 2 and self._is_bias(node.input[2], outputs):
            bias = node.input[2] if attribute(node, "beta", 1.0) == 1.0 else None
        elif node.op_type == "MatMul":
            bias = self._added(number, node.output[0], outputs)
        # An embedding's rows are words: it stays as it is, and another layer that reads it goes another way.
        taken = self.roles.layers.get(name)
        if taken is None and any(self._looks_up(consumer) for consumer in self.consumers[name]):
            taken = Use("embedding")
        if taken is not None and taken.flipped != flipped:
            return
        self._layer(name, Use("linear", flipped=flipped, bias=bias))
        self.roles.linear[number] = name

    def _looks_up(self, consumer: tuple[int, int]) -> bool:
        number, place = consumer
        return number != INSIDE and self.nodes[number].op_type == "Gather" and place == 0

    def _weight(self, name: str) -> tuple[str, bool] | None:
        """The initializer that a matrix is, and whether it is transposed on the way."""
        turned = False
        for _ in range(8):
            if name in self.shapes:
                return (name, turned) if len(self.shapes[name]) == 2 else None
            node = self.nodes[self.producer[name]] if name in self.producer else None
            if node is None or node.op_type not in ("Identity", "Transpose"):
                return None
            if node.op_type == "Transpose":
                if list(attribute(node, "perm", [1, 0])) != [1, 0]:
                    return None
                turned = not turned
            name = node.input[0]
        return None

    def _is_bias(self, name: str, outputs: int) -> bool:
        return self.shapes.get(name) == (outputs,)

    def _added(self, number: int, output: str, outputs: int) -> str | None:
        """The bias that alone is added to a MatMul's output."""
        if len(self.consumers[output]) != 1 or self.consumers[output][0][0] == INSIDE:
            return None
        other = self.consumers[output][0][0]
        node = self.nodes[other]
        names = [name for name in node.input if name != output]
        if node.op_type != "Add" or len(names) != 1 or not self._is_bias(names[0], outputs):
            return None
        self.roles.fused[number] = other
        return str(names[0])

    def _batchnorm(self, node: Any) -> None:
        names = tuple(node.input[1:5])
        shape = {self.shapes[name] for name in names}
        alone = all(len(self.consumers[name]) == 1 for name in names) and len(set(names)) == 4
        if not alone or len(shape) != 1:
            return
        heads = {name.rpartition(".")[0] for name in names}
        prefix = heads.pop() if len(heads) == 1 else ""
        if not prefix or any(prefix == taken for taken, _, _ in self.roles.batchnorms):
            prefix = node.name or names[0]
        self.roles.batchnorms.append((prefix, (names[0], names[1], names[2], names[3]),
                                      float(attribute(node, "epsilon", 1e-5))))


def _names_inside(node: Any) -> set[str]:
    """Names that the bodies of a node use."""
    found: set[str] = set()
    for item in node.attribute:
        for graph in ([item.g] if item.type == item.GRAPH else list(item.graphs)):
            for inner in graph.node:
                found.update(inner.input)
                found |= _names_inside(inner)
            found.update(output.name for output in graph.output)
    return found


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
