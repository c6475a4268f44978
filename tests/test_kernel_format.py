"""The kernel tool's bytes: round trips, the second decoder, worked examples, hostile bytes."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tiny_decoder
from hypothesis import given, settings
from hypothesis import strategies as st
from make_golden_kernels import book, code, group

from tersor.bitstream import kernel_indexes
from tersor.bitstream.container import to_bytes
from tersor.bitstream.integers import IntegerWriter
from tersor.bitstream.kernel_indexes import Part
from tersor.bitstream.manifest import TensorRecord
from tersor.decoder import load
from tersor.errors import ConfigError, FormatError, KernelError, LimitError, TersorError
from tersor.limits import DEFAULT_LIMITS, Limits
from tersor.synthesis import kernels
from tersor.synthesis.kernel_code import compact, used
from tersor.synthesis.kernels import CODERS, KernelCode

TEXT = (Path(__file__).parent.parent / "docs" / "format-kernels.md").read_text(encoding="utf-8")
SHAPES = [(6, 4, 3, 3), (5, 3, 3, 3), (8, 21), (4, 3, 2, 2), (0, 2, 3, 3)]


def records_of(shapes, dtype="F32"):
    return [TensorRecord(f"t{i}", dtype, shape, 0) for i, shape in enumerate(shapes)]


def some(seed=0):
    """Codes for SHAPES, two of them with one codebook."""
    shared = book(seed, 13, 9)
    return [code(seed, SHAPES[0], shared), code(seed + 1, SHAPES[1], shared, gain="gains", rows=True),
            code(seed + 2, SHAPES[2], book(seed, 6, 5), gain="signs"),
            code(seed + 3, SHAPES[3], book(seed, 4, 4), gain="large", swapped=True),
            code(seed + 4, SHAPES[4], book(seed, 1, 9))]


def round_trip(codes, shapes, coder, bits=None):
    payload, weight_bytes = kernels.encode_counted(codes, shapes, coder, bits)
    assert 0 <= weight_bytes < len(payload)
    records = records_of(shapes)
    for found, one, shape in zip(kernels.decode(payload, records, DEFAULT_LIMITS, 1), codes, shapes, strict=True):
        assert (found.dtype, found.shape) == (np.float32, shape)
        assert found.tobytes() == np.ascontiguousarray(one.tensor(shape).astype(np.float32)).tobytes()
    again = kernels.decode_codes(payload, records)
    for found_code, one in zip(again, compact(codes), strict=True):
        assert np.array_equal(found_code.values, one.values)
        assert np.array_equal(found_code.index, one.index)
        assert (found_code.gain is None) == (one.gain is None)
        assert one.gain is None or np.array_equal(found_code.gain, one.gain)
        assert (found_code.step_index, found_code.swapped) == (one.step_index, one.swapped)
    assert kernels.encode(again, shapes, coder, bits) == payload
    return payload


@pytest.mark.parametrize("coder", CODERS)
def test_round_trip(coder):
    payload = round_trip(some(), SHAPES, coder)
    for array, other in zip(kernels.decode(payload, records_of(SHAPES), DEFAULT_LIMITS, 1),
                            tiny_decoder.TOOLS[6](payload, [tiny_decoder.Tensor(f"t{i}", np.dtype("f4"), shape)
                                                            for i, shape in enumerate(SHAPES)]), strict=True):
        assert array.tobytes() == np.ascontiguousarray(other).tobytes()


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_code(data):
    """Random integers of every kind, by every coder."""
    shape = data.draw(st.sampled_from([(3, 2, 2, 2), (5, 7), (4,), (2, 3, 1, 3)]))
    taps = data.draw(st.integers(1, max(1, int(np.prod(shape[1:])))))
    rng = np.random.default_rng(data.draw(st.integers(0, 1 << 30)))
    k = data.draw(st.integers(1, 9))
    gain = data.draw(st.sampled_from(["", "signs", "gains", "large"]))
    one = code(int(rng.integers(1 << 30)), shape, book(int(rng.integers(1 << 30)), k, taps, 40.0), gain=gain,
               rows=data.draw(st.booleans()))
    round_trip([one], [shape], data.draw(st.sampled_from(CODERS)), data.draw(st.sampled_from([None, 6, 16])))


def test_whole_models_share_what_they_learn():
    """Many small layers in one section are shorter than each for itself."""
    shapes = [(16, 16, 3, 3)] * 6
    codes = [code(i, shape, book(i, 12, 9), gain="gains") for i, shape in enumerate(shapes)]
    alone = sum(len(kernels.encode([one], [shape])) for one, shape in zip(codes, shapes, strict=True))
    assert len(kernels.encode(codes, shapes)) < alone - 60


def test_shared_codebooks_are_stored_once():
    shape = (8, 8, 3, 3)
    values = book(1, 30, 9)
    codes = [code(i, shape, values) for i in range(3)]
    apart = [replace(one, values=np.where(one.values == 5, 6 + i, one.values)) for i, one in enumerate(codes)]
    together, separate = (len(kernels.encode(some, [shape] * 3, "fixed", 6)) for some in (codes, apart))
    assert separate - together > 200


def test_fixed_length_has_the_rate_of_the_paper():
    """N log2 K + 6 K t bits and a head."""
    one = code(1, (64, 64, 3, 3), np.clip(book(1, 64, 9), -32, 31))
    one = replace(one, index=np.resize(np.arange(64, dtype=np.int32), (64, 64)))
    payload, weight_bytes = kernels.encode_counted([one], [(64, 64, 3, 3)], "fixed", 6)
    assert weight_bytes == 64 * 64 * 6 // 8
    assert 64 * 9 * 6 // 8 < len(payload) - weight_bytes < 64 * 9 * 6 // 8 + 16


def test_adaptive_indexes_are_near_their_entropy():
    rng = np.random.default_rng(3)
    share = 0.93 ** np.arange(40)
    index = rng.choice(40, (64, 64), p=share / share.sum()).astype(np.int32)
    counts = np.bincount(index.ravel(), minlength=40)
    order = np.argsort(-counts, kind="stable")
    index = np.argsort(order).astype(np.int32)[index]
    counts = counts[order][counts[order] > 0]
    data = kernel_indexes.encode([index], [Part(64, 64, 40, kernel_indexes.choose_decay(counts), True)])
    ideal = float(counts @ np.log2(counts.sum() / counts)) / 8
    assert len(data) < 1.02 * ideal


def test_contexts_find_what_rows_and_channels_have_in_common():
    rng = np.random.default_rng(4)
    level = np.add.outer(rng.integers(0, 2, 64), rng.integers(0, 2, 64)) * 8
    index = (level + rng.integers(0, 8, (64, 64))).astype(np.int32)
    part = Part(64, 64, 24, 256, True)
    known = len(kernel_indexes.encode([index], [part]))
    mixed = len(kernel_indexes.encode([rng.permutation(index.ravel()).reshape(64, 64)], [part]))
    assert known < 0.8 * mixed


def test_compact():
    values = np.array([[5, 5], [1, 2], [7, 0]], np.int32)
    index = np.array([[1, 0], [1, 0]], np.int32)
    gain = np.array([[1, 1], [2, 0]], np.int32)
    (one,) = compact([KernelCode(values, index, 0, gain)])
    assert one.values.tolist() == [[1, 2], [5, 5]]
    assert one.index.tolist() == [[0, 1], [0, 0]]
    assert used(one).tolist() == [2, 1]


def test_wrong_arguments():
    shape = (6, 4, 3, 3)
    good = code(1, shape, book(1, 5, 9))
    with pytest.raises(ConfigError, match="coder"):
        kernels.encode([good], [shape], "huffman")
    with pytest.raises(ValueError, match="kernels"):
        kernels.encode([good], [(6, 5, 3, 3)])
    with pytest.raises(ValueError, match=r"0\.\.4"):
        kernels.encode([replace(good, index=good.index + 5)], [shape])
    with pytest.raises(ConfigError, match="16 bits"):
        kernels.encode([replace(good, values=good.values + 40000)], [shape])
    with pytest.raises(ConfigError, match="gain"):
        kernels.encode([replace(good, gain=np.full((6, 4), 1 << 21, np.int32))], [shape])
    with pytest.raises(ConfigError, match="fixed length"):
        kernels.encode([replace(good, gain=np.arange(24, dtype=np.int32).reshape(6, 4) * 40000)], [shape], "fixed")
    with pytest.raises(ConfigError, match="taps"):
        kernels.encode([code(1, (6, 4), book(1, 5, 9))], [(6, 4)])
    with pytest.raises(KernelError):
        kernel_indexes.encode([np.full((1, 1), 5, np.int32)], [Part(1, 1, 3, 0, True)])


# ---- the document -------------------------------------------------------------------------------------

def examples():
    """(code, shape, coder, bytes) as the document has them."""
    first = KernelCode(np.array([[1, -2], [3, 0], [-1, 4]], np.int32), np.array([[0, 1], [0, 2]], np.int32), -64)
    second = KernelCode(np.array([[2, -1], [1, 1]], np.int32), np.array([[0, 1], [0, 0]], np.int32), -64,
                        np.array([[1, -2], [0, 3]], np.int32), np.array([0, -1]), 2)
    found = re.findall(r"^\* coder (\d)[^:]*: coded as ((?:[0-9a-f]{2} ?)+)$", TEXT, re.MULTILINE)
    assert len(found) == 6
    for i, (coder, data) in enumerate(found):
        one, shape = ((first, (2, 4)), (second, (2, 3)))[i // 3]
        yield one, shape, CODERS[int(coder)], bytes.fromhex(data)


def test_worked_examples():
    for one, shape, coder, data in examples():
        assert kernels.encode([one], [shape], coder) == data
        (found,) = kernels.decode(data, records_of([shape]), DEFAULT_LIMITS, 1)
        (other,) = tiny_decoder.TOOLS[6](data, [tiny_decoder.Tensor("t", np.dtype("f4"), shape)])
        assert found.tobytes() == other.tobytes()
        wanted = [[0.25, -0.5, 0.75, 0], [0.25, -0.5, -0.25, 1]] if shape == (2, 4) else \
            [[0.5, -0.25, -0.5], [0, 0, 1.26134467]]
        assert np.array_equal(found, np.float32(wanted))


# ---- hostile bytes ------------------------------------------------------------------------------------

@cache
def hostile_case(coder):
    return kernels.encode(some(7), SHAPES, coder), records_of(SHAPES)


def survives(payload, records):
    try:
        for array, record in zip(kernels.decode(payload, records, DEFAULT_LIMITS, 2), records, strict=True):
            assert array.shape == record.shape and np.isfinite(array).all()
    except TersorError:
        return False
    return True


@pytest.mark.parametrize("coder", CODERS)
def test_truncations_and_flips(coder):
    payload, records = hostile_case(coder)
    assert survives(payload, records)
    for size in range(len(payload)):
        for bit in (0, 4, 7):
            survives(payload[:size] + bytes([payload[size] ^ 1 << bit]) + payload[size + 1 :], records)
    refused = sum(not survives(payload[:size], records) for size in range(len(payload)))
    assert refused >= 0.5 * len(payload)  # adaptive codes are read on with zeros after their end
    if coder == "fixed":
        assert refused == len(payload) and not survives(payload + b"\0", records)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=80), st.data())
def test_noise(noise, data):
    payload, records = hostile_case(data.draw(st.sampled_from(CODERS)))
    cut = data.draw(st.integers(0, len(payload)))
    survives(payload[:cut] + noise, records)
    survives(noise, records)


def test_parameters_out_of_range():
    """Each integer of the head beyond its range, in turn."""
    def payload(data=b"\x96\xb8\x86\x80", **changed):
        writer = IntegerWriter()
        values = {"coder": (0, 0), "values": (0, 1), "swapped": (0, 2), "book": (0, 3), "taps": (2, 4), "size": (1, 5),
                  "bits": (4, 6), "step": (0, 8), "resolution": (-1, 9), "gains": (1, 11), "least": (-1, 12),
                  "span": (2, 13), "bytes": (2, 14), "more": (1, 14)}
        for name, (value, context) in values.items():
            writer.put([changed.get(name, value)], context)
        head = writer.finish()
        # Entries [1, -2], [3, 0]; gains 1, -1, 0, 1; indexes 1, 0, 0.
        return bytes([len(head)]) + head + data

    records = records_of([(2, 4)])
    (found,) = kernels.decode(payload(), records, DEFAULT_LIMITS, 1)
    assert found.tolist() == [[3, 0, -1, 2], [0, 0, 1, -2]]
    wrong = {"coder": 3, "values": 2, "swapped": 2, "book": 1, "taps": 5, "size": 65536, "bits": 17, "step": 28801,
             "resolution": 6, "gains": 2, "least": 1 << 21, "span": 65536, "bytes": 3, "more": 2}
    for name, value in [*wrong.items(), *((name, -(1 << 21)) for name in wrong), ("size", 4), ("taps", 0)]:
        with pytest.raises(FormatError):
            kernels.decode(payload(**{name: value}), records, DEFAULT_LIMITS, 1)
    with pytest.raises(FormatError, match="largest"):
        kernels.decode(payload(b"\x96\xb8\x87\x80"), records, DEFAULT_LIMITS, 1)


def test_short_payloads_do_not_make_large_arrays():
    """A few bytes cannot claim millions of indexes, values or gains."""
    with pytest.raises(FormatError, match="cannot hold"):
        kernel_indexes.decode(b"\0", [Part(10_000, 10_000, 2, 0, True)])
    head = [(1, 0), (1, 1), (0, 2), (0, 3), (1 << 30, 4), (0, 5), (0, 6), (0, 7), (0, 8), (-1, 9), (0, 11), (0, 14),
            (0, 14)]
    writer = IntegerWriter()
    for value, context in head:
        writer.put([value], context)
    data = writer.finish()
    records = records_of([(0, 1 << 31)])
    with pytest.raises(FormatError, match="cannot hold"):
        kernels.decode(bytes([len(data)]) + data, records, Limits(max_tensor_bytes=1 << 50, max_bytes=1 << 50), 1)


def test_limits_and_types():
    one = code(1, (6, 4, 3, 3), book(1, 5, 9))
    payload = kernels.encode([one], [(6, 4, 3, 3)])
    with pytest.raises(LimitError):
        kernels.decode(payload, records_of([(6, 4, 3, 3)], "F8_E5M2"), Limits(max_tensor_bytes=500), 1)
    for shape, dtype in (((6, 4, 3, 3), "I32"), ((), "F32")):
        with pytest.raises(FormatError, match="kernel section"):
            kernels.decode(payload, records_of([shape], dtype), DEFAULT_LIMITS, 1)
    with pytest.raises(FormatError, match="cannot hold"):
        big = kernels.encode([replace(one, step_index=9000)], [(6, 4, 3, 3)])
        kernels.decode(big, records_of([(6, 4, 3, 3)]), DEFAULT_LIMITS, 1)


def test_in_a_file():
    members = group("x.")
    records = [TensorRecord(name, dtype, shape, 0) for name, dtype, shape, _ in members]
    payload = kernels.encode([member[3] for member in members], [member[2] for member in members])
    with load(to_bytes(records, [(6, payload)], parameters=9)) as file:
        for name, _, shape, one in members:
            assert np.array_equal(file[name], one.tensor(shape).astype(np.float32))
