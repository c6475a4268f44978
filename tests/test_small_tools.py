"""The raw, batchnorm and vector tools: what is encoded comes back, at a length close to the entropy."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tersor.bitstream.deflate import deflate
from tersor.bitstream.dtypes import NAMES, NUMPY, name_of, to_bytes
from tersor.bitstream.integers import IntegerWriter
from tersor.bitstream.manifest import TensorRecord
from tersor.errors import FormatError, ModelError, TersorError
from tersor.limits import DEFAULT_LIMITS
from tersor.synthesis import batchnorm, grid, raw, vector
from tersor.synthesis.batchnorm import BatchNormCode
from tersor.synthesis.rounding import to_dtype
from tersor.synthesis.vector import VectorCode

KEYS = ("weight", "bias", "running_mean", "running_var")


def records_for(shapes: list[tuple[int, ...]], dtypes: list[str]) -> list[TensorRecord]:
    pairs = zip(shapes, dtypes, strict=True)
    return [TensorRecord(f"t{i}", dtype, shape, 0) for i, (shape, dtype) in enumerate(pairs)]


def bn_records(channels: list[int], dtype: str = "F32") -> list[TensorRecord]:
    return [TensorRecord(f"bn{i}.{key}", dtype, (c,), 0) for i, c in enumerate(channels) for key in KEYS]


# --- element types --------------------------------------------------------------------------------

def test_names_of_types():
    assert {name_of(dtype): name for name, dtype in NUMPY.items()} == {name: name for name in NAMES}
    assert len(NAMES) == 16
    with pytest.raises(ModelError, match="complex128"):
        name_of(np.complex128)


def test_big_endian_arrays_are_stored_little_endian():
    values = np.arange(5, dtype=">i4")
    (back,) = raw.decode(raw.encode([values]), records_for([(5,)], ["I32"]), DEFAULT_LIMITS, 1)
    assert back.dtype == np.int32
    assert back.tolist() == values.tolist()


def test_rounding_goes_through_float32():
    tie = np.array([1 + 2**-9 + 2**-40])  # float32 drops the last term: then a tie, which goes to even
    assert to_dtype(tie, "BF16", "x").astype(float).tolist() == [1.0]
    assert to_dtype(np.array([1 + 2**-11 + 2**-40]), "F16", "x").astype(float).tolist() == [1.0]
    assert to_dtype(tie, "F64", "x").tolist() == tie.tolist()
    for dtype, value in (("F32", 1e39), ("F16", 1e5), ("F8_E4M3", 1e4), ("F8_E5M2", 1e6), ("BF16", 3.4e38)):
        assert np.isfinite(to_dtype(np.array([1.0]), dtype, "x")).all()
        if dtype != "BF16":
            with pytest.raises(FormatError, match="cannot hold"):
                to_dtype(np.array([value]), dtype, "x")
    with pytest.raises(FormatError, match="raw tool"):
        to_dtype(tie, "I32", "x")


# --- raw --------------------------------------------------------------------------------------------

@st.composite
def arrays_of_any_type(draw):
    out = []
    for _ in range(draw(st.integers(1, 5))):
        dtype = NUMPY[draw(st.sampled_from(NAMES))]
        shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=6))
        count = math.prod(shape) * dtype.itemsize
        data = draw(st.binary(min_size=count, max_size=count))
        if dtype == np.bool_:
            data = bytes(byte & 1 for byte in data)
        out.append(np.frombuffer(data, dtype=dtype).reshape(shape))
    return out


@settings(max_examples=150, deadline=None)
@given(arrays_of_any_type())
def test_raw_keeps_every_bit(arrays):
    payload = raw.encode(arrays)
    records = records_for([a.shape for a in arrays], [name_of(a.dtype) for a in arrays])
    back = raw.decode(payload, records, DEFAULT_LIMITS, 1)
    for a, b in zip(arrays, back, strict=True):
        assert (a.shape, a.dtype, a.tobytes()) == (b.shape, b.dtype, b.tobytes())
        assert b.flags.aligned
    assert len(payload) <= 1 + sum(a.nbytes for a in arrays)


def test_raw_chooses_the_shortest_method():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, 1000, dtype=np.uint8)
    weights = (rng.standard_normal(5000) * 0.05).astype(np.float32)
    assert raw.encode([noise])[0] == raw.STORED
    assert raw.encode([np.full(19, 64000)])[0] == raw.DEFLATED
    assert len(raw.encode([np.full(19, 64000)])) < 16
    assert raw.encode([weights])[0] == raw.SHUFFLED
    assert len(raw.encode([weights])) < 0.91 * weights.nbytes


@pytest.mark.parametrize("method", [raw.DEFLATED, raw.SHUFFLED])
def test_raw_larger_than_one_piece(method):
    values = np.random.default_rng(1).integers(0, 9, 300_000).astype(np.int64)
    plain = values.tobytes() if method == raw.DEFLATED else values.view(np.uint8).reshape(-1, 8).T.tobytes()
    payload = bytes([method]) + deflate(plain)
    records = records_for([values.shape], ["I64"])
    (back,) = raw.decode(payload, records, DEFAULT_LIMITS, 1)
    assert np.array_equal(back, values)
    for data, count in ((payload, 299_999), (payload, 300_001), (payload[:-1], 300_000),
                        (payload + b"\0", 300_000), (payload + bytes(70_000), 300_000)):
        with pytest.raises(FormatError):
            raw.decode(data, records_for([(count,)], ["I64"]), DEFAULT_LIMITS, 1)


def test_raw_bomb_is_stopped_at_the_announced_size():
    import tracemalloc
    import zlib
    coder = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = bytes([raw.DEFLATED]) + coder.compress(bytes(1 << 28)) + coder.flush()
    tracemalloc.start()
    with pytest.raises(FormatError):
        raw.decode(bomb, records_for([(1000,)], ["U8"]), DEFAULT_LIMITS, 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


# --- batchnorm ----------------------------------------------------------------------------------------

@st.composite
def batchnorm_codes(draw):
    channels = draw(st.integers(0, 9))
    resolution = draw(st.integers(0, 12))
    bound = 125 << resolution  # 2^125 is within float32
    signs = draw(hnp.arrays(np.int8, channels, elements=st.integers(-1, 1)))
    scale = draw(hnp.arrays(np.int64, channels, elements=st.integers(-bound, bound)))
    shift = draw(hnp.arrays(np.int64, channels, elements=st.integers(-10**6, 10**6)))
    step, eps = draw(st.integers(-3000, 3000)), draw(st.sampled_from([1e-5, 1e-3, 0.0, 0.1]))
    return BatchNormCode(np.where(signs == 0, 0, scale), signs, resolution, shift, step, eps)


@settings(max_examples=150, deadline=None)
@given(st.lists(batchnorm_codes(), max_size=4), st.sampled_from(["F32", "F64", "BF16"]))
def test_batchnorm_round_trip(codes, dtype):
    records = bn_records([len(code.shift_index) for code in codes], dtype)
    back = batchnorm.decode(batchnorm.encode(codes), records, DEFAULT_LIMITS, 1)
    for i, code in enumerate(codes):
        weight, bias, mean, var = back[4 * i : 4 * i + 4]
        assert weight.tobytes() == to_bytes(to_dtype(code.scale(), dtype, "a"))
        assert bias.tobytes() == to_bytes(to_dtype(code.shift(), dtype, "b"))
        assert not mean.astype(float).any()
        eps = np.float32(code.eps)
        if dtype == "F32":  # in eval mode: exactly a
            assert ((weight / np.sqrt(var + eps)) == weight).all()


def test_batchnorm_numbers_cost_their_entropy():
    """19 BatchNorms with scales around different means and shifts of different spread."""
    rng = np.random.default_rng(2)
    codes, ideal = [], 0.0
    for channels in [16] * 7 + [32] * 6 + [64] * 6:
        spread = rng.uniform(4, 12)
        scale = np.rint(rng.normal(rng.uniform(-60, 0), spread, channels)).astype(np.int64)
        shift = np.rint(rng.normal(0, 2 * spread, channels)).astype(np.int64)
        step = int(rng.integers(-200, -100))
        codes.append(BatchNormCode(scale, np.ones(channels, np.int8), 4, shift, step, 1e-5))
        ideal += channels * (2 * math.log2(spread * math.sqrt(2 * math.pi * math.e)) + 1)
    assert 8 * len(batchnorm.encode(codes)) < 1.09 * ideal + 19 * 20


def test_batchnorm_refuses_what_it_cannot_hold():
    one, plus = np.array([1]), np.array([1], np.int8)
    with pytest.raises(FormatError, match="eps"):
        batchnorm.encode([BatchNormCode(one, plus, 0, one, 0, 1.5)])
    payload = batchnorm.encode([BatchNormCode(one, plus, 0, one, 0, 0.1)])
    for records in (bn_records([1])[:3], bn_records([1])[:3] + bn_records([2])[:1],
                    records_for([(1, 1)] * 4, ["F32"] * 4)):
        with pytest.raises(FormatError, match="four vectors"):
            batchnorm.decode(payload, records, DEFAULT_LIMITS, 1)
    with pytest.raises(FormatError, match="element type"):
        batchnorm.decode(payload, bn_records([1], "I32"), DEFAULT_LIMITS, 1)
    for eps in (b"\0\0\xc0\x7f", b"\0\0\x80\x3f", b"\0\0\0\x80\0"):  # NaN, 1.0, five bytes
        with pytest.raises(FormatError):
            batchnorm.decode(b"\1" + eps + b"\xff" * 20, bn_records([1]), DEFAULT_LIMITS, 1)


# --- vector -------------------------------------------------------------------------------------------

small_shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(hnp.arrays(np.int64, small_shapes, elements=st.integers(-10**5, 10**5)),
                          st.integers(-2000, 0)), max_size=5),
       st.sampled_from(["F32", "F64", "BF16"]))
def test_vector_round_trip(pairs, dtype):
    codes = [VectorCode(index, step) for index, step in pairs]
    records = records_for([code.index.shape for code in codes], [dtype] * len(codes))
    back = vector.decode(vector.encode(codes), records, DEFAULT_LIMITS, 1)
    for code, array in zip(codes, back, strict=True):
        assert array.shape == code.index.shape
        assert array.tobytes() == to_bytes(to_dtype(code.values(), dtype, "v"))


def test_vectors_around_one_are_cheap():
    """LayerNorm weights: the base takes up the mean."""
    rng = np.random.default_rng(3)
    index = 500 + np.rint(rng.normal(0, 5, 768)).astype(np.int64)
    bits = 8 * len(vector.encode([VectorCode(index, -320)]))
    assert bits < 1.06 * 768 * math.log2(5 * math.sqrt(2 * math.pi * math.e))


def test_small_floats_and_half():
    index = np.array([[1, -2], [3, 0]])
    for dtype in ("F16", "F8_E4M3", "F8_E5M2"):
        (back,) = vector.decode(vector.encode([VectorCode(index, 0)]), records_for([(2, 2)], [dtype]),
                                DEFAULT_LIMITS, 1)
        assert back.astype(float).tolist() == index.tolist()
        assert back.dtype in (np.float16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2)


# --- damage -------------------------------------------------------------------------------------------

@settings(max_examples=300, deadline=None)
@given(st.sampled_from([raw, batchnorm, vector]), st.binary(max_size=60))
def test_any_payload_decodes_or_is_a_tersor_error(tool, payload):
    records = bn_records([3, 5]) if tool is not raw else records_for([(2,), (1, 3)], ["BOOL", "F16"])
    try:
        back = tool.decode(payload, records, DEFAULT_LIMITS, 1)
    except TersorError:
        return
    assert [array.shape for array in back] == [record.shape for record in records]


def test_unread_bytes_are_an_error():
    payload = vector.encode([VectorCode(np.arange(9), 0)])
    with pytest.raises(FormatError, match="left"):
        vector.decode(payload + b"\1" * 9, records_for([(9,)], ["F32"]), DEFAULT_LIMITS, 1)


@pytest.mark.parametrize(("place", "value", "message"), [
    (0, grid.MAX_INDEX + 1, "step"), (2, 8, "size class"), (2, -1, "size class")])
def test_vector_fields_are_checked(place, value, message):
    fields = [0, 0, 0]
    fields[place] = value
    writer = IntegerWriter()
    for context, field in enumerate(fields):
        writer.put([field], context)
    writer.put([1], 8)
    with pytest.raises(FormatError, match=message):
        vector.decode(writer.finish(), records_for([(1,)], ["F32"]), DEFAULT_LIMITS, 1)


@pytest.mark.parametrize(("place", "value", "message"), [
    (0, 2, "eps index"), (1, 13, "resolution"), (2, 28801, "base"), (3, 28801, "shift step"),
    (4, 2, "sign code"), (5, 8, "size class"), (6, 30000, "beyond the grid"), (7, -1, "size class")])
def test_batchnorm_fields_are_checked(place, value, message):
    fields = [1, 5, 0, 0, 0, 0, 0, 0, 0]
    fields[place] = value
    writer = IntegerWriter()
    for field, context in zip(fields, [0, 1, 2, 3, 5, 4, 8, 6, 16], strict=True):
        writer.put([field], context)
    payload = b"\2" + np.array([0.1, 0.2], "<f4").tobytes() + writer.finish()
    with pytest.raises(FormatError, match=message):
        batchnorm.decode(payload, bn_records([1]), DEFAULT_LIMITS, 1)


def test_an_eps_that_is_a_signalling_nan_is_refused_without_a_warning():
    """Found by fuzzing: NumPy warns when it casts one."""
    stored = np.array([0x7F800001] * 4, "<u4").tobytes()
    with pytest.raises(FormatError, match="eps outside"):
        batchnorm.decode(b"\x04" + stored, records_for([(2,)] * 4, ["F32"] * 4), DEFAULT_LIMITS, 1)
