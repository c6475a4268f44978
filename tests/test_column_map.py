"""The map over columns by its parts is the map by its Kronecker product."""

from __future__ import annotations

import numpy as np
import pytest

from tersor.tools.column_map import ColumnMap
from tersor.tools.metric import Triangular, triangular


@pytest.mark.parametrize("rank", [None, 4, 6])
@pytest.mark.parametrize("kept_taps", [None, 5, 9])
def test_equals_the_dense_matrix(rank: int | None, kept_taps: int | None) -> None:
    rng = np.random.default_rng(1)
    inputs, taps, rows = 6, 9, 5
    channels = None if rank is None else rng.normal(size=(rank, inputs))
    inner = rng.normal(size=(kept_taps, taps)) if kept_taps else None
    dense = np.kron(np.eye(inputs) if channels is None else channels, np.eye(taps) if inner is None else inner)
    of = ColumnMap(channels, inner, taps)
    root = rng.normal(size=(inputs * taps,) * 2)
    metric, weights = root @ root.T, rng.normal(size=(rows, inputs * taps))
    coefficients = rng.normal(size=(rows, len(dense)))
    np.testing.assert_allclose(of.apply(coefficients), coefficients @ dense, atol=1e-12)
    np.testing.assert_allclose(of.congruent(metric), dense @ metric @ dense.T, rtol=1e-9, atol=1e-9)
    left = weights - of.solve(metric, weights) @ dense
    assert np.abs(left @ metric @ dense.T).max() < 1e-6 * np.abs(weights @ metric @ dense.T).max(), "orthogonal"


def test_a_singular_basis_is_solved_for_all_the_same() -> None:
    rng = np.random.default_rng(2)
    basis = rng.normal(size=(5, 5))
    basis[4] = basis[3]
    weights = rng.normal(size=(3, 5))
    of = ColumnMap(basis, None, 1)
    left = weights - of.apply(of.solve(np.eye(5), weights))
    assert np.abs(left @ basis.T).max() < 1e-6, "what is left is orthogonal to the basis"


def test_a_diagonal_metric_keeps_channels_apart() -> None:
    rng = np.random.default_rng(3)
    diagonal, weights = rng.uniform(0.5, 2, 6 * 4), rng.normal(size=(5, 6 * 4))
    for kept in (4, 3):
        of = ColumnMap(None, rng.normal(size=(kept, 4)), 4)
        blocks = of.congruent(diagonal)
        dense = of.congruent(np.diag(diagonal)).reshape(6, kept, 6, kept)
        assert blocks.shape == (6, kept, kept)
        np.testing.assert_allclose(blocks, dense[np.arange(6), :, np.arange(6)])
        np.testing.assert_allclose(of.solve(diagonal, weights), of.solve(np.diag(diagonal), weights), atol=1e-8)


@pytest.mark.parametrize("channels", [1, 7])
def test_the_factor_follows_a_map_of_taps(channels: int) -> None:
    """U of the old metric tells that of the new one, without factorising it."""
    rng = np.random.default_rng(channels)
    n = channels * 9
    of = ColumnMap(None, rng.normal(size=(9, 9)), 9)
    assert of.is_by_tap and not ColumnMap(None, np.ones((9, 9)), 9).is_by_tap
    root = rng.normal(size=(n, n))
    metric = root @ root.T + np.eye(n)
    known = triangular(of.congruent(metric), 0.0)
    found = of.factor(triangular(metric, 0.0))
    assert known.upper is not None and found.upper is not None
    assert (np.tril(found.upper, -1) == 0).all()
    np.testing.assert_allclose(found.upper.T @ found.upper, known.upper.T @ known.upper, rtol=1e-6, atol=1e-8)
    for costs in (found.cost, of.costs(triangular(metric, 0.0))):
        np.testing.assert_allclose(costs, known.cost, rtol=1e-7)
    diagonal = Triangular(None, rng.uniform(1, 2, n))
    np.testing.assert_allclose(of.factor(diagonal).cost, triangular(of.congruent(np.diag(diagonal.cost)), 0.0).cost)
    np.testing.assert_allclose(of.costs(diagonal), of.factor(diagonal).cost)
