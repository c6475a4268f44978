"""The scalar tool: views, steps, levels, parts, and what it refuses."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.bitstream import context, rans, varint
from tersor.bitstream.integers import IntegerWriter
from tersor.bitstream.manifest import TensorRecord
from tersor.errors import FormatError, LimitError, TersorError
from tersor.limits import DEFAULT_LIMITS, Limits
from tersor.synthesis import grid, scalar
from tersor.synthesis.rounding import to_dtype
from tersor.synthesis.scalar import FAST, SMALL, ScalarCode

Shape = tuple[int, ...]
MODES = pytest.mark.parametrize("mode", [FAST, SMALL], ids=["fast", "small"])
TEXT = (Path(__file__).parent.parent / "docs" / "format.md").read_text(encoding="utf-8")
LOWEST, HIGHEST = -(2**31), 2**31 - 1


def records_of(shapes: list[Shape], dtype: str = "F32") -> list[TensorRecord]:
    return [TensorRecord(f"t{i}", dtype, shape, 0) for i, shape in enumerate(shapes)]


def restored(payload: bytes, shapes: list[Shape], dtype: str = "F32",
             threads: int = 1) -> list[npt.NDArray[np.generic]]:
    return scalar.decode(payload, records_of(shapes, dtype), DEFAULT_LIMITS, threads)


def expected(code: ScalarCode, shape: Shape) -> npt.NDArray[np.float32]:
    """The document's formulas, an element at a time, independently of the library's arrays."""
    rows = code.q.shape[0]
    exponents = np.zeros(rows, np.int64) if code.row_index is None else code.row_index
    factor = 2 ** (5 - code.row_resolution) if code.row_index is not None else 0
    out = np.empty(code.q.shape, np.float32)
    for r in range(rows):
        step = np.float32(grid.value(code.step_index + factor * int(exponents[r])))
        for c, q in enumerate(code.q[r].tolist()):
            shift = code.shift[0] if abs(q) == 1 else code.shift[1] if 2 <= abs(q) <= 4096 else 0
            out[r, c] = np.float32(math.copysign(abs(q) - shift / 64, q) if q else 0.0) * step
    if not code.swapped:
        return out.reshape(shape)
    tensor = np.empty(shape, np.float32)
    for index in np.ndindex(*shape):
        first, second, *rest = index
        column = int(np.ravel_multi_index((first, *rest), (shape[0], *shape[2:]))) if shape else 0
        tensor[index] = out[second, column]
    return tensor


def laplace(shape: tuple[int, int], scale: float, seed: int = 0) -> npt.NDArray[np.int32]:
    return np.round(np.random.default_rng(seed).laplace(0, scale, shape)).astype(np.int32)


@st.composite
def coded(draw):
    """A tensor shape with one to five axes (some empty) and its integers."""
    shape = tuple(draw(st.lists(st.integers(0, 5), min_size=1, max_size=5)))
    swapped = draw(st.booleans()) and len(shape) > 1
    view = scalar.view_shape(shape, swapped)
    rng = np.random.default_rng(draw(st.integers(0, 1 << 20)))
    scale = draw(st.sampled_from([0, 0.3, 2, 40, 5000, 1e6, 1e9]))
    values = np.round(rng.laplace(0, 1, (view.rows, view.columns)) * scale)
    q = np.clip(values, LOWEST, HIGHEST).astype(np.int32)
    if q.size and draw(st.booleans()):
        q[0, 0], q[-1, -1] = draw(st.sampled_from([LOWEST, LOWEST + 1, -4096, 4097])), HIGHEST
    resolution = draw(st.integers(0, 5))
    row_index = rng.integers(-9, 9, view.rows) if draw(st.booleans()) else None
    shift = draw(st.sampled_from([(0, 0), (0, 48), (48, 0), (7, 3)]))
    return ScalarCode(q, draw(st.integers(-900, 200)), row_index, resolution, shift, swapped), shape


# ---- round trips -------------------------------------------------------------------------------------

@MODES
@settings(max_examples=120, deadline=None)
@given(pairs=st.lists(coded(), min_size=1, max_size=4))
def test_round_trip(mode, pairs):
    codes, shapes = [code for code, _ in pairs], [shape for _, shape in pairs]
    payload, streams = scalar.encode_counted(codes, shapes, mode)
    assert 0 <= streams < len(payload)
    for (code, shape), back in zip(pairs, restored(payload, shapes), strict=True):
        assert (back.dtype, back.shape, back.flags.c_contiguous) == (np.float32, shape, True)
        assert back.tobytes() == expected(code, shape).tobytes() == code.tensor(shape).tobytes()
    records = [TensorRecord("t", "F32", shape, 0) for shape in shapes]
    for code, found in zip(codes, scalar.decode_codes(payload, records), strict=True):
        assert np.array_equal(found.q, code.q) and np.array_equal(found.row_steps(), code.row_steps())
        assert (found.step_index, found.shift, found.swapped) == (code.step_index, code.shift, code.swapped)
    assert scalar.encode(scalar.decode_codes(payload, records), shapes, mode) == payload


@MODES
@settings(max_examples=80, deadline=None)
@given(pair=coded(), rows_per_part=st.sampled_from([1, 2, 3, 5, 1 << 40]), threads=st.integers(1, 4))
def test_parts(mode, pair, rows_per_part, threads):
    code, shape = pair
    whole = restored(scalar.encode([code], [shape], mode), [shape])[0]
    payload = scalar.encode([code], [shape], mode, rows_per_part)
    assert restored(payload, [shape], threads=threads)[0].tobytes() == whole.tobytes()
    (found,) = scalar.decode_codes(payload, [TensorRecord("t", "F32", shape, 0)], threads=threads)
    assert np.array_equal(found.q, code.q) and found.q.dtype == np.int32


@MODES
def test_parts_in_parallel(mode):
    shape = (203, 16, 3, 3)
    code = ScalarCode(laplace((203, 144), 1.3), -100, np.arange(203) % 9, 2, (5, 5))
    payload = scalar.encode([code], [shape], mode, 10)
    serial = restored(payload, [shape], threads=1)[0]
    assert serial.tobytes() == code.tensor(shape).tobytes()
    for threads in (2, 8, 64):
        assert restored(payload, [shape], threads=threads)[0].tobytes() == serial.tobytes()


@MODES
@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"])
def test_element_types(mode, dtype):
    code = ScalarCode(laplace((6, 20), 1.5), -35, np.array([0, 1, -7, 8, -60, 3]), 4, (11, 7))
    (back,) = restored(scalar.encode([code], [(6, 20)], mode), [(6, 20)], dtype)
    assert back.tobytes() == to_dtype(code.tensor((6, 20)).astype(np.float64), dtype, "t").tobytes()
    if dtype == "BF16":
        assert back.dtype == ml_dtypes.bfloat16


@MODES
def test_determinism(mode):
    shapes = [(12, 4, 3, 3), (7, 9)]
    codes = [ScalarCode(laplace((12, 36), 2), -9), ScalarCode(laplace((9, 7), 1, 1), 3, swapped=True)]
    assert len({scalar.encode(codes, shapes, mode) for _ in range(3)}) == 1


def test_views():
    for shape, swapped, found in (((5,), False, (5, 1, 1, 1)), ((4, 6), False, (4, 6, 1, 1)),
                                  ((4, 6), True, (6, 4, 1, 1)), ((4, 6, 5), False, (4, 30, 5, 5)),
                                  ((4, 6, 2, 3), True, (6, 24, 6, 3)),
                                  ((4, 6, 2, 2, 3), False, (4, 72, 12, 3)),
                                  ((0, 6), True, (6, 0, 1, 1)), ((2, 3, 0, 4), False, (2, 0, 1, 4))):
        view = scalar.view_shape(shape, swapped)
        assert (view.rows, view.columns, view.taps, view.width) == found
        tensor = np.arange(math.prod(shape), dtype=np.float32).reshape(shape)
        assert np.array_equal(scalar.unview(scalar.view(tensor, swapped), shape, swapped), tensor)  # type: ignore


@MODES
def test_shift_ends_at_4096(mode):
    """One rule for both modes and for what the encoder believes."""
    q = np.array([[4095, -4096, 4097, -5000, 1 << 20, -(1 << 25) - 1, 1, -2]], np.int32)
    code = ScalarCode(q, 0, shift=(16, 48))
    (back,) = restored(scalar.encode([code], [(1, 8)], mode), [(1, 8)])
    assert back.tolist() == [[4094.25, -4095.25, 4097, -5000, 1 << 20, -(1 << 25), 0.75, -1.25]]
    assert back.tobytes() == code.tensor((1, 8)).tobytes()


@MODES
def test_tiny_steps(mode):
    """Subnormal results are kept, and a step may be zero."""
    q = np.array([[3, -1], [3, -1], [3, -1]], np.int32)
    code = ScalarCode(q, 0, np.array([-28800, -4750, -4100]), 5)
    (back,) = restored(scalar.encode([code], [(3, 2)], mode), [(3, 2)])
    assert back.tobytes() == expected(code, (3, 2)).tobytes()
    assert np.signbit(back[0, 1])
    assert back[0, 1] == 0 < back[1, 0] < 1e-42 < back[2, 0] < 1.2e-38


def test_examples_of_the_document():
    text = TEXT.split("## Tool 1")[1].split("## Tool 2")[0]
    hexes = r"\s+((?:[0-9a-f]{2}\s+)*[0-9a-f]{2})\b"
    small, fast = (bytes.fromhex(re.search(f"mode {mode}" + r"(?:\s+they are coded)?\s+as" + hexes, text)[1])
                   for mode in (1, 0))  # type: ignore[index]
    shapes = [(2, 1, 2, 2), (2, 3)]
    codes = [ScalarCode(np.array([[1, 0, -1, 2], [0, -3, 21, 1]], np.int32), -64, shift=(8, 4)),
             ScalarCode(np.array([[0, 1], [-2, 0], [1, 0]], np.int32), -80, np.array([0, -1, 2]),
                        swapped=True)]
    for mode, payload in ((SMALL, small), (FAST, fast)):
        assert scalar.encode(codes, shapes, mode) == payload
        first, second = restored(payload, shapes)
        assert first.ravel().tolist() == [0.21875, 0, -0.21875, 0.484375, 0, -0.734375, 5.234375, 0.21875]
        np.testing.assert_allclose(second, [[0, -0.29730177, 0.25], [0.17677669, 0, 0]], rtol=1e-7)
    parts = bytes.fromhex(re.search("2 rows per part, is coded as" + hexes, text)[1])  # type: ignore[index]
    code = ScalarCode(np.array([[-3, -2], [-1, 0], [1, 2]], np.int32), 0)
    assert scalar.encode([code], [(3, 2)], SMALL, 2) == parts
    assert restored(parts, [(3, 2)])[0].tolist() == code.q.tolist()


# ---- hostile parameters ------------------------------------------------------------------------------

FIELDS = [("mode", 0, SMALL), ("swapped", 1, 0), ("step", 2, -64), ("shift1", 3, 0), ("shift2", 3, 0),
          ("bypass", 4, 0), ("resolution", 5, 2), ("class", 6, 0), ("rows", 8, [0, 0, 0]), ("part", 7, 0)]
Q = np.array([[1, -2], [0, 3], [4, -1]], np.int32)


def forged(shape: Shape = (3, 2), parts: bytes | None = None, drop: str = "", **changed: object) -> bytes:
    """A payload of one tensor in which some parameters have other values, or are missing."""
    values = {name: changed.get(name, value) for name, _, value in FIELDS}
    view = scalar.view_shape(shape, values["swapped"] == 1)
    writer = IntegerWriter()
    for name, where, _ in FIELDS:
        fast = name == "bypass" and values["mode"] != SMALL
        rows = name in ("class", "rows") and values["resolution"] == -1
        if not (name in drop.split() or fast or rows):
            writer.put(np.atleast_1d(values[name]), where)  # type: ignore[call-overload]
    parameters = writer.finish()
    if parts is None:
        parts = context.encode([Q.reshape(view.rows, -1)], [replace(view, bypass=0)])
    return varint.encode([len(parameters)]) + parameters + parts


def test_forged_payload_is_right_when_nothing_is_changed():
    assert np.array_equal(restored(forged(), [(3, 2)])[0], Q * np.float32(0.25))
    assert np.array_equal(restored(forged(resolution=-1), [(3, 2)])[0], Q * np.float32(0.25))


@pytest.mark.parametrize(("changed", "message"), [
    ({"mode": 2}, "entropy coder"), ({"mode": -1}, "entropy coder"), ({"swapped": 6}, "axis order and trellis"),
    ({"swapped": -1}, "axis order"), ({"shift1": 49}, "shift"), ({"shift2": -1}, "shift"),
    ({"bypass": 25}, "bypass"), ({"bypass": -1}, "bypass"), ({"resolution": 6}, "resolution"),
    ({"resolution": -2}, "resolution"), ({"class": 8}, "size class"), ({"class": -1}, "size class"),
    ({"rows": [0, 28801, 0], "step": -28801}, "grid"), ({"rows": [1 << 40, 0, 0]}, "grid"),
    ({"rows": [0, 0, -4000]}, "grid"), ({"step": 28801, "resolution": -1}, "grid"),
    ({"step": 28801}, "grid"), ({"step": -(1 << 40)}, "grid"), ({"part": -1}, "rows per part")])
def test_parameters_are_checked(changed, message):
    with pytest.raises(FormatError, match=message):
        restored(forged(**changed), [(3, 2)])


def test_step_alone_may_be_beyond_the_grid():
    """Only the steps of rows count, where there are any."""
    payload = forged(step=28864, rows=[-3616] * 3, resolution=2)
    assert np.array_equal(restored(payload, [(3, 2)])[0], Q * np.float32(grid.value(28864 - 8 * 3616)))


def test_steps_are_relative_within_a_section():
    writer = IntegerWriter()
    writer.put([FAST], 0)
    for step in (20000, 20000):  # the second is at 40000
        for values, where in (([0], 1), ([step], 2), ([0, 0], 3), ([-1], 5)):
            writer.put(values, where)
    parameters = writer.finish()
    payload = varint.encode([len(parameters)]) + parameters
    with pytest.raises(FormatError, match="t1: a step is beyond"):
        restored(payload, [(0, 2), (0, 2)])


def test_one_axis_cannot_be_swapped():
    payload = forged((6,), rows=[0] * 6)
    assert restored(payload, [(6,)])[0].shape == (6,)
    with pytest.raises(FormatError, match="one axis"):
        restored(forged((3, 2), swapped=1, rows=[0, 0]), [(6,)])


@pytest.mark.parametrize(("shape", "dtype"), [
    ((), "F32"), ((3, 2), "I32"), ((3, 2), "BOOL"), ((3, 2), "C64")])
def test_tensors_that_cannot_be_scalar(shape, dtype):
    with pytest.raises(FormatError, match="cannot be in a scalar section"):
        restored(forged(), [shape], dtype)


def test_missing_and_surplus_parameters():
    with pytest.raises(TersorError):
        restored(b"", [(3, 2)])
    with pytest.raises(FormatError, match="announced"):
        restored(b"\xff\x7f" + bytes(5), [(3, 2)])
    with pytest.raises(FormatError, match="left"):
        plain, size = forged(), forged()[0]
        restored(bytes([size + 9]) + plain[1 : 1 + size] + b"\1" * 9 + plain[1 + size :], [(3, 2)])


@MODES
def test_part_lengths_are_checked(mode):
    payload = scalar.encode([ScalarCode(laplace((9, 30), 2), 0)], [(9, 30)], mode, 3)
    start = 1 + payload[0]
    for wrong in (payload[:start], payload[:start] + b"\x80",
                  payload[:start] + b"\xff\xff\x03" + payload[start:],
                  payload[:-1] if mode == FAST else payload[: start + 1], payload + bytes(99)):
        with pytest.raises(FormatError):
            restored(wrong, [(9, 30)])


@MODES
def test_nothing_follows_empty_parts(mode):
    for rows_per_part in (0, 4):
        payload = scalar.encode([ScalarCode(np.zeros((0, 5), np.int32), 0)], [(0, 5)], mode, rows_per_part)
        assert restored(payload, [(0, 5)])[0].shape == (0, 5)
        with pytest.raises(FormatError):
            restored(payload + b"\1" * 9, [(0, 5)])


def test_payload_too_short_for_that_many_weights():
    """Refused before the integers are allocated, in each part."""
    for part in (0, 1 << 20):
        parts = bytes(5) if part == 0 else varint.encode([2] * 15) + bytes(32)
        with pytest.raises(FormatError, match="cannot hold"):
            restored(forged((1 << 24, 2), parts=parts, resolution=-1, part=part), [(1 << 24, 2)])


def test_all_minus_one():
    """The one constant tensor whose code is zero bytes; encoders must leave enough of them."""
    code = ScalarCode(np.full((900, 900), -1, np.int32), 0)
    for rows_per_part in (0, 890):
        payload = scalar.encode([code], [(900, 900)], SMALL, rows_per_part)
        assert (restored(payload, [(900, 900)])[0] == -1).all()


@MODES
@pytest.mark.parametrize("dtype", ["F32", "F64", "BF16"])
@pytest.mark.parametrize("step", [28800, 4096, 4095, 3200])
def test_weights_must_be_finite(mode, dtype, step):
    """2^128 and more, whether it is the step or only the product; also 0 times an infinite step."""
    code = ScalarCode(np.array([[HIGHEST, 0]], np.int32), step)
    if step < 4096:
        one = replace(code, q=np.array([[1, 0]], np.int32))
        (back,) = restored(scalar.encode([one], [(1, 2)], mode), [(1, 2)], dtype)
        assert back[0, 0] == to_dtype(np.array([np.float32(grid.value(step))], np.float64), dtype, "t")[0]
    with pytest.raises(FormatError, match="cannot hold"):
        restored(scalar.encode([code], [(1, 2)], mode), [(1, 2)], dtype)


def test_large_steps_are_fine_while_weights_are_finite():
    code = ScalarCode(np.array([[HIGHEST]], np.int32), 3072)
    (back,) = restored(scalar.encode([code], [(1, 1)], SMALL), [(1, 1)])
    assert back[0, 0] == 2.0**127


def test_limits():
    payload = scalar.encode([ScalarCode(Q, 0)], [(3, 2)], FAST)
    with pytest.raises(LimitError):
        scalar.decode(payload, records_of([(3, 2)]), Limits(max_bytes=8), 1)


# ---- damage ------------------------------------------------------------------------------------------

def samples(mode: int) -> list[tuple[bytes, list[Shape], list[bytes]]]:
    shapes = [(4, 2, 3, 3), (3, 5), (7,)]
    codes = [ScalarCode(laplace((4, 18), 1.5), -70, np.array([0, 2, -1, 4]), 2, (5, 6)),
             ScalarCode(laplace((5, 3), 9, 1), -80, swapped=True), ScalarCode(laplace((7, 1), 400, 2), -50)]
    cut = ScalarCode(laplace((8, 6), 2, 3), 0)
    right = [code.tensor(shape).tobytes() for code, shape in zip(codes, shapes, strict=True)]
    return [(scalar.encode(codes, shapes, mode), shapes, right),
            (scalar.encode([cut], [(8, 6)], mode, 3), [(8, 6)], [cut.tensor((8, 6)).tobytes()])]


def outcome(payload: bytes, shapes: list[Shape]) -> list[bytes] | None:
    """The tensors' bytes, or None for a TersorError; every other exception is a failure."""
    try:
        return [array.tobytes() for array in restored(payload, shapes)]
    except TersorError:
        return None


@MODES
def test_truncation_at_every_byte(mode):
    for payload, shapes, right in samples(mode):
        for end in range(len(payload)):
            assert outcome(payload[:end], shapes) != right


@MODES
def test_every_single_bit_flip(mode):
    """No crash, no foreign exception; nearly always other weights or an error (the CRC-32 finds the rest)."""
    for payload, shapes, right in samples(mode):
        same = 0
        for bit in range(8 * len(payload)):
            flipped = bytearray(payload)
            flipped[bit >> 3] ^= 1 << (bit & 7)
            same += outcome(bytes(flipped), shapes) == right
        assert same <= 40  # the last bits of a code that was cut off where it could be


@MODES
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_made_up_payloads(mode, data):
    payload = data.draw(st.binary(max_size=80))
    if data.draw(st.booleans()):
        payload = bytes([len(payload) // 2]) + payload
    shapes = st.sampled_from([(3, 4), (0, 3), (2, 2, 2, 2), (5,), (30, 30)])
    outcome(payload, data.draw(st.lists(shapes, min_size=1, max_size=3)))


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from([name for name, _, _ in FIELDS if name != "rows"]),
                       st.one_of(st.integers(-3, 60), st.integers(-(1 << 40), 1 << 40)), max_size=3),
       st.lists(st.integers(-(1 << 40), 1 << 40), min_size=3, max_size=3),
       st.sampled_from([(3, 2), (2, 3), (3, 1, 2)]))
def test_any_parameters(changed, rows, shape):
    outcome(forged(rows=rows, parts=b"\x12\x34\x56", **changed), [shape])
    outcome(forged(parts=b"\x12\x34\x56", **changed), [shape])


def test_rans_payload_in_fast_mode_is_the_documented_one():
    code = ScalarCode(laplace((9, 30), 2), 0)
    payload = scalar.encode([code], [(9, 30)], FAST)
    assert payload[1 + payload[0] :] == rans.encode([code.q])
