"""What each tool of the encoder saves, alone and on top of all others: cases for `frontier.py`.

Each variant is encoded at one lambda near a rate, restored from its file, and judged by the SNR of its outputs on
held-out training images. The report reads off the curve of the reference (everything, or nothing) how many bytes that
SNR costs there: no rate has to be met exactly.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from unittest import mock

from frontier_networks import Network

import tersor
from tersor import Statistics
from tersor.adapters.module import inventory_of_module
from tersor.config import QUICK_TRANSFORMS, Config, TransformConfig
from tersor.job import Job
from tersor.plan import Plan
from tersor.tools import scalar

RATES = (2.0, 3.0, 1.5)
CURVE = {2.0: (2.0, 1.6, 2.5), 3.0: (3.0, 3.6), 1.5: (1.5, 1.2)}
"""Rates of the reference: all tools here, and none at one bit more."""
NETWORKS = ("resnet20", "resnet32", "lenet5")
TOOLS = {
    "feedback": "error feedback between columns",
    "two-sided": "feedback between rows, too",
    "correction": "targets corrected for the layers before",
    "coherent": "metric of whole gradients",
    "rdo": "rounding by D + lambda R",
    "trellis": "trellis of 8 states",
    "transforms": "transforms of the taps",
    "contexts": "adaptive contexts instead of static rANS",
}
NEEDS = {"two-sided": "feedback"}
"""What a tool cannot do without."""


@dataclass(frozen=True)
class Tools(Config):
    """An encoder with some of its tools."""

    with_feedback: bool = True
    with_rows: bool = True
    with_correction: bool = True

    @property
    def feedback(self) -> bool:
        return self.with_feedback

    @property
    def two_sided(self) -> bool:
        return self.with_rows

    @property
    def corrected(self) -> bool:
        return self.with_correction


def ablation_cases(network: Network, statistics: Callable[[], Statistics]) -> Iterator[tuple[str, Callable[[], Any]]]:
    """(label, case): all tools and none at many rates, then each tool left out and each alone."""
    everything = frozenset(TOOLS)
    if network.name not in NETWORKS:
        return
    for bits in RATES:
        for near in CURVE[bits]:
            yield f"all, {near:g}", partial(variant, network, statistics, everything, near)
            yield f"none, {near + 1:g}", partial(variant, network, statistics, frozenset(), near + 1)
        yield f"none, {bits:g}", partial(variant, network, statistics, frozenset(), bits)
        for tool in TOOLS:
            left = everything - {tool} - {other for other, base in NEEDS.items() if base == tool}
            yield f"without {tool}, {bits:g}", partial(variant, network, statistics, left, bits)
        for tool in TOOLS:
            if tool not in NEEDS:
                yield f"only {tool}, {bits:g}", partial(variant, network, statistics, frozenset({tool}), bits)


def variant(network: Network, statistics: Callable[[], Statistics], tools: frozenset[str],
            bits: float) -> dict[str, Any]:
    """One encoding near `bits` bits/weight with some of the tools."""
    stats = statistics()
    if "coherent" not in tools:
        stats = replace(stats, layers={name: replace(layer, coherent=None) for name, layer in stats.layers.items()})
    config = Tools(
        tools=("scalar", "transform") if "transforms" in tools else ("scalar",),
        transform=TransformConfig(QUICK_TRANSFORMS), mode="small" if "contexts" in tools else "fast",
        effort=7 if "trellis" in tools else 5, with_feedback="feedback" in tools,
        with_rows="two-sided" in tools, with_correction="correction" in tools)  # fmt: skip
    with switches(tools):
        job = Job(Plan(inventory_of_module(network.model), stats, config), network.model)
        gain = (0.9 if "contexts" in tools else 1.0) * (0.9 if "trellis" in tools else 1.0)
        written = job.encode(job.first_guess(bits / gain)).written
    restored = tersor.restore(written.data, into=network.blank()).eval()
    return {"bytes": len(written.data), "held_out_snr": network.held_out_snr(restored)}


@contextlib.contextmanager
def switches(tools: frozenset[str]) -> Iterator[None]:
    """What no option turns off."""
    if "rdo" in tools:
        yield
        return
    with mock.patch.object(scalar, "ScalarOptions", partial(scalar.ScalarOptions, rdo=0.0, search=0.0)):
        yield
