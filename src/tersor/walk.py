"""The encoder's first walk: layers in any order, each for itself, on threads or shared out among processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .choice import Decision
from .encoding import Encoding
from .parallel import ALONE, Team
from .plan import Plan
from .synthesis.batchnorm import BatchNormCode
from .synthesis.kernels import KernelCode
from .synthesis.scalar import ScalarCode
from .synthesis.transform import TransformCode
from .synthesis.vector import VectorCode
from .threads import in_order

WAVE = 1 << 25
"""Weights that are shared out among processes at a time."""


def static_walk(encoding: Encoding, finished: Callable[[str], None] | None = None, team: Team = ALONE) -> Encoding:
    """All layers, each for itself; `finished` is called with the name of each. team: processes among which they are
    shared out by cost; all end with all layers."""
    if not team.is_alone:
        _shared_walk(encoding, team)
    names = [name for name in encoding.plan.layers if name not in encoding.fitted]
    for name, _ in zip(names, in_order(encoding.encode_alone, names), strict=True):
        if finished is not None:
            finished(name)
    return encoding.complete()


@dataclass
class _Finished:
    """What one process sends of a layer to the others."""

    code: ScalarCode | TransformCode | KernelCode | None
    decision: Decision | None
    remembered: tuple[dict[str, Any], dict[str, Any]]
    batchnorms: dict[str, BatchNormCode]
    vectors: dict[str, VectorCode]


def _shared_walk(encoding: Encoding, team: Team) -> None:
    """`static_walk` on several processes, in waves, so that not all of a large model travels at once."""
    plan, journal = encoding.plan, encoding.journal
    waves: list[list[str]] = []
    filled = WAVE
    for name in plan.layers:
        if filled >= WAVE:
            waves.append([])
            filled = 0
        waves[-1].append(name)
        filled += plan.inventory.tensors[name].size
    for wave in waves:
        known = [name for name in wave if encoding.recall(name)]
        names = [name for name in wave if name not in known]
        encoding.journal = None  # processes are at different layers
        for name in known:
            encoding.encode_alone(name)

        def work(i: int, names: list[str] = names) -> _Finished:
            batchnorms, vectors = set(encoding.batchnorms), set(encoding.vectors)
            encoding.encode_alone(names[i])
            return _Finished(
                None if names[i] in encoding.shared else encoding.code(names[i]), encoding.decisions.get(names[i]),
                plan.chooser.memory(names[i]),
                {key: code for key, code in encoding.batchnorms.items() if key not in batchnorms},
                {key: code for key, code in encoding.vectors.items() if key not in vectors})

        results = team.share([_cost(plan, name) for name in names], work)
        encoding.journal = journal
        for name, found in zip(names, results, strict=True):
            if found.code is not None:
                encoding.put(name, found.code)
            if found.decision is not None:
                encoding.decisions[name] = found.decision
            plan.chooser.recall(*found.remembered)
            encoding.batchnorms |= found.batchnorms
            encoding.vectors |= found.vectors
            encoding.fitted.add(name)
            encoding.note(name)


def _cost(plan: Plan, name: str) -> float:
    """About the operations of a layer: factors, feedback, search and code."""
    measured = plan.statistics.layers.get(name) if plan.statistics else None
    size = float(plan.inventory.tensors[name].size)
    if measured is None:
        return 100.0 * size
    n, m = measured.A.shape[1], measured.G.shape[1]
    return float(size * (100.0 + (n + m) / 4) + (n**3 + m**3) * len(measured.A) / 6.0)
