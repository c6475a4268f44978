"""k-means, uniform bins and ECSQ of scalars: against brute force, and what the papers promise."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tersor.errors import ConfigError
from tersor.tools.clusters import entropy, weighted_means
from tersor.tools.ecsq import CHUNK, ecsq, ecsq_at_entropy, sweep
from tersor.tools.kmeans import kmeans
from tersor.tools.uniform import step_for_entropy, uniform

STARTS = ["++", "linear", "density", "optimal"]


def weights(n, seed=0, spread=1.0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return rng.laplace(size=n).astype(dtype), np.exp(rng.normal(size=n) * spread).astype(dtype)


def optimum(w, h, k):
    """Least sum h (w - c)^2 over all partitions of the sorted weights into k intervals."""
    order = np.argsort(w)
    w, h = w[order].astype(float), h[order].astype(float)

    def cost(a, b):
        mean = np.average(w[a:b], weights=h[a:b])
        return float(h[a:b] @ (w[a:b] - mean) ** 2)

    return min(sum(cost(a, b) for a, b in itertools.pairwise([0, *cuts, w.size]))
               for cuts in itertools.combinations(range(1, w.size), k - 1))


@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(4))
def test_optimal_start_is_the_optimum(k, seed):
    w, h = weights(14, seed)
    assert kmeans(w, h, k, start="optimal").distortion(w, h) == pytest.approx(optimum(w, h, k), rel=1e-6)


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("h_spread", [None, 0.5, 3.0])
def test_no_start_beats_the_optimum_and_lloyd_ends_in_a_fixed_point(start, h_spread):
    w, h = weights(500, 3, h_spread or 1.0)
    h = None if h_spread is None else h
    best = kmeans(w, h, 8, start="optimal").distortion(w, h)
    found = kmeans(w, h, 8, start=start)
    assert found.distortion(w, h) >= best * (1 - 1e-9)
    assert found.history[-1] == pytest.approx(found.distortion(w, h), rel=1e-6)
    assert np.allclose(found.values, weighted_means(w, h, found.index, 8), rtol=1e-9, atol=1e-12)
    nearest = np.abs(w[:, None].astype(float) - found.values).argmin(axis=1)
    assert (nearest != found.index).mean() <= 0.002  # the last step of the means may move a bound
    assert (np.diff(found.values) > 0).all() and found.counts.min() > 0 and found.counts.sum() == 500


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("zero", [False, True])
def test_the_objective_never_rises(start, zero):
    w, h = weights(3000, 1, 2.0)
    found = kmeans(w, h, 16, start=start, zero=zero)
    assert len(found.history) >= 2 and (np.diff(found.history) <= 0).all()


def test_lloyd_comes_close_to_scikit_learn():
    cluster = pytest.importorskip("sklearn.cluster")
    w, h = weights(4000, 5)
    theirs = cluster.KMeans(12, n_init=4, random_state=0).fit(w[:, None], sample_weight=h)
    best = min(kmeans(w, h, 12, seed=seed).distortion(w, h) for seed in range(4))
    assert best <= theirs.inertia_ * 1.02
    assert kmeans(w, h, 12, start="optimal").distortion(w, h) <= theirs.inertia_ * 1.001


def test_empty_clusters_are_repaired():
    # Evenly spaced centres over an outlier: all but two are empty at first.
    w = np.concatenate([np.linspace(-1, 1, 999), [1000.0]])
    found = kmeans(w, None, 8, start="linear")
    assert found.values.size == 8 and found.counts.min() > 0
    assert found.distortion(w) < 1.2 * kmeans(w, None, 8, start="optimal").distortion(w)


@pytest.mark.parametrize("start", STARTS)
def test_fewer_distinct_weights_than_clusters(start):
    w = np.array([3.0, -1.0, 3.0, 0.5, -1.0])
    found = kmeans(w, np.ones(5), 16, start=start)
    assert np.array_equal(found.values, [-1.0, 0.5, 3.0]) and np.array_equal(found.restored(), w)
    assert kmeans(np.zeros(4), None, 3, start=start).values.tolist() == [0.0]


def test_determinism_and_seeds():
    w, h = weights(100_000, 2)
    a, b = kmeans(w, h, 16, seed=1), kmeans(w, h, 16, seed=1)
    assert np.array_equal(a.values, b.values) and np.array_equal(a.index, b.index)
    assert not np.array_equal(a.values, kmeans(w, h, 16, seed=2).values)


def test_zero_stays_zero():
    w, h = weights(2000, 7)
    for found in (kmeans(w, h, 9, zero=True), ecsq(w, h, 9, 0.05, zero=True), uniform(w, h, 0.5, zero=True)):
        assert found.values[found.zero] == 0.0 and found.counts[found.zero] > 0
    assert kmeans(w, h, 9).zero == -1


def test_weights_without_sensitivity():
    w, h = weights(400, 4)
    h[w > 0.5] = 0.0
    found = kmeans(w, h, 6)
    assert np.isfinite(found.values).all() and np.isfinite(ecsq(w, h, 6, 0.01).values).all()
    plain = kmeans(w, None, 6)
    assert np.allclose(kmeans(w, np.zeros_like(w), 6).values, plain.values)


@pytest.mark.parametrize("k", [2, 4, 16])
def test_sensitivity_scales_out_and_hessian_weighting_helps(k):
    w, h = weights(5000, 9, 2.0)
    found = kmeans(w, h, k, start="optimal")
    assert np.allclose(found.values, kmeans(w, h * 64, k, start="optimal").values)
    assert found.distortion(w, h) < kmeans(w, None, k, start="optimal").distortion(w, h)


def test_unusable_numbers_are_named():
    w, h = weights(10)
    for arguments, message in [((np.array([]), None, 2), "no weights"), ((w, h[:3], 2), "sensitivities"),
                               ((w, -h, 2), "at least 0"), ((w * np.nan, h, 2), "NaN"), ((w, h, 0), "k = 0")]:
        with pytest.raises(ConfigError, match=message):
            kmeans(*arguments)
    with pytest.raises(ConfigError, match="start"):
        kmeans(w, h, 2, start="best")
    with pytest.raises(ConfigError, match="price"):
        ecsq(w, h, 2, -1.0)
    with pytest.raises(ConfigError, match="bins"):
        uniform(w, h, 1e-9)
    with pytest.raises(ConfigError, match="step"):
        uniform(w, h, 0.0)


@pytest.mark.parametrize("offset", [0.0, 0.13])
def test_uniform_values_are_weighted_means_of_the_bins(offset):
    w, h = weights(5000, 6)
    found = uniform(w, h, 0.25, offset=offset)
    bins = np.floor((w.astype(float) - offset) / 0.25 + 0.5)
    for j, value in enumerate(found.values):
        members = found.index == j
        assert np.unique(bins[members]).size == 1
        assert value == pytest.approx(np.average(w[members].astype(float), weights=h[members]), rel=1e-9)
    assert np.unique(bins).size == found.values.size and found.counts.min() > 0
    assert (np.diff(found.values) > 0).all()


@pytest.mark.parametrize("bits", [0.5, 1.44, 3.0])
def test_step_for_an_entropy(bits):
    w, _ = weights(40_000, 8)
    assert uniform(w, None, step_for_entropy(w, bits)).entropy == pytest.approx(bits, abs=0.01)


def test_ecsq_objective_is_what_it_says_and_never_rises():
    w, h = weights(20_000, 11, 2.0)
    for price in (0.001, 0.01, 0.1, 1.0):
        found = ecsq(w, h, 32, price)
        assert (np.diff(found.history) <= 0).all()
        j = found.distortion(w, h) + price * w.size * found.entropy
        assert found.history[-1] == pytest.approx(j, rel=1e-9)
        assert np.allclose(found.values, weighted_means(w, h, found.index, found.values.size), rtol=1e-9)
        assert (np.diff(found.values) > 0).all() and found.counts.min() > 0


def test_ecsq_assigns_to_the_cheapest_centre():
    w, h = weights(3001, 12, 2.0, np.float64)
    found = ecsq(w, h, 16, 0.05, iterations=400)
    bits = -np.log2(found.counts / w.size)
    cost = h[:, None] * (w[:, None] - found.values) ** 2 + 0.05 * bits
    assert (cost.argmin(axis=1) != found.index).mean() < 0.002
    assert cost[np.arange(w.size), found.index].sum() <= cost.min(axis=1).sum() * (1 + 1e-5)


def test_ecsq_at_price_0_is_k_means():
    w, h = weights(5000, 13, 1.0)
    k, e = kmeans(w, h, 16), ecsq(w, h, 16, 0.0)
    assert e.history[-1] == pytest.approx(k.history[-1], rel=1e-6)
    assert np.allclose(e.values, k.values, atol=1e-4)


def test_entropy_falls_with_the_price_and_clusters_die():
    w, h = weights(20_000, 14, 1.0)
    found = [clusters for _, clusters in sweep(w, h, 32, [1.0, 0.0, 0.1, 0.01, 10.0, 100.0])]
    assert (np.diff([clusters.entropy for clusters in found]) < 0).all()
    assert (np.diff([clusters.distortion(w, h) for clusters in found]) > 0).all()
    assert found[0].values.size == 32 and found[-1].values.size < 8


def test_ecsq_beats_k_means_at_equal_entropy_and_comes_near_uniform():
    w, _ = weights(50_000, 15)
    e = ecsq_at_entropy(w, None, 64, 2.0)
    assert 1.95 <= e.entropy <= 2.0
    u = uniform(w, None, step_for_entropy(w, 2.0))
    k = next(c for c in (kmeans(w, None, k, start="optimal") for k in range(3, 20)) if c.entropy >= 2.0)
    assert e.distortion(w) < k.distortion(w)
    assert e.distortion(w) < u.distortion(w) * 1.02


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("weighted", [True, False])
def test_ecsq_is_the_same_with_threads_and_without_simd(dtype, weighted, monkeypatch):
    w, h = weights(CHUNK + 1237, 16, 1.0, dtype)
    start = kmeans(w, None, 12, start="density", iterations=3)
    arguments = (w, h if weighted else None, 12, 0.03)
    one = ecsq(*arguments, start=start, threads=1, iterations=3)
    two = ecsq(*arguments, start=start, threads=2, iterations=3)
    monkeypatch.setenv("TERSOR_PORTABLE", "1")
    portable = ecsq(*arguments, start=start, iterations=3)
    for other in (two, portable):
        assert np.array_equal(one.index, other.index) and np.array_equal(one.values, other.values)
        assert one.history == other.history


def test_entropy_of_counts():
    assert entropy(np.array([4, 4, 4, 4])) == 2.0
    assert entropy(np.array([7, 0])) == 0.0 and entropy(np.array([], dtype=int)) == 0.0
