"""The codebook tool behind `tersor.compress`: targets, methods, coders, layers of both tools in one model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import tersor
from tersor.config import CodebookConfig, Config, LayerConfig
from tersor.errors import ConfigError


def small_network() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
                          nn.Conv2d(16, 32, 3, stride=2, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
                          nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(512, 10))
    x = torch.randn(32, 3, 12, 12)
    model.train()
    for _ in range(5):
        model(x)
    return model.eval().requires_grad_(False), x


@pytest.mark.parametrize("method", ["ecsq", "uniform"])
@pytest.mark.parametrize("coder", ["arithmetic", "huffman", "fast"])
def test_the_target_is_met(method: str, coder: str) -> None:
    model, x = small_network()
    stats = tersor.calibrate(model, [x])
    packed = tersor.compress(model, stats, bits=4.0, tools=("codebook",),
                             codebook=CodebookConfig(method=method, coder=coder, levels=64))  # type: ignore[arg-type]
    assert 3.8 < packed.bits_per_weight <= 4.0
    with packed.load() as file:
        tools = {section.tool for section in file.manifest.sections}
        assert 4 in tools and 1 not in tools
        values = np.unique(np.concatenate([file[name].ravel() for name in ("0.weight", "3.weight", "8.weight")]))
    assert len(values) <= 64 or method == "uniform"


def test_more_bits_restore_a_better_network() -> None:
    model, x = small_network()
    stats = tersor.calibrate(model, [x])
    reference = model(x)
    errors = []
    for bits in (3.0, 4.5, 6.0):
        packed = tersor.compress(model, stats, bits=bits, tools=("codebook",), codebook=CodebookConfig(levels=256))
        other, _ = small_network()
        tersor.restore(packed.data, into=other)
        errors.append((other(x) - reference).square().mean().item())
    assert errors[0] > errors[1] > errors[2]


def test_kmeans_of_fixed_length_has_a_power_of_two_of_centres() -> None:
    model, x = small_network()
    packed = tersor.compress(model, tersor.calibrate(model, [x]), bits=5.0, tools=("codebook",),
                             codebook=CodebookConfig(method="kmeans", coder="fixed", levels=64))
    with packed.load() as file:
        values = np.unique(np.concatenate([file[name].ravel() for name in ("0.weight", "3.weight", "8.weight")]))
    assert 8 < len(values) <= 16
    assert packed.bits_per_weight <= 5.0


def test_each_layer_may_have_its_own_codebook_and_its_own_tool() -> None:
    model, x = small_network()
    stats = tersor.calibrate(model, [x])
    config = Config(tools=("codebook",), codebook=CodebookConfig(scope="layer"),
                    layers={r"0\.weight": LayerConfig(tool="scalar"), r"8\.weight": LayerConfig(tool="raw")})
    packed = tersor.compress(model, stats, size=22_500, config=config)
    with packed.load() as file:
        tool = {name: file.manifest.sections[record.section].tool
                for name in file if (record := file.record(name)).section is not None}
        assert (tool["0.weight"], tool["3.weight"], tool["8.weight"]) == (1, 4, 0)
        assert np.array_equal(file["8.weight"], model[8].weight.detach().numpy())


def test_pruned_weights_stay_pruned() -> None:
    model, x = small_network()
    with torch.no_grad():
        weight = model[8].weight
        weight[weight.abs() < weight.abs().median()] = 0.0
    packed = tersor.compress(model, tersor.calibrate(model, [x]), bits=4.0, tools=("codebook",))
    with packed.load() as file:
        assert (file["8.weight"][model[8].weight.detach().numpy() == 0] == 0).all()


def test_data_free_from_arrays() -> None:
    rng = np.random.default_rng(1)
    arrays = {"a.weight": rng.normal(size=(64, 128)).astype(np.float32), "a.bias": np.ones(64, np.float32)}
    packed = tersor.compress(arrays, None, bits=3.0, tools=("codebook",))
    with packed.load() as file:
        assert np.square(file["a.weight"] - arrays["a.weight"]).mean() < 0.05


@pytest.mark.parametrize("bad", [{"tools": ("scalar", "codebook")},
                                 {"codebook": CodebookConfig, "tools": ("codebook",)},
                                 {"layers": {"typo": LayerConfig(tool="raw")}}])
def test_contradictions_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        tersor.compress({"a.weight": np.ones((32, 32), np.float32)}, None, bits=4.0, **bad)  # type: ignore[arg-type]


def test_statistics_explain_a_bare_state_dict() -> None:
    """Kinds, groups and BatchNorms come from calibration, so the state dict is read like the module."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(8, 8, 3, groups=4), nn.BatchNorm2d(8), nn.ConvTranspose2d(8, 8, 1), nn.Flatten(),
                          nn.Linear(288, 10)).eval()
    x = torch.randn(8, 8, 8, 8)
    stats = tersor.calibrate(model, [x])
    from_state = tersor.compress(model.state_dict(), stats, bits=8.0, effort=3)
    from_module = tersor.compress(model, stats, bits=8.0, effort=3)
    with from_state.load() as a, from_module.load() as b:
        assert {s.tool for s in a.manifest.sections} == {s.tool for s in b.manifest.sections}
    reference = model(x).detach()
    tersor.restore(from_state.data, into=model)
    assert (model(x).detach() - reference).square().mean() < 0.01 * reference.var()


def test_given_sensitivities_decide_where_the_precision_goes() -> None:
    rng = np.random.default_rng(2)
    weight = rng.normal(size=(64, 64)).astype(np.float32)
    loud = np.where(weight > 0, 100.0, 1e-3)
    errors = {}
    for name, h in (("even", np.ones_like(loud)), ("loud", loud)):
        packed = tersor.compress({"a.weight": weight}, None, bits=3.0, tools=("codebook",), sensitivity={"a.weight": h})
        with packed.load() as file:
            errors[name] = np.square(file["a.weight"] - weight)[weight > 0].mean()
    assert errors["loud"] < 0.5 * errors["even"]
    with pytest.raises(ConfigError, match="shape"):
        tersor.compress({"a.weight": weight}, None, bits=3.0, tools=("codebook",), sensitivity={"a.weight": loud[:3]})
