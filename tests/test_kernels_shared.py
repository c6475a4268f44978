"""One codebook of kernels for several layers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")
from tersor.adapters.inventory import WeightLayer
from tersor.config import KernelConfig
from tersor.synthesis import kernels as synthesis
from tersor.tools.candidate import distortion
from tersor.tools.kernels import propose
from tersor.tools.kernels_shared import by_taps, propose_shared, train_shared
from tersor.tools.target import LayerTarget, to_matrix


def spd(n, rng):
    x = rng.normal(0, 1, (4 * n, n))
    x[:, 1:] += 0.7 * x[:, :-1]
    return x.T @ x / len(x)


def layers(count=4, seed=0, absorbed=True, noise=0.1):
    """Layers of kernels of one family, at different scales and sensitivities."""
    rng = np.random.default_rng(seed)
    family = rng.normal(0, 1, (10, 9))
    out = []
    for i in range(count):
        m, c = 10 + 2 * i, 8 + i
        scale = 4.0 ** (i - 1)
        w = family[rng.integers(10, size=(m, c))] * rng.normal(0, 1, (m, c, 1))
        w = scale * (w + rng.normal(0, noise, w.shape))
        out.append(LayerTarget(WeightLayer(f"l{i}.weight", "conv"), (m, c, 3, 3), w.reshape(1, m, c * 9),
                               spd(c * 9, rng)[None] / scale**2, spd(m, rng)[None], absorbed))
    return out


@pytest.mark.parametrize("absorbed", [False, True])
@pytest.mark.parametrize("options", [{}, {"gains": False, "size": 16}, {"coder": "fixed", "signs": True}], ids=str)
def test_candidates(absorbed, options):
    targets, config, price = layers(absorbed=absorbed), KernelConfig(**options), 1e-2
    shared = train_shared(targets, price, config)
    found = [propose_shared(target, shared, price, config) for target in targets]
    for one, target in zip(found, targets, strict=True):
        assert one.code.values is shared.values
        assert np.isclose(one.distortion, distortion(target, one.restored))
        assert 0 < one.side_bits < one.bits and "shared" in one.label
        restored = to_matrix(one.code.tensor(target.shape), target.layer)
        if absorbed:
            with np.errstate(invalid="ignore", divide="ignore"):
                ratio = one.restored / restored
            first = np.nanmean(ratio, axis=2, keepdims=True)
            assert np.nanmax(np.abs(ratio - first)) < 1e-9
        else:
            assert np.allclose(restored, one.restored)
    if options.get("size"):
        assert len(shared.values) == 16 and np.abs(shared.values).max() <= 32


def test_one_codebook_costs_less_than_many():
    targets, price = layers(6, seed=1, noise=0.01), 3e-2
    config = KernelConfig(gains=True)
    shared = train_shared(targets, price, config)
    together = [propose_shared(target, shared, price, config) for target in targets]
    alone = [propose(target, price, config, "small") for target in targets]
    shapes = [target.shape for target in targets]

    def cost(candidates):
        bits = 8 * len(synthesis.encode([one.code for one in candidates], shapes))
        estimate = sum(one.bits for one in candidates)
        assert 0.85 < estimate / bits < 1.2
        return sum(one.distortion for one in candidates) + price * bits

    assert cost(together) < cost(alone)


def test_corrected_targets_keep_the_codebook():
    targets, config = layers(), KernelConfig()
    shared = train_shared(targets, 1e-2, config)
    moved = replace(targets[1], W=targets[1].W * 1.02)
    before, after = (propose_shared(target, shared, 1e-2, config) for target in (targets[1], moved))
    assert after.code.values is before.code.values
    assert not np.array_equal(after.restored, before.restored)


def test_units_follow_sensitivities():
    """Layers that are alike but for their scale get the same codebook indexes, and steps as different."""
    first = layers(1, seed=2)[0]
    other = replace(first, layer=WeightLayer("other.weight", "conv"), W=first.W * 8, A=first.A / 64)
    shared = train_shared([first, other], 1e-2, KernelConfig())
    assert shared.units["other.weight"] - shared.units["l0.weight"] == 96
    a, b = (propose_shared(target, shared, 1e-2, KernelConfig()) for target in (first, other))
    assert np.array_equal(a.code.index, b.code.index) and b.code.step_index - a.code.step_index == 96


def test_deterministic():
    runs = [train_shared(layers(), 1e-2, KernelConfig()) for _ in range(2)]
    assert np.array_equal(runs[0].values, runs[1].values) and runs[0].step == runs[1].step


def test_layers_go_together_by_the_size_of_their_kernels():
    rng = np.random.default_rng(3)
    wide = LayerTarget(WeightLayer("wide", "conv"), (8, 8, 5, 5), rng.normal(size=(1, 8, 200)), np.ones((1, 200)),
                       np.ones((1, 8)))
    line = LayerTarget(WeightLayer("line", "linear"), (20, 90), rng.normal(size=(1, 20, 90)), np.ones((1, 90)),
                       np.ones((1, 20)))
    targets = [*layers(2), wide, line]
    assert {taps: [t.name for t in group] for taps, group in by_taps(targets, KernelConfig()).items()} == {
        9: ["l0.weight", "l1.weight"], 25: ["wide"]}
    found = by_taps(targets, KernelConfig(vector=9))[9]
    assert [target.name for target in found] == ["l0.weight", "l1.weight", "line"]
    shared = train_shared(found, 1e-2, KernelConfig(vector=9))
    assert propose_shared(line, shared, 1e-2, KernelConfig(vector=9)).code.index.shape == (20, 10)
