"""Bit depths as published: measured tables, the choice from them, and files that keep to it."""

from __future__ import annotations

import itertools
from dataclasses import replace

import encoder_models as zoo
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import tersor
from tersor import published
from tersor.adapters.calls import undisturbed
from tersor.adapters.module import inventory_of_module
from tersor.adapters.replay import Replay
from tersor.config import Config, LayerConfig, TransformConfig
from tersor.errors import ConfigError, TargetError
from tersor.plan import Plan
from tersor.synthesis.transform import BlockCode, Cuts
from tersor.tools import block_depths
from tersor.tools.block_depths import DEEPEST, Table
from tersor.tools.block_transform import COEFFICIENTS, transform_layer
from tersor.tools.candidate import distortion
from tersor.writer import write


def fixed(*transforms: str, blocks: int = 8) -> TransformConfig:
    return TransformConfig(transforms=transforms or ("elt",), coder="fixed", blocks=blocks)


def compress(model, stats, transforms=("elt",), blocks=8, **options):
    return tersor.compress(model, stats, tools=("transform",), transform=fixed(*transforms, blocks=blocks), **options)


class Mixing(nn.Module):
    """One layer after channels that are nearly copies of a few: what a transform is for."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        mixed = torch.randn(32, 3) @ torch.randn(3, 20)
        self.layer = nn.Conv2d(20, 32, 3, padding=1, bias=False)
        taps = torch.randn(32, 20, 3, 3)
        self.layer.weight.data = (mixed[:, :, None, None] * (1 + 0.1 * taps) + 0.05 * taps) / 8

    def forward(self, x):
        return torch.tanh(self.layer(x)).mean((2, 3))


@pytest.fixture(scope="module")
def correlated():
    torch.manual_seed(4)
    x = torch.einsum("nkhw,kc->nchw", torch.randn(96, 5, 5, 5), torch.randn(5, 20)) + 0.1 * torch.randn(96, 20, 5, 5)
    model = Mixing().eval()
    return model, x, tersor.calibrate(model, [x])


@pytest.fixture(scope="module")
def measured():
    """The tables of a small residual network."""
    model, x = zoo.build("residual"), zoo.inputs("residual", 32)
    config = Config(tools=("transform",), transform=fixed("elt", blocks=2))
    plan = Plan(inventory_of_module(model), tersor.calibrate(model, [x]), config)
    return model, x, plan, published.measure(plan, model)


# ---- the quantiser and the choice, without a network -------------------------------------------------


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=20), st.integers(0, 16), st.integers(-200, 200))
def test_the_quantiser_is_the_published_one(values, depth, index):
    t = np.array(values)
    q = block_depths.quantise(t, depth, index)
    step = block_depths.step_value(index)
    half = 2 ** (depth - 1) if depth else 0
    assert np.array_equal(q, np.clip(np.rint(t / step), -half, half - 1) if depth else np.zeros(len(t)))
    BlockCode(q[None], np.array([depth]), np.array([index]), Cuts()).check()


def test_measuring_a_block_by_its_weight_error_finds_good_steps():
    values = np.random.default_rng(0).standard_normal((20, 30))
    table = block_depths.measure(values, lambda restored: float(((restored - values) ** 2).mean()), 0.0)
    assert table.count == 600 and table.measured == DEEPEST
    assert (np.diff(table.distortion) < 0).all()
    # Uniform quantisers of a Gaussian at their best steps; one code less than symmetric, and half-octave steps.
    for depth, expected in ((2, 0.1188), (4, 0.01154), (6, 0.00104)):
        assert expected * 0.9 < table.distortion[depth] < expected * 1.5


def test_depths_that_are_not_measured_follow_the_weight_error():
    values = np.random.default_rng(0).standard_normal((20, 30))

    def cost(restored):
        return 7.0 * float(((restored - values) ** 2).mean())

    short, whole = block_depths.measure(values, cost, 0.3), block_depths.measure(values, cost, 0.0)
    assert short.measured == 4
    assert np.allclose(short.distortion, whole.distortion, rtol=0.05)
    nothing = block_depths.measure(np.zeros((2, 2)), lambda restored: 1.0, 0.0)
    assert nothing.measured == 0 and not nothing.distortion.any()


def tables_of(costs, counts):
    return [Table(count, np.concatenate([sorted(row, reverse=True), [0.0] * (DEEPEST + 1 - len(row))]),
                  np.zeros(DEEPEST + 1, np.int64)) for row, count in zip(costs, counts, strict=True)]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.floats(0.001, 10), min_size=4, max_size=4), min_size=3, max_size=3),
       st.lists(st.integers(1, 50), min_size=3, max_size=3), st.floats(1e-4, 10))
def test_no_other_depths_are_better_at_as_many_bits(costs, counts, price):
    tables = tables_of(costs, counts)
    chosen = block_depths.choose(tables, price)
    bits = block_depths.bits(tables, chosen)

    def distortion(depths):
        return sum(table.distortion[depth] for table, depth in zip(tables, depths, strict=True))

    for depths in itertools.product(range(6), repeat=3):
        used = block_depths.bits(tables, np.array(depths))
        assert distortion(depths) + price * used >= (distortion(chosen) + price * bits) * (1 - 1e-12)
        if used <= bits:
            assert distortion(depths) >= distortion(chosen) - 1e-9 * price * max(bits, 1)


def test_price_and_spare_bits():
    tables = tables_of([[4.0, 1.0, 0.25, 0.06], [40.0, 10.0, 2.5, 0.6]], [10, 10])
    price = block_depths.price_for(tables, 40)
    depths = block_depths.choose(tables, price)
    assert block_depths.bits(tables, depths) <= 40
    assert block_depths.bits(tables, block_depths.choose(tables, price * 0.999)) > 40
    deeper = block_depths.spend(tables, depths, 10)
    assert 0 < block_depths.bits(tables, deeper) - block_depths.bits(tables, depths) <= 10
    assert block_depths.spend(tables, depths, 9).tolist() == depths.tolist()


# ---- layers ------------------------------------------------------------------------------------------

WHERE = [("mlp", "elt"), ("residual", "klt-outputs"), ("conv1d, dilated", "elt-joint"), ("residual", "elt+dct2"),
         ("conv3d", "klt+klt-taps"), ("conv2d, grouped, depthwise", "dct1"), ("transposed", "elt"),
         ("words", "identity")]


@pytest.mark.parametrize("name, transform", WHERE)
def test_layers_in_blocks(name, transform):
    """S T is the weight; an error of a block does to the weight what `delta` says; the code restores both."""
    model = zoo.build(name)
    config = Config(tools=("transform",), transform=fixed(transform))
    plan = Plan(inventory_of_module(model), tersor.calibrate(model, [zoo.inputs(name, 4)]), config)
    generator = np.random.default_rng(0)
    for key in plan.layers:
        tensor = plan.inventory.tensors[key].astype(np.float64)
        layer = transform_layer(plan.target(key), config)
        assert np.allclose(layer.tensor(), tensor, atol=1e-9 * np.abs(tensor).max())
        assert layer.parts[-1].name == COEFFICIENTS
        tables = [block_depths.measure(part.values[box], lambda restored: 1.0, 2.0)
                  for part in layer.parts for box in part.boxes()]
        for part in layer.parts:
            rows, channels, taps = part.cuts.rows, part.cuts.channels, part.cuts.taps
            assert 1 <= rows * channels <= 8 and 1 <= taps <= 16
            assert part.name != COEFFICIENTS or taps == (part.values.shape[2] if "dct" in transform else taps)
            box = part.boxes()[int(generator.integers(part.cuts.blocks))]
            error = generator.standard_normal(part.values[box].shape)
            values = part.values.copy()
            values[box] += error
            changed = replace(layer, parts=tuple(replace(p, values=values) if p is part else p for p in layer.parts))
            assert np.allclose(layer.tensor() + layer.delta(part, box, error), changed.tensor(), atol=1e-9)
        code = layer.code(tables, np.full(len(tables), DEEPEST))
        close = code.tensor(layer.shape).astype(np.float64)
        assert np.abs(close - tensor).max() < 0.05 * np.abs(tensor).max()


# ---- measuring ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["residual", "words", "transposed"])
def test_replay_gives_what_the_whole_network_gives(name):
    model, x = zoo.build(name), zoo.inputs(name, 6)
    with undisturbed(model):
        replay = Replay(model, lambda network: network(x).double())
        assert torch.equal(replay.reference, zoo.outputs(model, x))
        for key, parameter in model.named_parameters():
            other = torch.randn_like(parameter)
            with replay.layer(key):
                found = replay.outputs(other)
            expected = torch.func.functional_call(model, {key: other}, (x,), tie_weights=True).detach().double()
            assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5), key


def test_replay_where_a_model_writes_in_place():
    class Writing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(5, 5) for _ in "abc")

        def forward(self, x):
            h = self.a(x)
            kept = h
            h.relu_()
            h = self.b(h) + kept
            h[:, 0] = 0.0
            h += self.c(kept)
            return h

    torch.manual_seed(0)
    model, x = Writing().eval(), torch.randn(4, 5)
    replay = Replay(model, lambda network: network(x).double())
    for key in ("a.weight", "b.weight", "c.weight"):
        other = torch.randn(5, 5)
        with replay.layer(key):
            found = [replay.outputs(other) for _ in range(2)]
        expected = torch.func.functional_call(model, {key: other}, (x,)).detach().double()
        assert torch.equal(found[0], expected) and torch.equal(found[1], expected)


def test_tables_fall_and_are_what_the_network_says(measured):
    model, x, plan, tables = measured
    y = zoo.outputs(model, x)
    assert tables.signal == pytest.approx(float((y**2).sum(1).mean()))
    assert "runs of the network" in tables.note and str(tables.evaluations) in tables.note
    for layer in tables.layers:
        found = tables.tables[layer.name]
        assert len(found) == sum(part.cuts.blocks for part in layer.parts)
        for table in found:
            assert table.distortion[DEEPEST] <= 1e-2 * table.distortion[0] + 1e-9
            assert table.distortion[6:].max() <= table.distortion[2:4].max() + 1e-12
    layer = tables.layers[1]
    part, box, table = layer.parts[0], layer.parts[0].boxes()[1], tables.tables[layer.name][1]
    values, depth = part.values[box], min(3, table.measured)
    restored = block_depths.quantise(values, depth, table.step_index[depth]) \
        * block_depths.step_value(table.step_index[depth])
    weight = plan.inventory.tensors[layer.name] + layer.delta(part, box, restored - values)
    y_hat = torch.func.functional_call(model, {layer.name: torch.from_numpy(weight).float()}, (x,)).detach().double()
    assert table.distortion[depth] == pytest.approx(float(((y_hat - y) ** 2).sum(1).mean()), rel=1e-6, abs=1e-12)


def test_known_tables_are_not_measured_again(measured):
    model, _, plan, tables = measured
    known = dict(tables.tables)
    last = known.pop(tables.layers[-1].name)
    again = published.measure(plan, model, known=known)
    assert known.keys() == tables.tables.keys() == again.tables.keys()
    assert again.tables[tables.layers[0].name] is tables.tables[tables.layers[0].name]
    assert all(np.array_equal(one.distortion, other.distortion)
               for one, other in zip(known[tables.layers[-1].name], last, strict=True))
    assert 0 < again.evaluations < tables.evaluations / 2


def test_the_file_holds_the_chosen_integers(measured):
    _, _, plan, tables = measured
    encoding = tables.encoding(tables.price_for(4.0 * sum(table.count for table in tables.every)))
    assert encoding.is_complete
    restored = tersor.load(write(encoding).data).read_all()
    for name, code in encoding.transforms.items():
        assert isinstance(code.coefficients, BlockCode)
        assert np.array_equal(restored[name], code.tensor(plan.inventory.tensors[name].shape))
    depths = block_depths.choose(tables.every, encoding.price)
    told = np.concatenate([part.depths for layer in tables.layers
                           for part in (*encoding.transforms[layer.name].bases(),
                                        encoding.transforms[layer.name].coefficients)])
    assert np.array_equal(told, depths)
    decisions = [encoding.decisions[layer.name] for layer in tables.layers]
    assert sum(decision.bits for decision in decisions) == block_depths.bits(tables.every, depths)
    assert all(0 <= decision.side_bits - 8 * 3 <= decision.bits for decision in decisions if decision.side_bits)


# ---- files -------------------------------------------------------------------------------------------


def test_a_file_meets_its_target_and_elt_beats_identity(correlated):
    model, x, stats = correlated
    found = {name: compress(model, stats, (name,), blocks=20, bits=3.0) for name in ("identity", "elt", "klt")}
    for packed in found.values():
        assert 0.98 * 3.0 <= packed.bits_per_weight <= 3.0
        restored = tersor.restore(packed.data, Mixing())
        y, y_hat = zoo.outputs(model, x), zoo.outputs(restored, x)
        assert packed.snr == pytest.approx(zoo.decibels(y, y_hat), abs=1e-3)
        assert any("runs of the network" in note for note in packed.notes)
    assert found["elt"].snr > found["identity"].snr + 1.0
    assert found["elt"].snr > found["klt"].snr - 0.5


def test_without_a_network_the_metric_decides(correlated):
    """The choice by tr(G E A E^T) is nearly as good as that at the output, and better than that of relative errors."""
    model, x, stats = correlated
    y = zoo.outputs(model, x)
    snr, notes = {}, {}
    for name, source, known in (("network", model, stats), ("metric", model.state_dict(), stats),
                                ("free", model.state_dict(), None)):
        packed = compress(source, known, ("elt",), blocks=20, bits=3.0)
        assert 0.98 * 3.0 <= packed.bits_per_weight <= 3.0
        snr[name] = zoo.decibels(y, zoo.outputs(tersor.restore(packed.data, Mixing()), x))
        notes[name] = " ".join(packed.notes)
    assert snr["metric"] > snr["network"] - 2.0 and snr["metric"] > snr["free"] + 1.0, snr
    assert "tr(G E A E^T)" in notes["metric"] and "relative error" in notes["free"]
    assert "runs of the network" in notes["network"]


@pytest.mark.parametrize("name", ["residual", "transposed", "words"])
def test_every_kind_of_layer_by_its_metric(name):
    model = zoo.build(name)
    plan = Plan(inventory_of_module(model), tersor.calibrate(model, [zoo.inputs(name, 8)]),
                Config(tools=("transform",), transform=fixed("elt+dct2", blocks=2)))
    tables = published.measure(plan, None)
    assert not tables.evaluations and len(tables.tables) == len(plan.layers)
    for layer in tables.layers:
        target = plan.target(layer.name, corrected=False)
        whole = sum(table.distortion[0] for table in tables.tables[layer.name][-layer.parts[-1].cuts.blocks :])
        assert whole > 0.2 * distortion(target, np.zeros_like(target.W))  # blocks of coefficients make up the weight
        assert all(table.measured == DEEPEST or not table.distortion[0] for table in tables.tables[layer.name])
    assert tables.encoding(tables.price_for(4.0 * sum(table.count for table in tables.every))).is_complete


def test_sizes_and_ratios():
    model, x = zoo.build("wide"), zoo.inputs("wide", 12)
    stats = tersor.calibrate(model, [x])
    packed = compress(model, stats, ("elt",), blocks=4, size=5000)
    assert 4950 <= packed.size <= 5000
    by_ratio = compress(model, stats, ("elt",), blocks=4, snr=15.0)
    assert by_ratio.snr >= 15.0
    exact = compress(model, stats, ("elt",), blocks=4, size=5000, keep_exact=True)
    assert np.array_equal(exact.load()["1.running_mean"], model[1].running_mean.numpy())
    some = compress(model, stats, ("elt",), blocks=4, bits=20.0, layers={"3.weight": LayerConfig(tool="raw")})
    assert np.array_equal(some.load()["3.weight"], model[3].weight.detach().numpy())


def test_a_layer_that_outputs_do_not_need_is_coded_nevertheless():
    model = zoo.build("oddities")
    packed = compress(model, tersor.calibrate(model, [zoo.inputs("oddities", 32)]), bits=16.0)
    unused = packed.load()["unused"]
    assert zoo.decibels(model.unused.detach(), torch.from_numpy(unused.copy())) > 10


def test_what_cannot_be_asked(correlated):
    model, x, stats = correlated
    with pytest.raises(ConfigError, match="statistics with samples"):
        compress(model, None, bits=3.0)
    with pytest.raises(ConfigError, match="statistics with samples"):
        compress(model, tersor.calibrate(model, [x], keep=0), bits=3.0)
    with pytest.raises(ConfigError, match="no rivals"):
        tersor.compress(model, stats, bits=3.0, tools=("scalar", "transform"), transform=fixed())
    with pytest.raises(ConfigError, match="no rivals"):
        tersor.compress(model, stats, bits=3.0, transform=fixed())
    with pytest.raises(ConfigError, match="beside coder='fixed'"):
        compress(model, stats, bits=3.0, layers={"layer.weight": LayerConfig(tool="scalar")})
    with pytest.raises(TargetError, match="out of reach"):
        compress(model, stats, size=10)
