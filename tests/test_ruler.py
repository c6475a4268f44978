"""The ruler against closed forms, on weights that follow its model."""

from __future__ import annotations

import math

import numpy as np
import pytest

pytest.importorskip("torch")
from tersor.adapters.inventory import WeightLayer
from tersor.tools import ruler
from tersor.tools.candidate import distortion
from tersor.tools.gains import EPSILON2
from tersor.tools.target import LayerTarget, to_matrix

RNG = np.random.default_rng(11)


def spd(n: int, spread: float = 0.7) -> np.ndarray:
    q, _ = np.linalg.qr(RNG.normal(size=(n, n)))
    return (q * np.exp(RNG.normal(0, spread, n))) @ q.T


def quantised(target: LayerTarget, step: float) -> tuple[np.ndarray, float]:
    """Uniform quantization of the weights as they are, and the entropy of the integers, in bits."""
    q = np.round(target.W / step)
    count = np.unique(q, return_counts=True)[1]
    return q * step, -float((count * np.log2(count / q.size)).sum())


def test_white_weights_and_a_plain_metric():
    """1/2 log2(variance / D), and a plain uniform quantizer 0.255 bit above it."""
    layer, shape = WeightLayer("fc", "linear"), (400, 500)
    target = LayerTarget(layer, shape, RNG.normal(0, 0.3, (1, *shape)), np.ones((1, 500)), np.ones((1, 400)))
    restored, bits = quantised(target, 0.08)
    found = ruler.limit(target, restored, bits)
    error = distortion(target, restored)
    assert found.name == "fc" and found.weights == 200_000 and found.distortion == error and found.exact
    assert math.isclose(found.shannon, 0.5 * math.log2(0.09 / (error / 200_000)), abs_tol=0.01)
    assert math.isclose(found.gap, 0.5 * math.log2(EPSILON2), abs_tol=0.01)
    assert abs(found.scalar_gap) < 0.01
    assert found.bits == bits / 200_000


def test_correlated_weights_and_metric():
    """High rate: the determinant of everything, D = det(...)^(1/weights) 2^(-2R)."""
    outputs, inputs, taps = 200, 12, 9
    rows, c_in, c_taps = np.exp(RNG.normal(0, 1, outputs)), spd(inputs), spd(taps)
    root = np.kron(np.linalg.cholesky(c_in), np.linalg.cholesky(c_taps))
    w = np.sqrt(rows)[:, None] * RNG.normal(size=(outputs, inputs * taps)) @ root.T
    a, g = spd(inputs * taps), spd(outputs)
    layer = WeightLayer("w", "conv")
    target = LayerTarget(layer, (outputs, inputs, 3, 3), w[None], a[None], g[None])
    n = inputs * taps
    logdet = (sum(np.linalg.slogdet(x)[1] for x in (np.diag(rows), g)) / outputs
              + sum(np.linalg.slogdet(x)[1] for x in (np.kron(c_in, c_taps), a)) / n)
    mean = math.exp(logdet) * 4.0**-7
    found = ruler.limit_at(target, mean * target.count, 7.5 * target.count)
    assert math.isclose(found.shannon, 7.0, abs_tol=0.06), "covariances are estimated: 200 rows"
    assert math.isclose(found.scalar - found.shannon, 0.5 * math.log2(EPSILON2), abs_tol=0.005)
    assert math.isclose(found.gap, 7.5 - found.shannon) and math.isclose(found.scalar_gap, 7.5 - found.scalar)


def test_more_inputs_than_outputs_are_no_free_lunch():
    """A covariance estimated from fewer rows than columns must not make white weights look cheap."""
    layer, shape = WeightLayer("w", "conv"), (16, 32, 3, 3)
    target = LayerTarget(layer, shape, np.array(to_matrix(RNG.normal(size=shape), layer)), np.ones((1, 288)),
                         np.ones((1, 16)))
    assert math.isclose(ruler.limit_at(target, target.count / 16, 0).shannon, 2.0, abs_tol=0.1)
    head = LayerTarget(WeightLayer("w", "linear"), (10, 64), RNG.normal(size=(1, 10, 64)), np.ones((1, 64)),
                       np.ones((1, 10)))
    assert math.isclose(ruler.limit_at(head, 640 / 16, 0).shannon, 2.0, abs_tol=0.15)


KINDS = {
    "conv": (WeightLayer("w", "conv"), (6, 4, 3, 3)),
    "depthwise": (WeightLayer("w", "conv", groups=8), (8, 1, 3, 3)),
    "grouped": (WeightLayer("w", "conv", groups=2), (8, 3, 3)),
    "transposed": (WeightLayer("w", "conv_transposed"), (4, 6, 3)),
    "embedding": (WeightLayer("w", "embedding"), (40, 8)),
}


@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_variances_add_up_to_the_expected_energy(kind, diagonal):
    """Trace of the model = what leaving out all weights costs, in expectation under the model."""
    layer, shape = KINDS[kind]
    w = np.array(to_matrix(RNG.normal(size=shape), layer))
    groups, m, n = w.shape
    a, g = (np.stack([spd(size) for _ in range(groups)]) for size in (n, m))
    if diagonal or kind == "embedding":
        a = np.ascontiguousarray(np.einsum("gnn->gn", a))
    target = LayerTarget(layer, shape, w, a, g)
    variances, exact = ruler.component_variances(target)
    assert exact and variances.shape == (target.count,) and (variances >= 0).all()
    zero = distortion(target, np.zeros_like(w))
    assert 0.3 < variances.sum() / zero < 3
    assert ruler.limit_at(target, float(variances.sum()), 10.0).shannon < 1e-12


def test_large_metrics_are_taken_for_products(monkeypatch):
    layer, shape = WeightLayer("w", "conv"), (20, 6, 3, 3)
    w = np.array(to_matrix(RNG.normal(size=shape), layer))
    a = np.kron(spd(6), spd(9))[None]
    for metric in (a, np.ascontiguousarray(np.einsum("gnn->gn", a))):
        target = LayerTarget(layer, shape, w, metric, np.stack([np.diag(np.exp(RNG.normal(size=20)))]))
        exact = ruler.limit_at(target, target.count / 100, 0)
        with monkeypatch.context() as patch:
            patch.setattr(ruler, "LARGEST", 9)
            rough = ruler.limit_at(target, target.count / 100, 0)
        assert exact.exact and not rough.exact
        # A and G are products here, so that only the channels' own covariance is lost (diagonal: 6 > 9 is false).
        assert math.isclose(rough.shannon, exact.shannon, abs_tol=0.02 if metric.ndim == 3 else 0.35)


def test_dead_rows_and_zero_layers():
    layer, shape = WeightLayer("w", "conv"), (6, 4, 3, 3)
    w = np.array(to_matrix(RNG.normal(size=shape), layer))
    w[0, :3] = 0
    target = LayerTarget(layer, shape, w, np.ones((1, 36)), np.ones((1, 6)))
    half = ruler.limit_at(target, target.count / 2 / 64, 0)
    assert math.isclose(half.shannon, 1.5, abs_tol=0.2), "3 bits for the live half"
    empty = LayerTarget(layer, shape, np.zeros_like(w), np.ones((1, 36)), np.ones((1, 6)))
    nothing = ruler.limit(empty, np.zeros_like(w), 5.0)
    assert nothing.shannon == nothing.scalar == 0.0 and nothing.distortion == 0.0
    assert ruler.limit(target, w, 1.0).shannon == math.inf


def test_overall_is_weighted_by_weights():
    parts = [ruler.Limit("a", 100, 1.0, 3.0, 2.0, 2.2, True), ruler.Limit("b", 300, 2.0, 1.0, 0.8, 0.9, False)]
    found = ruler.overall(parts)
    assert (found.weights, found.distortion, found.bits, found.exact) == (400, 3.0, 1.5, False)
    assert math.isclose(found.gap, 1.5 - 1.1) and math.isclose(found.scalar_gap, 1.5 - 1.225)
    assert ruler.overall([]).bits == 0.0
