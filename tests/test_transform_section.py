"""The transform tool: round trips, sequential reference, worked examples, hostile bytes, limits, determinism."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tiny_decoder
from hypothesis import given, settings
from hypothesis import strategies as st
from make_golden_transform import alone, block_matrix, code, grid_matrix, group, scalar_matrix
from tiny_decoder import Tensor

from tersor.bitstream import native
from tersor.bitstream.container import to_bytes
from tersor.bitstream.integers import IntegerWriter
from tersor.bitstream.manifest import TensorRecord
from tersor.decoder import load
from tersor.errors import FormatError, LimitError, TersorError
from tersor.limits import DEFAULT_LIMITS, Limits
from tersor.synthesis import transform
from tersor.synthesis.scalar import ScalarCode
from tersor.synthesis.transform import FAST, FIXED, SMALL, BlockCode, Cuts, Dct, TransformCode, decode, encode
from tersor.synthesis.transform_maps import apply_maps, cosine, dct_matrix, mix

TEXT = (Path(__file__).parent.parent / "docs" / "format-transform.md").read_text(encoding="utf-8")
MODES = (FAST, SMALL, FIXED)
MAKERS = {FAST: (scalar_matrix,), SMALL: (scalar_matrix,), FIXED: (block_matrix, grid_matrix)}
KINDS = [(mode, maker) for mode, makers in MAKERS.items() for maker in makers]


@cache
def members_of(maker):
    return group(maker, "")


def records_of(shapes, dtype="F32"):
    return [TensorRecord(f"t{i}", dtype, shape, 0) for i, shape in enumerate(shapes)]


def same_matrix(a, b):
    assert type(a) is type(b) and np.array_equal(a.q, b.q)
    if isinstance(a, ScalarCode):
        assert (a.step_index, a.shift, a.trellis) == (b.step_index, b.shift, b.trellis)
        assert np.array_equal(a.row_steps(), b.row_steps())
    else:
        assert np.array_equal(a.depths, b.depths)
        assert np.array_equal(a.matrix(), b.matrix())


def round_trip(codes, shapes, mode, rows_per_part=0, threads=1):
    """Encode and decode, integers and tensors; the payload."""
    payload, matrix_bytes = transform.encode_counted(codes, shapes, mode, rows_per_part)
    assert 0 <= matrix_bytes < len(payload)
    records = records_of(shapes)
    for found, made, shape in zip(decode(payload, records, DEFAULT_LIMITS, threads), codes, shapes, strict=True):
        assert (found.dtype, found.shape) == (np.float32, shape)
        assert found.tobytes() == made.tensor(shape).tobytes()
    for found, made in zip(transform.decode_codes(payload, records, threads=threads), codes, strict=True):
        assert (found.joint, found.swapped, len(found.bases())) == (made.joint, made.swapped, len(made.bases()))
        assert not isinstance(made.taps, Dct) or found.taps is made.taps
        assert (found.tap_scale is None) == (made.tap_scale is None)
        assert made.tap_scale is None or np.array_equal(found.tap_scale, made.tap_scale)
        for a, b in zip((*found.bases(), found.coefficients), (*made.bases(), made.coefficients), strict=True):
            same_matrix(a, b)
    return payload


def reference(made, shape):
    """The tensor in plain Python and NumPy, term by term; by its definition, with K as one matrix."""
    of = transform.extents(shape, made.swapped)
    maps = made.maps(shape)
    c = made.coefficients.matrix().astype(float).reshape(made.coefficient_extents(shape))
    kernel = np.eye(of.taps) if maps.kernel() is None else maps.kernel()
    b = np.eye(of.channels) if maps.channels is None else maps.channels
    r = np.eye(of.rows) if maps.rows is None else maps.rows
    if made.joint:
        w = np.einsum("ab,akz,kn->bn", r, c, b).reshape(of.rows, of.channels, of.taps)
    else:
        w = np.einsum("ab,axy,xm,yt->bmt", r, c, b, kernel)
    if made.swapped:
        return w.reshape(of.rows, of.channels, *shape[2:]).swapaxes(0, 1).reshape(shape)
    return w.reshape(shape)


# ---- round trips -------------------------------------------------------------------------------------

@pytest.mark.parametrize(("mode", "maker"), KINDS)
def test_all_kinds(mode, maker):
    """Every map, rank and kind of tensor of the golden files: one section, and each alone."""
    members = members_of(maker)
    shapes, codes = [shape for _, _, shape, _ in members], [made for _, _, _, made in members]
    round_trip(codes, shapes, mode, threads=3)
    for i, (made, shape) in enumerate(zip(codes, shapes, strict=True)):
        if i % 4 == mode or mode == FIXED:
            round_trip([made], [shape], mode)
        elif i % 3 == mode:
            round_trip([made], [shape], mode, rows_per_part=2, threads=2)
        scale = max(1e-30, float(np.abs(reference(made, shape)).max(initial=0)))
        assert np.allclose(made.tensor(shape, "F64"), reference(made, shape), rtol=1e-9, atol=1e-12 * scale)


SHAPES = ((5, 4, 3, 3), (4, 6), (6, 2, 5), (3, 2, 2, 1, 3), (8, 1, 3, 3))
COMBINATIONS = [maps for maps in itertools.product((None, 2), (None, "channels", "joint"), (None, Dct.I, Dct.II, 1),
                                                   (False, True)) if maps[1] != "joint" or maps[2] is None]


@pytest.mark.parametrize(("mode", "maker"), KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_combination_of_maps(mode, maker, shape):
    """All combinations for a tensor of each shape, in one section."""
    codes = []
    for seed, (rows, inner, taps, swapped) in enumerate(COMBINATIONS):
        most = transform.extents(shape, swapped).most(inner == "joint")
        maps = {} if inner is None else {inner: most[1] - seed % 2}
        codes.append(code(maker, 9 * seed, shape, rows=rows and min(rows, most[0]), taps=taps, swapped=swapped, **maps))
    shapes = [shape] * len(codes)
    payload = round_trip(codes, shapes, mode)
    tensors = [Tensor("", np.dtype(np.float32), shape) for shape in shapes]
    for found, made, shape in zip(tiny_decoder.TOOLS[5](payload, tensors), codes, shapes, strict=True):
        assert found.tobytes() == made.tensor(shape).tobytes()
    assert payload == encode(codes, shapes, mode), "the same bytes again"


@st.composite
def transforms(draw, maker):
    """One or a few tensors with random maps and ranks, also empty ones."""
    codes, shapes = [], []
    for _ in range(draw(st.integers(1, 3))):
        shape = tuple(draw(st.lists(st.integers(0, 6), min_size=1, max_size=4)))
        swapped = len(shape) > 1 and draw(st.booleans())
        of = transform.extents(shape, swapped)
        joint = draw(st.booleans())
        rows, inner, taps = of.most(joint)
        maps = {"rows": draw(st.none() | st.integers(0, rows))}
        if joint:
            maps["joint"] = draw(st.integers(0, inner))
        else:
            maps["channels"] = draw(st.none() | st.integers(0, inner))
            dcts = [Dct.I, Dct.II] if of.has_dct else []
            maps["taps"] = draw(st.sampled_from([None, taps, taps // 2, *dcts]))
            maps["scaled"] = maps["taps"] in dcts and isinstance(maps["taps"], Dct) and 0 not in shape
        maps["trellis"] = draw(st.sampled_from([0, 4, 8]))
        codes.append(code(maker, draw(st.integers(0, 10**6)), shape, swapped=swapped, **maps))
        shapes.append(shape)
    return codes, shapes


@pytest.mark.parametrize(("mode", "maker"), KINDS)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_round_trip(mode, maker, data):
    codes, shapes = data.draw(transforms(maker))
    rows_per_part = data.draw(st.sampled_from([0, 1, 3])) if len(codes) == 1 and mode != FIXED else 0
    payload = round_trip(codes, shapes, mode, rows_per_part, threads=2)
    found = tiny_decoder.TOOLS[5](payload, [Tensor("", np.dtype(np.float32), shape) for shape in shapes])
    for array, made, shape in zip(found, codes, shapes, strict=True):
        assert array.tobytes() == made.tensor(shape).tobytes()
        assert made.compact(shape).tensor(shape).tobytes() == array.tobytes()


@pytest.mark.parametrize("dtype", ["F64", "F16", "BF16", "F8_E4M3", "F8_E5M2"])
def test_other_types(dtype):
    shape = (6, 4, 3, 3)
    made = code(scalar_matrix, 5, shape, channels=4, taps=Dct.II)
    (found,) = decode(encode([made], [shape], SMALL), records_of([shape], dtype), DEFAULT_LIMITS, 1)
    assert found.tobytes() == made.tensor(shape, dtype).tobytes()
    wide = made.tensor(shape, "F64")
    assert np.array_equal(found, wide.astype(found.dtype) if dtype == "F64" else wide.astype("f4").astype(found.dtype))


def test_a_file_in_threads():
    """The same bytes by one thread and by many, in the portable code and in the other."""
    shape = (64, 48, 3, 3)
    parts, mode, rows = alone(SMALL, 3, shape, 7, rows=60, channels=40, taps=Dct.II)
    payload = encode([parts[0][3]], [shape], mode, rows)
    data = to_bytes(records_of([shape]), [(5, payload)], parameters=1)
    found = [load(data, threads=threads)["t0"].tobytes() for threads in (1, 2, 5)]
    assert len(set(found)) == 1


# ---- the maps ----------------------------------------------------------------------------------------

@pytest.mark.parametrize("portable", ["0", "1"])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 40, 2, 150), (2, 33, 9, 129), (70, 5, 1, 3), (1, 64, 130, 7),
                                   (0, 3, 2, 4), (2, 0, 3, 4), (2, 3, 0, 4), (2, 3, 2, 0)])
def test_sums_are_sequential(portable, shape, monkeypatch):
    """The native function gives the bits of plain sums, one term after the other; also where terms are zero."""
    monkeypatch.setenv("TERSOR_PORTABLE", portable)
    outer, terms, inner, outputs = shape
    rng = np.random.default_rng(0)
    values = rng.standard_normal((outer, terms, inner)) * (rng.random((outer, terms, inner)) < 0.6)
    values *= 10.0 ** rng.integers(-150, 100, values.shape)
    basis = rng.standard_normal((terms, outputs)) * 10.0 ** rng.integers(-170, 50, (terms, outputs))
    expected = np.zeros((outer, outputs, inner))
    for i in range(terms):
        expected = expected + values[:, i, None, :] * basis[None, i, :, None]
    for threads in (1, 3):
        assert mix(values, basis, threads).tobytes() == expected.tobytes()


def test_the_kernel_checks_its_arguments():
    x, out = np.zeros(24), np.zeros(60)
    arguments = {"in_size": 24, "basis_size": 20, "out_size": 30, "outer": 2, "terms": 4, "inner": 3, "outputs": 5,
                 "first": 0, "last": 6}
    call = native.function("tersor_mix", [
        native.array(np.float64), native.INT64, native.array(np.float64), native.INT64,
        native.array(np.float64, writable=True), *[native.INT64] * 7, native.INT32])

    def result(**changed):
        a = arguments | changed
        return call(x, a["in_size"], x, a["basis_size"], out, a["out_size"], a["outer"], a["terms"], a["inner"],
                    a["outputs"], a["first"], a["last"], 1)

    assert result() == 0
    for name in arguments:
        for value in (-1, 7, 1 << 62):
            if (name, value) != ("first", -1):
                assert result(**{name: value}) < 0, (name, value)
    assert result(first=-1) < 0 and result(first=4, last=3) < 0 and result(outer=1 << 62, terms=1 << 62) < 0


@pytest.mark.parametrize("kind", list(Dct))
@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 31, 32])
def test_dct_matrices(kind, size):
    matrix = dct_matrix(kind, size)
    assert np.abs(matrix @ matrix.T - np.eye(size)).max() < 1e-14
    assert np.array_equal(matrix, [[tiny_transform_dct(kind, size)[i, j] for j in range(size)] for i in range(size)])
    for wrong in (0, 33):
        with pytest.raises(ValueError, match="DCT"):
            dct_matrix(kind, wrong)


@cache
def tiny_transform_dct(kind, size):
    import tiny_transform
    return tiny_transform.dct(int(kind), size)


def test_cosines_of_the_document():
    """The table has exactly what the transforms of 1 to 32 taps need, and each is the nearest number."""
    from decimal import Decimal, getcontext

    import tiny_transform
    getcontext().prec = 60
    pi = Decimal("3.14159265358979323846264338327950288419716939937510582097494459230781640628620899")
    for (p, q), value in tiny_transform.COSINES.items():
        assert cosine(p, q) == value
        x2, term, exact, k = (pi * p / q) ** 2, Decimal(1), Decimal(1), 0
        while abs(term) > Decimal("1e-55"):
            k += 2
            term *= -x2 / (k * (k - 1))
            exact += term
        assert abs(Decimal(value) - exact) <= Decimal(float(np.spacing(value))) / 2
    needed = set()
    for n in range(1, 33):
        for i, j in itertools.product(range(n), range(n)):
            for p, q in ((i * (2 * j + 1), 2 * n), (i * j, max(n - 1, 1))):
                p = min(p % (2 * q), -p % (2 * q))
                p = q - p if 2 * p > q else p
                if 0 < 2 * p < q:
                    g = int(np.gcd(p, q))
                    needed.add((p // g, q // g))
    assert needed == set(tiny_transform.COSINES)


def test_maps_as_matrices():
    shape = (6, 4, 3, 5)
    made = code(scalar_matrix, 3, shape, rows=5, channels=3, taps=Dct.I)
    maps = made.maps(shape)
    assert (maps.rows.shape, maps.channels.shape, maps.kernel().shape) == ((5, 6), (3, 4), (15, 15))
    assert np.allclose(maps.kernel() @ maps.kernel().T, np.eye(15))
    c = np.random.default_rng(0).standard_normal((5, 3, 15))
    dense = np.einsum("rct,ra,cb,ts->abs", c, maps.rows, maps.channels, maps.kernel()).reshape(6, 60)
    assert np.allclose(apply_maps(c, maps), dense)
    with pytest.raises(ValueError, match="vectors"):
        apply_maps(c[:, :2], maps)
    assert TransformCode(made.coefficients).maps(shape).kernel() is None


def test_identity_is_the_scalar_tool():
    q = np.arange(-12, 12, dtype=np.int32).reshape(4, 6)
    plain = ScalarCode(q, -70, np.array([0, 3, -2, 1]), 3, (5, 7))
    assert TransformCode(plain).tensor((4, 6)).tobytes() == plain.tensor((4, 6)).tobytes()


def test_compact_drops_what_is_dead():
    shape = (8, 6, 3, 3)
    made = code(scalar_matrix, 12, shape, rows=7, channels=6, taps=9)
    q = made.coefficients.q.reshape(7, 6, 9).copy()
    q[2], q[:, [1, 4]], q[:, :, 8] = 0, 0, 0
    q[0, 0, :8] = 1
    q[[1, 3, 4, 5, 6], 0, 0] = 1
    q[0, [2, 3, 5], 0] = 1
    made = TransformCode(ScalarCode(q.reshape(7, 54), -80, np.arange(7)), made.rows, made.channels, made.taps)
    small = made.compact(shape)
    assert [len(basis.q) for basis in small.bases()] == [6, 4, 8] and small.coefficients.q.shape == (6, 32)
    assert small.tensor(shape).tobytes() == made.tensor(shape).tobytes()
    assert len(encode([small], [shape], SMALL)) < len(encode([made], [shape], SMALL))
    nothing = TransformCode(ScalarCode(np.zeros((8, 12), np.int32), 0), channels=scalar_matrix(1, 4, 6), taps=None)
    dead = TransformCode(ScalarCode(np.zeros((8, 36), np.int32), 0), channels=scalar_matrix(1, 4, 6))
    assert len(dead.compact(shape).channels.q) == 0 and not dead.compact(shape).tensor(shape).any()
    with pytest.raises(ValueError):
        nothing.compact(shape)
    blocks = code(block_matrix, 1, shape, channels=3)
    assert blocks.compact(shape) is blocks
    chained = replace(made, coefficients=replace(made.coefficients, trellis=8))
    small = chained.compact(shape)  # its columns say what the next level is
    assert [len(basis.q) for basis in small.bases()] == [6, 6, 9] and small.coefficients.q.shape == (6, 54)
    assert small.tensor(shape).tobytes() == chained.tensor(shape).tobytes() != made.tensor(shape).tobytes()


def test_scales_of_frequencies():
    shape, exponents = (4, 2, 2, 3), np.array([0, 4, -4, 1, -256, 256])
    plain = code(scalar_matrix, 3, shape, taps=Dct.I)
    made = replace(plain, tap_scale=exponents)
    c = plain.coefficients.matrix().reshape(4, 2, 6) * 2.0 ** (exponents / 4)
    assert np.allclose(made.tensor(shape, "F64").reshape(4, 2, 6), c @ plain.maps(shape).kernel(), rtol=1e-12)
    assert np.allclose(made.maps(shape).kernel(), 2.0 ** (exponents / 4)[:, None] * plain.maps(shape).kernel())
    none = replace(plain, tap_scale=exponents * 0)
    assert none.tensor(shape).tobytes() == plain.tensor(shape).tobytes()
    assert len(encode([made], [shape], SMALL)) < len(encode([plain], [shape], SMALL)) + 15
    low = code(scalar_matrix, 3, shape, channels=2)
    for wrong, of in ((replace(made, tap_scale=exponents[:5]), shape), (replace(made, tap_scale=exponents * 2), shape),
                      (replace(low, tap_scale=exponents), shape), (replace(made, taps=None), shape),
                      (TransformCode(ScalarCode(np.zeros((0, 12), np.int32), 0), taps=Dct.I, tap_scale=exponents),
                       (0, 2, 2, 3))):
        with pytest.raises(ValueError, match="tap_scale"):
            encode([wrong], [of], SMALL)


# ---- sizes -------------------------------------------------------------------------------------------

def test_bytes_of_bases():
    shape = (16, 12, 3, 3)
    made = code(scalar_matrix, 1, shape, channels=12, taps=Dct.II)
    for mode in (FAST, SMALL):
        payload, matrices = transform.encode_counted([made], [shape], mode)
        alone_bytes = transform.basis_bytes(made, shape, mode)
        assert 30 < alone_bytes < matrices < len(payload)
    fixed = code(block_matrix, 3, shape, channels=12)
    assert transform.basis_bytes(fixed, shape, FIXED) == len(fixed.channels.pack())
    payload, matrices = transform.encode_counted([fixed], [shape], FIXED)
    assert matrices == len(fixed.channels.pack()) + len(fixed.coefficients.pack())
    assert transform.basis_bytes(TransformCode(made.coefficients, taps=Dct.II), shape, SMALL) == 0


def test_fixed_length_bytes_are_the_papers():
    """sum over blocks of elements * depth, each block up to 7 bits more; a depth of 0 costs nothing."""
    q = np.zeros((16, 40), np.int32)
    blocks = BlockCode(q, np.array([4, 0, 2, 16, 0, 0, 1, 3]), np.zeros(8, np.int64), Cuts(rows=8))
    assert len(blocks.pack()) == (80 * (4 + 2 + 16 + 1 + 3)) // 8


# ---- what cannot be encoded --------------------------------------------------------------------------

def test_wrong_arguments():
    shape = (6, 4, 3, 3)
    made = code(scalar_matrix, 1, shape, channels=4, taps=Dct.II)
    blocks = code(block_matrix, 1, shape, channels=4)
    for codes, mode, rows in (([made], FIXED, 0), ([blocks], SMALL, 0), ([made, made], SMALL, 2), ([blocks], FIXED, 2)):
        with pytest.raises(ValueError):
            encode(codes, [shape] * len(codes), mode, rows)
    for wrong in (TransformCode(made.coefficients, joint=True),
                  TransformCode(made.coefficients, channels=made.channels, taps=Dct.I, joint=True),
                  TransformCode(made.coefficients, channels=scalar_matrix(1, 5, 4)),
                  TransformCode(made.coefficients, channels=scalar_matrix(1, 4, 5)),
                  TransformCode(made.coefficients, channels=replace(made.channels, shift=(0, 0), trellis=8)),
                  TransformCode(scalar_matrix(1, 6, 35), channels=made.channels)):
        with pytest.raises(ValueError):
            encode([wrong], [shape], SMALL)
    with pytest.raises(ValueError, match="DCT"):
        encode([TransformCode(scalar_matrix(1, 2, 33), taps=Dct.II)], [(2, 1, 33)], SMALL)
    with pytest.raises(ValueError, match="swapped"):
        encode([TransformCode(scalar_matrix(1, 1, 3), swapped=True)], [(3,)], SMALL)
    zeros, two = np.zeros((2, 36), np.int32), np.array([2, 2])
    halves = Cuts(rows=2)
    good = BlockCode(zeros, two, two, halves)
    assert encode([TransformCode(good)], [(2, 4, 3, 3)], FIXED)
    for bad in (replace(good, q=zeros + 2), replace(good, q=zeros - 3), BlockCode(zeros + 1, two * 0, two, halves),
                replace(good, depths=two + 15), replace(good, depths=two - 3), replace(good, step_index=two[:1]),
                BlockCode(zeros, np.zeros(256, int), np.zeros(256, int), Cuts(rows=256)),
                replace(good, step_index=two + 28799), replace(good, cuts=Cuts()), replace(good, cuts=Cuts(taps=3)),
                replace(good, cuts=Cuts(channels=2, unit=4)), replace(good, cuts=Cuts(taps=2, unit=7)),
                replace(good, cuts=Cuts(-1, -2, 1)), replace(good, cuts=Cuts(rows=2, unit=0))):
        with pytest.raises(ValueError):
            encode([TransformCode(bad)], [(2, 4, 3, 3)], FIXED)


def test_what_is_not_finite():
    huge = ScalarCode(np.array([[1, 0], [0, 1]], np.int32), 28800)
    with pytest.raises(FormatError, match="finite"):
        TransformCode(huge).tensor((2, 2))
    payload = encode([TransformCode(scalar_matrix(3, 2, 2), rows=huge)], [(2, 2)], SMALL)
    with pytest.raises(FormatError, match=r"t0: .*finite"):
        decode(payload, records_of([(2, 2)]), DEFAULT_LIMITS, 1)
    large = ScalarCode(np.array([[1, 0], [0, 1]], np.int32), 32 * 100)
    assert np.isfinite(TransformCode(large, rows=large).tensor((2, 2), "F64")).all()
    with pytest.raises(FormatError, match="F32 cannot hold"):
        TransformCode(large, rows=large).tensor((2, 2))


# ---- the text ----------------------------------------------------------------------------------------

def i32(values):
    return np.array(values, np.int32)


def test_worked_examples():
    found = [bytes.fromhex(text) for text in re.findall(
        r"coded\s+as\s+((?:[0-9a-f]{2}\s+)*[0-9a-f]{2})\b", TEXT.split("\n## Examples\n")[1].split("\n## ")[0])]
    small, fast, parts, fixed, grid, scaled = found
    codes = [TransformCode(ScalarCode(i32([[4, -1, 0, 1], [0, 2, 0, 0]]), -64), taps=Dct.II),
             TransformCode(ScalarCode(i32([[3, -2], [1, 0]]), -64, shift=(8, 4)),
                           rows=ScalarCode(i32([[4, 3, 0], [-3, 4, 1]]), -64, np.array([0, 1]), 0),
                           channels=ScalarCode(i32([[1, 1], [1, -1]]), -16), swapped=True),
             TransformCode(ScalarCode(i32([[2], [-1]]), -32), channels=ScalarCode(i32([[1, 2, 0, -1]]), -32),
                           joint=True)]
    shapes = [(2, 1, 2, 2), (2, 3), (2, 2, 2)]
    values = [[[[[0.5, 0.5], [0.25, 0.75]]], [[[0.25, -0.25], [0.25, -0.25]]]],
              [[-0.055242717, 0.44194174, 0.077339806], [0.62976694, 0.95569897, 0.077339806]],
              [[[0.5, 1], [0, -0.5]], [[-0.25, -0.5], [0, 0.25]]]]
    pair = TransformCode(ScalarCode(i32([[-3, 1], [-1, 0], [1, 2]]), 0),
                         channels=ScalarCode(i32([[1, 1], [1, -1]]), 0))
    blocks = TransformCode(BlockCode(i32([[1, -2], [3, -4]]), np.array([2, 3]), np.array([-64, -32]),
                                     Cuts(rows=2)),
                           channels=BlockCode(i32([[1, 0, -2], [-1, 0, 1]]), np.array([2, 0, 3]),
                                              np.array([-32, 0, -64]), Cuts(channels=3)))
    boxes = TransformCode(BlockCode(i32([[1, -2, 0, 0, 0, 2], [-2, 3, 0, 0, 0, -4]]), np.array([2, 3, 0, 0, 0, 3]),
                                    np.array([-64, -64, 0, 0, 0, -32]), Cuts(1, 2, 3, 3)), taps=Dct.II)
    last = TransformCode(ScalarCode(i32([[3, -2, 1], [1, 0, 1]]), -64, trellis=4), taps=Dct.II,
                         tap_scale=np.array([0, -4, 2]))
    for data, made, of, mode, rows, expected in (
            (small, codes, shapes, SMALL, 0, values), (fast, codes, shapes, FAST, 0, values),
            (parts, [pair], [(3, 2)], SMALL, 2, [[[-2, -4], [-1, -1], [3, -1]]]),
            (fixed, [blocks], [(2, 3)], FIXED, 0, [[[0.375, 0, -0.25], [1.75, 0, -1.25]]]),
            (grid, [boxes], [(2, 2, 3)], FIXED, 0,
             [[[[-0.20921582, 0.14433756, 0.49789095], [0.4082483, -0.81649664, 0.4082483]],
               [[0.24165495, -0.28867513, -0.8190052], [-0.81649664, 1.6329932, -0.81649664]]]]),
            (scaled, [last], [(2, 1, 3)], FAST, 0,
             [[[[0.8895355, 0.28867513, 1.4198656]], [[0.57735026, -0.28867513, 0.57735026]]]])):
        assert round_trip(made, of, mode, rows) == data
        tensors = [Tensor("", np.dtype(np.float32), shape) for shape in of]
        for array, value in zip(tiny_decoder.TOOLS[5](data, tensors), expected, strict=True):
            assert np.array_equal(array, np.array(value, np.float32))
    for text, value in zip(re.findall(r"-?0x1\.[0-9a-f]+p-\d|(?<= )0(?= )", TEXT.split("DCT-II of size 3 is")[1]
                                      .split("## Examples")[0]), dct_matrix(Dct.II, 3).ravel(), strict=True):
        assert float.fromhex(text) == value


# ---- hostile bytes -----------------------------------------------------------------------------------

@cache
def hostile_case(mode, kind):
    members = members_of(MAKERS[mode][kind in ("grid", "grids")])
    picked = {"all": (1, 2, 5, 8, 12), "deep": (4, 9, 17, 19), "one": (2,), "parts": (5,), "grid": (4,),
              "grids": (1, 8, 23)}[kind]
    shapes, codes = [members[i][2] for i in picked], [members[i][3] for i in picked]
    return encode(codes, shapes, mode, 2 if kind == "parts" else 0), records_of(shapes)


HOSTILE = [(mode, kind) for mode in MODES
           for kind in ("all", "deep", "one", *(("grid", "grids") if mode == FIXED else ("parts",)))]


def survives(payload, records):
    try:
        for array, record in zip(decode(payload, records, DEFAULT_LIMITS, 1), records, strict=True):
            assert array.shape == record.shape and np.isfinite(array).all()
    except TersorError as error:
        assert isinstance(error, FormatError)
        return False
    return True


@pytest.mark.parametrize(("mode", "kind"), HOSTILE)
def test_truncations_and_flips(mode, kind):
    payload, records = hostile_case(mode, kind)
    assert survives(payload, records)
    rng = np.random.default_rng(0)
    step = max(1, len(payload) // 30)
    for size in {*range(0, len(payload), step), *range(min(len(payload), 40))}:
        survives(payload[:size], records)
        for bit in rng.permutation(8)[:2].tolist():
            survives(payload[:size] + bytes([payload[size] ^ 1 << bit]) + payload[size + 1 :], records)
    assert not survives(payload + bytes(9), records)
    if mode == FIXED:
        assert not survives(payload[:-1], records) and not survives(payload + b"\0", records)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60), st.sampled_from(HOSTILE), st.integers(0, 300))
def test_noise(noise, case, cut):
    payload, records = hostile_case(*case)
    survives(payload[:cut] + noise, records)
    survives(noise, records)


def payload_of(integers, data=b""):
    writer = IntegerWriter()
    for value, where in integers:
        writer.put([value], where)
    head = writer.finish()
    assert len(head) < 128
    return bytes([len(head)]) + head + data


def test_parameters_out_of_range():
    """Each integer of the head beyond its range, in turn."""
    scalar = {"coder": (1, 0), "swapped": (1, 1), "rows": (1, 2), "inner": (1, 3), "taps": (3, 4), "rank r": (0, 5),
              "rank b": (1, 5), "rank k": (1, 5), "step r": (0, 6), "s1 r": (0, 8), "s2 r": (48, 8), "bypass r": (0, 9),
              "j r": (-1, 10), "step b": (5, 6), "s1 b": (0, 8), "s2 b": (0, 8), "bypass b": (1, 9), "j b": (0, 10),
              "class b": (2, 11), "row b": (-900, 18), "row b2": (901, 18), "row b3": (0, 18), "step k": (0, 6),
              "s1 k": (0, 8), "s2 k": (0, 8), "bypass k": (0, 9), "j k": (-1, 10), "step": (1, 7), "s1": (1, 8),
              "s2": (2, 8), "bypass": (0, 9), "j": (-1, 10), "rows per part": (0, 13)}
    fixed = {"coder": (2, 0), "swapped": (0, 1), "rows": (0, 2), "inner": (2, 3), "rank j": (4, 5), "axis j": (1, 14),
             "blocks j": (1, 14), "depth j": (1, 15), "depth j2": (-1, 15), "step j": (-28800, 6), "axis": (0, 14),
             "blocks": (0, 14), "depth": (1, 15), "step": (100, 7)}
    grid = {"coder": (2, 0), "swapped": (0, 1), "rows": (0, 2), "inner": (0, 3), "taps": (2, 4), "axis": (2, 14),
            "parts of rows": (0, 14), "of channels": (2, 14), "of taps": (1, 14), "depth": (1, 15), "depth2": (-1, 15),
            "depth3": (0, 15), "depth4": (3, 15), "depth5": (-3, 15), "depth6": (0, 15), "step": (100, 7),
            "step2": (-28900, 7)}
    scaled = {"coder": (0, 0), "layout": (4, 1), "rows": (0, 2), "inner": (0, 3), "taps": (5, 4), "scale": (-256, 15),
              "scale2": (512, 15), "step": (1, 7), "j": (-1, 10), "rows per part": (0, 13)}
    empty = encode([TransformCode(ScalarCode(np.zeros((2, 4), np.int32), 0), taps=Dct.I)], [(2, 2, 2)], FAST)
    empty = empty[1 + empty[0] :]
    for integers, shape, data in ((scalar, (4, 3, 2), b""), (fixed, (5, 3, 2), bytes([0xC0, 0x80])),
                                  (grid, (2, 4, 2), bytes([0x40, 0x10])),
                                  (scaled, (2, 2, 2), empty)):
        records = records_of([shape], "F64")
        assert survives(payload_of(integers.values(), data), records)
        for name, (_, where) in integers.items():
            for wrong in (-57602, 1 << 40):
                changed = integers | {name: (wrong, where)}
                with pytest.raises(FormatError):
                    decode(payload_of(changed.values(), data), records, DEFAULT_LIMITS, 1)


@pytest.mark.parametrize("parts", [(15, 15, 0), (254, 0, 1), (254, 254, 254)])
def test_too_many_blocks(parts):
    head = [(2, 0), (0, 1), (0, 2), (0, 3), (0, 4), (2, 14), *((part, 14) for part in parts)]
    with pytest.raises(FormatError, match="blocks, there are 255 at most"):
        decode(payload_of(head), records_of([(300, 300, 3)]), DEFAULT_LIMITS, 1)


def test_scales_of_no_elements():
    """A kernel of no weights can have any number of taps: nothing is allocated for it."""
    head = [(0, 0), (0, 1), (0, 2), (0, 3), (4, 4), (0, 15)]
    with pytest.raises(FormatError, match="without elements"):
        decode(payload_of(head), records_of([(0, 1, *[32] * 8)]), DEFAULT_LIMITS, 1)
    for mode, layout in ((FAST, 6), (FIXED, 2)):
        with pytest.raises(FormatError, match="trellis"):
            decode(payload_of([(mode, 0), (layout, 1)]), records_of([(2, 2)]), DEFAULT_LIMITS, 1)


def test_limits():
    """A basis has no more numbers than the weights, and everything is checked before it is allocated."""
    records = records_of([(1, 1 << 22)], "F8_E5M2")
    wide = payload_of([(0, 0), (0, 1), (0, 2), (1, 3), (0, 4), (-1, 5)])
    with pytest.raises(FormatError, match="rank"):
        decode(wide, records, DEFAULT_LIMITS, 1)
    with pytest.raises(LimitError, match="at work"):
        decode(wide, records, Limits(max_tensor_bytes=1 << 24), 1)
    shape = (16, 16)
    payload = encode([code(scalar_matrix, 1, shape, rows=16, channels=16)], [shape], SMALL)
    decode(payload, records_of([shape]), Limits(max_tensor_bytes=2048, max_bytes=3 * 1024), 1)
    with pytest.raises(LimitError, match="matrices of a transform section"):
        decode(payload, records_of([shape]), Limits(max_tensor_bytes=2048, max_bytes=3 * 1024 - 1), 1)
    for shape, joint in (((3, 7, 2), True), ((50, 2, 3, 3), False), ((2, 50, 3, 3), False), ((1, 1, 30), False)):
        of = transform.extents(shape, False)
        sizes = zip(of.most(joint), (of.rows, of.channels * (of.taps if joint else 1), of.taps), strict=True)
        assert all(rank * width <= np.prod(shape) for rank, width in sizes)


@pytest.mark.parametrize("dtype", ["I32", "BOOL"])
def test_types_that_cannot_be(dtype):
    payload = encode([TransformCode(scalar_matrix(3, 2, 2))], [(2, 2)], SMALL)
    with pytest.raises(FormatError, match=dtype):
        decode(payload, records_of([(2, 2)], dtype), DEFAULT_LIMITS, 1)
    with pytest.raises(FormatError, match="shape"):
        decode(payload, records_of([()]), DEFAULT_LIMITS, 1)
