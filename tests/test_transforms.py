"""Transforms and covariances: what their definitions promise, to rounding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")
from tersor.adapters.inventory import WeightLayer
from tersor.errors import ConfigError, StatisticsError
from tersor.tools import transforms
from tersor.tools.covariances import (
    axis_size,
    gradient_covariance,
    matrix_view,
    tensor_view,
    weight_covariance,
)
from tersor.tools.target import LayerTarget, to_matrix

SEEDS = st.integers(0, 2**32 - 1)
SIZES = st.integers(1, 24)


def spd(rng: np.random.Generator, n: int, rank: int | None = None) -> np.ndarray:
    x = rng.normal(size=(n, rank or 3 * n)) * np.exp(rng.normal(size=(n, 1)))
    return x @ x.T


@given(SEEDS, SIZES)
@settings(max_examples=40, deadline=None)
def test_elt_diagonalises_both_covariances(seed, n):
    rng = np.random.default_rng(seed)
    c_w, c_g = spd(rng, n), spd(rng, n)
    found = transforms.elt(c_w, c_g, regularisation=0)
    u = found.analysis.T
    scaled = u.T @ c_w @ u
    diagonal = np.diag(scaled)
    assert np.abs(scaled - np.diag(diagonal)).max() <= 1e-8 * diagonal[0]
    assert (np.diff(diagonal) <= 1e-8 * diagonal[0]).all()
    identity = u.T @ np.linalg.inv(c_g) @ u
    assert np.abs(identity - np.eye(n)).max() < 1e-8 * np.linalg.cond(c_g)
    assert np.abs(found.synthesis @ found.analysis - np.eye(n)).max() < 1e-8
    assert np.allclose(found.sensitivities(c_g), 1, rtol=1e-6)


def test_elt_to_1e_8_with_the_papers_regularisation():
    rng = np.random.default_rng(3)
    c_w, c_g = spd(rng, 32), spd(rng, 32)
    u = transforms.elt(c_w, c_g).analysis.T
    regularised = c_g + 1e-3 * np.linalg.norm(c_g) * np.eye(32)
    scaled = u.T @ c_w @ u
    assert np.abs(scaled - np.diag(np.diag(scaled))).max() < 1e-8 * scaled.max()
    assert np.abs(u.T @ np.linalg.solve(regularised, u) - np.eye(32)).max() < 1e-8


@given(SEEDS, SIZES)
@settings(max_examples=30, deadline=None)
def test_klt_is_orthogonal_and_equals_elt_for_equal_sensitivities(seed, n):
    rng = np.random.default_rng(seed)
    c_w = spd(rng, n)
    klt, elt = transforms.klt(c_w), transforms.elt(c_w, np.eye(n), regularisation=0)
    assert np.allclose(klt.analysis @ klt.analysis.T, np.eye(n), atol=1e-12)
    assert np.allclose(klt.synthesis, klt.analysis.T)
    scaled = klt.analysis @ c_w @ klt.synthesis
    assert np.abs(scaled - np.diag(np.diag(scaled))).max() <= 1e-10 * scaled.max()
    assert np.allclose(elt.variances(c_w), klt.variances(c_w), rtol=1e-6, atol=1e-12 * c_w.max())
    if n > 1:  # with distinct eigenvalues the vectors agree too, signs included
        assert np.allclose(np.abs((klt.analysis * elt.analysis).sum(axis=1)), 1, atol=1e-4)


@given(SEEDS, st.integers(2, 16), st.integers(1, 8))
@settings(max_examples=30, deadline=None)
def test_singular_covariances_and_dead_channels(seed, n, rank):
    rng = np.random.default_rng(seed)
    c_w, c_g = spd(rng, n, rank), spd(rng, n, rank)
    dead_w, dead_g = rng.random(n) < 0.3, rng.random(n) < 0.3
    c_w[dead_w] = c_w[:, dead_w] = 0
    c_g[dead_g] = c_g[:, dead_g] = 0
    for found in (transforms.klt(c_w), transforms.elt(c_w, c_g), transforms.elt(c_w, c_g, regularisation=0)):
        assert np.isfinite(found.analysis).all() and np.isfinite(found.synthesis).all()
        product = found.synthesis @ found.analysis
        assert np.abs(product - np.eye(n)).max() < 1e-6
        rest = found.variances(c_w)[np.linalg.matrix_rank(c_w):]
        assert (rest <= 1e-9 * max(1e-300, found.variances(c_w).max())).all(), "no more variances than the rank"


def test_zero_covariances_give_a_usable_transform():
    zero = np.zeros((5, 5))
    for found in (transforms.klt(zero), transforms.elt(zero, zero), transforms.elt(zero, np.eye(5))):
        assert np.allclose(found.synthesis @ found.analysis, np.eye(5))
        assert not found.variances(zero).any()
    c_w = spd(np.random.default_rng(0), 5)
    assert np.array_equal(transforms.elt(c_w, zero).analysis, transforms.klt(c_w).analysis)


@pytest.mark.parametrize("bad", [np.full((3, 3), np.nan), np.ones((3, 2)), np.ones(3)])
def test_what_is_no_covariance(bad):
    with pytest.raises(StatisticsError, match="C_w"):
        transforms.klt(bad)
    with pytest.raises(StatisticsError, match="C_g"):
        transforms.elt(np.eye(len(bad)), bad)


def test_covariances_of_different_axes():
    with pytest.raises(StatisticsError, match="different axes"):
        transforms.elt(np.eye(3), np.eye(4))


@pytest.mark.parametrize("n", range(1, 12))
def test_dcts_are_orthonormal(n):
    for matrix in (transforms.dct1(n), transforms.dct2(n)):
        assert np.allclose(matrix @ matrix.T, np.eye(n), atol=1e-13)
    assert np.allclose(transforms.dct1(n), transforms.dct1(n).T)


def test_dct_values():
    half, root = 0.5, np.sqrt(0.5)
    assert np.allclose(transforms.dct1(3), [[half, root, half], [root, 0, -root], [half, -root, half]])
    third, sixth = 1 / np.sqrt(3), 1 / np.sqrt(6)
    assert np.allclose(transforms.dct2(3), [[third] * 3, [root, 0, -root], [sixth, -2 * sixth, sixth]])
    scipy_fft = pytest.importorskip("scipy.fft")
    for n in (2, 5, 8):
        x = np.random.default_rng(n).normal(size=n)
        assert np.allclose(transforms.dct1(n) @ x, scipy_fft.dct(x, 1, norm="ortho"))
        assert np.allclose(transforms.dct2(n) @ x, scipy_fft.dct(x, 2, norm="ortho"))


def test_separable_dct_is_the_one_of_each_axis():
    x = np.random.default_rng(1).normal(size=(3, 5))
    for kind, one in (("dct1", transforms.dct1), ("dct2", transforms.dct2)):
        found = transforms.dct(kind, (3, 5))
        assert np.allclose(found.analysis @ x.ravel(), (one(3) @ x @ one(5).T).ravel())
        assert np.allclose(found.synthesis @ found.analysis @ x.ravel(), x.ravel())
        assert transforms.dct(kind, ()).size == transforms.dct(kind, (1, 1)).size == 1
    with pytest.raises(ConfigError, match="dct3"):
        transforms.dct("dct3", (3, 3))


def test_product_acts_on_channels_and_taps():
    rng = np.random.default_rng(2)
    elt, taps = transforms.elt(spd(rng, 4), spd(rng, 4)), transforms.dct("dct2", (3, 3))
    both = transforms.product(elt, taps)
    x = rng.normal(size=(4, 9))
    assert both.name == "elt x dct2"
    assert np.allclose(both.analysis @ x.ravel(), (elt.analysis @ x @ taps.analysis.T).ravel())
    assert np.allclose(both.synthesis @ (both.analysis @ x.ravel()), x.ravel())
    assert transforms.product(transforms.identity(2), taps).name == "dct2"
    assert transforms.product(transforms.identity(2), transforms.identity(1)).name == "identity"


def test_basis_normalised_and_ordered():
    rng = np.random.default_rng(4)
    c_w, c_g, x = spd(rng, 6), spd(rng, 6), rng.normal(size=6)
    elt = transforms.elt(c_w, c_g)
    for found in (elt, elt.normalised(), transforms.product(elt, transforms.identity(1)).ordered(c_w, c_g)):
        assert np.allclose(sum(t * row for t, row in zip(found.analysis @ x, found.basis, strict=True)), x)
    assert np.allclose((elt.normalised().basis ** 2).sum(axis=1), 1)
    cost = elt.variances(c_w) * elt.sensitivities(c_g)
    assert np.allclose(elt.normalised().variances(c_w) * elt.normalised().sensitivities(c_g), cost)
    mixed = transforms.Transform("x", elt.analysis[::-1], elt.synthesis[:, ::-1])
    assert (np.diff(mixed.ordered(c_w, c_g).variances(c_w)) <= 0).all()


KINDS = {
    "linear": (WeightLayer("w", "linear"), (6, 10)),
    "conv": (WeightLayer("w", "conv"), (6, 4, 3, 2)),
    "conv 1d": (WeightLayer("w", "conv"), (6, 4, 3)),
    "transposed": (WeightLayer("w", "conv_transposed"), (4, 6, 3, 2)),
    "depthwise": (WeightLayer("w", "conv", groups=6), (6, 1, 3, 3)),
    "transposed, grouped": (WeightLayer("w", "conv_transposed", groups=2), (4, 3, 3, 2)),
}


def target_of(kind: str, diagonal: bool = False) -> LayerTarget:
    layer, shape = KINDS[kind]
    rng = np.random.default_rng(7)
    w = np.array(to_matrix(rng.normal(size=shape), layer))
    groups, m, n = w.shape
    a, g = np.stack([spd(rng, n) for _ in range(groups)]), np.stack([spd(rng, m) for _ in range(groups)])
    if diagonal:
        a, g = (np.ascontiguousarray(np.einsum("gnn->gn", x)) for x in (a, g))
    return LayerTarget(layer, shape, w, a, g)


def full(metric: np.ndarray) -> np.ndarray:
    return np.diag(metric) if metric.ndim == 1 else metric


@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize("axis", ["inputs", "outputs", "taps", "joint"])
@pytest.mark.parametrize("kind", KINDS)
def test_covariances_are_sums_over_the_other_indices(kind, axis, diagonal):
    target = target_of(kind, diagonal)
    if target.groups > 1 and axis != "taps":
        for function in (weight_covariance, gradient_covariance):
            with pytest.raises(ConfigError, match="groups"):
                function(target, axis)
        return
    view = tensor_view(target)
    assert np.array_equal(matrix_view(target, view), target.W)
    # By brute force: the metric of vec(w), and every vector along the axis cut out of it.
    letters = {"inputs": "goti", "outputs": "gito", "taps": "goit", "joint": "goit"}[axis]
    length, count = axis_size(target, axis), target.count // axis_size(target, axis)
    index = np.einsum(f"goit->{letters}", tensor_view(target, np.arange(target.count).reshape(target.W.shape)))
    vectors = index.reshape(count, length)
    flat = target.W.ravel()
    expected_w = np.mean([np.outer(flat[v], flat[v]) for v in vectors], axis=0)
    metric = np.zeros((target.count,) * 2)
    size = target.W[0].size
    for number, (a, g) in enumerate(zip(target.A, target.G, strict=True)):
        part = slice(number * size, (number + 1) * size)
        metric[part, part] = np.kron(full(g), full(a))
    expected_g = np.sum([metric[np.ix_(v, v)] for v in vectors], axis=0)
    assert np.allclose(weight_covariance(target, axis), expected_w)
    assert np.allclose(gradient_covariance(target, axis), expected_g)


def test_row_factors_of_the_weight_covariance():
    target = target_of("conv")
    rows = 1 / (target.W**2).mean(axis=2)
    found = weight_covariance(target, "inputs", rows)
    x = (target.W * np.sqrt(rows)[..., None]).reshape(6, 4, 6)
    assert np.allclose(found, np.einsum("oit,ojt->ij", x, x) / 36)
    assert np.isclose(np.trace(found) / 4, 1)


def test_axes_that_do_not_exist_or_are_too_long():
    with pytest.raises(ConfigError, match="'rows'"):
        weight_covariance(target_of("conv"), "rows")
    layer = WeightLayer("words", "embedding")
    words = LayerTarget(layer, (9000, 2), np.ones((1, 2, 9000)), np.ones((1, 9000)), np.ones((1, 2)))
    with pytest.raises(ConfigError, match="9000"):
        gradient_covariance(words, "inputs")
    assert np.allclose(gradient_covariance(words, "outputs"), 9000 * np.eye(2))
