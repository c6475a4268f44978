"""The entropy coder that follows from a decode budget: from a table, so the same everywhere."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")
import tersor
from tersor import Config
from tersor.errors import ConfigError
from tersor.modes import DECODE_RATES, decode_seconds, with_mode

RNG = np.random.default_rng(4)
MODEL = {"a.weight": RNG.normal(size=(64, 100)).astype(np.float32), "a.bias": np.zeros(64, np.float32)}


def test_the_smallest_file_that_decodes_in_time():
    between = (decode_seconds(6400, "small") + decode_seconds(6400, "fast")) / 2
    for budget, mode in ((60.0, "small"), (decode_seconds(6400, "small"), "small"), (between, "fast")):
        packed = tersor.compress(MODEL, bits=4, mode="auto", decode_budget=budget)
        assert packed.data == tersor.compress(MODEL, bits=4, mode=mode).data
        assert not any("decode" in note for note in packed.notes)


def test_a_budget_out_of_reach_is_noted():
    packed = tersor.compress(MODEL, bits=4, mode="auto", decode_budget=1e-9)
    assert packed.data == tersor.compress(MODEL, bits=4, mode="fast").data
    assert any("takes about" in note and "1e-09 s" in note for note in packed.notes)


def test_other_modes_stay():
    config = Config(mode="fast")
    assert with_mode(config, 10**12) == (config, None)
    assert DECODE_RATES["small"] < DECODE_RATES["fast"]


@pytest.mark.parametrize("options", [{"mode": "auto"}, {"decode_budget": 1.0}, {"mode": "small", "decode_budget": 1.0},
                                     {"mode": "auto", "decode_budget": 0.0},
                                     {"mode": "auto", "decode_budget": float("nan")}])
def test_options_that_make_no_sense(options):
    with pytest.raises(ConfigError, match="decode_budget"):
        Config(**options)
