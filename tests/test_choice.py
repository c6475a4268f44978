"""Several tools behind one lambda: each layer gets the one of least J, and the file tells which."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from encoder_models import build, inputs, outputs
from test_feedback import spd
from torch import nn

import tersor
from tersor.adapters.inventory import WeightLayer
from tersor.adapters.module import inventory_of_module
from tersor.choice import Chooser
from tersor.codes import codes_of
from tersor.config import ALL_TRANSFORMS, Config, KernelConfig, TransformConfig
from tersor.errors import ConfigError
from tersor.plan import Plan
from tersor.synthesis.scalar import ScalarCode
from tersor.tools import sampling, scalar
from tersor.tools.target import unmeasured_target

RIVALS = ("scalar", "transform", "kernels")


def smooth_network() -> tuple[nn.Module, torch.Tensor]:
    """Kernels that are one pattern each but for little: a transform of the taps describes them well."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
                          nn.Conv2d(16, 32, 5, padding=2, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
                          nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)).eval()
    with torch.no_grad():
        kernels = torch.randn(32, 16, 1, 1) * torch.ones(5, 5) + 0.3 * torch.randn(32, 16, 5, 5)
        model[3].weight.copy_(kernels * 0.05)
    return model, torch.randn(32, 3, 12, 12)


@pytest.mark.parametrize("name", ["residual", "conv2d, grouped, depthwise", "transposed", "words"])
@pytest.mark.parametrize("tools", [("transform",), ("kernels",), RIVALS])
def test_any_tools_restore_any_model(name: str, tools: tuple[str, ...]) -> None:
    model, x = build(name), inputs(name)
    stats = tersor.calibrate(model, [x])
    before = outputs(model, x)
    packed = tersor.compress(model, stats, bits=4.5 if tools == ("kernels",) else 9.0, tools=tools)
    after = outputs(tersor.restore(packed.data, into=build(name, seed=5)), x)
    assert float(((after - before) ** 2).sum()) < 0.8 * float((before**2).sum())
    assert packed.load().verify() is None


def test_the_choice_is_the_least_cost() -> None:
    model, x = smooth_network()
    stats = tersor.calibrate(model, [x])
    config = Config(tools=RIVALS, effort=9)
    plan = Plan(inventory_of_module(model), stats, config)
    target = plan.target("3.weight")
    price = 1e-3 * float(np.trace(target.A[0]) * np.trace(target.G[0])) * float((target.W**2).mean()) / target.count
    best, decision = Chooser(config, lambda: [target]).choose(target, price)
    assert decision.losers and all(ratio >= 1.0 for _, ratio in decision.losers)
    assert {label.split()[-1] for label, _ in decision.losers} | {best.label}
    assert best.tool == "transform", "kernels that are all constant are for a transform"
    again, same = Chooser(config, lambda: [target]).choose(target, price)
    assert again.label == best.label and same == decision


def test_a_decision_is_kept_for_prices_nearby() -> None:
    model, x = smooth_network()
    stats = tersor.calibrate(model, [x])
    config = Config(tools=("scalar", "transform"))
    plan = Plan(inventory_of_module(model), stats, config)
    target, chooser = plan.target("3.weight"), Chooser(config, list)
    _, first = chooser.choose(target, 1e-6)
    _, near = chooser.choose(target, 1.3e-6)
    _, far = chooser.choose(target, 1e-4)
    assert near.losers is first.losers and far.losers is not first.losers


def test_transforms_pay_where_kernels_are_smooth() -> None:
    model, x = smooth_network()
    stats = tersor.calibrate(model, [x])
    alone, helped = (tersor.compress(model, stats, bits=1.5, tools=tools) for tools in
                     (("scalar",), ("scalar", "transform")))
    assert alone.snr is not None and helped.snr is not None and helped.snr > alone.snr + 1.0
    assert helped.load().manifest.sections[0].tool == 5


def test_one_codebook_of_kernels_for_all_layers() -> None:
    model, x = build("residual"), inputs("residual")
    stats = tersor.calibrate(model, [x])
    one, own = (tersor.compress(model, stats, bits=4.0, tools=("kernels",), kernels=KernelConfig(size=16, scope=scope))
                for scope in ("all", "layer"))
    with one.load() as file:
        kernels = {row.tobytes() for name in ("conv1.weight", "conv2.weight")
                   for row in _patterns(file[name])}
    with own.load() as file:
        more = {row.tobytes() for name in ("conv1.weight", "conv2.weight") for row in _patterns(file[name])}
    assert len(kernels) <= 17 < len(more)


def _patterns(weight: np.ndarray) -> np.ndarray:
    """Kernels without their scale and sign."""
    flat = weight.reshape(-1, 9).astype(np.float64)
    largest = flat[np.arange(len(flat)), np.abs(flat).argmax(axis=1)][:, None]
    return np.round(np.divide(flat, largest, out=np.zeros_like(flat), where=largest != 0), 4) + 0.0


def test_efforts_bring_in_tools() -> None:
    assert Config(effort=5).chosen_tools == ("scalar",)
    assert Config(effort=7).chosen_tools == ("scalar", "transform")
    assert Config(effort=9).chosen_tools == RIVALS
    assert Config(effort=9, tools=("kernels",)).rivals("any") == ("kernels",)
    assert "elt" not in Config(effort=7).tried_transforms
    assert set(Config(effort=7).tried_transforms) < set(Config(effort=8).tried_transforms) < set(ALL_TRANSFORMS)
    each = [Config(effort=effort) for effort in range(1, 10)]
    assert [config.feedback for config in each] == [effort >= 2 for effort in range(1, 10)]
    assert [config.two_sided for config in each] == [effort >= 3 for effort in range(1, 10)]
    assert [config.tries_trellis for config in each] == [effort in (4, 6, 7, 8, 9) for effort in range(1, 10)]
    assert [config.corrected for config in each] == [effort >= 5 for effort in range(1, 10)]
    assert "elt" in Config(effort=5, tools=("transform",)).tried_transforms
    assert Config(transform=TransformConfig(transforms=("klt",))).tried_transforms == ("klt",)


def test_trellis_on_and_off() -> None:
    model, x = smooth_network()
    stats = tersor.calibrate(model, [x])

    def states(**options: object) -> set[int]:
        packed = tersor.compress(model, stats, bits=4.0, effort=6, **options)
        return {code.trellis for code in codes_of(packed.data).values() if isinstance(code, ScalarCode)}

    assert max(states()) == 8
    assert states(trellis=False) == {0}
    assert Config(effort=5, trellis=True).tries_trellis and not Config(effort=9, trellis=False).tries_trellis
    with pytest.raises(ConfigError, match="trellis=8"):
        Config(trellis=8)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [("elt+klt",), ("dct2+dct1",), ("elt-joint+dct2",), ("fourier",), (), "elt"])
def test_transforms_that_are_none(wrong: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="transform"):
        TransformConfig(transforms=wrong)


def test_wrong_options() -> None:
    with pytest.raises(ConfigError, match="no rivals"):
        Config(tools=("codebook", "scalar"))
    with pytest.raises(ConfigError, match="must be a KernelConfig"):
        Config(kernels=TransformConfig())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="value_bits"):
        KernelConfig(value_bits=1)


@pytest.mark.parametrize(("kind", "shape", "groups"), [
    ("conv", (24, 6, 3, 3), 1), ("linear", (40, 30), 1), ("embedding", (50, 24), 1), ("conv", (24, 6, 3, 3), 4),
    ("conv_transposed", (8, 16, 3, 3), 1)])
def test_some_rows_stand_for_a_large_layer(kind: str, shape: tuple[int, ...], groups: int,
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    target = unmeasured_target(WeightLayer("w", kind, groups, None), rng.normal(size=shape).astype(np.float32))
    assert sampling.sampled(target) == (target, 1.0), "small enough as it is"
    monkeypatch.setattr(sampling, "ENOUGH", target.count // 4)
    some, times = sampling.sampled(target)
    if groups > 1 or kind == "conv_transposed":
        assert some is target
        return
    kept = np.arange(2, target.W.shape[1], 4)
    assert np.array_equal(some.W, target.W[:, kept]) and np.array_equal(some.G, target.G[:, kept])
    assert some.count == some.W.size == target.count / times
    full = replace(target, G=spd(rng, target.W.shape[1])[None])
    assert np.array_equal(sampling.sampled(full)[0].G[0], full.G[0][np.ix_(kept, kept)])
    code, _ = scalar.encode(some, 1e-4, scalar.ScalarOptions())
    assert code.tensor(some.shape).shape == some.shape


def test_rows_decide_as_the_whole_layer_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """The winner among some rows is coded as a whole, and costs hardly more than the winner among all."""
    model, x = smooth_network()
    config = Config()
    plan = Plan(inventory_of_module(model), tersor.calibrate(model, [x]), config)
    target = plan.target("3.weight")
    price = 1e-3 * float(np.trace(target.A[0]) * np.trace(target.G[0])) * float((target.W**2).mean()) / target.count
    best, decision = Chooser(config, list).choose(target, price)
    monkeypatch.setattr(sampling, "ENOUGH", 3000)
    rows, quick = Chooser(config, list).choose(target, price)
    assert rows.tool == best.tool == "transform" and rows.restored.shape == target.W.shape
    assert rows.cost(price) < 1.05 * best.cost(price), "a stored basis weighs little in a layer that is large enough"
    assert len(quick.losers) == len(decision.losers)
    assert dict(quick.losers)["scalar"] == pytest.approx(dict(decision.losers)["scalar"], rel=0.1)
