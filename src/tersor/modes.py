"""Which entropy coder a file gets where its user has said how long decoding may take.

Decoding time is reckoned from a table of rates, not measured: the same file on every machine.
"""

from __future__ import annotations

from dataclasses import replace

from .config import Config

DECODE_RATES = {"small": 10e6, "fast": 300e6}
"""Weights per second of one core of a usual x86-64 machine, from the file to arrays, rounded down
(benchmarks/throughput.py, ResNet-18 at 3 bits/weight)."""


def decode_seconds(weights: int, mode: str) -> float:
    """Seconds that a file of so many weights takes to decode on one core.

    >>> decode_seconds(30_000_000, "fast")
    0.1
    """
    return weights / DECODE_RATES[mode]


def with_mode(config: Config, weights: int) -> tuple[Config, str | None]:
    """The options with mode "auto" made "small" where that decodes within `decode_budget`, else "fast"; and a note for
    the user where not even that does."""
    if config.mode != "auto" or config.decode_budget is None:
        return config, None
    mode = "small" if decode_seconds(weights, "small") <= config.decode_budget else "fast"
    needed = decode_seconds(weights, mode)
    note = None
    if needed > config.decode_budget:
        note = (f"mode fast takes about {needed:.2g} s to decode on one core, more than the {config.decode_budget:g} s "
                f"asked for")
    return replace(config, mode=mode, decode_budget=None), note
