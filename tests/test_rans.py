"""The static entropy coder: round trips, a plain-Python reference, constriction as oracle, hostile bytes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rans_reference import Corrupt
from rans_reference import decode as reference_decode

from tersor.bitstream import native, rans, rans_tables
from tersor.errors import ConfigError, FormatError, LimitError
from tersor.limits import Limits

Matrix = NDArray[np.int32]
INT32 = np.iinfo(np.int32)
PATHS = pytest.mark.parametrize("simd", ["0", "1", "2"])  # portable, AVX2, AVX-512 where the CPU has them


def laplace(shape: tuple[int, int], scale: float, seed: int = 0) -> Matrix:
    return np.round(np.random.default_rng(seed).laplace(0, scale, shape)).astype(np.int32)


def shapes_of(matrices: list[Matrix]) -> list[tuple[int, int]]:
    return [(q.shape[0], q.shape[1]) for q in matrices]


def assert_round_trip(matrices: list[Matrix], plan: rans.Plan | None = None) -> bytes:
    payload = rans.encode(matrices, plan)
    for q, back in zip(matrices, rans.decode(payload, shapes_of(matrices)), strict=True):
        np.testing.assert_array_equal(q, back)
    return payload


@st.composite
def groups(draw: Callable[..., object]) -> list[Matrix]:
    """Groups of matrices from constant to full-range, with rows of different spread."""
    matrices = []
    for _ in range(draw(st.integers(0, 4))):  # type: ignore[call-overload]
        rows, columns = draw(st.integers(0, 9)), draw(st.integers(0, 70))
        spread = draw(st.sampled_from([0.0, 0.1, 0.7, 3.0, 60.0, 1e4, 2e9]))
        rng = np.random.default_rng(draw(st.integers(0, 1 << 20)))
        values = rng.laplace(0, 1, (rows, columns)) * rng.choice([spread, spread / 9], (rows, 1))
        values += draw(st.sampled_from([0, 0, 7, -1000, 1 << 30]))
        matrices.append(np.clip(np.round(values), INT32.min, INT32.max).astype(np.int32))
    return matrices


@settings(max_examples=150, deadline=None)
@given(matrices=groups(), lanes=st.sampled_from([None, 1, 2, 8, 16, 32, 64]),
       precision=st.sampled_from([None, 12, 13, 14]), most_classes=st.integers(1, 8),
       bypass=st.sampled_from([None, 0, 1, 5, 24]))
def test_round_trip_equals_reference(matrices: list[Matrix], lanes: int | None, precision: int | None,
                                     most_classes: int, bypass: int | None) -> None:
    plan = rans.plan(matrices, lanes=lanes, precision=precision, most_classes=most_classes,
                     bypass=None if bypass is None else [bypass] * len(matrices))
    payload = assert_round_trip(matrices, plan)
    assert reference_decode(payload, shapes_of(matrices)) == [q.tolist() for q in matrices]


@PATHS
@pytest.mark.parametrize("lanes", [4, 8, 16, 32, 64])
@pytest.mark.parametrize("precision", [12, 13, 14])
def test_paths_are_equal(monkeypatch: pytest.MonkeyPatch, simd: str, lanes: int, precision: int) -> None:
    """Portable, AVX2 and AVX-512 decode the same integers and the same floats, at every width and alignment."""
    monkeypatch.setenv("TERSOR_SIMD", simd)
    matrices = [laplace((7, 1037), 0.05), laplace((5, 333), 1.0), laplace((40, 9), 9.0),
                laplace((3, 4001), 40.0)]
    payload = assert_round_trip(matrices, rans.plan(matrices, lanes=lanes, precision=precision))
    rng = np.random.default_rng(1)
    scales = [rng.uniform(0.1, 2, q.shape[0]).astype(np.float32) for q in matrices]
    levels = [None, *(np.arange(-r, r + 1, dtype=np.float32) * np.float32(0.93) for r in (2, 3, 60))]
    out = [np.full(q.shape, np.nan, np.float32) for q in matrices]
    rans.decode_float32(payload, shapes_of(matrices), scales, out, levels)
    for q, scale, level, back in zip(matrices, scales, levels, out, strict=True):
        value = q.astype(np.float32)
        if level is not None:
            reach = level.size // 2
            value = np.where(np.abs(q) <= reach, level[np.clip(q, -reach, reach) + reach], value)
        np.testing.assert_array_equal(back, value * scale[:, None])


def test_float_path_with_low_bits_and_escapes() -> None:
    q = laplace((30, 500), 5000.0)
    q[3, 7], q[9, 1] = INT32.min + 5, INT32.max - 5
    for bypass in ([0], [3], [8]):
        payload = rans.encode([q], rans.plan([q], bypass=bypass))
        scale = np.linspace(0.5, 2, 30, dtype=np.float32)
        out = np.empty(q.shape, np.float32)
        rans.decode_float32(payload, [q.shape], [scale], [out])
        np.testing.assert_array_equal(out, q.astype(np.float32) * scale[:, None])


@pytest.mark.parametrize(("values", "most"), [
    (np.zeros((1000, 1000)), 12),            # one symbol of frequency 2^p costs nothing
    (np.full((300, 7), -77), 12),
    (np.arange(16).reshape(4, 4), 32),       # a tiny matrix has a tiny overhead
    (np.zeros((0, 5)), 0),
])
def test_extremes(values: NDArray[np.float64], most: int) -> None:
    assert len(assert_round_trip([values.astype(np.int32)])) <= most


@pytest.mark.parametrize("scale", [0.1, 0.38, 0.72, 1.5, 3.0])
def test_near_the_ideal_code_length(scale: float) -> None:
    """Whole payload within 0.5% and 32 bytes of a million symbols' empirical entropy, from 0.1 to 4 bits."""
    q = laplace((250, 4000), scale)
    counts = np.unique(q, return_counts=True)[1]
    entropy = float(counts @ (np.log2(q.size) - np.log2(counts)))
    assert len(rans.encode([q])) <= 1.005 * entropy / 8 + 32


def test_side_information_is_small() -> None:
    """All but the words of a 270,000-symbol group at 2 bits is below 0.5% of it."""
    q = [laplace((64, 576), 0.7 + 0.01 * i, i) for i in range(8)]
    plan = rans.plan(q)
    payload = assert_round_trip(q, plan)
    data = 0.0
    for c, table in enumerate(plan.tables):
        values = np.concatenate([m[of == c].ravel() for m, of in zip(q, plan.classes, strict=True)])
        outside = (values < table.first) | (values >= table.first + table.size)
        data += table.code_lengths()[np.where(outside, table.size, values - table.first)].sum()
    assert 8 * len(payload) < 1.005 * data
    assert abs(plan.bits / 8 - len(payload)) < 0.003 * len(payload)


@pytest.mark.parametrize("scale", [0.38, 0.72, 1.5, 3.0])
def test_oracle_constriction(scale: float) -> None:
    """An independent ANS coder with the same integer model writes as many bytes, within 0.5%."""
    constriction = pytest.importorskip("constriction")
    q = laplace((100, 3000), scale)
    plan = rans.plan([q], most_classes=1)
    table = plan.tables[0]
    symbols = np.where((q >= table.first) & (q < table.first + table.size), q - table.first, table.size)
    probabilities = table.frequencies[table.frequencies > 0] / 2.0**table.precision
    dense = np.cumsum(table.frequencies > 0) - 1
    coder = constriction.stream.stack.AnsCoder()
    model = constriction.stream.model.Categorical(probabilities, perfect=False)
    coder.encode_reverse(dense[symbols.ravel()].astype(np.int32), model)
    theirs = 32 * coder.get_compressed().size
    assert 8 * len(rans.encode([q], plan)) == pytest.approx(theirs, rel=0.005)


def test_classes_pay() -> None:
    """Rows of two spreads get two classes; alike rows get one."""
    mixed = laplace((128, 500), 1.0)
    mixed[::2] = laplace((64, 500), 6.0, seed=1)
    assert len(rans.encode([mixed])) < 0.97 * len(rans.encode([mixed], rans.plan([mixed], most_classes=1)))
    assert len(rans.plan([laplace((128, 500), 1.0)]).tables) == 1


def test_parametric_tables_serve_short_streams() -> None:
    q = laplace((1, 150), 2.0)
    table = rans.plan([q]).tables[0]
    assert table.stored[0] & 1 == 0
    assert_round_trip([q])


def test_fit_handles_every_count() -> None:
    """Frequencies sum to 2^p, and whatever occurs has a code."""
    rng = np.random.default_rng(0)
    for size in (1, 2, 3, 30, 255, 400):
        counts = (rng.pareto(0.3, size) * 3).astype(np.int64) + 1
        for precision in (12, 13, 14):
            table, bits = rans_tables.fit(rans_tables.Counts(-size // 2, counts, 3, 0), precision)
            assert table.frequencies.sum() == 1 << precision and table.escape and np.isfinite(bits)
            assert (table.frequencies > 0).all()


# ---- hostile bytes -----------------------------------------------------------------------------------

@cache
def hostile_samples() -> list[tuple[bytes, list[Matrix]]]:
    groups = [
        [laplace((6, 40), 1.0), laplace((2, 30), 20.0, 1)],
        [laplace((12, 64), s, int(s * 10)) for s in (0.4, 6.0)],
        [laplace((3, 50), 4000.0)],
        [np.array([[0] * 60 + [999_999, -5]], np.int32)],
    ]
    mixed = laplace((64, 80), 0.5)
    mixed[::2] *= 9
    groups.append([mixed])
    return [(rans.encode(g, rans.plan(g, lanes=8)), g) for g in groups]


def outcome(payload: bytes, shapes: list[tuple[int, int]]) -> list[list[list[int]]] | None:
    try:
        return [q.tolist() for q in rans.decode(payload, shapes)]
    except FormatError:
        return None


def reference_outcome(payload: bytes, shapes: list[tuple[int, int]]) -> list[list[list[int]]] | None:
    try:
        return reference_decode(payload, shapes)
    except Corrupt:
        return None


def test_truncated_at_every_byte_or_extended() -> None:
    for payload, group in hostile_samples():
        for length in range(len(payload)):
            with pytest.raises(FormatError):
                rans.decode(payload[:length], shapes_of(group))
        for more in (b"\0", b"\0\0", b"\xff" * 5):
            with pytest.raises(FormatError):
                rans.decode(payload + more, shapes_of(group))


@PATHS
def test_every_bit_flip(monkeypatch: pytest.MonkeyPatch, simd: str) -> None:
    """Either FormatError or some integers; never a crash."""
    monkeypatch.setenv("TERSOR_SIMD", simd)
    for payload, group in hostile_samples():
        for bit in range(8 * len(payload)):
            flipped = bytearray(payload)
            flipped[bit >> 3] ^= 1 << (bit & 7)
            outcome(bytes(flipped), shapes_of(group))


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_mutated_payloads_like_the_reference(data: st.DataObject) -> None:
    """Kernel and reference agree on which mutated payloads are corrupt, and on the integers of the others."""
    payload, group = data.draw(st.sampled_from(hostile_samples()))
    mutated = bytearray(payload)
    for _ in range(data.draw(st.integers(1, 3))):
        mutated[data.draw(st.integers(0, min(60, len(payload) - 1)))] = data.draw(st.integers(0, 255))
    shapes = shapes_of(group)
    assert outcome(bytes(mutated), shapes) == reference_outcome(bytes(mutated), shapes)


@settings(max_examples=300, deadline=None)
@given(payload=st.binary(max_size=120),
       shapes=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 40)), max_size=3))
def test_made_up_payloads_like_the_reference(payload: bytes, shapes: list[tuple[int, int]]) -> None:
    assert outcome(payload, shapes) == reference_outcome(payload, shapes)


def test_limits_come_before_allocation() -> None:
    with pytest.raises(LimitError, match="max_tensor_bytes"):
        rans.decode(b"\0\0\0\0\0", [(1 << 31, 1 << 31)])
    with pytest.raises(LimitError, match="max_bytes"):
        rans.decode(b"", [(10, 10), (10, 10)], Limits(max_bytes=500))


# ---- arguments, determinism --------------------------------------------------------------------------

def test_wrong_arguments() -> None:
    q = laplace((4, 50), 1.0)
    with pytest.raises(TypeError, match="int32 with 2 axes"):
        rans.encode([q.astype(np.int64)])  # type: ignore[list-item]
    for wrong in ({"lanes": 3}, {"lanes": 128}, {"precision": 11}, {"bypass": [25]}, {"bypass": []},
                  {"most_classes": 9}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            rans.plan([q], **wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="other values"):
        rans.encode([q + np.int32(1000)], rans.plan([q]))
    payload = rans.encode([q])
    scale, out = np.ones(4, np.float32), np.empty((4, 50), np.float32)
    with pytest.raises(ValueError, match="row_scales"):
        rans.decode_float32(payload, [q.shape], [scale[:3]], [out])
    with pytest.raises(ValueError, match="out"):
        rans.decode_float32(payload, [q.shape], [scale], [out.T])
    with pytest.raises(ValueError, match="levels"):
        rans.decode_float32(payload, [q.shape], [scale], [out], [np.zeros(4, np.float32)])


def test_same_bytes_in_two_processes() -> None:
    program = ("import hashlib, numpy as np; from tersor.bitstream import rans;"
               "q = [np.round(np.random.default_rng(i).laplace(0, 1 + i, (40, 300))).astype(np.int32)"
               " for i in range(4)];"
               "print(hashlib.sha256(rans.encode(q)).hexdigest())")
    runs = {subprocess.run([sys.executable, "-c", program], capture_output=True, text=True,
                           check=True).stdout for _ in range(2)}
    assert len(runs) == 1


def test_threads_decode_at_once() -> None:
    """No shared state: payloads decoded in parallel give what they give alone."""
    groups = [[laplace((64, 2000), 0.3 * (i + 1), i)] for i in range(8)]
    payloads = [rans.encode(group) for group in groups]
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(rans.decode, p, shapes_of(g)) for p, g in zip(payloads, groups, strict=True)] * 3
        for job, group in zip(jobs, groups * 3, strict=True):
            np.testing.assert_array_equal(job.result()[0], group[0])


GOLDEN = bytes.fromhex(
    "2aff0009000001e40102090a14ff000002551709049f99c82070f8b1008f7ff1351d4c0100af2406002ab5ff017ca61643a1"
    "2cd085cbf58d95716df5927c32016e2b1c9a9db5b0ad1c50bef470a52106572b408eabbdfbe002cdebd7145006ca281c45ee"
    "a943d9034941fa166104e2be73b2e407e9f2c851a0fe733178fd58cb17a6f7045f3c9ee01d13f56e5a841f10e6a2dfdde2b2"
    "ef68a970427dc35eb1ff1f")


def test_golden_payload() -> None:
    """The format must not change: this payload, with every feature in it, decodes for ever."""
    i = np.arange(24)
    q = np.array([(i * i * 7 + i * r) % 11 - 5 if r % 3 else i % 9 == r % 9 for r in range(16)], np.int32)
    q[2, 3] = 12345
    first, second = rans.decode(GOLDEN, [(16, 24), (1, 3)])
    np.testing.assert_array_equal(first, q)
    np.testing.assert_array_equal(second, [[70000, -4, 300]])


def test_kernel_version() -> None:
    assert native.library().tersor_abi_version() == native.ABI_VERSION


@pytest.mark.parametrize("rows", [1, 40, 300])
@pytest.mark.parametrize("spread", [0.3, 2.0, 40.0])
def test_an_estimate_is_near_the_payload(rows: int, spread: float) -> None:
    rng = np.random.default_rng(rows)
    scale = spread * np.exp(0.7 * rng.normal(size=(rows, 1)))
    q = np.rint(rng.laplace(size=(rows, 600)) * scale).astype(np.int32)
    assert rans.estimate([q]) == pytest.approx(8 * len(rans.encode([q])), rel=0.03, abs=800)
    assert rans.estimate([np.zeros((0, 5), np.int32)]) == 0.0
