"""A bound on the loss of accuracy: the interval, the search, and what is promised of the file."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import tersor
from tersor import evaluate
from tersor.allocation import search_accepted
from tersor.errors import ConfigError, TargetError


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 900))
def test_interval_of_agresti_and_min(lost, won, same):
    """Against the formula of the paper: counts n12, n21 + 1/2 each, n + 2."""
    if lost + won + same == 0:
        return
    before = torch.tensor([1.0] * lost + [0.0] * won + [1.0] * same)
    after = torch.tensor([0.0] * lost + [1.0] * won + [1.0] * same)
    n12, n21, n = lost + 0.5, won + 0.5, lost + won + same + 2
    centre = (n12 - n21) / n
    half = 1.96 * math.sqrt(n12 + n21 - (n12 - n21) ** 2 / n) / n
    found = evaluate.paired_drop(before, after)
    assert found.count == n - 2 and found.mean == pytest.approx(100 * (lost - won) / (n - 2))
    assert (found.low, found.high) == pytest.approx((100 * (centre - half), 100 * (centre + half)), abs=1e-9)


@pytest.mark.parametrize(("before", "after"), [
    (torch.ones(3), torch.ones(4)), (torch.ones(0), torch.ones(0)), (torch.ones(2, 2), torch.ones(2, 2)),
    (torch.tensor([1.5]), torch.tensor([1.0])), (torch.tensor([1.0]), torch.tensor([float("nan")]))])
def test_scores_that_are_none(before, after):
    with pytest.raises(ConfigError):
        evaluate.paired_drop(before, after)


def test_hits():
    model = nn.Identity()
    batches = [(torch.eye(4), torch.tensor([0, 1, 3, 3])), (torch.eye(4)[:1], torch.tensor([0]))]
    assert evaluate.hits(model, batches).tolist() == [1, 1, 0, 1, 1]
    with pytest.raises(ConfigError, match="needs labels"):
        evaluate.hits(model, [torch.eye(4)])
    with pytest.raises(ConfigError, match="labels of shape"):
        evaluate.hits(model, [(torch.eye(4), torch.eye(4))])


@given(st.floats(-30, 30), st.floats(-8, 8))
def test_search_finds_the_border(border, start):
    tried = []

    def attempt(x: float) -> tuple[bool, float, float]:
        tried.append(x)
        return x <= border, -x, x

    found = search_accepted(attempt, start)
    if abs(border - start) < 23:
        assert found is not None and border - 0.25 <= found <= border
    assert found == max((x for x in tried if x <= border), default=None)
    assert len(tried) <= 16


def test_search_that_finds_nothing():
    assert search_accepted(lambda x: (False, 1.0, x), 0.0) is None


@pytest.fixture(scope="module")
def trained():
    """A small network that has learnt to tell four kinds of patterns apart; inputs and labels."""
    torch.manual_seed(0)
    labels = torch.arange(800) % 4
    patterns = torch.randn(4, 1, 8, 8)
    inputs = patterns[labels] + 1.2 * torch.randn(800, 1, 8, 8)
    model = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(),
                          nn.Linear(256, 4))
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(30):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(inputs[:400]), labels[:400]).backward()
        optimiser.step()
    model.eval()
    return model, tersor.calibrate(model, [inputs[:100]]), [(inputs[400:], labels[400:])]


@pytest.mark.parametrize("end", ["worst", "mean"])
def test_smallest_file_within_the_bound(trained, end):
    model, stats, batches = trained
    before = [p.clone() for p in model.parameters()]
    told: list[str] = []
    packed = tersor.compress(model, stats, max_drop=2.0, drop_end=end, effort=5, progress=told.append,
                             evaluate=lambda network: evaluate.hits(network, batches))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    restored = tersor.restore(packed.data, into=nn.Sequential(*[nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3),
                                                                nn.ReLU(), nn.Flatten(), nn.Linear(256, 4)]))
    drop = evaluate.paired_drop(evaluate.hits(model, batches), evaluate.hits(restored, batches))
    assert packed.drop == drop.as_dict() == packed.report()["drop"]
    assert (drop.high if end == "worst" else drop.mean) <= 2.0
    assert any("95% interval" in note and ("worst end" in note) == (end == "worst") for note in packed.notes)
    assert 4 <= len(told) <= 14
    assert packed.bits_per_weight < 8


def test_the_mean_allows_smaller_files(trained):
    model, stats, batches = trained

    def score(network: nn.Module) -> torch.Tensor:
        return evaluate.hits(network, batches)

    sizes = [tersor.compress(model, stats, max_drop=1.0, drop_end=end, effort=3, evaluate=score).size
             for end in ("mean", "worst")]
    assert sizes[0] < sizes[1]


def test_a_bound_that_no_file_can_keep(trained):
    model, stats, batches = trained
    few = [(batches[0][0][:20], batches[0][1][:20])]
    with pytest.raises(TargetError, match=r"drop of at most 0.5 points is out of reach.*More samples"):
        tersor.compress(model, stats, max_drop=0.5, effort=1, evaluate=lambda net: evaluate.hits(net, few))


def test_bounds_that_cannot_be_measured(trained):
    model, stats, _ = trained
    with pytest.raises(ConfigError, match="needs evaluate="):
        tersor.compress(model, stats, max_drop=1.0)
    with pytest.raises(ConfigError, match=r"drop_end=.best."):
        tersor.compress(model, stats, max_drop=1.0, drop_end="best", evaluate=lambda _: torch.ones(1))
    with pytest.raises(ConfigError, match=r"needs an nn\.Module"):
        tersor.compress({"a": np.ones((64, 64), "f4")}, max_drop=1.0, evaluate=lambda _: torch.ones(1))


def test_doctests():
    assert doctest.testmod(evaluate, extraglobs={"torch": torch}).failed == 0
