"""The search for lambda on functions whose shape is known."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from tersor.allocation import MAX_TRIALS, Trial, search
from tersor.errors import TargetError


def run(curve: Callable[[float], float], target: float, start: float = 0.0, slope: float = -100.0,
        sign: float = 1.0) -> tuple[Trial[float], int]:
    """The trial found, and how many encodings it took."""
    tried: list[float] = []

    def encode(log_price: float) -> tuple[float, float]:
        tried.append(log_price)
        return curve(log_price), log_price

    found = search(encode, target, start, slope, what="size in bytes", sign=sign)
    assert found.value == curve(found.result) and found.log_price == found.result
    assert len(tried) <= MAX_TRIALS
    return found, len(tried)


@pytest.mark.parametrize("start", [-120.0, -30.0, -5.0, 0.0, 6.0, 40.0, 120.0])
@pytest.mark.parametrize("target", [25.0, 1000.0, 60_000.0])
def test_smooth_curves_are_met_from_afar(start: float, target: float) -> None:
    """A plateau at each end, as files have: nothing is left, or the precision of the weights."""
    found, _ = run(lambda x: 20 + 90_000 / (1 + math.exp2(x / 2)), target, start)
    assert 0.99 * target <= found.value <= target


def test_a_good_guess_takes_few_trials() -> None:
    assert run(lambda x: 1000 - 100 * x, 1200)[1] <= 2
    assert run(lambda x: 1000 - 130 * x + 5 * math.sin(9 * x), 1200)[1] <= 5


def test_jumps_and_noise() -> None:
    found, _ = run(lambda x: 320 if x < -11.48 else 196, 317)
    assert found.value == 196, "nothing in between: the nearest below"
    found, _ = run(lambda x: float(max(30, round(1000 - 80 * x) + round(3 * math.sin(1000 * x)))), 700)
    assert 693 <= found.value <= 700


def test_unreachable_targets_say_what_is_reachable() -> None:
    def curve(x: float) -> float:
        return min(max(1000 - 50 * x, 100), 5000)

    with pytest.raises(TargetError, match=r"size in bytes of 50 is out of reach.*at least 100 "):
        run(curve, 50)
    with pytest.raises(TargetError, match=r"of 9,000 is out of reach.*at most 5,000 "):
        run(curve, 9000)
    with pytest.raises(TargetError, match=r"of 4 is out of reach.*at least 123 "):
        run(lambda _: 123.0, 4)


def test_quantities_wanted_from_above() -> None:
    def noise(x: float) -> float:  # minus dB against minus log2 lambda
        return -min(max(3 * x, -5), 90)

    found, _ = run(noise, -40, slope=-3.0, sign=-1.0)
    assert 40 <= -found.value <= 40.4
    with pytest.raises(TargetError, match=r"of 200 is out of reach.*at most 90 "):
        run(noise, -200, slope=-3.0, sign=-1.0)
    with pytest.raises(TargetError, match=r"of -20 is out of reach.*at least -5 "):
        run(noise, 20, slope=-3.0, sign=-1.0)


def test_infinite_values() -> None:
    found, _ = run(lambda x: -math.inf if x > 5 else -10 * x, -30, slope=-3.0, sign=-1.0)
    assert -30.3 <= found.value <= -30


def test_progress_tells_each_trial() -> None:
    lines: list[str] = []
    search(lambda x: (1000 - 100 * x, None), 500, 0, -90, what="size in bytes", progress=lines.append)
    assert lines[0] == "size in bytes 1,000 for a target of 500" and len(lines) > 1
