"""Makes the golden files: every tool and every option of the format, kept for ever.

    python tests/make_golden.py          # writes those that are missing; never touches one that is there

Each NAME.tersor has a NAME.json beside it: the dtype, shape and SHA-256 (little-endian, C order) of every
tensor as it was decoded when the file was made, and what else the file says. A file that is wrong gets a
successor under a new name: other decoders test against these.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import numpy.typing as npt

from tersor.bitstream import rans, varint
from tersor.bitstream.container import to_bytes
from tersor.bitstream.deflate import deflate
from tersor.bitstream.dtypes import NUMPY, name_of
from tersor.bitstream.dtypes import to_bytes as bytes_of
from tersor.bitstream.manifest import TensorRecord
from tersor.decoder import load
from tersor.synthesis import batchnorm, raw, scalar, vector
from tersor.synthesis.batchnorm import BatchNormCode
from tersor.synthesis.scalar import FAST, SMALL, ScalarCode
from tersor.synthesis.vector import VectorCode

FOLDER = Path(__file__).parent / "golden"
Shape = tuple[int, ...]
Member = tuple[str, str, Shape, ScalarCode]
"""Name, dtype, shape and integers of a tensor in a scalar section."""


def laplace(seed: int, shape: Shape, scale: float, swapped: bool = False) -> npt.NDArray[np.int32]:
    """Integers of a tensor in its matrix view, with rows and columns of different spread."""
    view = scalar.view_shape(shape, swapped)
    rng = np.random.default_rng(seed)
    spread = np.exp(rng.normal(0, 0.5, (view.rows, 1)) + rng.normal(0, 0.3, (1, view.columns)))
    values = np.rint(rng.laplace(0, scale, (view.rows, view.columns)) * spread)
    return np.clip(values, -(2**31), 2**31 - 1).astype(np.int32)


def scalars(*sections: tuple[list[Member], int, int]) -> bytes:
    """A file of scalar sections: (members, mode, rows per part)."""
    records, payloads = [], []
    for i, (members, mode, rows_per_part) in enumerate(sections):
        records += [TensorRecord(name, dtype, shape, i) for name, dtype, shape, _ in members]
        codes, shapes = [member[3] for member in members], [member[2] for member in members]
        payloads.append((1, scalar.encode(codes, shapes, mode, rows_per_part)))
    return to_bytes(records, payloads, parameters=sum(record.count for record in records))


def group(prefix: str) -> list[Member]:
    """Tensors of all kinds, to share one section."""
    def rows(seed: int, count: int, spread: float) -> npt.NDArray[np.int64]:
        return np.rint(np.random.default_rng(seed).normal(0, spread, count)).astype(np.int64)

    return [
        (prefix + "conv2d", "F32", (12, 5, 3, 3),
         ScalarCode(laplace(1, (12, 5, 3, 3), 1.2), -160, shift=(9, 4))),
        (prefix + "conv1d", "F32", (9, 4, 7),
         ScalarCode(laplace(2, (9, 4, 7), 0.4), -150, rows(3, 9, 3), 2)),
        (prefix + "conv3d", "F32", (5, 2, 2, 3, 4), ScalarCode(laplace(3, (5, 2, 2, 3, 4), 2.5), -171)),
        (prefix + "kernel31", "F32", (3, 1, 6, 6), ScalarCode(laplace(4, (3, 1, 6, 6), 1.0), -171)),
        (prefix + "zeros", "F32", (6, 8), ScalarCode(np.zeros((6, 8), np.int32), -171)),
        (prefix + "line", "F32", (70,),
         ScalarCode(laplace(5, (70,), 3), 12, rows(6, 70, 9), 5, (48, 48))),
        (prefix + "one", "F32", (1,), ScalarCode(np.array([[-2]], np.int32), 0)),
        (prefix + "norows", "F32", (0, 3, 2, 2),
         ScalarCode(np.zeros((0, 12), np.int32), -5, np.zeros(0, np.int64), 0)),
        (prefix + "nocolumns", "F32", (4, 0),
         ScalarCode(np.zeros((4, 0), np.int32), -5, rows(7, 4, 2), 1)),
        (prefix + "notaps", "F32", (2, 3, 0, 3), ScalarCode(np.zeros((2, 0), np.int32), -5)),
        (prefix + "transposed", "F32", (6, 4, 2, 2),
         ScalarCode(laplace(8, (6, 4, 2, 2), 1, True), -128, rows(9, 4, 4), 3, (3, 0), True)),
        (prefix + "embedding", "F32", (50, 8),
         ScalarCode(laplace(10, (50, 8), 0.8, True), -96, swapped=True)),
        (prefix + "linear", "F32", (16, 40),
         ScalarCode(laplace(11, (16, 40), 0.6), -140, rows(12, 16, 1), 0)),
    ]


def parts(mode: int) -> bytes:
    """One tensor cut in parts: an incomplete last one, parts of one row, one part, none."""
    def one(seed: int, shape: Shape, rows_per_part: int) -> tuple[list[Member], int, int]:
        rows = np.arange(shape[0]) % 7 - 3 if seed % 2 else None
        code = ScalarCode(laplace(seed, shape, 1.5), -64, rows, 2, (0, 5) if seed % 3 else (0, 0))
        return [(f"t{seed}", "F32", shape, code)], mode, rows_per_part

    return scalars(one(20, (17, 4, 3, 3), 5), one(21, (6, 30), 1), one(22, (6, 30), 6),
                   one(23, (6, 30), 1000), one(24, (0, 30), 4), one(25, (8, 0), 3), one(26, (40, 9), 0))


def large(mode: int) -> bytes:
    """Low bits, escapes, and the ends of the range; with a shift, which ends at 4096."""
    ends = np.array([[2**31 - 1, -(2**31) + 1, 0, 1, -1, 18, 19, -20, 4096, -4097, 65536, -16777217]],
                    np.int32)
    rare = laplace(30, (8, 90), 0.5)
    rare[::3, ::17] = np.arange(-9, 9)[:, None].reshape(3, 6) * 1234
    steps = np.repeat(np.array([-4, 0, 3, 9]), 6)
    return scalars(
        ([("fine", "F32", (10, 30), ScalarCode(laplace(31, (10, 30), 70), -250)),
          ("coarse", "F32", (10, 30), ScalarCode(laplace(32, (10, 30), 0.7), -60)),
          ("finest", "F32", (5, 3, 4),
           ScalarCode(laplace(33, (5, 3, 4), 3e7), -999, shift=(5, 6)))], mode, 0),
        ([("ends", "F32", (1, 12), ScalarCode(ends, -640, shift=(20, 40))),
          ("rare", "F32", (8, 90), ScalarCode(rare, -90, shift=(10, 20)))], mode, 0),
        ([("lowest", "F32", (1, 3), ScalarCode(np.array([[-(2**31), 5, -6]], np.int32), 0))], mode, 0),
        ([("noise", "F32", (6, 40), ScalarCode(laplace(34, (6, 40), 2e8), 0))], mode, 0),
        ([("offset", "F32", (24, 12), ScalarCode(laplace(35, (24, 12), 4) + 900, 0, steps, 4))], mode, 0))


def types() -> bytes:
    """Every float type, in both modes; steps that need the second rounding, subnormals, zero steps."""
    sections = []
    for i, dtype in enumerate(("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")):
        for mode in (FAST, SMALL):
            rows = np.array([0, -7, -300, 5])
            code = ScalarCode(laplace(40 + i, (4, 25), 1.5), -35, rows, 4, (11, 7))
            sections.append(([(f"{dtype}.{mode}", dtype, (4, 25), code)], mode, 0))
    rows = np.array([-28800, -10000, -4700, -4500, -4100, 0])
    tiny = ScalarCode(laplace(46, (6, 20), 2), 0, rows, 5, (16, 16))
    sections += [([(f"tiny.{mode}", "F32", (6, 20), tiny)], mode, 0) for mode in (FAST, SMALL)]
    return scalars(*sections)


def rans_options() -> bytes:
    """Lanes 1 to 64, precisions 12 to 14, one class to eight, low bits."""
    records, sections = [], []
    for i, (lanes, precision, classes) in enumerate(
            [(1, 12, 8), (2, 13, 1), (4, 14, 8), (8, 12, 2), (16, 13, 8), (32, 14, 1), (64, 12, 8)]):
        shape = (24, 60)
        q = laplace(50 + i, shape, 2.0)
        q[::2] //= 4
        q += np.int32(7 * (i % 2))
        plain = scalar.encode([ScalarCode(q, -32)], [shape], FAST)
        size = 1 + varint.ByteReader(plain, "").varint()
        plan = rans.plan([q], lanes=lanes, precision=precision, most_classes=classes, bypass=[i % 3])
        records.append(TensorRecord(f"lanes{lanes}", "F32", shape, i))
        sections.append((1, plain[:size] + rans.encode([q], plan)))
    return to_bytes(records, sections, parameters=7 * 24 * 60)


def batchnorms() -> bytes:
    """A dead channel, negative scales, all resolutions, no channels, two eps; and one eps alone."""
    rng = np.random.default_rng(60)
    signs = np.array([1, 1, 1, -1, 0], np.int8)
    codes = [BatchNormCode(rng.integers(-40, 9, c) >> (5 - j), rng.choice(signs, c), j,
                           rng.integers(-300, 300, c), -100 - c, (1e-5, 1e-3)[j % 2])
             for j, c in enumerate([8, 16, 5, 1, 0, 33])]
    single = [BatchNormCode(np.array([-20, -17, 0, -25]), np.array([1, -1, 0, 1], np.int8), 4,
                            np.array([3, -5, 2, 0]), -100, 1e-5)]
    keys = ("weight", "bias", "running_mean", "running_var")
    records = [TensorRecord(f"bn{i}.{key}", ("F32", "F64", "BF16")[i % 3], code.scale_index.shape, 0)
               for i, code in enumerate(codes) for key in keys]
    records += [TensorRecord(f"alone.{key}", "F32", (4,), 1) for key in keys]
    return to_bytes(records, [(2, batchnorm.encode(codes)), (2, batchnorm.encode(single))], parameters=134)


def fine_batchnorms() -> bytes:
    """Scales of 64 to 4096 points an octave, and the ends of the grid."""
    rng, signs = np.random.default_rng(61), np.array([1, 1, -1, 0], np.int8)
    codes = [BatchNormCode(rng.integers(-(3 << j), 1 << j, 9), rng.choice(signs, 9), j,
                           rng.integers(-(3 << j), 3 << j, 9), -32 * j, 1e-5) for j in range(6, 13)]
    codes.append(BatchNormCode(np.array([-900 << 12, -899 << 12, 120 << 12]), np.ones(3, np.int8), 12,
                               np.array([-1, 0, 1]), -28800, 1e-5))
    keys = ("weight", "bias", "running_mean", "running_var")
    records = [TensorRecord(f"bn{i}.{key}", "F64" if i % 2 else "F32", code.scale_index.shape, 0)
               for i, code in enumerate(codes) for key in keys]
    return to_bytes(records, [(2, batchnorm.encode(codes))], parameters=2 * 66)


def vectors() -> bytes:
    """Axes 0 to 3, no elements, a base, large integers, every float type."""
    rng = np.random.default_rng(70)
    made = [("bias", "F32", rng.integers(-50, 50, 40), -320),
            ("norm", "F32", 500 + rng.integers(-9, 9, 64), -288),
            ("scalar", "F32", np.array(-77), -7),
            ("void", "F32", np.zeros((3, 0, 2), np.int64), 0),
            ("cube", "F64", rng.integers(-3, 4, (2, 3, 4)), 31),
            ("half", "F16", rng.integers(-9999, 9999, 9), -200),
            ("brain", "BF16", rng.integers(-999, 999, (3, 3)), -111),
            ("e4", "F8_E4M3", rng.integers(-9, 9, 7), 3),
            ("e5", "F8_E5M2", rng.integers(-9, 9, 7), 5),
            ("wide", "F64", np.array([2**40 - 3, -(2**39), 1]), -28800)]
    records = [TensorRecord(name, dtype, index.shape, 0) for name, dtype, index, _ in made]
    return to_bytes(records, [(3, vector.encode([VectorCode(index, step) for _, _, index, step in made]))],
                    parameters=sum(record.count for record in records))


def raws() -> bytes:
    """The three methods, every element type, axes 0 to 4, no elements; NaN, infinities and -0 bit for bit."""
    rng = np.random.default_rng(80)
    every = []
    for dtype in NUMPY.values():
        data = rng.integers(0, 2 if dtype == np.bool_ else 256, 6 * dtype.itemsize, dtype=np.uint8)
        every.append(np.frombuffer(data.tobytes(), dtype).reshape(2, 3))
    odd = [np.array([np.nan, np.inf, -np.inf, -0.0], np.float32), np.array(1_000_000),
           np.zeros((0, 2, 1, 1), np.float16), np.array([1.5, -2], ml_dtypes.bfloat16)]
    counters = [np.full(30, 64_000), np.array(True)]
    weights = [(rng.standard_normal((60, 9)) / 9).astype(np.float32)]
    planes = weights[0].view(np.uint8).reshape(-1, 4).T.tobytes()
    sections = [(0, b"\0" + b"".join(map(bytes_of, every))),
                (0, b"\1" + deflate(b"".join(map(bytes_of, counters)))),
                (0, b"\2" + deflate(planes)), (0, raw.encode(odd))]
    records = [TensorRecord(f"raw{i}.{j}.{name_of(array.dtype)}", name_of(array.dtype), array.shape, i)
               for i, arrays in enumerate((every, counters, weights, odd)) for j, array in enumerate(arrays)]
    return to_bytes(records, sections, parameters=0)


def manifest() -> bytes:
    """Aliases before and after their targets, names that share prefixes and are not ASCII, sections out of
    order, shapes said again, metadata."""
    a, b = np.arange(6, dtype=np.int16).reshape(2, 3), np.arange(9, dtype=np.uint8)
    code = ScalarCode(laplace(90, (2, 3), 2), -32)
    records = [TensorRecord("tied before", "F32", (2, 3), None, alias_of=4),
               TensorRecord("a", "I16", (2, 3), 1),
               TensorRecord("ab", "U8", (9,), 0),
               TensorRecord("a\u0308\u4e16\U0001f600", "I16", (2, 3), None, alias_of=1),
               TensorRecord("z.weight", "F32", (2, 3), 2),
               TensorRecord("z.weight.again", "F32", (2, 3), None, alias_of=4),
               TensorRecord(" ", "I16", (2, 3), 1)]
    sections = [(0, raw.encode([b])), (0, raw.encode([a, a.T.copy().reshape(2, 3)])),
                (1, scalar.encode([code], [(2, 3)], SMALL))]
    return to_bytes(records, sections, parameters=123_456_789_012,
                    metadata={"format": "pt", "": "empty key", "k\u00e9y": "\u4e16\u754c", "none": ""})


def network(mode: str) -> bytes:
    """A network as `tersor.compress` makes it, without data: synthetic weights as of a trained one."""
    import torch

    import tersor
    torch.manual_seed(1)
    block = torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3, bias=False), torch.nn.BatchNorm2d(8), torch.nn.ReLU(),
        torch.nn.Conv2d(8, 16, 3, groups=2), torch.nn.BatchNorm2d(16, eps=1e-3), torch.nn.ReLU(),
        torch.nn.ConvTranspose2d(16, 6, 2, stride=2), torch.nn.Flatten(), torch.nn.LayerNorm(384),
        torch.nn.Linear(384, 10))
    rng = np.random.default_rng(100)
    with torch.no_grad():
        for name, value in block.state_dict().items():
            if value.ndim >= 2:
                spread = np.exp(rng.normal(0, 0.6, (value.shape[0], *[1] * (value.ndim - 1))))
                value.copy_(torch.from_numpy(rng.laplace(0, 0.05, tuple(value.shape)) * spread))
            elif name.endswith("running_var"):
                value.copy_(torch.from_numpy(rng.gamma(2.0, 0.4, tuple(value.shape))))
            elif value.is_floating_point():
                value.add_(torch.from_numpy(rng.normal(0, 0.1, tuple(value.shape))))
    return tersor.compress(block.eval(), bits=3.0, mode=mode).data


GOLDEN: dict[str, Callable[[], bytes]] = {
    "scalar-small": lambda: scalars((group("net."), SMALL, 0)),
    "scalar-fast": lambda: scalars((group("net."), FAST, 0)),
    "scalar-small-parts": lambda: parts(SMALL),
    "scalar-fast-parts": lambda: parts(FAST),
    "scalar-small-large": lambda: large(SMALL),
    "scalar-fast-large": lambda: large(FAST),
    "scalar-types": types,
    "scalar-rans-options": rans_options,
    "batchnorm": batchnorms,
    "batchnorm-fine": fine_batchnorms,
    "vector": vectors,
    "raw": raws,
    "manifest": manifest,
    "network-small": lambda: network("small"),
    "network-fast": lambda: network("fast"),
}


def describe(data: bytes) -> dict[str, object]:
    """What a file decodes to: what stands in the JSON."""
    with load(data) as file:
        return {
            "sha256": hashlib.sha256(data).hexdigest(), "parameters": file.manifest.parameters,
            "metadata": file.metadata, "aliases": file.aliases,
            "tensors": {name: {"dtype": name_of(array.dtype), "shape": list(array.shape),
                               "sha256": hashlib.sha256(bytes_of(array)).hexdigest()}
                        for name, array in file.items()}}


def main() -> None:
    """Write the golden files that are missing."""
    FOLDER.mkdir(exist_ok=True)
    for name, make in GOLDEN.items():
        path = FOLDER / f"{name}.tersor"
        if path.exists() or path.with_suffix(".json").exists():
            print(f"{name}: kept")
            continue
        data = make()
        text = json.dumps(describe(data)).replace('}, "', '},\n"')
        with path.open("xb") as file:
            file.write(data)
        with path.with_suffix(".json").open("x", encoding="utf-8") as file:
            file.write(text + "\n")
        print(f"{name}: {len(data):,} bytes")


if __name__ == "__main__":
    main()
