"""How much memory encoding will take, told before it starts.

    tersor.footprint(model, stats, effort=7).memory        # bytes

An estimate from shapes: what the walk through the layers holds at its worst layer, and what it keeps for all of them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from math import prod

from .config import KERNEL_EFFORT
from .guess import SAMPLE
from .plan import FACTORS, Plan
from .tools.scalar import SLAB
from .writer import GROUP, STREAMED

PROCESS = 400 << 20
"""Python, torch and NumPy themselves."""
PER_SLAB = 96
"""Bytes per weight of a slab at work."""
ALONE, FED_BACK, RIVALS, TRANSFORMED = 26, 64, 72, 150
"""Bytes per weight of the layer at work: without feedback, with it, where tools compete, where transforms do."""
PER_METRIC = 90
"""Bytes per element of A and G of the layer at work: float32, float64, centred, damped, factors, temporaries."""
TRIALS = 3
"""Files that the search holds at a time."""


@dataclass(frozen=True)
class Footprint:
    """Bytes, at the peak. `memory`: all of them. `mapped`: of these, the model's file and statistics that are read
    from disk as they are needed, which the system takes back when others need the room. `kept`: integers, files of
    trials and factors. `layer`: for the layers at work, one for each thread; `largest`: the name of the largest."""

    memory: int
    mapped: int
    kept: int
    layer: int
    largest: str
    weights: int

    def __str__(self) -> str:
        return (f"about {self.memory / 1e9:.1f} GB of memory for {self.weights / 1e6:,.1f} million weights "
                f"({self.layer / 1e9:.1f} GB for {self.largest or 'no layer'}, {self.kept / 1e9:.1f} GB kept, "
                f"{self.mapped / 1e9:.1f} GB read from disk as needed)")


def footprint_of(plan: Plan, file_bytes: float = 0.0, walk: int = 0, threads: int = 1) -> Footprint:
    """Of one encoding. file_bytes: of the file that is wanted. walk: bytes of activations in a second walk. threads:
    layers that are at work at a time without one; in a walk there is one layer, and a rival of it on each thread."""
    tensors, config = plan.inventory.tensors, plan.config
    weights = sum(tensors[name].size for name in plan.layers)
    by_layer = {name: _layer_bytes(plan, name) for name in plan.layers}
    largest = max(by_layer, key=lambda name: by_layer[name], default="")
    size = tensors[largest].size if largest else 0
    streams = weights >= STREAMED and not walk and config.rivals(largest)[:1] == ("scalar",)
    integers = 4 * (min(weights, GROUP + size) if streams else weights)
    factors = 0
    if plan.statistics is not None:
        squares = [_metric_elements(plan, name) for name in plan.layers]
        factors = min(FACTORS, 8 * sum(squares)) if config.feedback else 0
    kept = int(integers + TRIALS * file_bytes + factors + 8 * min(weights, SAMPLE * len(plan.layers)))
    if walk:
        kept += walk + 4 * weights
    mapped = sum(array.nbytes for array in tensors.values())
    if plan.statistics is not None:
        mapped += 4 * sum(2 * _metric_elements(plan, name) for name in plan.layers)
    layer = sum(sorted(by_layer.values())[-threads:]) if not walk else by_layer.get(largest, 0)
    return Footprint(PROCESS + mapped + kept + layer + threads * PER_SLAB * SLAB, mapped, kept, layer, largest, weights)


def available() -> int | None:
    """Bytes of memory that this process may still take, by the system and by the control group's limit; None where
    the system does not say."""
    found = []
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            lines = dict(line.split(":", 1) for line in file)
        found.append(int(lines["MemAvailable"].split()[0]) * 1024)
    except (OSError, KeyError, ValueError):
        if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
            found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for limit, used in (("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
                        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes")):
        try:
            with open(limit, encoding="ascii") as most, open(used, encoding="ascii") as now:
                found.append(max(0, int(most.read()) - int(now.read())))
        except (OSError, ValueError):
            continue  # no such controller, or "max"
    return min(found, default=None)


def _layer_bytes(plan: Plan, name: str) -> int:
    config = plan.config
    measured = plan.statistics is not None and name in plan.statistics.layers
    each = FED_BACK if measured and config.feedback else ALONE
    if config.tries_trellis or len(config.rivals(name)) > 1:
        each += RIVALS
    taps = prod(plan.inventory.tensors[name].shape[2:])
    if "transform" in config.rivals(name) and (taps > 1 or config.effort >= KERNEL_EFFORT or config.tools):
        each += TRANSFORMED
    return each * plan.inventory.tensors[name].size + PER_METRIC * _metric_elements(plan, name)


def _metric_elements(plan: Plan, name: str) -> int:
    """Of the matrices A and G."""
    measured = plan.statistics.layers.get(name) if plan.statistics is not None else None
    return 0 if measured is None else sum(int(part.size) for part in (measured.A, measured.G) if part.ndim == 3)
