"""What a file will come to, without the search: two quick encodings, and what efforts are known to gain.

    print(predict(model, stats, bits=2.0))        # 67,430 bytes, 2.00 bits/weight, about 14.9 dB
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import nn

from .config import Config
from .encoder import Model, inventory_of
from .errors import ConfigError
from .job import Job
from .plan import Plan
from .statistics import Statistics

QUICK_EFFORT = 3
"""Error feedback on the statistics as measured: no trellis, no walk through the network."""
GAIN = {4: 1.7, 5: 2.8, 6: 3.7, 7: 4.1, 8: 4.2, 9: 4.2}
"""dB that an effort gains over QUICK_EFFORT at equal bytes, where the network and samples are there for the second
walk: ResNet-20, on the calibration samples (benchmarks/effort.py)."""
DECIBELS_PER_OCTAVE = 10.0 * math.log10(2.0)
"""Of lambda, at high rate: D is proportional to lambda."""


@dataclass(frozen=True)
class Prediction:
    """bytes of the file, bits/weight, signal-to-noise ratio at the output in dB (None where it cannot be measured)."""

    bytes: int
    bits_per_weight: float
    snr: float | None

    def __str__(self) -> str:
        snr = "" if self.snr is None else f", about {self.snr:.1f} dB"
        return f"about {self.bytes:,} bytes, {self.bits_per_weight:.2f} bits/weight{snr}"


def predict(model: Model, stats: Statistics | None = None, *, bits: float | None = None, size: int | None = None,
            snr: float | None = None, config: Config | None = None) -> Prediction:
    """Foretell `tersor.compress` with the same arguments, in a fraction of its time.

    Of `bits` and `size` the bytes are known and the signal-to-noise ratio is foretold, of `snr` the bytes. How far off
    this was, measured: docs/effort.md. Raises `ConfigError` (not exactly one target; `snr` without a network and
    samples), and what `compress` raises for the model and statistics.
    """
    if sum(target is not None for target in (bits, size, snr)) != 1:
        raise ConfigError("give exactly one of bits=, size=, snr=")
    settings = config or Config()
    if settings.transform.coder == "fixed" or settings.kernels.coder == "fixed":
        raise ConfigError("fixed-length codes have no quick encoding to foretell them by")
    inventory = inventory_of(model)
    network = model if isinstance(model, nn.Module) else None
    if stats is not None:
        stats.check(inventory)
        inventory = inventory if network is not None else stats.explain(inventory)
    job = Job(Plan(inventory, stats, replace(settings, effort=min(settings.effort, QUICK_EFFORT))), network)
    count = max(1, inventory.parameters)
    measurable = job.stage is not None
    gain = GAIN.get(settings.effort, 0.0) if measurable and settings.tools is None else 0.0
    if snr is not None:
        if not measurable:
            raise ConfigError("snr= needs an nn.Module and statistics with samples; give bits= or size= instead")
        found = _at_snr(job, snr - gain, count)
        return Prediction(round(found), 8 * found / count, snr)
    target = float(size) if size is not None else float(bits or 0.0) * count / 8
    if not measurable:
        return Prediction(int(target), 8 * target / count, None)
    return Prediction(int(target), 8 * target / count, _at_size(job, target, count) + gain)


def _start(job: Job, bits: float) -> float:
    return -bits if job.plan.shared else job.first_guess(bits)


def _encodings(job: Job, first: float, move: float | None) -> tuple[float, float, float]:
    """log2 lambda, bytes and dB of one quick encoding."""
    x = first if move is None else first + move
    trial = job.encode(x, measure=True)
    assert trial.snr is not None
    return x, float(len(trial.written.data)), trial.snr


def _at_size(job: Job, target: float, count: int) -> float:
    """dB at `target` bytes: a first encoding near it, a second nearer, a line through both."""
    x, size, snr = _encodings(job, _start(job, 8 * target / count), None)
    move = _bounded((8.0 if job.plan.shared else 16.0) * (size - target) / count)
    _, size2, snr2 = _encodings(job, x, move)
    slope = (snr2 - snr) / (size2 - size) if size2 != size else 0.0
    return snr2 + slope * (target - size2)


def _at_snr(job: Job, target: float, count: int) -> float:
    """Bytes at `target` dB."""
    x, size, snr = _encodings(job, _start(job, target / 6.0), None)
    move = _bounded((snr - target) / (2.0 if job.plan.shared else 1.0) / DECIBELS_PER_OCTAVE)
    _, size2, snr2 = _encodings(job, x, move)
    slope = (size2 - size) / (snr2 - snr) if snr2 != snr else 0.0
    return max(1.0, size2 + slope * (target - snr2))


def _bounded(move: float) -> float:
    """Far enough from nothing that two encodings tell a slope."""
    return math.copysign(min(max(abs(move), 0.25), 8.0), move)
