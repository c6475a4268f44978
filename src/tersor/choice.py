"""Which tool codes a layer: each rival proposes at the present lambda, the least J = D + lambda R wins.

Lagrangian mode decision as in a video encoder: layers do not see each other but through lambda. A decision
holds for nearby lambdas too, so the search for a target asks all rivals only now and then.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from .config import Config
from .synthesis import scalar as section
from .tools import scalar, transform
from .tools.candidate import Candidate, distortion
from .tools.target import LayerTarget, to_matrix

REUSE = 0.75
"""A decision is kept while log2 lambda is within this of where it was made."""

Variant: TypeAlias = tuple[str, str]
"""A tool, and which of its ways."""


@dataclass(frozen=True)
class Decision:
    """What was chosen for a layer, and what the others would have cost.

    bits: R with side information; side_bits: of them for bases and codebooks. losers: (label, J over the winner's J).
    """

    tool: str
    label: str
    count: int
    bits: float
    side_bits: float
    distortion: float
    losers: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class _Known:
    log_price: float
    variant: Variant
    losers: tuple[tuple[str, float], ...]


@dataclass
class Chooser:
    """Makes decisions during one search for lambda, and remembers them."""

    config: Config
    _known: dict[str, _Known] = field(default_factory=dict)

    def choose(self, target: LayerTarget, price: float) -> tuple[Candidate, Decision]:
        """The best candidate for a layer at lambda = `price`, and the decision as a record."""
        known = self._known.get(target.name)
        log_price = math.log2(price)
        best = None
        if known is not None and abs(log_price - known.log_price) <= REUSE:
            best = self._propose(target, price, known.variant)
        if best is None:
            offers = [(variant, candidate) for variant in self._variants(target)
                      if (candidate := self._propose(target, price, variant)) is not None]
            if not offers:  # no tool of the rivals is made for such a layer
                offers = [(variant, candidate) for variant in [("scalar", "")]
                          if (candidate := self._propose(target, price, variant)) is not None]
            variant, best = min(offers, key=lambda offer: offer[1].cost(price))
            least = max(best.cost(price), 1e-300)
            losers = tuple((loser.label, loser.cost(price) / least) for _, loser in offers if loser is not best)
            known = self._known[target.name] = _Known(log_price, variant, losers)
        assert known is not None
        return best, Decision(best.tool, best.label, target.count, best.bits, best.side_bits, best.distortion,
                              known.losers)

    def _variants(self, target: LayerTarget) -> list[Variant]:
        """What is worth a full trial."""
        rivals = self.config.rivals(target.name)
        found: list[Variant] = [("scalar", "")] if "scalar" in rivals else []
        if "transform" in rivals:
            found += [("transform", name) for name in self.config.transform.transforms
                      if transform.fits(target, name, self.config.transform)
                      and not (name == "identity" and "scalar" in rivals)]
        return found

    def _propose(self, target: LayerTarget, price: float, variant: Variant) -> Candidate | None:
        tool, name = variant
        if tool == "transform":
            return transform.propose(target, price, name, self.config)
        return _scalar(target, price, self.config)


def _scalar(target: LayerTarget, price: float, config: Config) -> Candidate:
    """The scalar tool's offer, its bits those of the layer coded alone."""
    code, steps = scalar.encode(target, price, scalar.ScalarOptions(feedback=config.feedback))
    restored = np.asarray(to_matrix(code.tensor(target.shape), target.layer), dtype=np.float64)
    restored = restored * steps.absorbed[:, :, None]
    mode = section.SMALL if config.mode == "small" else section.FAST
    bits = 8.0 * len(section.encode([code], [target.shape], mode))
    return Candidate("scalar", code, restored, distortion(target, restored), bits, "scalar")
