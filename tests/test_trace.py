"""What one traced forward finds: absorbing BatchNorms and residual operands."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from tersor.adapters.inventory import INPUT, Graph  # noqa: E402
from tersor.adapters.lockstep import CallCounter  # noqa: E402
from tersor.adapters.module import inventory_of_module  # noqa: E402
from tersor.adapters.trace import trace, trace_with_recipes  # noqa: E402


def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)


class Block(nn.Module):
    """ResNet's BasicBlock."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, late: bool = True) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, outputs, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = conv(outputs, outputs), nn.BatchNorm2d(outputs)
        self.relu, self.drop, self.late = nn.ReLU(inplace=True), nn.Dropout(), late
        self.down = None
        if stride > 1:
            shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.down = nn.Sequential(shortcut, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        identity = self.down(x) if self.down is not None and not self.late else x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.drop(self.bn2(self.conv2(out).contiguous()))
        if self.down is not None and self.late:
            identity = self.down(x)
        out += identity
        return self.relu(out)


def graph_of(model: nn.Module, *shape: int) -> Graph:
    return trace(model, inventory_of_module(model), (torch.randn(shape or (1, 4, 8, 8)),))


def test_basic_block_without_downsample() -> None:
    graph = graph_of(Block(4, 4))
    assert graph.reason is None
    assert graph.absorb == {"conv1.weight": "bn1", "conv2.weight": "bn2"}
    assert graph.residual == {"bn2": INPUT}
    assert graph.order == ["conv1.weight", "conv2.weight"]


@pytest.mark.parametrize("late", [True, False])
def test_basic_block_with_downsample(late: bool) -> None:
    model = Block(4, 8, 2, late)
    graph = graph_of(model)
    assert graph.absorb == {"conv1.weight": "bn1", "conv2.weight": "bn2", "down.0.weight": "down.1"}
    # Of the two operands, the later one can take the earlier one into account.
    assert list(graph.residual) == (["down.1"] if late else ["bn2"])
    operand = graph.residual["down.1" if late else "bn2"]
    x, captured = torch.randn(3, 4, 8, 8), {}
    other = model.bn2 if late else model.down[1]
    other.register_forward_hook(lambda module, inputs, output: captured.update(value=output))
    with torch.no_grad(), CallCounter(graph.last_use) as counter:
        seen = {}
        later = model.down[1] if late else model.bn2
        later.register_forward_hook(lambda *_: seen.update(counter.values))
        model.eval()(x)
    assert counter.calls == graph.calls
    assert list(seen) == [operand] and seen[operand].data_ptr() == captured["value"].data_ptr()
    assert counter.values == {}, "freed after the addition"


def test_lockstep_in_a_chain_of_blocks() -> None:
    start = conv(3, 4), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
    model = nn.Sequential(*start, Block(4, 4), Block(4, 4)).eval()
    graph = graph_of(model, 1, 3, 8, 8)
    assert list(graph.residual) == ["3.bn2", "4.bn2"]
    x = torch.randn(2, 3, 8, 8)
    found = {}
    with torch.no_grad(), CallCounter(graph.last_use, x) as counter:
        def look(name: str) -> None:
            with counter.paused():
                found[name] = counter.values[graph.residual[name]] + 0
        model[3].bn2.register_forward_hook(lambda *_: look("3.bn2"))
        model[4].bn2.register_forward_hook(lambda *_: look("4.bn2"))
        model(x)
    with torch.no_grad():
        assert found["3.bn2"].equal(model[:3](x))
    assert counter.calls == graph.calls


@pytest.mark.parametrize("fixed", [False, True])
def test_a_parameter_free_shortcut_is_made_ahead_of_time(fixed: bool) -> None:
    class Padded(Block):  # ResNet's option A, computed after the branch
        def forward(self, x: Tensor) -> Tensor:
            out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
            short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
            out += short.view(x.shape[0], 8, 4, 4) if fixed else short
            return out

    model = nn.Sequential(conv(3, 4), Padded(4, 8, 2)).eval()
    model[1].down = None
    graph, recipes = trace_with_recipes(model, inventory_of_module(model), (torch.randn(1, 3, 8, 8),))
    assert graph.residual == {"1.bn2": 8 if fixed else 7}
    x, seen = torch.randn(3, 3, 8, 8), {}
    with torch.no_grad(), CallCounter(graph.last_use, x, recipes) as counter:
        model[1].conv2.register_forward_hook(lambda *_: seen.update(counter.values))
        model(x)
    assert counter.calls == graph.calls and counter.values == {}
    with torch.no_grad():
        short = F.pad(model[0](x)[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
    if fixed:
        assert seen == {}, "the recipe only fits the batch size of the trace"
    else:
        assert seen[7].equal(short)


def test_pre_activation_block() -> None:
    class PreActivation(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn1, self.conv1 = nn.BatchNorm2d(4), conv(4, 4)
            self.bn2, self.conv2 = nn.BatchNorm2d(4), conv(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.conv2(F.relu(self.bn2(F.relu(self.conv1(F.relu(self.bn1(x)))))))

    graph = graph_of(PreActivation())
    assert graph.absorb == {}
    assert graph.residual == {"conv2.weight": INPUT}


def test_dense_block_is_not_absorbed() -> None:
    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.bn, self.conv2 = conv(4, 4), nn.BatchNorm2d(8), conv(8, 4)
            self.bn2, self.conv3 = nn.BatchNorm2d(4), conv(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv2(F.relu(self.bn(torch.cat([x, self.conv1(x)], 1))))
            return torch.cat([self.bn2(y), y, self.conv3(x)], 1)

    graph = graph_of(Dense())
    assert graph.absorb == {} and graph.residual == {}
    assert graph.order == ["conv1.weight", "conv2.weight", "conv3.weight"]


class Functional(nn.Module):
    """One conv-BatchNorm pair in different company."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.conv, self.bn, self.what = conv(4, 4), nn.BatchNorm2d(4), what

    def forward(self, x: Tensor) -> object:
        if self.what == "weight used twice":
            return self.bn(self.conv(x)) + F.conv2d(x, self.conv.weight, padding=1)
        if self.what == "conv twice":
            return self.bn(self.conv(self.conv(x)))
        if self.what == "bn twice":
            return self.bn(self.bn(self.conv(x)))
        y = F.conv2d(x, self.conv.weight, padding=1)
        if self.what == "output returned":
            return {"features": [y], "logits": self.bn(y)}
        if self.what == "metadata":
            size = (y.shape[0], y.size(1), -1) if y.dim() == 4 and y.is_floating_point() else ()
            return self.bn(y).view(size)
        if self.what == "value read":
            return self.bn(y) * (2 if y[0, 0, 0, 0].item() > 9e9 else 1)
        if self.what == "autograd function":
            return self.bn(y) * Mean.apply(y)
        if self.what == "in place":
            return self.bn(y.mul_(2))
        if self.what == "set item":
            z = self.bn(y)
            y[:, 0] = 0
            return z + y
        return self.bn(y)


class Mean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.mean()


@pytest.mark.parametrize("what", ["plain", "metadata"])
def test_functional_use_is_absorbed(what: str) -> None:
    assert graph_of(Functional(what)).absorb == {"conv.weight": "bn"}


@pytest.mark.parametrize("what", ["weight used twice", "conv twice", "bn twice", "output returned",
                                  "value read", "autograd function", "in place", "set item"])
def test_other_consumers_forbid_absorbing(what: str) -> None:
    graph = graph_of(Functional(what))
    assert graph.reason is None and graph.order == ["conv.weight"]
    assert graph.absorb == {}


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_scripted_consumers_are_seen() -> None:
    class Scripted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn, self.script = conv(4, 4), nn.BatchNorm2d(4), torch.jit.script(nn.Hardtanh())

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return self.bn(y) + self.script(y)

    assert graph_of(Scripted()).absorb == {}


def test_linear_and_batchnorm1d() -> None:
    class Sequence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.bn = nn.Linear(5, 6), nn.BatchNorm1d(6)

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(self.linear(x))

    assert graph_of(Sequence(), 3, 5).absorb == {"linear.weight": "bn"}
    assert graph_of(Sequence(), 3, 6, 5).absorb == {}, "channels of the linear layer are last, not second"


@pytest.mark.parametrize("expression", ["x + 2 * y", "torch.add(x, y, alpha=2)", "y + y", "y + x[:, :1]",
                                        "y + 1", "y + bias", "y + later"])
def test_other_sums_are_not_residual(expression: str) -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bias = conv(4, 4), nn.Parameter(torch.zeros(1, 4, 8, 8))

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            values = {"x": x, "y": y, "torch": torch, "bias": self.bias, "later": x * self.bias}
            return eval(expression, values)

    graph = graph_of(Sum())
    assert graph.reason is None and graph.residual == {}


def test_failure_gives_a_reason_and_restores_the_model() -> None:
    model = Block(4, 4).train()
    graph = graph_of(model, 1, 5, 8, 8)
    assert graph.reason is not None and "RuntimeError" in graph.reason
    assert graph.absorb == {} and graph.order == []
    assert all(module.training for module in model.modules())


def test_trace_leaves_statistics_alone() -> None:
    class Stubborn(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, True)

    model = nn.Sequential(conv(4, 4), Stubborn(4))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert graph_of(model).absorb == {}, "a BatchNorm that stays in train mode cannot absorb"
    assert all(before[name].equal(tensor) for name, tensor in model.state_dict().items())
