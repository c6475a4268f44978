"""The scalar tool: steps that follow sensitivity and lambda, codes that a file gives back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")
from tersor.adapters.inventory import WeightLayer
from tersor.bitstream.manifest import TensorRecord
from tersor.limits import DEFAULT_LIMITS
from tersor.synthesis import grid
from tersor.synthesis import scalar as synthesis
from tersor.tools import scalar
from tersor.tools.scalar import ScalarOptions, choose_steps, code_lengths
from tersor.tools.target import (
    LayerTarget,
    elementwise_target,
    from_matrix,
    to_matrix,
    unmeasured_target,
)

RNG = np.random.default_rng(5)
KINDS = {
    "linear": (WeightLayer("w", "linear"), (12, 20)),
    "conv": (WeightLayer("w", "conv"), (8, 4, 3, 3)),
    "grouped": (WeightLayer("w", "conv", groups=4), (8, 3, 5)),
    "depthwise": (WeightLayer("w", "conv", groups=8), (8, 1, 3, 3)),
    "transposed": (WeightLayer("w", "conv_transposed"), (6, 8, 3, 3)),
    "transposed, grouped": (WeightLayer("w", "conv_transposed", groups=2), (6, 4, 3)),
    "embedding": (WeightLayer("w", "embedding"), (40, 8)),
    "matrix": (WeightLayer("w", "matrix"), (5, 2, 9)),
}


def spd(n: int) -> np.ndarray:
    x = RNG.normal(0, np.exp(RNG.normal(0, 0.7, n)), (4 * n, n))
    x[:, 1:] += 0.7 * x[:, :-1]
    return x.T @ x / len(x)


def target_of(kind: str, absorbed: bool = False) -> LayerTarget:
    layer, shape = KINDS[kind]
    w = np.array(to_matrix(RNG.normal(0, 0.1, shape), layer), dtype=np.float64)
    groups, m, n = w.shape
    a = np.stack([np.diag(spd(n)) if kind == "embedding" else spd(n) for _ in range(groups)])
    return LayerTarget(layer, shape, w, a, np.stack([spd(m) for _ in range(groups)]), absorbed, damping=0.0)


def distortion(target: LayerTarget, restored: np.ndarray) -> float:
    """tr(G E A E^T), summed over groups."""
    total = 0.0
    for w, v, a, g in zip(target.W, restored, target.A, target.G, strict=True):
        full = np.diag(a) if a.ndim == 1 else a
        weight = np.diag(g) if g.ndim == 1 else g
        total += float(np.trace(weight @ (w - v) @ full @ (w - v).T))
    return total


def restored_matrix(target: LayerTarget, code: synthesis.ScalarCode, steps: scalar.Steps) -> np.ndarray:
    """[groups, m, n] with what a BatchNorm takes up put back."""
    matrix = np.asarray(to_matrix(code.tensor(target.shape).astype(np.float64), target.layer))
    return matrix * steps.absorbed[:, :, None]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("absorbed", [False, True])
def test_a_file_gives_back_what_was_chosen(kind: str, absorbed: bool) -> None:
    target = target_of(kind, absorbed)
    code, steps = scalar.encode(target, 1e-4, ScalarOptions())
    payload = synthesis.encode([code], [target.shape], synthesis.SMALL)
    decoded, = synthesis.decode(payload, [TensorRecord("w", "F32", target.shape, 0, None)], DEFAULT_LIMITS, 1)
    assert (decoded == code.tensor(target.shape)).all()
    error = np.abs(restored_matrix(target, code, steps) - target.W)
    assert (error <= 40 * steps.step[:, :, None]).all(), "feedback moves values, but not without bounds"
    finer, fine_steps = scalar.encode(target, 1e-10, ScalarOptions())
    assert np.allclose(restored_matrix(target, finer, fine_steps), target.W, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_the_views_are_inverse(kind: str) -> None:
    layer, shape = KINDS[kind]
    tensor = RNG.normal(0, 1, shape)
    assert (from_matrix(to_matrix(tensor, layer), layer, shape) == tensor).all()


@pytest.mark.parametrize("kind", ["linear", "conv", "grouped"])
def test_distortion_follows_lambda(kind: str) -> None:
    """At high rate -dD/dR = lambda and D per weight = lambda / (2 ln 2): 6 dB a bit, whatever the layer."""
    target = target_of(kind, absorbed=True)
    expected = target.count / (2 * np.log(2))
    for price in (1e-9, 1e-11):
        code, steps = scalar.encode(target, price, ScalarOptions(rdo=0.0))
        measured = distortion(target, restored_matrix(target, code, steps))
        assert measured == pytest.approx(price * expected, rel=0.3)


def test_feedback_and_its_options() -> None:
    target = target_of("conv", absorbed=True)

    def cost(**options: bool) -> float:
        code, steps = scalar.encode(target, 1e-5, ScalarOptions(rdo=0.0, **options))
        return distortion(target, restored_matrix(target, code, steps))

    assert cost() < cost(two_sided=False) * 1.5
    assert cost(two_sided=False) < 0.8 * cost(feedback=False)


def test_dearer_outputs_get_finer_steps_where_that_is_free_or_pays() -> None:
    target = replace(target_of("conv", absorbed=True), G=np.diag(4.0 ** np.arange(8))[None])
    steps = choose_steps(target, 1e-4)
    assert steps.rows is None, "the BatchNorm has them"
    assert np.allclose(steps.step[0, :-1] / steps.step[0, 1:], 2.0)
    assert np.allclose(steps.absorbed * grid.value(steps.index), steps.step)
    told = choose_steps(replace(target, absorbed=False), 1e-4)
    assert told.rows is not None and np.allclose(told.absorbed, 1.0), "36 weights a row pay for its step"
    assert np.allclose(np.diff(told.rows), -4), "an octave is four quarters"
    alike = replace(target, absorbed=False, G=np.diag(1.01 ** np.arange(8))[None])
    assert choose_steps(alike, 1e-4).rows is None, "one step for all"


def test_steps_follow_the_square_root_of_lambda() -> None:
    target = target_of("linear", absorbed=True)
    steps = [choose_steps(target, price).step for price in (1e-4, 4e-4)]
    assert np.allclose(steps[1] / steps[0], 2.0)
    g, d = target.row_factors[0].cost, target.column_factors[0].cost
    assert np.allclose(steps[0], np.sqrt(6e-4 / (np.log(2) * g * d.mean())))


@pytest.mark.parametrize("price", [2.0**-900, 1e-60, 1e60, 2.0**900])
@pytest.mark.parametrize("absorbed", [False, True])
def test_no_lambda_leads_beyond_what_a_file_can_hold(price: float, absorbed: bool) -> None:
    target = target_of("conv", absorbed)
    target.W[0, 3] = 0.0
    code, steps = scalar.encode(target, price, ScalarOptions())
    tensor = code.tensor(target.shape)
    assert np.isfinite(tensor).all()
    if price > 1:
        assert not tensor.any()
    else:
        assert np.allclose(restored_matrix(target, code, steps), target.W, atol=1e-6)


@pytest.mark.parametrize("what", ["weights", "A", "G", "all", "nan A", "one input"])
def test_degenerate_layers(what: str) -> None:
    target = target_of("conv")
    if what in ("weights", "all"):
        target = replace(target, W=np.zeros_like(target.W))
    if what in ("A", "all"):
        target = replace(target, A=np.zeros_like(target.A))
    if what in ("G", "all"):
        target = replace(target, G=np.zeros_like(target.G))
    if what == "nan A":
        target = replace(target, A=np.full_like(target.A, np.nan))
    if what == "one input":
        target = replace(target, A=np.ones_like(target.A))
    code, _ = scalar.encode(target, 1e-4, ScalarOptions())
    assert np.isfinite(code.tensor(target.shape)).all()


def test_unmeasured_layers_count_their_relative_error() -> None:
    layer, shape = KINDS["conv"]
    w = RNG.normal(0, 1, shape).astype(np.float32)
    small, large = (scalar.encode(unmeasured_target(layer, w * scale), 1e-4, ScalarOptions())[0].q
                    for scale in (2.0**-10, 2.0**10))
    assert (small == large).all()
    code, steps = scalar.encode(unmeasured_target(layer, w), 1e-8, ScalarOptions(rdo=0.0))
    target = unmeasured_target(layer, w)
    error = ((restored_matrix(target, code, steps) - target.W) ** 2).sum() / (w.astype(float) ** 2).sum()
    assert error == pytest.approx(1e-8 * w.size / (2 * np.log(2)), rel=0.1)


def test_elementwise_sensitivities_become_rows_and_columns() -> None:
    layer, shape = KINDS["matrix"]
    rows, columns = RNG.uniform(1, 9, 5), RNG.uniform(1, 9, 18)
    h = np.outer(rows, columns).reshape(shape)
    target = elementwise_target(layer, RNG.normal(0, 1, shape), h, weight=2.0)
    assert np.allclose(target.G[0][:, None] * target.A[0][None], 2 * np.outer(rows, columns))
    nothing = elementwise_target(layer, RNG.normal(0, 1, shape), np.zeros(shape))
    code, _ = scalar.encode(nothing, 1e-4, ScalarOptions())
    assert np.isfinite(code.tensor(shape)).all()


def test_code_lengths_are_those_of_the_rows() -> None:
    quiet, loud = RNG.normal(0, 0.3, (20, 50)), RNG.normal(0, 6, (20, 50))
    row_class, bits = code_lengths([np.concatenate([quiet, loud])])
    assert set(row_class[0][:20]) == {0, 1} and set(row_class[0][20:]) == {2, 3}
    zero = bits.shape[1] // 2
    assert bits[0, zero] < 0.5 < 2 < bits[3, zero]
    assert np.allclose(bits, bits[:, ::-1]), "signs cost alike"
    assert np.allclose(np.exp2(-bits).sum(axis=1), 1.0)


def test_centroids_lower_the_distortion_and_are_left_out_with_feedback() -> None:
    layer, shape = KINDS["linear"]
    peaked = np.sign(RNG.normal(0, 1, shape)) * RNG.exponential(0.1, shape)
    target = unmeasured_target(layer, peaked)
    codes = {on: scalar.encode(target, 1e-4, ScalarOptions(centroids=on))[0] for on in (False, True)}
    assert codes[False].shift == (0, 0) and max(codes[True].shift) > 0
    assert np.array_equal(codes[False].q, codes[True].q)
    error = {on: np.square(code.tensor(shape) - peaked).sum() for on, code in codes.items()}
    assert error[True] < error[False]
    n = peaked.reshape(len(peaked), -1).shape[1]
    mixing = RNG.normal(size=(n, n))
    measured = replace(target, A=(mixing @ mixing.T)[None], damping=0.01)
    assert scalar.encode(measured, 1e-4, ScalarOptions())[0].shift == (0, 0)
