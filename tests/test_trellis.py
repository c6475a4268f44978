"""Dependent quantization: states, levels, payloads; the document, the reference reader and the kernel agree."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_decoder
from hypothesis import given, settings
from hypothesis import strategies as st
from make_golden import FOLDER, describe
from make_golden_trellis import GOLDEN

from tersor.bitstream.manifest import TensorRecord
from tersor.errors import FormatError, TersorError
from tersor.limits import DEFAULT_LIMITS
from tersor.synthesis import scalar, trellis
from tersor.synthesis.scalar import FAST, SMALL, ScalarCode

MODES = pytest.mark.parametrize("mode", [FAST, SMALL], ids=["fast", "small"])
TEXT = (Path(__file__).parent.parent / "docs" / "format.md").read_text(encoding="utf-8")
HEADER = (Path(__file__).parent.parent / "native" / "trellis.h").read_text(encoding="utf-8")
INT32 = st.one_of(st.integers(-5, 5), st.integers(-(2**31), 2**31 - 1))


def records_of(shapes: list[tuple[int, ...]]) -> list[TensorRecord]:
    return [TensorRecord(f"t{i}", "F32", shape, 0) for i, shape in enumerate(shapes)]


def plain_levels(row: list[int], states: int) -> tuple[list[int], list[int]]:
    """(states, levels), from the definition."""
    state, seen, levels = 0, [], []
    for q in row:
        seen.append(state)
        levels.append(2 * q - trellis.QUANTIZER[states][state] * ((q > 0) - (q < 0)))
        state = trellis.NEXT[states][state][q % 2]
    return seen, levels


def test_tables_are_the_same_everywhere():
    for states in (4, 8):
        found = re.search(rf"kTrellisNext{states}\[{states}\]\[2\] = \{{(.*)\}};", HEADER)
        assert found is not None
        numbers = [int(n) for n in re.findall(r"\d", found[1])]
        assert numbers == [n for pair in trellis.NEXT[states] for n in pair]
        found = re.search(rf"kTrellisQuantizer{states}\[{states}\] = \{{(.*)\}};", HEADER)
        assert found is not None and [int(n) for n in found[1].split(",")] == list(trellis.QUANTIZER[states])
        rows = tiny_decoder.TRELLIS[states // 4]
        assert [(quantizer, *pair) for quantizer, pair in
                zip(trellis.QUANTIZER[states], trellis.NEXT[states], strict=True)] == rows
        # Two ways lead to each state, from two different states, so that survivors can be compared.
        into = [[s for s in range(states) if target in trellis.NEXT[states][s]] for target in range(states)]
        assert all(len(origin) == 2 for origin in into)
    table = TEXT.split("| state of 4 |")[1].split("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    for states, first in ((4, 0), (8, 5)):
        said = [tuple(int(c) for c in line[first : first + 4]) for line in cells if line[first]]
        assert said == [(s, trellis.QUANTIZER[states][s], *trellis.NEXT[states][s]) for s in range(states)]


def test_the_document_s_example():
    found = re.findall(r"states?\s+((?:\d, )+\d)[^\d-]+levels\s+((?:-?\d, )+-?\d)", TEXT)
    assert len(found) == 2
    for states, (seen, levels) in zip((4, 8), found, strict=True):
        assert plain_levels([1, 1, -2, 0, 3], states) == (json.loads(f"[{seen}]"), json.loads(f"[{levels}]"))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 19), st.integers(0, 9), st.sampled_from([4, 8]), st.data())
def test_restored_as_defined(rows, columns, states, data):
    """All of int32; more and fewer rows than the kernel takes at a time."""
    values = data.draw(st.lists(INT32, min_size=rows * columns, max_size=rows * columns))
    q = np.array(values, np.int64).reshape(rows, columns).astype(np.int32)
    steps = np.exp2(np.arange(rows) % 7 - 3).astype(np.float32)
    found = trellis.restore(q, states, steps)
    active = trellis.active_states(q, states)
    reference = tiny_decoder.trellis_levels(q.astype(np.int64), tiny_decoder.TRELLIS[states // 4])
    assert np.array_equal(found, reference * steps[:, None])
    for r in range(rows):
        seen, levels = plain_levels(q[r].tolist(), states)
        assert active[r].tolist() == seen
        assert np.array_equal(found[r], np.array(levels, np.float64).astype(np.float32) * steps[r])


def test_refuses_wrong_shapes_and_states():
    q = np.zeros((2, 3), np.int32)
    with pytest.raises(ValueError, match="shape"):
        trellis.restore(q, 4, np.ones(3, np.float32))
    with pytest.raises(ValueError, match="shape"):
        trellis.restore(q, 4, np.ones(2, np.float32), np.empty((3, 3), np.float32))
    with pytest.raises(ValueError, match="trellis"):
        ScalarCode(q, 0, trellis=5)
    with pytest.raises(ValueError, match="trellis"):
        ScalarCode(q, 0, trellis=4, shift=(1, 0))


def samples() -> tuple[list[ScalarCode], list[tuple[int, ...]]]:
    rng = np.random.default_rng(3)

    def integers(rows: int, columns: int, scale: float) -> np.ndarray:
        return np.rint(rng.laplace(0, scale, (rows, columns))).astype(np.int32)

    codes = [ScalarCode(integers(9, 18, 1.5), -70, np.arange(9) % 4, 2, trellis=8),
             ScalarCode(integers(5, 3, 9), -80, swapped=True, trellis=4),
             ScalarCode(integers(7, 1, 400), -50, shift=(3, 5)), ScalarCode(integers(1, 6, 40000), -5, trellis=8)]
    return codes, [(9, 2, 3, 3), (3, 5), (7,), (1, 6)]


@MODES
def test_round_trip(mode):
    codes, shapes = samples()
    found = scalar.decode(scalar.encode(codes, shapes, mode), records_of(shapes), DEFAULT_LIMITS, 1)
    for code, shape, tensor in zip(codes, shapes, found, strict=True):
        assert np.array_equal(tensor, code.tensor(shape))
    for rows_per_part in (1, 2, 9, 50):
        payload = scalar.encode(codes[:1], shapes[:1], mode, rows_per_part)
        (tensor,) = scalar.decode(payload, records_of(shapes[:1]), DEFAULT_LIMITS, 3)
        assert np.array_equal(tensor, codes[0].tensor(shapes[0]))


def test_without_a_trellis_payloads_are_what_they_were():
    """The trellis costs nothing where there is none: golden files of before read and are written as ever."""
    code = replace(samples()[0][0], trellis=0)
    assert len(scalar.encode([code], [(9, 18)], SMALL)) <= len(scalar.encode([replace(code, trellis=8)], [(9, 18)],
                                                                               SMALL)) + 2


@MODES
def test_hostile_bytes(mode):
    """Every cut and every flipped bit: an error of ours, or some weights; never another exception."""
    codes, shapes = samples()
    payload = scalar.encode(codes, shapes, mode)
    right = [code.tensor(shape).tobytes() for code, shape in zip(codes, shapes, strict=True)]
    damaged = [payload[:end] for end in range(len(payload))]
    for bit in range(8 * len(payload)):
        flipped = bytearray(payload)
        flipped[bit >> 3] ^= 1 << (bit & 7)
        damaged.append(bytes(flipped))
    same = 0
    for data in damaged:
        try:
            found = scalar.decode(data, records_of(shapes), DEFAULT_LIMITS, 1)
        except TersorError:
            continue
        same += [array.tobytes() for array in found] == right
    assert same <= 40  # the last bits of a code that was cut off where it could be


@MODES
def test_weights_must_be_finite(mode):
    """The level -2^32 goes one octave further than without a trellis."""
    code = ScalarCode(np.array([[-(2**31), 0]], np.int32), 96 * 32, trellis=8)
    for step, fits in ((96 * 32, False), (96 * 32 - 1, True)):
        payload = scalar.encode([replace(code, step_index=step)], [(1, 2)], mode)
        if fits:
            (found,) = scalar.decode(payload, records_of([(1, 2)]), DEFAULT_LIMITS, 1)
            assert np.isfinite(found).all()
        else:
            with pytest.raises(FormatError, match="cannot hold"):
                scalar.decode(payload, records_of([(1, 2)]), DEFAULT_LIMITS, 1)


def test_golden_files_are_there():
    """test_golden.py and test_tiny_decoder.py read them."""
    for name, make in GOLDEN.items():
        kept = describe((FOLDER / f"{name}.tersor").read_bytes())
        assert describe(make())["tensors"] == kept["tensors"]
