"""Small files that claim much: what `Limits` forbid is refused before anything is allocated, and what they allow is
decoded within the memory that they promise, asserted by the operating system in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
from forge import file_of, manifest_of, tiny_file

from tersor.bitstream.container import TensorRecord, to_bytes
from tersor.decoder import load
from tersor.errors import FormatError, LimitError
from tersor.limits import WORK_BYTES, Limits
from tersor.synthesis import batchnorm, codebook, kernels, raw, scalar, transform, vector
from tersor.synthesis.batchnorm import BatchNormCode
from tersor.synthesis.codebook import CodebookCode
from tersor.synthesis.kernels import KernelCode
from tersor.synthesis.scalar import FAST, SMALL, ScalarCode
from tersor.synthesis.transform import Dct, TransformCode
from tersor.synthesis.vector import VectorCode

resource = pytest.importorskip("resource", reason="no resource limits on this system")

SIDE = 1024
COUNT = SIDE * SIDE
SHAPE = (SIDE, SIDE)
KERNELS = (COUNT // 16, 1, 4, 4)
ZEROS = np.zeros(SHAPE, np.int32)
SHARED = CodebookCode.of([0, 1], [ZEROS])
MARGIN = 24 << 20
"""What an interpreter takes on the way for itself: lazily imported modules, arenas, stacks."""


def square(trellis: int = 0) -> ScalarCode:
    return ScalarCode(ZEROS, -64, trellis=trellis)


BOMBS: dict[str, Callable[[], tuple[int, bytes, list[tuple[int, ...]]]]] = {
    "raw": lambda: (0, raw.encode([np.zeros(SHAPE, "f4")]), [SHAPE]),
    "scalar-fast": lambda: (1, scalar.encode([square()], [SHAPE], FAST), [SHAPE]),
    "scalar-small": lambda: (1, scalar.encode([square()], [SHAPE], SMALL), [SHAPE]),
    "scalar-trellis": lambda: (1, scalar.encode([square(8)], [SHAPE], SMALL), [SHAPE]),
    "scalar-rows": lambda: (1, scalar.encode([ScalarCode(ZEROS.reshape(-1, 1), 0, np.zeros(COUNT, np.int64))],
                                             [(COUNT, 1)], FAST), [(COUNT, 1)]),
    "batchnorm": lambda: (2, batchnorm.encode([BatchNormCode(
        np.zeros(COUNT, np.int64), np.ones(COUNT, np.int8), 4, np.zeros(COUNT, np.int64), 0, 1e-5)]), [(COUNT,)] * 4),
    "vector": lambda: (3, vector.encode([VectorCode(np.zeros(COUNT, np.int64), 0)]), [(COUNT,)]),
    "codebook-dense": lambda: (4, codebook.encode(SHARED, [SHAPE], "huffman", "dense")[0], [SHAPE]),
    "codebook-small": lambda: (4, codebook.encode(SHARED, [SHAPE], "arithmetic", "dense")[0], [SHAPE]),
    "codebook-sparse": lambda: (4, codebook.encode(SHARED, [SHAPE], "fast", "sparse")[0], [SHAPE]),
    "transform-bases": lambda: (5, transform.encode([TransformCode(square(), rows=square(), channels=square())],
                                                    [SHAPE], FAST), [SHAPE]),
    "transform-dct": lambda: (5, transform.encode([TransformCode(ScalarCode(ZEROS.reshape(-1, 16), 0), taps=Dct.II)],
                                                  [KERNELS], SMALL), [KERNELS]),
    "kernels": lambda: (6, kernels.encode([KernelCode(np.zeros((1, 1), np.int32), ZEROS, 0, gain=ZEROS)], [SHAPE],
                                          "adaptive"), [SHAPE]),
}

CHILD = """
import resource, sys
import numpy
import tersor
from tersor.decoder import decoder_of
from tersor.limits import Limits
tool, room = int(sys.argv[2]), int(sys.argv[3])
decoder_of(tool)
with open("/proc/self/statm") as file:
    now = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + room, now + room))
with tersor.load(sys.argv[1], Limits(max_elements=int(sys.argv[4])), threads=1) as file:
    print(sum(array.size for array in file.read_all().values()))
"""


def bomb(name: str) -> tuple[int, bytes, int]:
    """Tool, file, and elements that it claims."""
    tool, payload, shapes = BOMBS[name]()
    dtype = "F8_E4M3" if name == "kernels" else "F32"
    records = [TensorRecord(f"t{i}", dtype, shape, 0) for i, shape in enumerate(shapes)]
    return tool, to_bytes(records, [(tool, payload)], parameters=1), sum(record.count for record in records)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="address space is counted by /proc")
@pytest.mark.parametrize("name", BOMBS)
def test_memory_stays_within_the_promise(name, tmp_path):
    tool, data, elements = bomb(name)
    assert len(data) < 6000
    path = tmp_path / "bomb.tersor"
    path.write_bytes(data)
    room = WORK_BYTES * elements + MARGIN
    arguments = [sys.executable, "-c", CHILD, path, tool, room, elements]
    done = subprocess.run(list(map(str, arguments)), capture_output=True, text=True, timeout=60,
                          env={"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) == elements


@pytest.mark.parametrize("name", BOMBS)
def test_refused_before_anything_is_allocated(name):
    _, data, elements = bomb(name)
    with pytest.raises(LimitError, match="max_elements"):
        load(data, Limits(max_elements=elements - 1))
    with pytest.raises(LimitError, match="max_bytes"):
        load(data, Limits(max_bytes=elements - 1))
    with pytest.raises(LimitError, match="max_tensor_bytes"):
        load(data, Limits(max_tensor_bytes=COUNT - 1))


def test_empty_tensors_count_too():
    with pytest.raises(LimitError, match="max_elements"):
        load(tiny_file(axes=(2,), dims=(1, 1 + (1 << 22))), Limits(max_elements=1 << 20))


def test_parts_are_bounded_by_the_bytes_that_are_there():
    """A million parts of one row each, of which the file has none, are refused at once."""
    shape = (1 << 20, 1)
    code = TransformCode(ScalarCode(np.zeros((2, 1), np.int32), -64))
    for tool, payload in ((1, scalar.encode([code.coefficients], [(2, 1)], FAST, 1)),
                          (5, transform.encode([code], [(2, 1)], FAST, 1))):
        data = to_bytes([TensorRecord("w", "F32", shape, 0)], [(tool, payload)], parameters=1)
        with pytest.raises(FormatError, match="announced"):
            load(data).read_all()


def test_a_manifest_of_a_megabyte_stays_small(tmp_path):
    """As many tensors and sections as the default limits allow."""
    count = 1 << 14
    names, before = [], b""
    for i in range(count):
        name = bytes([65 + i % 26, 48 + i // 26 % 60, 1 + i // 1560])
        shared = next((j for j, (a, b) in enumerate(zip(before, name, strict=False)) if a != b), min(len(before), 3))
        names.append((shared, name[shared:] + b"\0"))
        before = name
    dims = [2, *[3] * 15, *[0] * 16 * (count - 1)]
    manifest = manifest_of(names=names, dtypes=[11] * count, axes=[16] * count, dims=dims,
                           homes=range(1, count + 1), sections=[(1, b"")] * count)
    path = tmp_path / "many.tersor"
    path.write_bytes(file_of(manifest))
    code = CHILD.replace("file.read_all().values()", "()")
    arguments = [sys.executable, "-c", code, path, 1, MARGIN + 1024 * 2 * count + len(manifest), 1 << 40]
    done = subprocess.run(list(map(str, arguments)), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-2000:]


def test_aliases_count_as_bytes_that_are_written():
    names = ((0, b"a\0"), *((0, bytes([98 + i]) + b"\0") for i in range(20)))
    data = tiny_file(names=names, dtypes=(0,) * 21, axes=(1,) * 21, dims=(4, *[0] * 20), homes=(1, *[0] * 20),
                     targets=(0,) * 20)
    assert len(load(data, Limits(max_bytes=21 * 12, max_elements=3)).read_all()) == 21
    with pytest.raises(LimitError, match="max_bytes"):
        load(data, Limits(max_bytes=21 * 12 - 1))


def test_a_source_file_is_not_made_of_one_tensor_many_times():
    from tersor.adapters.skeleton import FileWithHoles, Hole, Skeleton
    for uses in (16, 17):
        data = Skeleton("onnx", [FileWithHoles("", b"", [Hole(0, "w")] * uses)]).to_bytes(["w"])
        if uses == 16:
            assert len(Skeleton.from_bytes(data, ["w"]).files[0].holes) == 16
            continue
        with pytest.raises(FormatError, match="17 times"):
            Skeleton.from_bytes(data, ["w"])
