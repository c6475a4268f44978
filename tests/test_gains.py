"""Coding gains and rate-distortion limits against closed forms and Monte Carlo."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")
from tersor.errors import ConfigError
from tersor.tools import gains, transforms
from tersor.tools.rate_distortion import (
    scalar_curve,
    scalar_rate,
    waterfill_distortion,
    waterfill_rate,
)

SEEDS = st.integers(0, 2**32 - 1)
SIZES = st.integers(2, 16)


def spd(rng: np.random.Generator, n: int) -> np.ndarray:
    x = rng.normal(size=(n, 3 * n)) * np.exp(rng.normal(size=(n, 1)))
    return x @ x.T


@given(SEEDS, SIZES, st.floats(1, 8))
@settings(max_examples=40, deadline=None)
def test_elt_reaches_the_determinant(seed, n, rate):
    rng = np.random.default_rng(seed)
    c_w, c_g = spd(rng, n), spd(rng, n)
    elt = transforms.elt(c_w, c_g, regularisation=0)
    least = gains.distortion_elt(c_w, c_g, rate)
    expected = (np.linalg.det(c_g @ c_w)) ** (1 / n) * gains.EPSILON2 * 4.0**-rate
    assert math.isclose(least, expected, rel_tol=1e-6)
    assert math.isclose(gains.distortion_transformed(c_w, c_g, elt, rate), least, rel_tol=1e-6)
    plain = gains.distortion_plain(c_w, c_g, rate)
    assert math.isclose(plain, gains.distortion_transformed(c_w, c_g, transforms.identity(n), rate))
    for other in (transforms.identity(n), transforms.klt(c_w), transforms.dct("dct2", (n,))):
        assert gains.distortion_transformed(c_w, c_g, other, rate) >= least * (1 - 1e-9)
    gain = gains.coding_gain(c_w, c_g, elt)
    assert math.isclose(10 * math.log10(plain / least), gain.total, abs_tol=1e-6)
    assert math.isclose(gain.bits, 0.5 * math.log2(plain / least), abs_tol=1e-7)


@given(SEEDS, SIZES)
@settings(max_examples=40, deadline=None)
def test_gains(seed, n):
    rng = np.random.default_rng(seed)
    c_w, c_g = spd(rng, n), spd(rng, n)
    klt, elt = transforms.klt(c_w), transforms.elt(c_w, c_g, regularisation=0)
    none = gains.coding_gain(c_w, c_g, transforms.identity(n))
    assert abs(none.weight) < 1e-9 and abs(none.gradient) < 1e-9
    best = gains.best_gain(c_w, c_g)
    found = gains.coding_gain(c_w, c_g, elt)
    assert math.isclose(found.total, best.total, abs_tol=1e-6)
    assert best.weight >= -1e-9 and best.gradient >= -1e-9
    assert math.isclose(gains.coding_gain(c_w, c_g, klt).weight, best.weight, abs_tol=1e-6), "KLT: all of the weight's"
    assert gains.coding_gain(c_w, c_g, klt).total <= found.total + 1e-9
    equal = gains.coding_gain(c_w, np.eye(n), transforms.elt(c_w, np.eye(n)))
    plain = gains.coding_gain(c_w, np.eye(n), klt)
    assert math.isclose(equal.total, plain.total, abs_tol=1e-6), "KLT = ELT for C_g = I"
    # Scales of single coefficients change neither factor.
    stretched = transforms.Transform("x", elt.analysis * 3.0 ** np.arange(n)[:, None],
                                     elt.synthesis / 3.0 ** np.arange(n))
    moved = gains.coding_gain(c_w, c_g, stretched)
    assert math.isclose(moved.weight, found.weight, abs_tol=1e-6)
    assert math.isclose(moved.gradient, found.gradient, abs_tol=1e-6)


def test_gain_of_two_correlated_weights():
    c = np.array([[1, 0.6], [0.6, 1]])
    gain = gains.coding_gain(c, np.eye(2), transforms.klt(c))
    assert math.isclose(gain.weight, -10 * math.log10(math.sqrt(1 - 0.36)))
    assert abs(gain.gradient) < 1e-9


def test_dead_channels_have_finite_gains():
    c = np.diag([1.0, 2.0, 0.0])
    for found in (gains.coding_gain(c, c, transforms.identity(3)), gains.coding_gain(c, c, transforms.elt(c, c)),
                  gains.best_gain(c, c), gains.coding_gain(np.zeros((3, 3)), c, transforms.identity(3))):
        assert math.isfinite(found.total) and abs(found.total) < 1
    assert gains.distortion_plain(c, c, 2.0) == gains.distortion_elt(c, c, 2.0) == 0.0


@given(SEEDS, SIZES)
@settings(max_examples=20, deadline=None)
def test_joint_eigenvalues(seed, n):
    rng = np.random.default_rng(seed)
    c_w, c_g = spd(rng, n), spd(rng, n)
    found = gains.joint_eigenvalues(c_w, c_g)
    assert np.allclose(found, np.sort(np.linalg.eigvals(c_w @ c_g).real)[::-1], rtol=1e-6, atol=1e-9 * found[0])
    assert np.allclose(found, transforms.elt(c_w, c_g, regularisation=0).variances(c_w), rtol=1e-6,
                       atol=1e-9 * found[0])


def test_theorem_on_quantised_gaussians():
    """Monte Carlo: uniform steps at equal slope in the ELT domain, the entropy of what comes out, D at the output."""
    rng = np.random.default_rng(0)
    n, count = 6, 200_000
    c_w, c_g = spd(rng, n), spd(rng, n)
    w = np.linalg.cholesky(c_w) @ rng.normal(size=(n, count))
    for transform, law in ((transforms.elt(c_w, c_g, regularisation=0), gains.distortion_elt),
                           (transforms.identity(n), gains.distortion_plain)):
        t = transform.analysis @ w
        step = math.sqrt(0.06 * gains.joint_eigenvalues(c_w, c_g)[-1]) / np.sqrt(transform.sensitivities(c_g))
        q = np.round(t / step[:, None])
        error = w - transform.synthesis @ (q * step[:, None])
        measured = float(np.einsum("ik,ij,jk->", error, c_g, error)) / (n * count)
        bits = 0.0
        for row in q:
            p = np.unique(row, return_counts=True)[1] / count
            bits -= float((p * np.log2(p)).sum()) / n
        # The plug-in entropy falls short by about (bins - 1) / (2 ln 2 count), far below the tolerance.
        assert math.isclose(measured, law(c_w, c_g, bits), rel_tol=0.01)


@given(SEEDS, st.integers(1, 30), st.floats(0.01, 6))
@settings(max_examples=60, deadline=None)
def test_reverse_water_filling_both_ways(seed, n, rate):
    lam = np.exp(np.random.default_rng(seed).normal(0, 2, n))
    distortion = waterfill_distortion(lam, rate)
    assert math.isclose(waterfill_rate(lam, distortion), rate, rel_tol=1e-9, abs_tol=1e-9)
    # Against the definition, at a level found by bisection.
    low, high = 0.0, float(lam.max())
    for _ in range(200):
        theta = (low + high) / 2
        low, high = (theta, high) if np.minimum(theta, lam).mean() < distortion else (low, theta)
    assert math.isclose(float(np.maximum(0, 0.5 * np.log2(lam / low)).mean()), rate, rel_tol=1e-6, abs_tol=1e-6)


def test_water_filling_by_hand():
    assert math.isclose(waterfill_rate([4.0, 1.0], 1.0), 0.5)  # theta 1: one bit for the first
    assert math.isclose(waterfill_distortion([4.0, 1.0], 0.5), 1.0)
    assert math.isclose(waterfill_distortion([16.0, 16.0, 0.0, 0.0], 1.0), 0.5)
    assert math.isclose(waterfill_rate(np.full(7, 3.0), 0.75), 1.0)
    assert waterfill_rate([4.0, 1.0], 2.5) == waterfill_rate([], 1.0) == waterfill_rate([0.0, 0.0], 0.0) == 0.0
    assert waterfill_rate([1.0], 0.0) == math.inf
    assert waterfill_distortion([4.0, 1.0], 0.0) == 2.5
    assert waterfill_distortion([0.0], 1.0) == 0.0


def test_elt_and_water_filling_agree_at_high_rate():
    rng = np.random.default_rng(5)
    c_w, c_g = spd(rng, 8), spd(rng, 8)
    limit = waterfill_distortion(gains.joint_eigenvalues(c_w, c_g), 8.0)
    assert math.isclose(limit, gains.distortion_elt(c_w, c_g, 8.0, epsilon2=1.0), rel_tol=1e-6)


@pytest.mark.parametrize(("bits", "excess"), [(0.5, 0.304), (1, 0.239), (2, 0.127), (3, 0.085)])
def test_scalar_quantization_of_a_gaussian(bits, excess):
    """What it costs above 1/2 log2(1/D), as a share of the rate."""
    distortion = scalar_curve("gaussian").at_rate(bits)
    assert math.isclose((bits - 0.5 * math.log2(1 / distortion)) / bits, excess, abs_tol=0.001)
    assert math.isclose(scalar_rate([1.0], distortion), bits, abs_tol=0.004)


@pytest.mark.parametrize(("source", "entropy"), [("gaussian", 0.5 * math.log2(2 * math.pi * math.e)),
                                                 ("laplacian", math.log2(2 * math.e / math.sqrt(2)))])
def test_scalar_curves(source, entropy):
    curve = scalar_curve(source)
    assert (np.diff(curve.rate) > 0).all() and (np.diff(curve.distortion) < 0).all()
    assert (np.diff(curve.slope) < 0).all()
    assert curve.at_rate(0) == 1.0
    for bits in (5.0, 8.0, 12.0):  # h - log2 s and s^2 / 12
        assert math.isclose(curve.at_rate(bits), 4 ** (entropy - bits) / 12, rel_tol=0.003)
    rate, error = curve.at_slope(np.array([1e-9, 1e-3, 0.1, 100.0]))
    assert math.isclose(rate[0], 0.5 * math.log2(2 * math.log(2) * 4**entropy / 12 / 1e-9), abs_tol=0.01)
    assert rate[-1] == 0 and error[-1] == 1
    assert np.allclose([curve.at_rate(r) for r in rate], error, rtol=1e-3)


def test_scalar_curve_of_samples():
    rng = np.random.default_rng(1)
    for source, x in (("gaussian", rng.normal(size=400_000)), ("laplacian", rng.laplace(0, math.sqrt(0.5), 400_000))):
        for step, share in ((0.7, 0.5), (1.6, 0.6)):
            q = np.sign(x) * np.maximum(0, np.floor(np.abs(x) / step + 1 - share))
            bits, error = 0.0, 0.0
            for value in np.unique(q):
                part = x[q == value]
                bits -= len(part) / len(x) * math.log2(len(part) / len(x))
                error += len(part) / len(x) * float(part.var())
            best = scalar_curve(source).at_rate(bits)
            assert best <= error * 1.01, "no quantizer beats the curve"
            assert best >= error * 0.94, "and good ones come near"


def test_scalar_rate_of_several_variances():
    lam = np.exp(np.random.default_rng(2).normal(0, 1.5, 500))
    for bits in (0.3, 1.0, 2.0):
        distortion = waterfill_distortion(lam, bits)
        gap = scalar_rate(lam, distortion) - bits
        assert 0.03 < gap < 0.256
    fine = waterfill_distortion(lam, 7.0)
    assert math.isclose(scalar_rate(lam, fine) - 7.0, 0.5 * math.log2(gains.EPSILON2), abs_tol=0.002)
    assert scalar_rate(lam, 1e9) == 0.0 and scalar_rate(lam, 0.0) == math.inf
    padded = np.concatenate([lam, np.zeros(500)])
    assert math.isclose(scalar_rate(padded, fine / 2), scalar_rate(lam, fine) / 2, rel_tol=1e-6)


def test_unknown_source():
    with pytest.raises(ConfigError, match="cauchy"):
        scalar_curve("cauchy")
