"""The codebook tool: round trips, a plain-Python reference, worked examples, Huffman codes, hostile bytes."""

from __future__ import annotations

import heapq
import itertools
import re
from functools import cache
from pathlib import Path

import codebook_reference
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from make_golden import FOLDER
from make_golden_codebook import GOLDEN, pruned, spread

from tersor.bitstream import huffman
from tersor.bitstream.container import to_bytes
from tersor.bitstream.integers import IntegerReader, IntegerWriter
from tersor.bitstream.manifest import TensorRecord
from tersor.decoder import load
from tersor.errors import ConfigError, FormatError, LimitError, TersorError
from tersor.limits import DEFAULT_LIMITS, Limits
from tersor.synthesis import codebook, codebook_gaps
from tersor.synthesis.codebook import CODERS, CodebookCode

TEXT = (Path(__file__).parent.parent / "docs" / "format.md").read_text(encoding="utf-8")
LAYOUTS = ("auto", "dense", "sparse")


def records_of(shapes, dtype="F32"):
    return [TensorRecord(f"t{i}", dtype, shape, 0) for i, shape in enumerate(shapes)]


def round_trip(code, shapes, coder, layout="auto", threads=1):
    """Encode, decode in both ways, compare bit for bit; the payload."""
    payload, stream_bytes = codebook.encode(code, shapes, coder, layout)
    assert 0 <= stream_bytes < len(payload)
    records = records_of(shapes)
    decoded = codebook.decode(payload, records, DEFAULT_LIMITS, threads)
    for found, tensor in zip(decoded, code.compact().tensors(shapes), strict=True):
        assert (found.dtype, found.shape) == (np.float32, tensor.shape)
        assert found.tobytes() == tensor.tobytes()
    again = codebook.decode_codebook(payload, records)
    compact = code.compact()
    assert (again.values.tobytes(), again.zero) == (compact.values.tobytes(), compact.zero)
    for index, expected_index in zip(again.indexes, compact.indexes, strict=True):
        assert np.array_equal(index.ravel(), expected_index.ravel())
    return payload


def lenet(k=33, share=0.92):
    """A pruned network of LeNet-5's shapes."""
    shapes = [(20, 1, 5, 5), (50, 20, 5, 5), (500, 800), (10, 500)]
    indexes = [pruned(i, shape, k, share) for i, shape in enumerate(shapes)]
    return CodebookCode.of(spread(k), indexes), shapes


@st.composite
def codes(draw):
    """A few small tensors of any shape, from one value to hundreds."""
    k = draw(st.sampled_from([1, 2, 3, 7, 40, 300]))
    shapes = draw(st.lists(st.lists(st.integers(0, 5), max_size=5).map(tuple), min_size=1, max_size=4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    share, width = draw(st.sampled_from([0, 0.5, 0.95, 1])), draw(st.sampled_from([0.4, 3, 1e3]))
    values = rng.normal(draw(st.sampled_from([0, 2])), 1, k).astype(np.float32)
    if draw(st.booleans()):
        values = values.astype(np.float16).astype(np.float32)
    if draw(st.booleans()):
        values[rng.integers(k)] = 0
    centre = rng.integers(k)
    indexes = [np.where(rng.random(shape) < share, centre,
                        np.clip(np.rint(rng.normal(centre, width, shape)), 0, k - 1)).astype(np.int32)
               for shape in shapes]
    return CodebookCode.of(values, indexes), shapes


@settings(max_examples=150, deadline=None)
@given(codes(), st.sampled_from(CODERS), st.sampled_from(LAYOUTS))
def test_round_trip(made, coder, layout):
    round_trip(*made, coder, layout)


@settings(max_examples=60, deadline=None)
@given(codes(), st.sampled_from(CODERS), st.sampled_from(LAYOUTS))
def test_reference_written_from_the_text(made, coder, layout):
    code, shapes = made
    payload = codebook.encode(code, shapes, coder, layout)[0]
    decoded = codebook_reference.decode(payload, shapes)
    for found, tensor in zip(decoded, code.compact().tensors(shapes), strict=True):
        assert np.array_equal(np.array(found, dtype=np.float32), tensor.ravel())


@pytest.mark.parametrize("coder", CODERS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_network(coder, layout):
    round_trip(*lenet(), coder, layout, threads=2)


@pytest.mark.parametrize("coder", CODERS)
def test_auto_is_never_longer(coder):
    """Also where one tensor is better dense and another better sparse."""
    shapes = [(40, 40), (60, 100)]
    code = CodebookCode.of(spread(33), [pruned(1, shapes[0], 33, 0), pruned(2, shapes[1], 33, 0.97)])
    sizes = {layout: len(round_trip(code, shapes, coder, layout)) for layout in LAYOUTS}
    assert sizes["auto"] <= min(sizes["dense"], sizes["sparse"])
    if coder == "fixed":
        assert sizes["auto"] < min(sizes["dense"], sizes["sparse"])


@pytest.mark.parametrize("coder", CODERS)
def test_parts(coder, monkeypatch):
    """Parts begin and end inside of tensors, and matrices without elements are in none."""
    monkeypatch.setattr(codebook, "PART", 16)
    shapes = [(300, 7), (0, 5), (9, 20_000), (70_000, 2), (1, 80_000), (5,)]
    code = CodebookCode.of(spread(5), [pruned(i, shape, 5, 0.3) for i, shape in enumerate(shapes)])
    one, many = (round_trip(code, shapes, coder, "dense", threads) for threads in (1, 4))
    assert one == many
    if coder in ("fixed", "huffman"):
        found = codebook_reference.decode(one, shapes)
        assert all(np.array_equal(np.float32(a), b.ravel())
                   for a, b in zip(found, code.tensors(shapes), strict=True))


def test_the_values_bits():
    """Subnormals and both ends of the range keep their bits; 16-bit floats are used where nothing is lost."""
    odd = np.array([-3.4e38, -1e-45, 0, 1e-45, 1.1754942e-38, 3.4e38], np.float32)
    assert len(odd) == len(CodebookCode.of(odd, [np.arange(6)]).compact().values)
    long = round_trip(CodebookCode.of(odd, [np.arange(6)]), [(2, 3)], "huffman")
    short = round_trip(CodebookCode.of([-4, -2, -1, 0, 1, 65504], [np.arange(6)]), [(2, 3)], "huffman")
    assert len(long) - len(short) == 12


@pytest.mark.parametrize("dtype", ["F64", "F16", "BF16", "F8_E4M3", "F8_E5M2"])
def test_other_types(dtype):
    shape = (4, 6)
    code = CodebookCode.of(spread(7), [pruned(0, shape, 7, 0.2)])
    payload = codebook.encode(code, [shape], "huffman")[0]
    (found,) = codebook.decode(payload, records_of([shape], dtype), DEFAULT_LIMITS, 1)
    assert np.array_equal(found, code.compact().tensors([shape])[0].astype(found.dtype))


def test_types_that_cannot_be():
    payload = codebook.encode(CodebookCode.of([1e30], [np.zeros(3, int)]), [(3,)], "fixed")[0]
    with pytest.raises(FormatError, match="I32"):
        codebook.decode(payload, records_of([(3,)], "I32"), DEFAULT_LIMITS, 1)
    with pytest.raises(FormatError, match="F16 cannot hold"):
        codebook.decode(payload, records_of([(3,)], "F16"), DEFAULT_LIMITS, 1)


def test_values_that_are_not_finite():
    payload = codebook.encode(CodebookCode.of([0.1], [np.zeros(3, int)]), [(3,)], "fixed")[0]
    for bad in (np.nan, np.inf):
        broken = payload.replace(np.float32(0.1).tobytes(), np.float32(bad).tobytes())
        assert broken != payload
        for decode in (codebook.decode_codebook, codebook.decode):
            with pytest.raises(FormatError, match="finite"):
                decode(broken, records_of([(3,)]), DEFAULT_LIMITS, 1)


def test_compact():
    code = CodebookCode.of([3, -0.0, 7, -1, 3, 0], [np.array([[0, 1], [3, 4]]), np.array([5])]).compact()
    assert code.values.tolist() == [-1, 0, 3] and not np.signbit(code.values[1])
    assert (code.zero, code.origin) == (1, 1)
    assert [index.tolist() for index in code.indexes] == [[[2, 1], [0, 2]], [1]]
    assert code.compact().values is not None and code.counts().tolist() == [1, 2, 2]
    assert CodebookCode.of([5, 6], [np.zeros((0, 3), int)]).compact().values.tolist() == [5]
    assert CodebookCode.of([0.1, 0.100001], [np.arange(2)]).halved().values.size == 1
    with pytest.raises(ValueError, match="outside"):
        CodebookCode.of([0.0], [np.array([1])]).compact()
    with pytest.raises(ValueError, match="finite"):
        CodebookCode.of([np.nan], [np.array([0])]).compact()
    with pytest.raises(ValueError, match="range"):
        CodebookCode.of([1e9], [np.array([0])]).halved()


def test_wrong_arguments():
    code = CodebookCode.of([0.0], [np.zeros(4, int)])
    with pytest.raises(ConfigError, match="coder"):
        codebook.encode(code, [(4,)], "zip")
    with pytest.raises(ConfigError, match="layout"):
        codebook.encode(code, [(4,)], "fixed", "best")
    with pytest.raises(ValueError, match="shape"):
        codebook.encode(code, [(5,)], "fixed")
    many = CodebookCode.of(np.arange(70_000), [np.arange(70_000)])
    with pytest.raises(ConfigError, match="70,000"):
        codebook.encode(many, [(70_000,)], "fixed")


# ---- the paper's count -------------------------------------------------------------------------------

def test_paper_bits_by_hand():
    """Eight weights: counts 1, 5, 2, words of 2, 1, 2 bits."""
    code = CodebookCode.of([-0.5, 0, 0.25], [np.array([[1, 1, 0, 1], [2, 1, 1, 2]])])
    assert codebook.paper_bits(code, "huffman", "dense") == 2 * 2 + 6 * 1 + 3 * 2 + 3 * 32
    assert codebook.paper_bits(code, "fixed", "dense") == 8 * 2 + 3 * 32
    # Gaps 2, 1, 2 and survivors 0, 1, 1: two words of one bit in each.
    assert codebook.paper_bits(code, "huffman", "sparse") == (3 + 2) + (2 + 3) + 3 * 32


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("coder", CODERS)
def test_paper_bits_near_the_file(coder, layout):
    """Our tables of lengths and other parameters take about what the paper counts for the words."""
    code, shapes = lenet()
    real = 8 * len(codebook.encode(code, shapes, coder, layout)[0])
    assert abs(codebook.paper_bits(code, coder, layout) - real) < 0.03 * real


# ---- Huffman codes -----------------------------------------------------------------------------------

def huffman_cost(counts):
    heap = [count for count in counts if count]
    heapq.heapify(heap)
    cost = 0
    while len(heap) > 1:
        pair = heapq.heappop(heap) + heapq.heappop(heap)
        cost += pair
        heapq.heappush(heap, pair)
    return cost


def limited_cost(counts, limit):
    """The least cost over all complete codes, by trying all numbers of words per length."""
    sizes = sorted((count for count in counts if count), reverse=True)

    def best(first, length, words):  # words: free nodes at this depth
        left = len(sizes) - first
        if left == 0:
            return 0
        if length > limit or words == 0:
            return np.inf
        found = np.inf
        for taken in range(min(words, left) + 1):
            cost = length * sum(sizes[first : first + taken])
            found = min(found, cost + best(first + taken, length + 1, min(2 * (words - taken), left)))
        return found

    return best(0, 1, 2)


@given(st.lists(st.integers(0, 2000), min_size=2, max_size=60))
def test_code_lengths_are_optimal(counts):
    lengths = huffman.code_lengths(counts)
    assert ((lengths > 0) == (np.array(counts) > 0)).all()
    if np.count_nonzero(lengths) > 1:
        assert np.sum(2.0 ** -lengths[lengths > 0].astype(float)) == 1
    assert huffman.stream_bits(counts, lengths) == huffman_cost(counts)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 10**6), min_size=2, max_size=9), st.integers(1, 5))
def test_limited_code_lengths_are_optimal(counts, limit):
    if np.count_nonzero(counts) > 1 << limit:
        with pytest.raises(ValueError, match="no code"):
            huffman.code_lengths(counts, limit)
        return
    lengths = huffman.code_lengths(counts, limit)
    assert lengths.max(initial=0) <= limit
    if np.count_nonzero(counts) > 1:
        assert huffman.stream_bits(counts, lengths) == limited_cost(counts, limit)


def test_deepest_trees_and_largest_alphabets():
    fibonacci = [1, 1]
    while len(fibonacci) < 50:
        fibonacci.append(sum(fibonacci[-2:]))
    lengths = huffman.code_lengths(fibonacci)
    assert lengths.max() == huffman.MAX_LENGTH
    symbols = np.random.default_rng(0).permutation(np.repeat(np.arange(50), 40)).astype(np.int32)
    assert np.array_equal(huffman.decode(huffman.encode(symbols, lengths), lengths, symbols.size), symbols)
    counts = np.random.default_rng(1).geometric(1e-4, huffman.MAX_ALPHABET)
    lengths = huffman.code_lengths(counts)
    assert huffman.stream_bits(counts, lengths) == huffman_cost(counts.tolist()) or lengths.max() == 20
    symbols = np.arange(huffman.MAX_ALPHABET, dtype=np.int32)
    assert np.array_equal(huffman.decode(huffman.encode(symbols, lengths), lengths, symbols.size), symbols)


@given(st.lists(st.integers(0, 9), max_size=200), st.integers(4, 9))
def test_fixed_length(values, bits):
    symbols = np.array(values, np.int32)
    data = huffman.encode_fixed(symbols, bits)
    assert len(data) == (len(values) * bits + 7) // 8
    assert np.array_equal(huffman.decode_fixed(data, bits, symbols.size), symbols)
    with pytest.raises(FormatError):
        huffman.decode_fixed(data + b"\0", bits, symbols.size)


@pytest.mark.parametrize("lengths", [[1, 2], [1, 1, 1], [2], [1, 1, 21], [0, 0], [20] * 4, [1, 2, 3]])
def test_incomplete_codes_are_refused(lengths):
    with pytest.raises(FormatError):
        huffman.decode(b"\0", np.array(lengths, np.uint8), 3)


def test_ends_of_huffman_streams():
    lengths = np.array([1, 2, 2], np.uint8)
    data = huffman.encode(np.array([0, 1, 2], np.int32), lengths)  # 0 10 11 + three zeros
    assert data == bytes([0b01011000])
    for bad in (b"", data + b"\0", bytes([0b01011001])):
        with pytest.raises(FormatError):
            huffman.decode(bad, lengths, 3)
    with pytest.raises(FormatError, match="truncated"):
        huffman.decode(data, lengths, 10**6)
    alone = np.array([0, 1], np.uint8)
    assert huffman.encode(np.ones(7, np.int32), alone) == b""
    assert huffman.decode(b"", alone, 7).tolist() == [1] * 7
    assert huffman.decode(b"", np.zeros(3, np.uint8), 0).size == 0


@given(st.lists(st.integers(0, 20), min_size=1, max_size=40))
def test_tables_of_lengths(values):
    writer = IntegerWriter()
    huffman.put_lengths(writer, np.array(values, np.uint8), 8, 9)
    reader = IntegerReader(writer.finish())
    assert huffman.take_lengths(reader, len(values), 8, 9, "a test").tolist() == values
    reader.end()


# ---- gaps --------------------------------------------------------------------------------------------

@given(st.lists(st.integers(0, 3), max_size=80), st.integers(1, 9))
def test_gaps(values, skip):
    index = np.array(values, np.int32)
    gaps, survivors = codebook_gaps.split(index, 2)
    out = np.empty_like(index)
    codebook_gaps.join(codebook_gaps.symbols_of(gaps, skip), survivors, skip, 2, out, "a test")
    assert np.array_equal(out, index)


def test_gaps_beyond_the_tensor():
    for symbols in ([3], [4], [0, 4]):
        is_alive = [s for s in symbols if s < 4]
        with pytest.raises(FormatError, match="beyond"):
            codebook_gaps.join(np.array(symbols, np.int32), np.zeros(len(is_alive), np.int32), 4, 0,
                               np.empty(3, np.int32), "a test")


# ---- the text, golden files --------------------------------------------------------------------------

def test_worked_examples():
    block = TEXT.split("One tensor of shape [2, 4]")[1].split("\n## ")[0]
    found = re.findall(r"(dense|sparse), coder (\d): coded as ((?:[0-9a-f]{2} )*[0-9a-f]{2})\b", block)
    assert len(found) == 6
    code = CodebookCode.of([-0.5, 0, 0.25], [np.array([[1, 1, 0, 1], [2, 1, 1, 2]])])
    for layout, coder, data in found:
        assert round_trip(code, [(2, 4)], CODERS[int(coder)], layout) == bytes.fromhex(data)


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_files_by_the_reference(name):
    data = (FOLDER / f"{name}.tersor").read_bytes()
    with load(data) as file:
        for number, section in enumerate(file.manifest.sections):
            payload = data[section.offset : section.offset + section.length]
            records = file.manifest.records_of(number)
            found = codebook_reference.decode(payload, [record.shape for record in records])
            for values, record in zip(found, records, strict=True):
                tensor = file[record.name]
                assert np.array_equal(np.float32(values).astype(tensor.dtype), tensor.ravel())


# ---- hostile bytes -----------------------------------------------------------------------------------

HOSTILE = [(coder, layout) for coder in CODERS for layout in ("dense", "sparse", "auto")]


@cache
def hostile_case(coder, layout):
    shapes = [(6, 3, 3), (40,), (8, 12), (0, 3)]
    indexes = [pruned(i, shape, 9, 0.1 if i == 0 else 0.8) for i, shape in enumerate(shapes)]
    return codebook.encode(CodebookCode.of(spread(9), indexes), shapes, coder, layout)[0], records_of(shapes)


def survives(payload, records):
    try:
        for array, record in zip(codebook.decode(payload, records, DEFAULT_LIMITS, 2), records, strict=True):
            assert array.shape == record.shape and np.isfinite(array).all()
    except TersorError:
        return False
    return True


@pytest.mark.parametrize(("coder", "layout"), HOSTILE)
def test_truncations_and_flips(coder, layout):
    payload, records = hostile_case(coder, layout)
    assert survives(payload, records)
    for size in range(len(payload)):
        survives(payload[:size], records)
        for bit in range(8):
            survives(payload[:size] + bytes([payload[size] ^ 1 << bit]) + payload[size + 1 :], records)
    refused = sum(not survives(payload[:size], records) for size in range(len(payload)))
    assert refused >= 0.5 * len(payload)  # adaptive codes are read on with zeros after their end
    if coder in ("fixed", "huffman"):
        assert refused == len(payload) and not survives(payload + b"\0", records)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=80), st.data())
def test_noise(noise, data):
    coder, layout = data.draw(st.sampled_from(HOSTILE))
    payload, records = hostile_case(coder, layout)
    cut = data.draw(st.integers(0, len(payload)))
    survives(payload[:cut] + noise, records)
    survives(noise, records)


def test_parameters_out_of_range():
    """Each integer of the head beyond its range, in turn."""
    def payload(**changed):
        writer = IntegerWriter()
        values = {"coder": (0, 0), "k": (1, 1), "form": (0, 2), "origin": (0, 3), "sparse": (1, 4),
                  "symbols": (1, 5), "skip": (3, 6), "bytes": (1, 11)}
        for name, (value, context) in values.items():
            writer.put([changed.get(name, value)], context)
        head = writer.finish()
        return bytes([len(head)]) + head + np.array([0, 1], "<f4").tobytes() + bytes([0b10000000])

    records = records_of([(4,)])
    (found,) = codebook.decode(payload(), records, DEFAULT_LIMITS, 1)
    assert found.tolist() == [0, 0, 1, 0]
    wrong = {"coder": 4, "k": 65536, "form": 2, "origin": 2, "sparse": 2, "symbols": 5, "skip": 65536,
             "bytes": 2}
    for name, value in itertools.chain(wrong.items(), ((name, -1) for name in wrong)):
        with pytest.raises(FormatError):
            codebook.decode(payload(**{name: value}), records, DEFAULT_LIMITS, 1)
    with pytest.raises(FormatError):
        codebook.decode(payload(skip=0), records, DEFAULT_LIMITS, 1)


def test_limits():
    code = CodebookCode.of([0.0], [np.zeros(1000, int)])
    payload = codebook.encode(code, [(1000,)], "huffman")[0]
    with pytest.raises(LimitError):
        codebook.decode(payload, records_of([(1000,)], "F8_E5M2"), Limits(max_tensor_bytes=2000), 1)


def test_in_a_file():
    code, shapes = lenet()
    payload = codebook.encode(code, shapes, "arithmetic")[0]
    file = load(to_bytes(records_of(shapes), [(4, payload)], parameters=code.count))
    for name, tensor in zip(file, code.tensors(shapes), strict=True):
        assert file[name].tobytes() == tensor.tobytes()
