"""The map over columns by its parts is the map by its Kronecker product."""

from __future__ import annotations

import numpy as np
import pytest

from tersor.tools.column_map import ColumnMap


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
