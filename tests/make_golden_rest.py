"""Makes the golden files of options that the other ones leave out; conventions, and the JSON beside each, as in
make_golden.py. `tests/test_golden_coverage.py` knows what there has to be.

    python tests/make_golden_rest.py          # writes those that are missing
"""

from __future__ import annotations

from collections.abc import Callable

import make_golden
import numpy as np
import numpy.typing as npt
from make_golden import laplace
from make_golden_kernels import Coder, Member, book, sections
from make_golden_transform import code as transform_code
from make_golden_transform import scalar_matrix
from make_golden_transform import sections as transform_sections

from tersor.bitstream import rans, rans_tables, varint
from tersor.bitstream.container import to_bytes
from tersor.bitstream.manifest import TensorRecord
from tersor.bitstream.rans_tables import Table
from tersor.packed import Packed
from tersor.synthesis import codebook, scalar
from tersor.synthesis.codebook import CodebookCode
from tersor.synthesis.kernels import KernelCode
from tersor.synthesis.scalar import FAST, SMALL, ScalarCode
from tersor.synthesis.transform import TransformCode


def histogram(counts: npt.NDArray[np.int64], first: int, escape: bool, precision: int, mantissa: int) -> Table:
    """A histogram whose frequencies have so many bits after the first."""
    filler, frequencies = rans_tables._quantise(counts, precision, mantissa)
    size = counts.size - escape
    stored = rans_tables._store_histogram(first, size, escape, filler, frequencies, mantissa)
    return Table(first, size, escape, precision, frequencies, stored)


def parametric(first: int, size: int, escape: bool, precision: int, parameters: list[int], asymmetric: bool) -> Table:
    """A shape with one decay for both sides, or with two."""
    stored = rans_tables._header(first, size, escape << 1 | asymmetric << 2)
    stored += bytes(parameters[: 4 if asymmetric else 2])
    made = parameters if asymmetric else [*parameters[:2], parameters[1], 128]
    return Table(first, size, escape, precision, rans_tables._shape(first, size, escape, precision, made), stored)


def tables() -> bytes:
    """rANS with three to eight classes, histograms of all mantissas, parametric tables symmetric and not, with and
    without escape, of one value; escapes of several orders."""
    records, payloads = [], []
    for i, (classes, precision, order) in enumerate(((3, 12, 0), (5, 13, 1), (6, 14, 4), (7, 12, 9), (8, 13, 2))):
        shape = (4 * classes, 40)
        q = laplace(300 + i, shape, 3.0)
        chosen = [(0, 1, 2, 3, 5, 13)[(c + i) % 6] for c in range(classes)]
        of_row = np.arange(shape[0]) % classes
        models = []
        for c in range(classes):
            values = np.clip(q[of_row == c], -6, 9)
            if c % 4 == 1:
                models.append(parametric(-6, 16, True, precision, [60, 180, 150, 90], True))
            elif c % 4 == 2:
                models.append(parametric(-2, 5, True, precision, [99, 120, 120, 128], False))
            elif c == 4:
                q[of_row == c] = 2
                models.append(histogram(np.array([160]), 2, False, precision, 0))
            else:
                counts = np.bincount((values + 6).ravel(), minlength=16) + 1
                models.append(histogram(np.append(counts, 9), -6, True, precision, chosen[c]))
        of_map = histogram(np.bincount(of_row, minlength=classes + 1) + 1, 0, False, precision, 4)
        plan = rans.Plan((0,), (of_row.astype(np.int64),), tuple(models), of_map, precision, 4, order, 0.0)
        plain = scalar.encode([ScalarCode(q, -32)], [shape], FAST)
        size = 1 + varint.ByteReader(plain, "").varint()
        records.append(TensorRecord(f"classes{classes}", "F32", shape, i))
        payloads.append((1, plain[:size] + rans.encode([q], plan)))
    return to_bytes(records, payloads, parameters=sum(record.count for record in records))


def parts() -> bytes:
    """A codebook section in parts of at least 2^16 indexes: whole tensors, and one that is cut; and one of 300
    values in which both adaptive and rANS coders need many bits."""
    rng = np.random.default_rng(310)
    shapes = [(3, 40), (310, 440), (7,), (150, 2, 3, 3)]
    codes = [np.where(rng.random(shape) < 0.002, 2, 1).astype(np.int32) for shape in shapes]
    records = [TensorRecord(f"part{i}", "F32", shape, 0) for i, shape in enumerate(shapes)]
    kept = codebook.PART
    codebook.PART = 16
    try:
        payloads = [(4, codebook.encode(CodebookCode.of([-0.5, 0, 0.75], codes), shapes, "fast", "dense")[0])]
    finally:
        codebook.PART = kept
    values = np.sort(rng.normal(0, 0.1, 300)).astype(np.float32)
    index = rng.permutation(np.arange(600) % 300).astype(np.int32).reshape(20, 30)
    for coder in codebook.CODERS:
        records.append(TensorRecord(f"values.{coder}", "F32", (20, 30), len(payloads)))
        payloads.append((4, codebook.encode(CodebookCode.of(values, [index]), [(20, 30)], coder, "dense")[0]))
    return to_bytes(records, payloads, parameters=sum(record.count for record in records))


def kernel_rows() -> bytes:
    """Row exponents of every resolution, in kernel sections of every coder."""
    rng = np.random.default_rng(320)
    wanted: list[tuple[list[Member], Coder, int | None]] = []
    coders: tuple[Coder, ...] = ("fixed", "adaptive", "fast")
    for coder in coders:
        members: list[Member] = []
        for j in range(6):
            index = rng.integers(0, 6, (5, 4)).astype(np.int32)
            made = KernelCode(book(321 + j, 6, 9), index, -90 - 5 * j, None, rng.integers(-4, 5, 5), j)
            members.append((f"{coder}.{j}", "F32", (5, 4, 3, 3), made))
        wanted.append((members, coder, None))
    return sections(*wanted)


def swapped() -> bytes:
    """A trellis of four states over the rows of a swapped tensor's coefficients."""
    def members(mode: int) -> list[tuple[str, str, tuple[int, ...], TransformCode]]:
        return [(f"{mode}.{i}", "F32", shape,
                 transform_code(scalar_matrix, 340 + i, shape, swapped=True, trellis=4, channels=rank))
                for i, (shape, rank) in enumerate([((6, 5, 2, 2), None), ((7, 4), 3)])]

    return transform_sections(*((members(mode), mode, 0) for mode in (FAST, SMALL)))


def digest() -> bytes:
    """A file that states the SHA-256 of its tensors, an alias among them."""
    code = ScalarCode(laplace(330, (9, 7), 2), -40)
    records = [TensorRecord("w", "F32", (9, 7), 0), TensorRecord("tied", "F32", (9, 7), None, alias_of=0)]
    plain = to_bytes(records, [(1, scalar.encode([code], [(9, 7)], FAST))], parameters=63, metadata={"k": "v"})
    return Packed(plain, 63, 1.0).with_digest().data


GOLDEN: dict[str, Callable[[], bytes]] = {
    "rans-tables": tables, "codebook-parts": parts, "kernels-rows": kernel_rows,
    "transform-swapped": swapped, "digest": digest}


if __name__ == "__main__":
    make_golden.GOLDEN = GOLDEN
    make_golden.main()
