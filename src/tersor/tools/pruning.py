"""Pruning: which weights to set to zero, at an exact sparsity, at once or step by step while fine-tuning.

A mask is a bool array of the weight's shape, True where the weight stays. Scores are dicts of arrays >= 0,
one per weight tensor; the smallest are pruned first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError
from .clusters import Floats

Mask = npt.NDArray[np.bool_]


def magnitude_scores(weights: Mapping[str, Floats]) -> dict[str, Floats]:
    """|w| (Han et al., 2015)."""
    return {name: np.abs(w) for name, w in weights.items()}


def sensitivity_scores(weights: Mapping[str, Floats], h: Mapping[str, Floats]) -> dict[str, Floats]:
    """h w^2, the second-order cost of setting a weight to zero (LeCun, Denker, Solla, Optimal Brain Damage,
    1990; twice its saliency). Raises `ConfigError` where h lacks a tensor or differs in shape."""
    for name, w in weights.items():
        if name not in h or h[name].shape != w.shape:
            what = f"shape {h[name].shape}, the weight {w.shape}" if name in h else "nothing"
            raise ConfigError(f"{name}: its sensitivities have {what}")
    return {name: np.multiply(h[name], np.square(w, dtype=np.float64)) for name, w in weights.items()}


def masks(scores: Mapping[str, Floats], sparsity: float | Mapping[str, float], *,
          scope: Literal["all", "layer"] = "all",
          within: Mapping[str, Mask] | None = None) -> dict[str, Mask]:
    """Masks that prune exactly round(sparsity * count) weights: those of the smallest scores.

    * `sparsity`: share of zeros in [0, 1]; for scope "layer" also one number per tensor (0 if missing).
    * `scope`: "all" = one threshold over all tensors together, "layer" = one per tensor.
    * `within`: masks so far; what they prune stays pruned (and counts), even beyond `sparsity`.

    Among equal scores the first in order go first. Raises `ConfigError` for a sparsity outside [0, 1], NaN
    scores, unknown names, or a mask of another shape.
    """
    for name, score in scores.items():
        if np.isnan(score).any():
            raise ConfigError(f"{name}: {int(np.isnan(score).sum())} scores are NaN")
    ranked = {name: _ranked(name, score, within) for name, score in scores.items()}
    if scope == "layer":
        wanted = dict(sparsity) if isinstance(sparsity, Mapping) else dict.fromkeys(ranked, sparsity)
        unknown = wanted.keys() - ranked.keys()
        if unknown:
            raise ConfigError(f"sparsity is given for {sorted(unknown)}, which have no scores")
        return {name: _kept(score.reshape(-1), wanted.get(name, 0.0)).reshape(score.shape)
                for name, score in ranked.items()}
    if scope != "all" or isinstance(sparsity, Mapping):
        raise ConfigError(f"scope {scope!r} with a sparsity of type {type(sparsity).__name__}: 'all' takes "
                          f"one number, 'layer' one or a dict")
    if not ranked:
        return {}
    kept = _kept(np.concatenate([score.reshape(-1) for score in ranked.values()]), sparsity)
    parts = np.split(kept, np.cumsum([score.size for score in ranked.values()])[:-1])
    return {name: part.reshape(score.shape)
            for (name, score), part in zip(ranked.items(), parts, strict=True)}


def apply_masks(weights: Mapping[str, npt.NDArray[Any]],
                kept: Mapping[str, Mask]) -> dict[str, npt.NDArray[Any]]:
    """Copies of the weights with zeros where a mask prunes; tensors without a mask as they are."""
    return {name: np.where(kept[name], w, np.zeros((), w.dtype)) if name in kept else w
            for name, w in weights.items()}


def sparsity_of(kept: Mapping[str, Mask]) -> float:
    """Share of pruned weights over all masks; 0 for none."""
    count = sum(mask.size for mask in kept.values())
    return 1.0 - sum(int(mask.sum()) for mask in kept.values()) / count if count else 0.0


@dataclass
class CubicSchedule:
    """Sparsity that rises quickly while weights are redundant and slowly at the end (Zhu and Gupta, "To
    prune, or not to prune", 2017): s_t = final + (initial - final) (1 - (t - begin) / (end - begin))^3.

        schedule = CubicSchedule(final=0.9, end=1000, every=50)
        for batch in batches:
            ...one step of the optimizer...
            if (sparsity := schedule.step()) is not None:
                kept = masks(magnitude_scores(weights()), sparsity, within=kept)

    `begin`, `end`: training steps; `every`: steps between renewals. Raises `ConfigError` for values that make
    no schedule.
    """

    final: float
    end: int
    initial: float = 0.0
    begin: int = 0
    every: int = 1
    time: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.initial <= self.final <= 1.0:
            raise ConfigError(f"sparsity from {self.initial} to {self.final}: must rise within [0, 1]")
        if not (0 <= self.begin < self.end and self.every >= 1):
            raise ConfigError(f"schedule from step {self.begin} to {self.end}, every {self.every}: begin "
                              f"must be at least 0 and before end, every at least 1")

    @property
    def sparsity(self) -> float:
        """The target now."""
        return self.at(self.time)

    def at(self, time: int) -> float:
        """The target at training step `time`."""
        progress = min(max((time - self.begin) / (self.end - self.begin), 0.0), 1.0)
        return self.final + (self.initial - self.final) * (1.0 - progress) ** 3

    def step(self) -> float | None:
        """Count one training step; the sparsity if masks are due for renewal, else None. The last renewal is
        at `end`, whatever `every`."""
        self.time += 1
        inside = self.begin <= self.time < self.end and (self.time - self.begin) % self.every == 0
        return self.sparsity if inside or self.time == self.end else None


def _ranked(name: str, score: Floats, within: Mapping[str, Mask] | None) -> Floats:
    """Scores in which what is already pruned comes before everything else."""
    if within is None or name not in within:
        return score
    mask = within[name]
    if mask.shape != score.shape or mask.dtype != np.bool_:
        raise ConfigError(f"{name}: a {mask.dtype} mask of shape {mask.shape} for scores of {score.shape}")
    return np.where(mask, score, -np.inf)


def _kept(score: Floats, sparsity: float) -> Mask:
    """False for the round(sparsity * count) smallest of flat scores (and all that are -inf)."""
    if not 0.0 <= sparsity <= 1.0:
        raise ConfigError(f"sparsity {sparsity}: must be in [0, 1]")
    count = round(sparsity * score.size)
    kept: Mask = score > -np.inf
    if count <= score.size - int(kept.sum()):
        return kept
    threshold = np.partition(score, count - 1)[count - 1]
    kept &= score >= threshold
    equal = np.flatnonzero(score == threshold)
    kept[equal[:count - int((score < threshold).sum())]] = False
    return kept
