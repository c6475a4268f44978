"""The adaptive context coder: round trips, a plain-Python reference, code lengths, hostile bytes."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import context_reference as reference
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.bitstream import context
from tersor.bitstream.context import Shape
from tersor.errors import FormatError, TersorError

Matrix = npt.NDArray[np.int32]
LOWEST, HIGHEST = -(2**31), 2**31 - 1
TEXT = (Path(__file__).parent.parent / "docs" / "format.md").read_text(encoding="utf-8")


def as_tuple(shape: Shape) -> reference.Layout:
    return shape.rows, shape.columns, shape.taps, shape.width, shape.bypass, shape.trellis, shape.kind


def laplace(shape: tuple[int, int], scale: float, seed: int = 0) -> Matrix:
    return np.round(np.random.default_rng(seed).laplace(0, scale, shape)).astype(np.int32)


def assert_round_trip(matrices: list[Matrix], shapes: list[Shape]) -> bytes:
    payload = context.encode(matrices, shapes)
    for q, back in zip(matrices, context.decode(payload, shapes), strict=True):
        np.testing.assert_array_equal(q, back)
    return payload


@st.composite
def groups(draw, most_channels: int = 6, most_rows: int = 9):
    """Matrices from constant to full-range, with kernels, bypass, and dimensions of zero."""
    matrices, shapes = [], []
    for _ in range(draw(st.integers(0, 4))):
        taps, width = draw(st.sampled_from([(1, 1), (9, 3), (4, 2), (7, 7), (30, 5), (8, 1), (27, 3), (70, 10)]))
        bypass = draw(st.sampled_from([0, 0, 1, 3, 24]))
        columns = draw(st.integers(0, most_channels)) * taps
        trellis, kind = draw(st.sampled_from([0, 0, 4, 8])), draw(st.sampled_from([0, 0, 1]))
        shape = Shape(draw(st.integers(0, most_rows)), columns, taps, width, bypass, trellis, kind)
        scale = draw(st.sampled_from([0.0, 0.1, 0.7, 3.0, 60.0, 1e4, 2e9]))
        rng = np.random.default_rng(draw(st.integers(0, 1 << 20)))
        values = rng.laplace(0, 1, (shape.rows, columns)) * rng.choice([scale, scale / 9], (shape.rows, 1))
        values += draw(st.sampled_from([0, 0, -1, 7, -1000, 1 << 30]))
        q = np.clip(np.round(values), LOWEST if bypass else LOWEST + 1, HIGHEST).astype(np.int32)
        if q.size and draw(st.booleans()):
            q[-1, -1], q[0, 0] = HIGHEST, LOWEST if bypass else LOWEST + 1
        matrices.append(q)
        shapes.append(shape)
    return matrices, shapes


@settings(max_examples=200, deadline=None)
@given(groups())
def test_round_trip(group):
    assert_round_trip(*group)


@settings(max_examples=60, deadline=None)
@given(groups(most_channels=3, most_rows=5))
def test_like_the_reference(group):
    """Kernel and plain Python agree: also on every shift of a negative number."""
    matrices, shapes = group
    found, _ = reference.decode(context.encode(matrices, shapes), map(as_tuple, shapes))
    for q, back, shape in zip(matrices, found, shapes, strict=True):
        assert np.array_equal(np.array(back, np.int64).reshape(shape.rows, shape.columns), q)


@cache
def adversarial() -> tuple[Matrix, Shape]:
    """Patterns that turn around every 16 rows: mixers come to distrust a context (negative weights)."""
    rows = [[(c % 2 if r // 16 % 2 == 0 else c // 2 % 2) * (2 if r % 5 else -3) for c in range(64)]
            for r in range(48)]
    return np.array(rows, np.int32), Shape(48, 64)


def test_negative_numbers_are_rounded_down():
    """On these data the reference with truncating shifts, in any one of four places, does not decode."""
    q, shape = adversarial()
    payload = assert_round_trip([q], [shape])
    (found,), model = reference.decode(payload, [as_tuple(shape)])
    assert found == q.tolist()
    state = model.states[0]
    sets = [*state.by_bin, *(s for table in (state.by_place, state.by_level) for row in table for s in row)]
    assert min(min(s.weights) for s in sets) < 0

    class Slot(reference.Slot):
        def update(self, bit):
            change = ((4194303 if bit else 0) - self.p) * reference.reciprocal(self.n)
            self.p += int(change / 65536)  # truncated
            self.n = min(self.n + 1, 255)

    def mixed(sets, inputs):
        sums = [sum(weights) >> 16 for weights in zip(*(s.weights for s in sets), strict=True)]
        total = sum(w * t for w, t in zip(sums, inputs, strict=True))
        return max(-2047, min(2047, int(total / 4096)))

    def learn(sets, inputs, x, bit):
        sets[0].count += 1
        rate = 1000 + 64000 // (sets[0].count // 64 + 16)
        error = int((((65535 if bit else 0) - reference.squash(x)) * rate + 32768) / 65536)
        for s in sets:
            s.weights = [w + t * error for w, t in zip(s.weights, inputs, strict=True)]

    def moved(mean, size, count, limit):
        return mean + int((size - mean) * reference.reciprocal(min(count, limit)) / 65536)

    for name, wrong in (("Slot", Slot), ("mixed", mixed), ("learn", learn), ("moved", moved)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(reference, name, wrong)
            assert outcome_of_reference(payload, [shape]) != [q.tolist()], name


def test_examples_of_the_document():
    text = TEXT.split("## Adaptive context coder")[1]
    one, other, third = (bytes.fromhex(found)
                         for found in re.findall(r"coded as((?:\s+[0-9a-f]{2}\b)+)", text)[:3])
    q = np.array([[1, 0, -1, 2], [0, -3, 21, 1]], np.int32)
    assert context.encode([q], [Shape(2, 4, 4, 2)]) == one
    _, model = reference.decode(one, [as_tuple(Shape(2, 4, 4, 2))])
    decisions = re.findall(r"\((\d{5}), ([01])\)", text.split("first decisions")[1])
    assert len(decisions) == 14
    assert model.trace[: len(decisions)] == [(int(p), int(bit)) for p, bit in decisions]
    assert context.encode([np.array([[100, -90, 37]], np.int32)], [Shape(1, 3, 1, 1, 4)]) == other
    shape = Shape(1, 5, trellis=8, kind=context.BASIS)
    assert context.encode([np.array([[1, 1, -2, 0, 3]], np.int32)], [shape]) == third


def test_tables_of_the_document():
    text = TEXT.split("## Adaptive context coder")[1]
    block = text.split("A[0..32] =")[1].split("and a =")[0]
    assert tuple(map(int, block.split())) == reference.ANCHORS
    assert [reference.squash(x) for x in (-2047, -1, 0, 1, 2047)] == [22, 32705, 32768, 32831, 65514]
    rows = re.findall(r"taste\[(\d+)\] +=((?: -?\d+){6})", text)
    assert {int(i): tuple(map(int, row.split())) for i, row in rows} == dict(enumerate(reference.TASTE))
    assert [reference.STRETCH[p] for p in (0, 1, 2047, 2048, 4095)] == [-2047, -2034, 0, 1, 2047]


# ---- code length -------------------------------------------------------------------------------------

def entropy_bytes(q: Matrix) -> float:
    """Size of an ideal order-0 code."""
    counts = np.unique(q, return_counts=True)[1]
    return float((counts * np.log2(q.size / counts)).sum() / 8)


@pytest.mark.parametrize(("scale", "bound"), [
    (0.15, 1.045), (0.3, 1.03), (1.0, 1.01), (3.0, 1.01), (8.0, 1.03)])
def test_independent_data_cost_at_most_3_percent_over_order_0(scale, bound):
    """Adaptation is dearest where nearly all weights are zero: 0.15 is 0.26 bits a weight."""
    for shape in ((400, 500), (64, 576)):
        q = laplace(shape, scale, 3)
        assert len(assert_round_trip([q], [Shape(*shape)])) < bound * entropy_bytes(q) + 20


def test_fine_steps_with_bypass():
    q = laplace((300, 400), 300.0, 4)
    bypass = context.choose_bypass(q)
    assert bypass > 3
    spread = np.sqrt(2.0) * 300
    ideal = q.size * np.log2(spread * np.e * np.sqrt(2.0)) / 8  # differential entropy of a Laplacian
    assert len(assert_round_trip([q], [Shape(300, 400, 1, 1, bypass)])) < 1.03 * ideal


def test_spread_of_rows_and_columns_is_learnt():
    rng = np.random.default_rng(5)
    rows = np.exp(rng.normal(0, 1.0, (128, 1)))
    columns = np.exp(rng.normal(0, 0.7, (1, 288)))
    for spread, bound in ((rows, 0.92), (columns, 0.96), (rows * columns, 0.90)):
        q = np.round(rng.laplace(0, 0.8, (128, 288)) * spread).astype(np.int32)
        assert len(assert_round_trip([q], [Shape(128, 288, 9, 3)])) < bound * entropy_bytes(q)


def test_kernels_and_signs_are_learnt():
    rng, shape = np.random.default_rng(6), Shape(96, 288, 9, 3)
    mask = np.tile(np.array([[0.3, 1, 0.3, 1, 2.5, 1, 0.3, 1, 0.3]]), (1, 32))
    kernels = rng.choice([0.2, 2.0], (96, 32)).repeat(9, 1)
    q = np.round(rng.laplace(0, 1.0, (96, 288)) * mask * kernels).astype(np.int32)
    mixed = len(assert_round_trip([q], [shape]))
    assert mixed < 0.91 * entropy_bytes(q)
    same = np.abs(q) * rng.choice([-1, 1], (96, 32)).repeat(9, 1).astype(np.int32)  # one sign for each kernel
    assert len(context.encode([same], [shape])) < 0.9 * mixed


def test_small_matrices_learn_from_those_before():
    matrices, shapes = [laplace((8, 36), 0.7, i) for i in range(40)], [Shape(8, 36, 9, 3)] * 40
    together = len(assert_round_trip(matrices, shapes))
    alone = sum(len(context.encode([q], [shape])) for q, shape in zip(matrices, shapes, strict=True))
    assert together < 0.95 * alone


def test_contexts_know_the_quantizer_of_a_trellis():
    """Integers as nearest levels leave them: quantizer 1 has its zero between levels one sub-step away."""
    rng, table = np.random.default_rng(7), reference.TRELLIS[8]
    q = np.zeros((64, 288), np.int32)
    for r, row in enumerate(rng.normal(0, 1.3, q.shape)):
        state = 0
        for c, x in enumerate(row):
            shift = table[state][0]
            q[r, c] = np.sign(x) * max(0, round((abs(x) + shift) / 2))
            state = table[state][1 + int(q[r, c]) % 2]
    plain = len(context.encode([q], [Shape(64, 288, 9, 3)]))
    assert len(assert_round_trip([q], [Shape(64, 288, 9, 3, trellis=8)])) < 0.96 * plain


def test_rows_of_a_layer_tell_of_the_channels_of_the_next():
    rng = np.random.default_rng(8)
    spread = np.exp(rng.normal(0, 1.0, (64, 1)))
    first = np.round(rng.laplace(0, 1.0, (64, 36)) * spread).astype(np.int32)
    then = np.round(rng.laplace(0, 1.0, (8, 576)) * spread.repeat(9, 0).T).astype(np.int32)
    shapes = [Shape(64, 36, 9, 3), Shape(8, 576, 9, 3)]
    others = [len(context.encode([first[rng.permutation(64)], then], shapes)) for _ in range(9)]
    assert len(assert_round_trip([first, then], shapes)) < np.mean(others) - 10


def test_zeros_cost_next_to_nothing():
    assert len(assert_round_trip([np.zeros((1000, 1000), np.int32)], [Shape(1000, 1000)])) < 110


# ---- corners -----------------------------------------------------------------------------------------

def test_lowest_integer():
    """-2^31 has no magnitude; a bypass bit makes room for it."""
    q = np.array([[LOWEST, 1, 0]], np.int32)
    with pytest.raises(ValueError, match="bypass"):
        context.encode([q], [Shape(1, 3)])
    assert context.choose_bypass(q) >= 1
    assert_round_trip([q], [Shape(1, 3, bypass=context.choose_bypass(q))])
    assert_round_trip([np.array([[LOWEST + 1, HIGHEST]], np.int32)], [Shape(1, 2)])


def test_wrong_shape_is_refused():
    with pytest.raises(ValueError, match="announced"):
        context.encode([np.zeros((2, 3), np.int32)], [Shape(3, 2)])


@pytest.mark.parametrize(("value", "size"), [(-1, 3), (-1, 1000), (-1, 1500), (0, 1000), (1, 1000),
                                             (-18, 200), (19, 200), (-20, 200)])
def test_constant_matrices_of_any_size(value, size):
    """All weights -1 is the code that has zero bytes only: they must not all be dropped."""
    assert_round_trip([np.full((size, size), value, np.int32)], [Shape(size, size)])


def test_payload_too_short_for_so_many_weights():
    for size in (768_000, 768_001, 816_000, 816_001):
        payload = context.encode([np.full((1, size), -1, np.int32)], [Shape(1, size)])
        assert len(payload) == max(0, -(-(-(-size // 12000) - 64) // 4))
    for data, count in ((b"", 768_001), (b"\0", 816_001), (b"\xff" * 100, 10**7), (b"\xff" * 100, 1 << 50)):
        with pytest.raises(FormatError, match="cannot hold"):
            context.decode(data, [Shape(1, count)])
    assert (context.decode(b"", [Shape(1, 768_000)])[0] == -1).all()


def test_matrices_without_elements_need_no_memory():
    shapes = [Shape(0, 1 << 40, 9, 3), Shape(1, 2), Shape(1 << 40, 0), Shape(0, 0)]
    payload = context.encode([np.array([[3, -4]], np.int32)], [Shape(1, 2)])
    q = context.decode(payload, shapes)[1]
    assert q.tolist() == [[3, -4]]
    assert context.decode(b"", []) == []


def test_bytes_after_the_end():
    q = laplace((20, 20), 1)
    payload = context.encode([q], [Shape(20, 20)])
    assert np.array_equal(context.decode(payload + b"\0", [Shape(20, 20)])[0], q)  # was read
    with pytest.raises(FormatError, match="left"):
        context.decode(payload + bytes(9), [Shape(20, 20)])


def test_determinism_and_threads():
    group = [laplace((64, 90), 0.3 * (i + 1), i) for i in range(6)]
    shapes = [Shape(64, 90, 9, 3)] * 6
    payload = context.encode(group, shapes)
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(lambda _: context.encode(group, shapes), range(6))) == {payload}
        for found in pool.map(lambda _: context.decode(payload, shapes), range(6)):
            assert all(np.array_equal(a, b) for a, b in zip(found, group, strict=True))


# ---- hostile bytes -----------------------------------------------------------------------------------

def outcome(payload: bytes, shapes: list[Shape]) -> list[list[list[int]]] | None:
    """The integers, or None for a TersorError."""
    try:
        return [q.tolist() for q in context.decode(payload, shapes)]
    except TersorError:
        return None


def outcome_of_reference(payload: bytes, shapes: list[Shape]) -> list[list[list[int]]] | None:
    try:
        return reference.decode(payload, map(as_tuple, shapes))[0]
    except reference.Corrupt:
        return None


@cache
def samples() -> list[tuple[bytes, list[Shape], list[list[list[int]]]]]:
    made = []
    for seed, scale in enumerate((0.5, 40.0, 1e8)):
        shapes = [Shape(6, 18, 9, 3, seed), Shape(3, 7), Shape(1, 12, 4, 2, 2)]
        group = [laplace((s.rows, s.columns), scale, seed) for s in shapes]
        made.append((context.encode(group, shapes), shapes, [q.tolist() for q in group]))
    return made


@pytest.mark.parametrize("index", range(3))
def test_truncation_at_every_byte(index):
    payload, shapes, right = samples()[index]
    for end in range(len(payload)):
        assert outcome(payload[:end], shapes) != right


@pytest.mark.parametrize("index", range(3))
def test_every_single_bit_flip(index):
    payload, shapes, right = samples()[index]
    for bit in range(8 * len(payload)):
        flipped = bytearray(payload)
        flipped[bit >> 3] ^= 1 << (bit & 7)
        found = outcome(bytes(flipped), shapes)
        assert found != right or bit >> 3 == len(payload) - 1  # some bits of the last byte mean nothing


@settings(max_examples=80, deadline=None)
@given(payload=st.binary(max_size=60),
       shapes=st.lists(st.builds(lambda r, n, t, b: Shape(r, n * t, t, max(1, t // 3), b), st.integers(0, 5),
                                 st.integers(0, 4), st.sampled_from([1, 4, 9]), st.sampled_from([0, 2, 24])),
                       max_size=3))
def test_made_up_payloads_like_the_reference(payload, shapes):
    found = outcome(payload, shapes)
    expected = outcome_of_reference(payload, shapes)
    if found is not None and expected is not None:  # matrices without elements are spelt in two ways
        found = [q.reshape(-1).tolist() for q in map(np.array, found)]
        expected = [q.reshape(-1).tolist() for q in map(np.array, expected)]
    assert found == expected
