"""How far a layer's target follows the errors before it: as far as one half of the images explains the other."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from tersor.tools.correction import ALONE, DAMPINGS, Moments, correction, trust  # noqa: E402
from tersor.tools.metric import oas  # noqa: E402

M, N = 5, 24


def half(rng: np.random.Generator, count: int, mix: np.ndarray, noise: float, w: np.ndarray) -> Moments:
    """Columns u, and u^ = mix u + noise, of a layer with weights w."""
    u = rng.standard_normal((1, N, count))
    v = mix @ u + noise * rng.standard_normal((1, N, count))
    sums = Moments.zeros(1, M, N)
    for part in np.array_split(np.arange(count), 3):
        sums.add(torch.from_numpy(w[None]), torch.from_numpy(u[:, :, part]), torch.from_numpy(v[:, :, part]), None)
    return sums


@pytest.mark.parametrize("wide", [1, 10_000])
def test_moments_are_means_over_all_columns(monkeypatch: pytest.MonkeyPatch, wide: int) -> None:
    """Centred or not, in whatever chunks they came, in stripes or whole."""
    monkeypatch.setattr("tersor.tools.correction.WIDE", wide)
    rng = np.random.default_rng(0)
    w = rng.standard_normal((2, M, N))
    u, v, s = (rng.standard_normal((2, size, 50)) + 1.0 for size in (N, N, M))
    sums = Moments.zeros(2, M, N)
    for part in (slice(0, 20), slice(20, 50)):
        sums.add(torch.from_numpy(w), *(torch.from_numpy(x[:, :, part]) for x in (u, v, s)))
    h, b, count = sums.group(1, centred=False)
    t = w[1] @ u[1] - w[1] @ v[1] + s[1]
    assert count == 50
    np.testing.assert_allclose(h, v[1] @ v[1].T / 50)
    np.testing.assert_allclose(b, t @ v[1].T / 50)
    h, b, _ = sums.group(1, centred=True)
    both = np.cov(np.concatenate([v[1], t]), bias=True)
    np.testing.assert_allclose(h, both[:N, :N], atol=1e-12)
    np.testing.assert_allclose(b, both[N:, :N], atol=1e-12)


def test_a_known_distortion_of_the_inputs_is_undone() -> None:
    """u^ = mix u: with many samples W + W_d is close to W mix^-1."""
    rng = np.random.default_rng(1)
    mix = np.eye(N) + 0.1 * rng.standard_normal((N, N))
    w = rng.standard_normal((M, N))
    found, _ = correction([half(rng, 20_000, mix, 0.0, w).group(0, False) for _ in range(2)], np.ones(M))
    wanted = w @ np.linalg.inv(mix) - w
    assert np.linalg.norm(found - wanted) < 0.3 * np.linalg.norm(wanted)


def test_what_only_one_half_knows_is_not_followed() -> None:
    """Distortions that differ from half to half explain nothing: the target stays nearly as it was."""
    rng = np.random.default_rng(2)
    w = rng.standard_normal((M, N))
    parts = []
    for sign in (1.0, -1.0):
        mix = np.eye(N) + sign * 0.3 * np.tri(N, k=-1) / N**0.5
        parts.append(half(rng, 4000, mix, 0.0, w).group(0, False))
    followed, _ = correction(parts, np.ones(M))
    own, _ = correction(parts[:1], np.ones(M))
    assert np.linalg.norm(followed) < 0.3 * np.linalg.norm(own)


def test_few_samples_are_damped_more() -> None:
    """The damping that cross-validation finds falls with the number of samples."""
    w = np.random.default_rng(3).standard_normal((M, N))

    def chosen(count: int) -> float:
        found = []
        for seed in range(8):
            rng = np.random.default_rng(seed)
            mix = np.eye(N) + 0.05 * np.random.default_rng(9).standard_normal((N, N))
            systems = [(h, b) for h, b, _ in (half(rng, count, mix, 0.3, w).group(0, False) for _ in range(2))]
            damping, factor = trust(systems, np.ones(M))
            assert damping in DAMPINGS and 0.0 <= factor <= 1.0
            found.append(np.log(damping) - np.log(max(factor, 1e-3)))
        return float(np.mean(found))

    assert chosen(20) > chosen(5000) + 0.5


def test_costs_decide_whose_error_counts() -> None:
    """An output that costs nothing has no say."""
    rng = np.random.default_rng(4)
    systems = []
    for sign in (1.0, -1.0):
        h = np.eye(N)
        b = np.zeros((2, N))
        b[0] = 1.0  # the same in both halves
        b[1] = 10.0 * sign * rng.uniform(0.9, 1.1, N)
        systems.append((h, b))
    assert trust(systems, np.array([1.0, 0.0]))[1] > 0.9
    assert trust(systems, np.array([1.0, 1.0]))[1] == 0.0


def test_some_rows_of_a_wide_layer_tell_what_all_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """The damping is the same, the factor nearly."""
    rng = np.random.default_rng(7)
    w = rng.standard_normal((400, N))
    mix = np.eye(N) + 0.1 * rng.standard_normal((N, N))
    systems = []
    for _ in range(2):
        u = rng.standard_normal((N, 300))
        v = mix @ u + 0.3 * rng.standard_normal((N, 300))
        systems.append((v @ v.T / 300, w @ (u - v) @ v.T / 300))
    damping, factor = trust(systems, np.ones(400))
    monkeypatch.setattr("tersor.tools.correction.WIDE", N)
    some, near = trust(systems, np.ones(400))
    assert some == damping and near == pytest.approx(factor, rel=0.03)


def test_one_image_and_dead_inputs() -> None:
    """No second half: the usual damping; inputs that are all zero: no change, nothing infinite."""
    rng = np.random.default_rng(5)
    w = rng.standard_normal((M, N))
    part = half(rng, 100, np.eye(N), 0.1, w).group(0, False)
    h, b, _ = part
    expected = np.linalg.solve(h + ALONE * np.trace(h) / N * np.eye(N), b.T).T
    np.testing.assert_allclose(correction([part], np.ones(M))[0], expected, rtol=1e-6, atol=1e-9)
    dead = (np.zeros((N, N)), np.zeros((M, N)), 10)
    change, second = correction([dead, dead], np.ones(M))
    assert not change.any() and not second.any()


def test_oas_against_its_definition() -> None:
    """1 for an isotropic covariance, near 0 for many samples of an uneven one, and more the fewer samples."""
    assert oas(np.eye(7), 100) == 1.0
    uneven = np.diag(2.0 ** -np.arange(12.0))
    rates = [oas(uneven, count) for count in (10, 100, 1000, 100_000)]
    assert rates == sorted(rates, reverse=True) and rates[-1] < 1e-3
    p, n, square, trace = 12, 100, float((uneven**2).sum()), float(np.trace(uneven))
    expected = ((1 - 2 / p) * square + trace**2) / ((n + 1 - 2 / p) * (square - trace**2 / p))
    assert oas(uneven, n) == pytest.approx(min(1.0, expected))


def test_oas_brings_an_estimate_nearer_to_the_truth() -> None:
    """Shrunk as it says, a covariance of few samples is nearer to the true one in the mean square."""
    rng = np.random.default_rng(6)
    truth = np.diag(np.linspace(0.5, 1.5, 40))
    plain = shrunk = 0.0
    for _ in range(20):
        x = rng.standard_normal((60, 40)) * np.sqrt(np.diag(truth))
        s = x.T @ x / 60
        rho = oas(s, 60)
        plain += float(((s - truth) ** 2).sum())
        shrunk += float((((1 - rho) * s + rho * np.trace(s) / 40 * np.eye(40) - truth) ** 2).sum())
    assert shrunk < 0.5 * plain
