"""Ways to read a file besides `tersor.load`: into given memory, from a pipe, from a mapped file."""

from __future__ import annotations

import io
import mmap
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from make_golden import FOLDER

import tersor
from tersor.bitstream import buffers
from tersor.bitstream.container import to_bytes
from tersor.bitstream.manifest import TensorRecord
from tersor.errors import ChecksumError, FormatError, LimitError, UnsupportedError
from tersor.synthesis import scalar

FILES = sorted(FOLDER.glob("*.tersor"))


class Pipe:
    """Bytes that can only be read from front to back, a few at a time."""

    def __init__(self, data: bytes, most: int = 7) -> None:
        self._file, self._most = io.BytesIO(data), most
        self.asked = 0

    def read(self, size: int) -> bytes:
        self.asked = max(self.asked, size)
        return self._file.read(min(size, self._most))


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_streams_and_given_memory_hold_the_same_bytes(path: Path) -> None:
    expected = tersor.load(path, threads=1).read_all()
    streamed = dict(tersor.stream(Pipe(path.read_bytes()), threads=1))  # type: ignore[arg-type]
    assert set(streamed) == set(expected) and all(same(streamed[name], expected[name]) for name in expected)
    for threads in (1, 2):
        with tersor.load(path, threads=threads) as file:
            out = {name: np.full(array.shape, 1, array.dtype) for name, array in expected.items()}
            file.read_into(out)
            assert all(same(out[name], expected[name]) for name in expected)


def network(rows: int = 40, seed: int = 0) -> tuple[bytes, dict[str, np.ndarray]]:
    """A file of two scalar sections: one in parts, one with swapped axes and an alias."""
    rng = np.random.default_rng(seed)
    shapes = {"a.weight": (rows, 3, 3, 3), "b.weight": (6, 50), "c.weight": (5, 6)}
    codes = {name: scalar.ScalarCode(rng.integers(-3, 4, (shape[0], int(np.prod(shape[1:]))), dtype=np.int32), -40)
             for name, shape in shapes.items()}
    swapped = scalar.ScalarCode(np.ascontiguousarray(codes["c.weight"].q.T), -40, swapped=True)
    records = [TensorRecord(name, "F32", shape, int(name != "a.weight")) for name, shape in shapes.items()]
    records.append(TensorRecord("tied", "F32", shapes["b.weight"], None, 1))
    both = shapes["b.weight"], shapes["c.weight"]
    sections = [(1, scalar.encode([codes["a.weight"]], [shapes["a.weight"]], scalar.FAST, 16)),
                (1, scalar.encode([codes["b.weight"], swapped], both, scalar.SMALL))]
    data = to_bytes(records, sections, parameters=1000)
    return data, tersor.load(data).read_all()


def test_weights_are_decoded_where_they_are_wanted() -> None:
    data, expected = network()
    with tersor.load(data) as file:
        out = {name: torch.empty(array.shape) for name, array in expected.items()}
        file.read_into(out)
        assert not file._sections  # nothing is kept
        for name, array in expected.items():
            np.testing.assert_array_equal(out[name].numpy(), array)
        file["b.weight"]
        one = np.empty((6, 50), np.float32)
        file.read_into({"tied": one})  # an alias, and a section that is decoded already
        np.testing.assert_array_equal(one, expected["b.weight"])
        views = np.empty((2, 6, 50), np.float32)
        file.forget()
        file.read_into({"b.weight": views[0], "tied": views[1]})
        np.testing.assert_array_equal(views, np.stack([expected["b.weight"]] * 2))


@pytest.mark.parametrize(("buffer", "error"), [
    (np.empty((6, 50)), ValueError), (np.empty((50, 6), np.float32), ValueError),
    (np.empty((50, 6), np.float32).T, ValueError), (np.empty((6, 100), np.float32)[:, ::2], ValueError),
    (np.broadcast_to(np.float32(0), (6, 50)), ValueError), ([0.0] * 300, TypeError),
    (torch.empty(6, 50, dtype=torch.float16), ValueError), (torch.empty(50, 6).T, ValueError),
    (torch.empty(6, 49), ValueError), (torch.empty(6, 50, device="meta"), ValueError)])
def test_memory_that_does_not_fit_is_refused(buffer: object, error: type[Exception]) -> None:
    data, _ = network()
    with tersor.load(data) as file:
        untouched = np.full((5, 6), 7, np.float32)
        with pytest.raises(error, match=r"^b\.weight"):
            file.read_into({"c.weight": untouched, "b.weight": buffer})
        assert (untouched == 7).all()
        with pytest.raises(KeyError):
            file.read_into({"nothing": untouched})


def test_torch_tensors_of_every_type_share_their_memory() -> None:
    for dtype, kind in (("BF16", torch.bfloat16), ("F16", torch.float16), ("I64", torch.int64), ("BOOL", torch.bool),
                        ("F64", torch.float64), ("U8", torch.uint8), ("F8_E4M3", torch.float8_e4m3fn)):
        for shape in ((2, 3), ()):
            tensor = torch.zeros(shape, dtype=kind)
            array = buffers.as_array("t", tensor, dtype, shape)
            array[...] = np.ones(shape, array.dtype)
            assert array.shape == shape and bool((tensor.float() == 1).all())


def test_large_arrays_begin_with_a_large_page() -> None:
    for shape in ((1 << 20,), (3, 500_000), (0, 4), (5,)):
        array = buffers.empty(shape)
        assert array.shape == shape and array.dtype == np.float32 and array.flags.c_contiguous and array.flags.writeable
        assert array.nbytes < 4 << 20 or array.ctypes.data % (2 << 20) == 0


def test_a_stream_comes_from_a_real_pipe() -> None:
    data, expected = network(rows=4000)
    out, into = os.pipe()

    def write() -> None:
        with os.fdopen(into, "wb") as file:
            file.write(data)

    writer = threading.Thread(target=write)
    writer.start()
    with os.fdopen(out, "rb") as file:
        with pytest.raises(FormatError, match=r"tersor\.stream"):
            tersor.load(file)
        found = dict(tersor.stream(file))
    writer.join()
    assert list(found) == ["a.weight", "b.weight", "tied", "c.weight"]  # the alias right after its target
    assert found["tied"] is found["b.weight"] and not found["tied"].flags.writeable
    assert all(same(found[name], expected[name]) for name in expected)


def test_what_is_wrong_with_a_stream_shows_where_it_is() -> None:
    data, _ = network()
    for cut in (0, 5, 30):
        with pytest.raises(FormatError):
            tersor.stream(Pipe(data[:cut]))  # type: ignore[arg-type]
    reader = tersor.stream(Pipe(data[:-1]))  # type: ignore[arg-type]
    assert next(reader)[0] == "a.weight"
    with pytest.raises(FormatError, match="truncated"):
        next(reader)
    with pytest.raises(FormatError, match="follow the end"):
        list(tersor.stream(Pipe(data + b"\0")))  # type: ignore[arg-type]
    damaged = bytearray(data)
    damaged[-3] ^= 1
    with pytest.raises(ChecksumError):
        list(tersor.stream(Pipe(bytes(damaged))))  # type: ignore[arg-type]
    damaged = bytearray(data)
    damaged[8] = 9
    with pytest.raises(UnsupportedError):
        tersor.stream(Pipe(bytes(damaged)))  # type: ignore[arg-type]
    with pytest.raises(LimitError):
        tersor.stream(Pipe(data), tersor.Limits(max_elements=10))  # type: ignore[arg-type]


def test_a_stream_that_promises_much_gets_no_memory_for_it() -> None:
    data, _ = network()
    huge = bytearray(data)
    huge[14:18] = (12 << 20).to_bytes(4, "little")  # length of the stored manifest
    pipe = Pipe(bytes(huge), most=1 << 30)
    with pytest.raises(FormatError, match="truncated"):
        tersor.stream(pipe)  # type: ignore[arg-type]
    assert pipe.asked <= 1 << 20
    huge[14:18] = b"\xff" * 4
    with pytest.raises(LimitError, match="stored manifest"):
        tersor.stream(Pipe(bytes(huge)))  # type: ignore[arg-type]


def test_a_mapped_file_is_read(tmp_path: Path) -> None:
    data, expected = network()
    path = tmp_path / "a.tersor"
    path.write_bytes(data)
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        opened = tersor.load(mapped)
        assert all(same(opened[name], expected[name]) for name in expected)
        del opened
