"""Masks at an exact sparsity, and the cubic schedule."""

from __future__ import annotations

import numpy as np
import pytest

from tersor.errors import ConfigError
from tersor.tools.pruning import (
    CubicSchedule,
    apply_masks,
    magnitude_scores,
    masks,
    sensitivity_scores,
    sparsity_of,
)

RNG = np.random.default_rng(0)
WEIGHTS = {"a": RNG.normal(size=(7, 9)).astype("f4"), "b": (RNG.normal(size=(5, 3, 3)) * 4).astype("f4"),
           "c": np.array(0.5, "f4")}
COUNT = 63 + 45 + 1


def pruned(kept):
    return sum(int((~mask).sum()) for mask in kept.values())


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.917, 1.0])
def test_the_target_is_hit_exactly_by_the_smallest(sparsity):
    kept = masks(magnitude_scores(WEIGHTS), sparsity)
    assert pruned(kept) == round(sparsity * COUNT)
    assert sparsity_of(kept) == pytest.approx(round(sparsity * COUNT) / COUNT)
    gone = [abs(w[~kept[name]]).max(initial=0) for name, w in WEIGHTS.items()]
    stays = [abs(w[kept[name]]).min(initial=np.inf) for name, w in WEIGHTS.items()]
    assert max(gone) <= min(stays)
    assert all(mask.shape == WEIGHTS[name].shape and mask.dtype == bool for name, mask in kept.items())


def test_ties_are_broken_in_order():
    scores = {"a": np.ones(4), "b": np.ones((2, 3))}
    kept = masks(scores, 0.6)
    assert not kept["a"].any() and kept["b"].tolist() == [[False, False, True], [True, True, True]]


def test_per_layer_and_per_name():
    kept = masks(magnitude_scores(WEIGHTS), 0.4, scope="layer")
    assert [(~kept[name]).sum() for name in "abc"] == [25, 18, 0]
    kept = masks(magnitude_scores(WEIGHTS), {"a": 1.0}, scope="layer")
    assert not kept["a"].any() and kept["b"].all()


def test_sensitivity_scores_rank_by_cost():
    h = {"a": np.array([1.0, 100.0]), "b": np.array([1.0])}
    scores = sensitivity_scores({"a": np.array([2.0, 1.0]), "b": np.array([3.0])}, h)
    kept = masks(scores, 1 / 3)
    assert kept["a"].tolist() == [False, True] and kept["b"].tolist() == [True]
    with pytest.raises(ConfigError, match="b: its sensitivities"):
        sensitivity_scores({"b": np.ones(2)}, {"b": np.ones(3)})


def test_what_is_pruned_stays_pruned():
    first = masks(magnitude_scores(WEIGHTS), 0.3)
    other = {name: RNG.random(w.shape) for name, w in WEIGHTS.items()}
    second = masks(other, 0.6, within=first)
    assert pruned(second) == round(0.6 * COUNT)
    assert all((first[name] | ~second[name]).all() for name in WEIGHTS)
    back = masks(other, 0.1, within=first)
    assert all(np.array_equal(back[name], first[name]) for name in WEIGHTS)


def test_masks_are_applied_to_copies():
    kept = {"a": WEIGHTS["a"] > 0}
    result = apply_masks(WEIGHTS, kept)
    assert np.array_equal(result["a"], np.maximum(WEIGHTS["a"], 0)) and result["b"] is WEIGHTS["b"]
    assert (WEIGHTS["a"] < 0).any() and result["a"].dtype == np.float32


@pytest.mark.parametrize("arguments, message", [
    (({"a": np.ones(3)}, 1.5), "sparsity 1.5"),
    (({"a": np.array([np.nan, 1.0])}, 0.5), "a: 1 scores are NaN"),
])
def test_errors(arguments, message):
    with pytest.raises(ConfigError, match=message):
        masks(*arguments)
    with pytest.raises(ConfigError, match="no scores"):
        masks({"a": np.ones(3)}, {"z": 0.5}, scope="layer")
    with pytest.raises(ConfigError, match="'all' takes one"):
        masks({"a": np.ones(3)}, {"a": 0.5})
    with pytest.raises(ConfigError, match="mask of shape"):
        masks({"a": np.ones(3)}, 0.5, within={"a": np.ones(2, dtype=bool)})


def test_cubic_schedule():
    schedule = CubicSchedule(final=0.9, initial=0.1, begin=10, end=55, every=10)
    seen = {}
    for time in range(1, 80):
        sparsity = schedule.step()
        if sparsity is not None:
            seen[time] = sparsity
    assert list(seen) == [10, 20, 30, 40, 50, 55]
    assert seen[10] == pytest.approx(0.1) and seen[55] == 0.9
    assert seen[30] == pytest.approx(0.9 - 0.8 * (1 - 20 / 45) ** 3)
    assert schedule.sparsity == 0.9 and schedule.at(0) == pytest.approx(0.1)
    for bad in ({"final": 1.2, "end": 5}, {"final": 0.5, "initial": 0.6, "end": 5}, {"final": 0.5, "end": 0},
                {"final": 0.5, "end": 5, "every": 0}):
        with pytest.raises(ConfigError):
            CubicSchedule(**bad)
