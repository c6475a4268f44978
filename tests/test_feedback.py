"""Error feedback and its metric, beside slow dense NumPy written from the formulas."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")
from tersor.tools import feedback
from tersor.tools.feedback import REACH, Rounding
from tersor.tools.metric import DAMPING, Triangular, triangular

Matrix = npt.NDArray[np.float64]


def spd(rng: np.random.Generator, n: int, correlation: float = 0.95) -> Matrix:
    """A positive definite matrix like that of neighbouring inputs, with unequal scales."""
    near = correlation ** np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    scale = np.exp(rng.normal(0, 0.5, n))
    return np.asarray(near * np.outer(scale, scale))


def plain(rows: int, step: float | Matrix = 1.0, **more: object) -> Rounding:
    """To the nearest integer times a step."""
    return Rounding(step=np.full(rows, step) if np.isscalar(step) else np.asarray(step), price=np.zeros(rows),
                    bits=np.ones((1, 2 * REACH + 1)), row_class=np.zeros(rows, np.int32),
                    **more)  # type: ignore[arg-type]


def distortion(error: Matrix, a: Matrix, g: Matrix) -> float:
    return float(np.trace(g @ error @ a @ error.T))


def optimal_brain_surgeon(w: Matrix, a: Matrix, g: Matrix, step: Matrix) -> tuple[Matrix, Matrix]:
    """Integers and costs, from the definition: entries in row-major order; after each, all later entries
    of its row and then of its column move to where they make the rest of tr(G E A E^T) least.

    Hassibi and Stork's update for the entries that are still free, written out with inverses of the
    remaining Hessian and no factors: columns within a row by A, the finished row on later rows by G.
    """
    m, n = w.shape
    w, q = w.copy(), np.zeros((m, n))
    for i in range(m):
        target = w[i].copy()
        row = target.copy()
        for j in range(n):
            q[i, j] = np.rint(row[j] / step[i])
            inverse = np.linalg.inv(a[j:, j:])
            error = row[j] - q[i, j] * step[i]
            row[j:] -= error * inverse[0] / inverse[0, 0]
        inverse = np.linalg.inv(g[i:, i:])
        for later in range(i + 1, m):
            w[later] -= inverse[later - i, 0] / inverse[0, 0] * (target - q[i] * step[i])
    return q, w


def methods_section_8(w: Matrix, a: Matrix, g: Matrix, step: Matrix) -> Matrix:
    """The recipe as written down: U and V the upper Cholesky factors of A^-1 and G^-1."""
    u, v = np.linalg.cholesky(np.linalg.inv(a)).T, np.linalg.cholesky(np.linalg.inv(g)).T
    w, q = w.copy(), np.zeros(w.shape)
    for i in range(len(w)):
        x = w[i].copy()
        for j in range(w.shape[1]):
            q[i, j] = np.rint(x[j] / step[i])
            e = (x[j] - q[i, j] * step[i]) / u[j, j]
            x[j + 1 :] -= e * u[j, j + 1 :]
        error = w[i] - q[i] * step[i]
        for r in range(i + 1, len(w)):
            w[r] -= v[i, r] / v[i, i] * error
    return q


@pytest.mark.parametrize(("m", "n"), [(1, 1), (1, 9), (9, 1), (7, 12), (5, 300)])
def test_equals_a_dense_reference(m: int, n: int) -> None:
    """300 columns are three blocks."""
    rng = np.random.default_rng(m * n)
    a, g = spd(rng, n), spd(rng, m, 0.6)
    w, step = rng.normal(0, 3, (m, n)), np.exp(rng.normal(0, 0.3, m))
    q, restored = feedback.quantize(w, triangular(a, 0.0), triangular(g, 0.0), plain(m, step))
    assert (q == methods_section_8(w, a, g, step)).all()
    if n < 100:
        assert (q == optimal_brain_surgeon(w, a, g, step)[0]).all()
    assert np.allclose(restored, q * step[:, None])
    nearest = np.rint(w / step[:, None])
    if m * n > 1:
        error, plain_error = w - restored, w - nearest * step[:, None]
        assert distortion(error, a, g) < 0.7 * distortion(plain_error, a, g) or n == 1 or m == 1
        assert distortion(error, a, g) <= distortion(plain_error, a, g)


def test_feedback_lowers_the_distortion_and_each_direction_helps() -> None:
    rng = np.random.default_rng(0)
    a, g, w = spd(rng, 72), spd(rng, 24, 0.7), rng.normal(0, 2, (24, 72))
    columns, rows = triangular(a, 0.0), triangular(g, 0.0)

    def cost(by_column: Triangular, by_row: Triangular) -> float:
        return distortion(w - feedback.quantize(w, by_column, by_row, plain(24))[1], a, g)

    alone = cost(columns.without_feedback(), rows.without_feedback())
    assert alone == pytest.approx(distortion(w - np.rint(w), a, g))
    both = cost(columns, rows)
    assert both < 0.9 * cost(columns, rows.without_feedback()) < 0.5 * alone
    assert both < 0.9 * cost(columns.without_feedback(), rows)
    # Each entry's own cost: sum over entries of g_i d_j step^2 / 12, if errors are uniform.
    assert both == pytest.approx(columns.cost.sum() * rows.cost.sum() / 12, rel=0.15)


def test_rounding_pays_for_bits() -> None:
    """A price makes zeros: argmin of squared error + price * bits, over the nearest, its neighbour, zero."""
    rng = np.random.default_rng(1)
    w = np.repeat(rng.normal(0, 1.5, (1, 400)), 3, axis=0)
    bits = 1.0 + 2 * np.abs(np.arange(-REACH, REACH + 1.0))[None]
    rounding = Rounding(np.ones(3), np.array([0.0, 0.05, 0.3]), bits, np.zeros(3, np.int32))
    none = Triangular(None, np.ones(400)), Triangular(None, np.ones(3))
    q, _ = feedback.quantize(w, *none, rounding)
    assert (q[0] == np.rint(w[0])).all()
    assert (np.abs(q[1]) <= np.abs(np.rint(w[1]))).all()
    assert [(row == 0).mean() for row in q] == sorted((row == 0).mean() for row in q)
    for row, price in ((1, 0.05), (2, 0.3)):
        levels = np.arange(-12, 13)
        cost = (w[row][:, None] - levels) ** 2 + price * (1 + 2 * np.abs(levels))
        assert (q[row] == levels[cost.argmin(1)]).all()


def test_dearer_columns_are_rounded_more_exactly() -> None:
    w = np.full((1, 2), 0.6)
    rounding = Rounding(np.ones(1), np.full(1, 0.4), np.abs(np.arange(-REACH, REACH + 1.0))[None],
                        np.zeros(1, np.int32))
    columns = Triangular(None, np.array([100.0, 0.1]))
    q, _ = feedback.quantize(w, columns, Triangular(None, np.ones(1)), rounding)
    assert q.tolist() == [[1, 0]]


def test_reconstruction_shifts_and_row_classes() -> None:
    w = np.array([[0.9, 2.0, -0.9, -2.6], [0.9, 2.0, -0.9, -2.6]])
    bits = np.stack([np.zeros(2 * REACH + 1), 1e3 * np.abs(np.sign(np.arange(-REACH, REACH + 1)))])
    rounding = Rounding(np.ones(2), np.ones(2), bits, np.array([0, 1], np.int32), (0.125, 0.25))
    q, restored = feedback.quantize(w, Triangular(None, np.ones(4)), Triangular(None, np.ones(2)), rounding)
    assert q.tolist() == [[1, 2, -1, -3], [0, 0, 0, 0]]
    assert restored[0].tolist() == [0.875, 1.75, -0.875, -2.75]


def test_what_is_given_stays_and_huge_values_are_held() -> None:
    w = np.array([[1e30, -1e30, 3.4]])
    kept = w.copy()
    q, _ = feedback.quantize(w, Triangular(None, np.ones(3)), Triangular(None, np.ones(1)), plain(1))
    assert q.tolist() == [[feedback.LIMIT, -feedback.LIMIT, 3]]
    assert (w == kept).all()


# ---- the metric in triangular form ---------------------------------------------------------------------

@pytest.mark.parametrize("n", [1, 2, 30])
def test_the_factor_is_one_of_the_inverse(n: int) -> None:
    a = spd(np.random.default_rng(n), n)
    factor = triangular(a, 0.0)
    assert factor.upper is not None
    assert np.allclose(np.triu(factor.upper), factor.upper)
    assert np.allclose(factor.upper.T @ factor.upper @ a, np.eye(n), atol=1e-8)
    # The cost of a column is its variance given the later ones: a Schur complement.
    for j in range(n):
        rest = a[j, j + 1 :] @ np.linalg.solve(a[j + 1 :, j + 1 :], a[j + 1 :, j]) if j + 1 < n else 0.0
        assert factor.cost[j] == pytest.approx(a[j, j] - rest)
    damped = triangular(a)
    assert damped.upper is not None
    inverse = np.linalg.inv(a + DAMPING * np.diag(a).mean() * np.eye(n))
    assert np.allclose(damped.upper.T @ damped.upper, inverse)


BAD = {
    "zero": np.zeros((4, 4)), "rank one": np.ones((4, 4)), "indefinite": np.diag([1.0, 1.0, -50.0, 1.0]),
    "nan": np.full((4, 4), np.nan), "one nan": np.where(np.eye(4)[::-1] > 0, np.nan, np.eye(4)),
    "infinite": np.full((4, 4), np.inf), "tiny": np.eye(4) * 1e-300, "huge": np.eye(4) * 1e300,
    "negative": -np.eye(4), "no rows": np.zeros((0, 0)), "asymmetric": np.triu(np.ones((4, 4))),
    "zero diagonal": np.zeros(4), "nan diagonal": np.full(4, np.nan), "some zeros": np.array([0.0, 1, 0, 0]),
    "infinite diagonal": np.full(4, np.inf), "negative diagonal": np.array([-1.0, 3, 3, 3]),
    "no diagonal": np.zeros(0), "float32": np.eye(4, dtype=np.float32),
}


@pytest.mark.parametrize("what", BAD)
@pytest.mark.parametrize("damping", [0.0, 0.01])
def test_no_metric_crashes(what: str, damping: float) -> None:
    """No calibration set may stop the encoder: constant inputs, dead channels, overflow."""
    metric = BAD[what]
    factor = triangular(metric, damping)
    assert factor.cost.shape == (len(metric),)
    assert (factor.cost > 0).all() and np.isfinite(factor.cost).all()
    w = np.random.default_rng(0).normal(0, 2, (3, len(metric)))
    if w.size:
        q, restored = feedback.quantize(w, factor, Triangular(None, np.ones(3)), plain(3))
        assert np.isfinite(restored).all() and (np.abs(q) < 100).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 40), st.integers(0, 2**31))
def test_few_samples_in_many_dimensions(images: int, n: int, seed: int) -> None:
    """A of fewer samples than inputs is singular: damping makes it usable."""
    u = np.random.default_rng(seed).normal(0, 1, (images, n))
    factor = triangular(u.T @ u)
    assert factor.upper is not None and np.isfinite(factor.upper).all()
    assert (factor.cost > 0).all()


@pytest.mark.parametrize("taps", [1, 4, 9, 130])
def test_runs_that_do_not_see_each_other_are_as_one_metric_with_zeros(taps: int) -> None:
    """Blocks [n / t, t, t] give what the whole matrix gives, in every tool that feeds errors back."""
    rng = np.random.default_rng(taps)
    runs = 700 // taps
    blocks = np.stack([spd(rng, taps) for _ in range(runs)])
    whole = np.zeros((runs * taps, runs * taps))
    for i, block in enumerate(blocks):
        whole[i * taps : (i + 1) * taps, i * taps : (i + 1) * taps] = block
    few, one = triangular(blocks), triangular(whole)
    assert few.upper is not None and few.upper.shape == blocks.shape and np.allclose(few.cost, one.cost)
    assert one.upper is not None and few.within(5, 300) == pytest.approx(one.upper[5:300, 5:300])
    w = rng.normal(0, 3, (6, runs * taps))
    rows = triangular(spd(rng, 6, 0.5))
    assert (feedback.quantize(w, few, rows, plain(6))[0] == feedback.quantize(w, one, rows, plain(6))[0]).all()


@pytest.mark.parametrize("fill", [0.0, np.nan, -1.0])
def test_runs_that_no_factor_exists_for(fill: float) -> None:
    factor = triangular(np.full((4, 3, 3), fill))
    assert factor.upper is None and factor.cost.shape == (12,) and np.isfinite(factor.cost).all()
