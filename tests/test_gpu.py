"""Decoding by Triton kernels: the bits of the CPU's decoder, and its errors.

Kernels run on a GPU where there is one, and else in Triton's interpreter, on the CPU. What prepares payloads for them
is tested without Triton too.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import tersor
from tersor import gpu
from tersor.bitstream import buffers, rans
from tersor.bitstream.container import to_bytes
from tersor.bitstream.dtypes import to_bytes as bytes_of
from tersor.bitstream.fallback.rans import Lanes
from tersor.bitstream.fallback.rans_header import Refused
from tersor.bitstream.manifest import TensorRecord
from tersor.gpu.jobs import Job, job_of
from tersor.synthesis import scalar, trellis

GOLDEN = Path(__file__).parent / "golden"
TRITON = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed (286 MB)")


@pytest.fixture
def device(monkeypatch) -> str:
    if torch.cuda.is_available():
        return "cuda"
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # before the kernels are imported
    return "cpu"


def integers(rng: np.random.Generator, shape: tuple[int, int], width: float, wild: int = 0) -> np.ndarray:
    q = np.rint(rng.laplace(0, width, shape)).astype(np.int32)
    if q.size:
        q.flat[rng.integers(0, q.size, wild)] = rng.integers(-(1 << 20), 1 << 20, wild)
    return q


def groups() -> dict[str, tuple[list[np.ndarray], dict[str, int]]]:
    """Groups of matrices, and what the encoder is told: every option of a payload."""
    rng = np.random.default_rng(3)
    out = {}
    for lanes in (1, 2, 8, 32, 64):
        out[f"{lanes} lanes"] = [integers(rng, (5, 13 + lanes), 1.5), integers(rng, (3, 7), 2)], {"lanes": lanes}
    for precision in (12, 13, 14):
        out[f"precision {precision}"] = [integers(rng, (4, 30), 3)], {"lanes": 16, "precision": precision}
    out["escapes"] = [integers(rng, (4, 40), 1, wild=5), integers(rng, (2, 9), 1, wild=2)], {"lanes": 8}
    out["low bits"] = [integers(rng, (4, 20), 4000), integers(rng, (1, 9), 90_000, wild=2)], {"lanes": 8}
    mixed = np.concatenate([integers(rng, (6, 60), width) for width in (0.2, 9)])[rng.permutation(12)]
    none, zeros = np.zeros((3, 0), np.int32), np.zeros((2, 60), np.int32)
    out["classes"] = [mixed, none, integers(rng, (5, 60), 9), zeros], {"lanes": 16}
    out["one symbol"] = [np.full((3, 50), -2, np.int32)], {"lanes": 4}
    return out


GROUPS = groups()


def payload_of(name: str) -> tuple[bytes, list[tuple[int, int]], list[np.ndarray]]:
    matrices, options = GROUPS[name]
    lanes, precision = options.get("lanes"), options.get("precision")
    payload = rans.encode(matrices, rans.plan(matrices, lanes=lanes, precision=precision))
    return payload, [(q.shape[0], q.shape[1]) for q in matrices], matrices


def by_hand(job: Job) -> list[np.ndarray]:
    """What kernels do, one symbol after the other."""
    lanes = Lanes(list(job.states), job.header.words[job.read :].tolist(), job.header.precision)
    lanes.count = job.origin
    symbols = np.array([s for table, begin, end in job.segments for s in lanes.decode(job.tables[table], end - begin)])
    assert lanes.finished()
    places = []
    for table, begin, end in job.segments:
        here = np.flatnonzero(symbols[begin - job.origin : end - job.origin] == job.tables[table].size)
        places.append(here + begin - job.origin if job.tables[table].escape else np.zeros(0, np.int64))
    elements, values = job.escaped(places)
    escaped = dict(zip(elements.tolist(), values.tolist(), strict=True))
    lows = int.from_bytes(job.header.lows, "little")
    out = [np.zeros(shape, np.int64) for shape in job.shapes]
    for m, (rows, columns) in enumerate(job.shapes):
        low = job.header.bypass[m]
        for r in range(rows):
            row = int(job.first_rows[m]) + r
            for c in range(columns):
                element = int(job.row_source[row]) + c
                q = job.tables[job.row_class[row]].first + int(symbols[element])
                if low:
                    q = (q << low) + (lows >> int(job.row_low[row]) + c * low & (1 << low) - 1) - (1 << low - 1)
                out[m][r, c] = escaped.get(element, q)
    return out


@pytest.mark.parametrize("name", GROUPS)
def test_jobs_say_where_everything_is(name):
    payload, shapes, matrices = payload_of(name)
    job = job_of(payload, shapes)
    assert job is not None and job.elements == sum(q.size for q in matrices)
    if name == "classes":
        assert job.header.classes > 1 and job.origin > 0 and len({*job.row_class.tolist()}) > 1
    if name in ("escapes", "low bits"):
        assert job.header.escapes if name == "escapes" else max(job.header.bypass)
    for found, q in zip(by_hand(job), matrices, strict=True):
        np.testing.assert_array_equal(found, q)


def test_jobs_refuse_as_the_decoder_does():
    payload, shapes, _ = payload_of("classes")
    for cut in (0, 1, 5, 12):
        with pytest.raises(Refused):
            job_of(payload[:cut], shapes)
    assert job_of(payload, [(1 << 16, 1 << 15)]) is None  # more than a kernel counts
    escapes, shapes, _ = payload_of("escapes")
    job = job_of(escapes, shapes)
    assert job is not None
    with pytest.raises(Refused):
        job.escaped([np.zeros(0, np.int64)] * len(job.segments))  # codes are left over


def file_of(shifts: bool, states: int, dtype: str = "F32") -> bytes:
    """Parts, swapped axes, no elements, an alias; all in two sections."""
    rng = np.random.default_rng(4)
    shift = (20, 8) if shifts and not states else (0, 0)
    views = ((9, 40), 0, False), ((6, 36), 3, True), ((0, 12), 0, False), ((4, 8), 1, False)
    codes = [scalar.ScalarCode(integers(rng, shape, 2, wild), -300, np.arange(shape[0]) % 5, 2, shift, swapped, states)
             for shape, wild, swapped in views]
    shapes = [(9, 40), (4, 6, 3, 3), (0, 3, 2, 2), (4, 8)]
    parts = scalar.ScalarCode(integers(rng, (11, 20), 3), -100, trellis=states)
    records = [TensorRecord(f"w{i}", dtype, shape, 0) for i, shape in enumerate(shapes)]
    records += [TensorRecord("parts", dtype, (11, 20), 1), TensorRecord("tied", dtype, (4, 8), None, 3)]
    return to_bytes(records, [(1, scalar.encode(codes, shapes, scalar.FAST)),
                              (1, scalar.encode([parts], [(11, 20)], scalar.FAST, 4))], parameters=1000)


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, np.ndarray]) -> None:
    assert list(found) == list(expected)
    for name, array in expected.items():
        raw = found[name].contiguous().reshape(-1).view(torch.uint8).cpu().numpy()
        assert raw.tobytes() == bytes_of(array), name


@TRITON
@pytest.mark.parametrize("name", GROUPS)
def test_kernels_give_the_bits_of_the_cpu(name, device):
    _, shapes, matrices = payload_of(name)
    codes = [scalar.ScalarCode(q, -70, np.arange(len(q)) % 3, 2, (20, 6)) for q in matrices]
    data = to_bytes([TensorRecord(f"w{i}", "F32", shape, 0) for i, shape in enumerate(shapes)],
                    [(1, scalar.encode(codes, shapes, scalar.FAST))], parameters=1000)
    with tersor.load(data) as file:
        out = {n: torch.full(array.shape, 7.0, device=device) for n, array in file.read_all().items()}
        assert gpu.read_into(file, out) == {0}
        assert_same(out, file.read_all())


@TRITON
@pytest.mark.parametrize(("shifts", "states", "dtype"), [
    (True, 0, "F32"), (False, 0, "F16"), (False, 4, "F64"), (False, 8, "BF16")])
def test_files(device, shifts, states, dtype):
    with tersor.load(file_of(shifts, states, dtype)) as file:
        out = {name: torch.empty(array.shape, dtype=buffers.torch_dtype(dtype), device=device)
               for name, array in file.read_all().items()}
        assert gpu.read_into(file, out) == {0, 1}
        assert_same(out, file.read_all())


@TRITON
@pytest.mark.parametrize(("name", "by_kernels"), [
    ("digest", 1), ("trellis-fast", 3), ("scalar-types", 5), ("manifest", 0)])
def test_golden_files(device, name, by_kernels):
    with tersor.load(GOLDEN / f"{name}.tersor") as file:
        expected = {name: array for name, array in file.read_all().items() if name not in file.aliases}
        out = {name: torch.empty(array.shape, dtype=buffers.torch_dtype(file.record(name).dtype), device=device)
               for name, array in expected.items()}
        assert len(gpu.read_into(file, out)) == by_kernels
        assert_same(out, expected)


@TRITON
def test_what_the_cpu_refuses_kernels_do_not_decode(device):
    rng = np.random.default_rng(5)
    code = scalar.ScalarCode(integers(rng, (4, 60), 2, wild=2), -90)
    payload = scalar.encode([code], [(4, 60)], scalar.FAST)
    refused = 0
    for place in (*range(len(payload) - 30, len(payload), 6), len(payload) // 2):
        damaged = bytearray(payload)
        damaged[place] ^= 0x11
        data = to_bytes([TensorRecord("w", "F32", (4, 60), 0)], [(1, bytes(damaged))], parameters=240)
        out = torch.empty(4, 60, device=device)
        with tersor.load(data) as file:
            try:
                expected = file.read_all()
            except tersor.TersorError as error:
                refused += 1
                with pytest.raises(type(error)) as found:
                    gpu.read_into(file, {"w": out})
                assert str(found.value) == str(error)
            else:
                gpu.read_into(file, {"w": out})
                assert_same({"w": out}, expected)
    assert refused > 3


@TRITON
def test_more_escapes_than_an_encoder_makes_are_for_the_cpu(device, monkeypatch):
    from tersor.gpu import batch
    monkeypatch.setattr(batch, "MANY", 0)
    q = integers(np.random.default_rng(7), (2, 60), 1, wild=4)
    payload = scalar.encode([scalar.ScalarCode(q, 0)], [(2, 60)], scalar.FAST)
    with tersor.load(to_bytes([TensorRecord("w", "F32", (2, 60), 0)], [(1, payload)], parameters=120)) as file:
        out = {"w": torch.empty(2, 60, device=device)}
        assert gpu.read_into(file, out) == set()
        assert_same(out, file.read_all())


@TRITON
def test_a_truncated_stream_of_words_is_refused(device):
    q = integers(np.random.default_rng(6), (3, 90), 3)
    payload = scalar.encode([scalar.ScalarCode(q, 0)], [(3, 90)], scalar.FAST)
    with tersor.load(to_bytes([TensorRecord("w", "F32", (3, 90), 0)], [(1, payload[:-8])], parameters=270)) as file, \
            pytest.raises(tersor.TersorError, match="truncated"):
        gpu.read_into(file, {"w": torch.empty(3, 90, device=device)})


@TRITON
def test_the_tables_of_the_trellis(device):
    from tersor.gpu import kernels
    for states in (4, 8):
        following, quantizer = (getattr(kernels, f"{name}_{states}") for name in ("NEXT", "QUANTIZER"))
        for state in range(states):
            assert [following.value >> 3 * (2 * state + bit) & 7 for bit in (0, 1)] == list(trellis.NEXT[states][state])
            assert quantizer.value >> state & 1 == trellis.QUANTIZER[states][state]


COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from tersor.gpu import kernels

def ptx(function, types, constants):
    names = function.arg_names
    signature = dict(zip(names, types.split())) | dict.fromkeys(constants, "constexpr")
    source = ASTSource(function, signature, {(names.index(name),): value for name, value in constants.items()})
    return compile(source, GPUTarget("cuda", 80, 32), {"num_warps": 1}).asm["ptx"]

for lanes in (1, 32, 64):
    ptx(kernels.decode_symbols, "*i16 *i32 *i64 *i64 *u8 *i32 *u8 *i32", {"LANES": lanes})
row = "*u8 *i64 *i32 *i64 *fp32 *i64 *u8 *fp32 *fp32 i32 i32 i32"
texts = [ptx(kernels.restore_rows, row, {"LOW": low, "FLOATS": True, "BLOCK": 128}) for low in (0, 5)]
texts.append(ptx(kernels.restore_trellis, "*i32 *fp32 *fp32 i32 i32",
                 {"NEXT": kernels.NEXT_8, "QUANTIZER": kernels.QUANTIZER_8, "BLOCK": 32}))
for text in texts:  # products rounded by themselves, small ones not to zero
    assert "mul.f32" in text and "fma." not in text and "mul.ftz" not in text
"""


@TRITON
def test_kernels_compile_for_cuda(tmp_path):
    path = os.pathsep.join(sys.path)
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_without_a_gpu_tensors_are_decoded_on_the_cpu(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert not gpu.decodes_on("cpu") and not gpu.decodes_on("meta")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not gpu.decodes_on("cuda")
    with tersor.load(file_of(True, 0)) as file:
        found = gpu.read_all(file, "cpu")
        assert_same(found, file.read_all())
        assert found["tied"] is found["w3"]
        for wrong in (torch.empty(9, 41), torch.empty(9, 40, dtype=torch.float64)):
            untouched = torch.full((4, 8), 7.0)
            with pytest.raises(ValueError, match=r"^w0"):
                gpu.read_into(file, {"w3": untouched, "w0": wrong})
            assert (untouched == 7).all()
        with pytest.raises(KeyError):
            gpu.read_into(file, {"nothing": torch.empty(1)})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_read_into_takes_tensors_on_a_gpu():
    with tersor.load(file_of(True, 0)) as file:
        out = {name: torch.empty(array.shape, device="cuda") for name, array in file.read_all().items()}
        file.read_into(out)
        assert_same(out, file.read_all())
