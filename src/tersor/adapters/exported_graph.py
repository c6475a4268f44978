"""The graph of an exported program as a network whose layers calibration recognises.

torch.export gives operators of ATen. Those that are layers become the calls of torch.nn.functional that they came
from; all others run as they are.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from ..errors import ModelError
from .described import Described
from .inventory import BatchNormLayer, Kind, WeightLayer

_aten = torch.ops.aten
_CONV: dict[int, Callable[..., Tensor]] = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}
_CONV_TRANSPOSED: dict[int, Callable[..., Tensor]] = {3: F.conv_transpose1d, 4: F.conv_transpose2d,
                                                      5: F.conv_transpose3d}
_TURNS = (_aten.t.default, _aten.permute.default, _aten.transpose.int, _aten.numpy_T.default)


class ExportedNetwork(Described):
    """`program`: what `ExportedProgram.module()` gives. `tensors`: its parameters and buffers by name, of which
    `parameters` are parameters.

    forward(*inputs): positional inputs as the program was exported with. Raises ModelError where they are others.
    """

    def __init__(self, program: fx.GraphModule, tensors: Mapping[str, Tensor], parameters: set[str]) -> None:
        super().__init__()
        self.held = {name: self.hold(name, tensor, name in parameters) for name, tensor in tensors.items()}
        own = {node.target for node in program.graph.nodes if node.op == "get_attr"} - tensors.keys()
        self._program = [program]  # in a list: its parameters are not a second set of ours
        self._constants = {name: _attribute(program, name) for name in own if isinstance(name, str)}
        self._calls = {node.name: call for node in program.graph.nodes if (call := _translated(node)) is not None}
        self._describe(program.graph)

    def forward(self, *inputs: Any) -> Any:
        wanted = [node.name for node in self._program[0].graph.nodes if node.op == "placeholder"]
        given = len(pytree.tree_leaves(inputs))
        if given != len(wanted):
            raise ModelError(f"the exported program takes {len(wanted)} inputs ({', '.join(wanted)}), {given} given")
        return _Run(self).run(*inputs)

    def tensor(self, name: str) -> Any:
        """A parameter, buffer or constant of the program."""
        return _attribute(self, self.held[name]) if name in self.held else self._constants[name]

    def _describe(self, graph: fx.Graph) -> None:
        layers: dict[str, WeightLayer] = {}
        users: dict[str, int] = {}
        for node in graph.nodes:
            if node.op == "get_attr":
                users[node.target] = users.get(node.target, 0) + len(node.users)
        for node in graph.nodes:
            call = self._calls.get(node.name)
            if call is None or call.kind is None:
                continue
            names = [self.held.get(name or "") for name in call.names]
            if call.kind == "batchnorm":
                if all(names) and all(users[name or ""] == 1 for name in call.names):
                    weight, bias, mean, variance = (name or "" for name in names)
                    prefix = weight.rpartition(".")[0] or weight
                    self.batchnorm_layers.append(BatchNormLayer(prefix, weight, bias, mean, variance, call.eps))
            elif names[0]:
                layer = WeightLayer(names[0], call.layer_kind, call.groups, names[1] if len(names) > 1 else None)
                layers.setdefault(names[0], layer)
        place = {name: i for i, name in enumerate(self.order)}
        self.weight_layers = sorted(layers.values(), key=lambda layer: place[layer.name])
        together = {bn.names[0]: bn.names for bn in self.batchnorm_layers}
        later = {name for names in together.values() for name in names[1:]}
        self.order = [name for first in self.order if first not in later for name in together.get(first, (first,))]


class _Call:
    """A layer: what to call instead of ATen's operator, and the names of its tensors."""

    def __init__(self, kind: str | None, run: Callable[..., Any], names: list[str | None] | None = None,
                 groups: int = 1, eps: float = 0.0) -> None:
        self.kind, self.run, self.names, self.groups, self.eps = kind, run, names or [], groups, eps

    @property
    def layer_kind(self) -> Kind:
        kinds: dict[str, Kind] = {"conv": "conv", "conv_transposed": "conv_transposed", "linear": "linear",
                                  "embedding": "embedding"}
        return kinds[self.kind or ""]


class _Run(fx.Interpreter):
    def __init__(self, network: ExportedNetwork) -> None:
        super().__init__(network._program[0])
        self.network = network

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        return self.network.tensor(target)

    def run_node(self, n: fx.Node) -> Any:
        call = self.network._calls.get(n.name)
        if call is None:
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        return call.run(*args, **kwargs)


def _attribute(module: torch.nn.Module, name: str) -> Any:
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _translated(node: fx.Node) -> _Call | None:
    """Of a node that is a layer or an addition; None for all others."""
    if node.op != "call_function":
        return None
    target: Any = node.target
    args = list(node.args)
    packet = getattr(target, "overloadpacket", None)
    if target in (_aten.add.Tensor, operator.add):
        return _Call(None, torch.add)
    if target is _aten.add_.Tensor:
        return _Call(None, torch.Tensor.add_)
    if packet in (_aten.conv1d, _aten.conv2d, _aten.conv3d):
        convolve = _CONV[3 + (_aten.conv1d, _aten.conv2d, _aten.conv3d).index(packet)]
        return _Call("conv", convolve, _names(args[1:3]), _at(args, 6, 1))
    if packet in (_aten.conv_transpose1d, _aten.conv_transpose2d, _aten.conv_transpose3d):
        packets = (_aten.conv_transpose1d, _aten.conv_transpose2d, _aten.conv_transpose3d)
        return _Call("conv_transposed", _CONV_TRANSPOSED[3 + packets.index(packet)], _names(args[1:3]), _at(args, 6, 1))
    if target is _aten.convolution.default:
        return _Call("conv_transposed" if args[6] else "conv", _convolution, _names(args[1:3]), int(_at(args, 8, 1)))
    if target is _aten.linear.default:
        return _Call("linear", F.linear, _names(args[1:3]))
    if target is _aten.addmm.default and (weight := _turned(args[2])) and not node.kwargs:
        return _Call("linear", lambda bias, x, turned: F.linear(x, turned.t(), bias), [weight, _name(args[0])])
    if target is _aten.embedding.default:
        return _Call("embedding", lambda weight, index, *rest, **options: F.embedding(index, weight), _names(args[:1]))
    if target is _aten.batch_norm.default and not args[5]:
        return _Call("batchnorm", _batch_norm, _names(args[1:5]), eps=float(_at(args, 7, 1e-5)))
    if target is _aten._native_batch_norm_legit_no_training.default:
        return _Call("batchnorm", _native_batch_norm, _names(args[1:5]), eps=float(_at(args, 6, 1e-5)))
    return None


def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any,
                 transposed: bool, output_padding: Any, groups: int) -> Tensor:
    if transposed:
        return _CONV_TRANSPOSED[weight.ndim](x, weight, bias, stride, padding, output_padding, groups, dilation)
    return _CONV[weight.ndim](x, weight, bias, stride, padding, dilation, groups)


def _batch_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, variance: Tensor,
                training: bool, momentum: float, eps: float, cudnn: bool) -> Tensor:
    return F.batch_norm(x, mean, variance, weight, bias, training, momentum, eps)


def _native_batch_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, variance: Tensor,
                       momentum: float, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    empty = x.new_zeros(0)
    return F.batch_norm(x, mean, variance, weight, bias, False, momentum, eps), empty, empty


def _turned(value: Any) -> str | None:
    """The weight that is transposed here."""
    if isinstance(value, fx.Node) and value.target in _TURNS and list(value.args[1:]) in ([], [[1, 0]], [0, 1], [1, 0]):
        return _name(value.args[0])
    return None


def _names(values: Any) -> list[str | None]:
    return [_name(value) for value in values]


def _name(value: Any) -> str | None:
    return str(value.target) if isinstance(value, fx.Node) and value.op == "get_attr" else None


def _at(values: list[Any], place: int, default: Any) -> Any:
    return values[place] if len(values) > place else default
