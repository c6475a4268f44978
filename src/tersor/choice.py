"""Which tool codes a layer: each rival proposes at the present lambda, the least J = D + lambda R wins.

Lagrangian mode decision as in a video encoder: layers do not see each other but through lambda. A decision
holds for nearby lambdas too, so the search for a target asks all rivals only now and then.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Any

import numpy as np

from .config import Config, split_transform
from .parallel import ALONE, Team
from .threads import in_order
from .tools import kernels, scalar, transform
from .tools.candidate import Candidate
from .tools.kernel_choice import Book
from .tools.kernels_shared import SharedKernels, by_taps, propose_shared, train_shared
from .tools.sampling import sampled
from .tools.target import LayerTarget

FEWEST = 2048
"""Layers with fewer weights are not worth rivals that the user has not asked for."""
EFFORT = {"scalar": 1.0, "transform": 3.0, "kernels": 12.0}
"""About how long the tools take, for sharing them out."""
REUSE = 0.75
"""A decision is kept while log2 lambda is within this of where it was made."""


@dataclass(frozen=True)
class Variant:
    """A tool, which of its ways, and the states of a trellis."""

    tool: str
    name: str = ""
    trellis: int = 0


def _columns(target: LayerTarget) -> object:
    return target.column_factors


def _rows(target: LayerTarget) -> object:
    return target.row_factors


def _is_by_row(variant: Variant) -> bool:
    """Whether what is said of some rows holds for all: no basis or codebook is shared by rows but the few taps'."""
    channels, _ = split_transform(variant.name or "identity")
    return variant.tool != "kernels" and not channels


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

    def report(self) -> dict[str, Any]:
        """As plain data; bits per weight."""
        return {"tool": self.tool, "label": self.label, "weights": self.count, "bits": float(self.bits / self.count),
                "side_bits": float(self.side_bits / self.count), "distortion": float(self.distortion),
                "losers": [[label, round(float(ratio), 4)] for label, ratio in self.losers]}


@dataclass(frozen=True)
class Known:
    """A decision that holds near log2 lambda = `log_price`; losers as in `Decision`."""

    log_price: float
    variant: Variant
    losers: tuple[tuple[str, float], ...]


@dataclass
class Chooser:
    """Makes decisions during one search for lambda, and remembers them.

    Sizes jump where a decision changes. A search that a jump has kept from its target freezes them and tries again.
    """

    config: Config
    targets: Callable[[], Sequence[LayerTarget]]  # as calibration measured them: all that kernels are a rival for
    frozen: bool = False  # decisions stay as they are, whatever the price
    team: Team = ALONE  # that shares the rivals of a layer among its processes
    _known: dict[str, Known] = field(default_factory=dict)
    _books: dict[str, Book] = field(default_factory=dict)  # of kernels: where searches for prices nearby begin
    _shared: tuple[float, dict[str, SharedKernels]] | None = None  # price, and the codebook of each layer
    _lock: Any = field(default_factory=Lock)  # of `_shared`; all else is by layer, and layers are on one thread each

    def memory(self, name: str | None = None) -> tuple[dict[str, Known], dict[str, Book]]:
        """What is remembered of a layer, or of all."""
        if name is None:
            return dict(self._known), dict(self._books)
        known, book = self._known.get(name), self._books.get(name)
        return {} if known is None else {name: known}, {} if book is None else {name: book}

    def recall(self, known: Mapping[str, Known], books: Mapping[str, Book]) -> None:
        """Remember what another run has learnt."""
        self._known |= known
        self._books |= books

    def choose(self, target: LayerTarget, price: float) -> tuple[Candidate, Decision]:
        """The best candidate for a layer at lambda = `price`, and the decision as a record."""
        known = self._known.get(target.name)
        log_price = math.log2(price)
        best = None
        if known is not None and (self.frozen or abs(log_price - known.log_price) <= REUSE):
            best = self._propose(target, price, known.variant)
        if best is None:
            self._books.pop(target.name, None)
            variants = self._variants(target)
            some, times = sampled(target) if all(_is_by_row(variant) for variant in variants) else (target, 1.0)

            def cost(candidate: Candidate) -> float:  # side information is not multiplied by rows
                return candidate.cost(price) - price * candidate.side_bits * (1.0 - 1.0 / times)

            offers = self._offers(some, price, variants)
            if not offers:  # no tool of the rivals is made for such a layer
                offers = self._offers(some, price, [Variant("scalar")])
            variant, best = min(offers, key=lambda offer: cost(offer[1]))
            # A trellis helps all alike: only the best so far is worth the time.
            if self.config.tries_trellis and best.tool != "kernels" and target.count >= FEWEST:
                offers += self._offers(some, price, [replace(variant, trellis=8)])
                variant, best = min(offers, key=lambda offer: cost(offer[1]))
            least = max(cost(best), 1e-300)
            losers = tuple((loser.label, cost(loser) / least) for _, loser in offers if loser is not best)
            known = self._known[target.name] = Known(log_price, variant, losers)
            if some is not target:
                found = self._propose(target, price, variant)
                assert found is not None
                best = found
        assert known is not None
        return best, Decision(best.tool, best.label, target.count, best.bits, best.side_bits, best.distortion,
                              known.losers)

    def _offers(self, target: LayerTarget, price: float,
                variants: Sequence[Variant]) -> list[tuple[Variant, Candidate]]:
        def work(i: int) -> tuple[Candidate | None, Book | None]:
            candidate = self._propose(target, price, variants[i])
            if candidate is not None and not self.team.is_alone:
                candidate = replace(candidate, restored=np.zeros((0, 0, 0)))  # whoever needs it makes it of the code
            return candidate, self._books.get(target.name) if variants[i].tool == "kernels" else None

        # One rival is as quick everywhere as on one process.
        if len(variants) > 1 and not self.team.is_alone:
            found = self.team.share([EFFORT[variant.tool] for variant in variants], work)
        else:
            if len(variants) > 1:  # what all need, once
                for _ in in_order(lambda factor: factor(target), (_columns, _rows)):
                    pass
            found = list(in_order(work, range(len(variants))))
        for _, book in found:
            if book is not None:
                self._books[target.name] = book
        return [(variant, candidate) for variant, (candidate, _) in zip(variants, found, strict=True)
                if candidate is not None]

    def _variants(self, target: LayerTarget) -> list[Variant]:
        """What is worth a full trial."""
        config = self.config
        rivals = config.rivals(target.name)
        found = [Variant("scalar")] if "scalar" in rivals else []
        if found and config.tools is None and target.count < FEWEST:
            return found
        if "transform" in rivals:
            found += [Variant("transform", name) for name in config.tried_transforms
                      if transform.fits(target, name, config.transform)
                      and not (name == "identity" and "scalar" in rivals)]
        return [*found, Variant("kernels")] if "kernels" in rivals else found

    def _propose(self, target: LayerTarget, price: float, variant: Variant) -> Candidate | None:
        config = self.config
        if variant.tool == "transform":
            return transform.propose(target, price, variant.name, config, trellis=variant.trellis)
        if variant.tool == "kernels":
            return self._kernels(target, price)
        options = scalar.ScalarOptions(feedback=config.feedback, two_sided=config.two_sided, trellis=variant.trellis)
        return scalar.propose(target, price, options, config.mode)

    def _kernels(self, target: LayerTarget, price: float) -> Candidate | None:
        config = self.config
        if config.kernels.scope == "layer":
            memory = dict(self._books)
            found = kernels.propose(target, price, config.kernels, config.mode, feedback=config.feedback,
                                    memory=memory)
            # Only the codebook of the full search stays: sizes must not depend on the way that lambda has taken.
            if target.name in memory:
                self._books.setdefault(target.name, memory[target.name])
            return found
        with self._lock:
            if self._shared is None or self._shared[0] != price:
                groups = by_taps(self.targets(), config.kernels).values()
                trained = [(group, train_shared(group, price, config.kernels, feedback=config.feedback))
                           for group in groups]
                self._shared = price, {member.name: book for group, book in trained for member in group}
            book = self._shared[1].get(target.name)
        return None if book is None else propose_shared(target, book, price, config.kernels, feedback=config.feedback)
