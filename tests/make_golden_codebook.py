"""Makes the golden files of the codebook tool; conventions, and the JSON beside each, as in make_golden.py.

    python tests/make_golden_codebook.py          # writes those that are missing
"""

from __future__ import annotations

from collections.abc import Callable

import make_golden
import numpy as np
import numpy.typing as npt

from tersor.bitstream.container import to_bytes
from tersor.bitstream.manifest import TensorRecord
from tersor.synthesis import codebook
from tersor.synthesis.codebook import CODERS, CodebookCode, Coder, Layout

Shape = tuple[int, ...]


def pruned(seed: int, shape: Shape, k: int, share: float) -> npt.NDArray[np.int32]:
    """Indexes 0 .. k - 1, mostly near k // 2, of which a share is moved to k // 2."""
    rng = np.random.default_rng(seed)
    index = np.clip(np.rint(rng.laplace(0, k / 10, shape)) + k // 2, 0, k - 1)
    return np.where(rng.random(shape) < share, k // 2, index).astype(np.int32)


def spread(k: int) -> npt.NDArray[np.float32]:
    """k values around 0.0, that of index k // 2, which 16-bit floats cannot hold."""
    place = np.arange(k) - k // 2
    return (np.sign(place) * (np.abs(place) / k) ** 1.5 / 3).astype(np.float32)


def section(members: list[tuple[str, str, Shape, npt.NDArray[np.int32]]], values: npt.ArrayLike, coder: Coder,
            layout: Layout, number: int) -> tuple[list[TensorRecord], tuple[int, bytes]]:
    records = [TensorRecord(name, dtype, shape, number) for name, dtype, shape, _ in members]
    code = CodebookCode.of(values, [index for _, _, _, index in members])
    return records, (4, codebook.encode(code, [record.shape for record in records], coder, layout)[0])


def layouts() -> bytes:
    """Every coder, dense, sparse and mixed; tensors of zero to five axes, without elements, of the origin."""
    shapes: dict[str, Shape] = {"conv": (6, 3, 3, 3), "deep": (3, 2, 2, 1, 3), "scalar": (), "void": (0, 4),
                                "linear": (10, 30)}
    records, sections = [], []
    both: tuple[Layout, ...] = ("dense", "sparse")
    cases: list[tuple[Coder, Layout]] = [(coder, layout) for coder in CODERS for layout in both]
    for coder, layout in [*cases, ("huffman", "auto")]:
        prefix = f"{coder}.{layout}."
        members = [(prefix + name, "F32", shape, pruned(i, shape, 13, 0.2 if name == "conv" else 0.9))
                   for i, (name, shape) in enumerate(shapes.items())]
        members.append((prefix + "zeros", "F32", (8, 5), np.full((8, 5), 6, np.int32)))
        found, payload = section(members, spread(13), coder, layout, len(sections))
        records += found
        sections.append(payload)
    return to_bytes(records, sections, parameters=sum(record.count for record in records))


def options() -> bytes:
    """16-bit values, one value, no zero among the values, long and rare gaps, bypass bits, long code words,
    every float type."""
    counts = np.rint(1.62 ** np.arange(17)).astype(int)  # as Fibonacci's: the deepest code trees
    words = np.random.default_rng(1).permutation(np.repeat(np.arange(17), counts)).astype(np.int32)
    rare = np.full((4, 500), 1, np.int32)
    rare[::2, ::167] = [2, 0, 2]
    types = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
    fine = np.rint(np.random.default_rng(2).normal(30, 9, (12, 40))).clip(0, 63).astype(np.int32)
    cases: list[tuple[list[tuple[str, str, Shape, npt.NDArray[np.int32]]], npt.ArrayLike, Coder, Layout]] = []
    for coder in CODERS:
        cases += [([(f"rare.{coder}", "F32", (4, 500), rare)], [-0.5, 0, 0.25], coder, "sparse"),
                  ([(f"one.{coder}", "F32", (3, 3), np.zeros((3, 3), np.int32))], [0.3], coder, "dense"),
                  ([(f"none.{coder}", "F32", (0,), np.zeros(0, np.int32))], [0.5], coder, "sparse"),
                  ([(f"fine.{coder}", "F32", (12, 40), fine)], spread(64) + np.float32(0.7), coder, "auto")]
    cases.append(([("words", "F32", (words.size,), words)], spread(17), "huffman", "dense"))
    cases.append(([(f"type.{dtype}", dtype, (5, 7), pruned(i, (5, 7), 9, 0.3))
                   for i, dtype in enumerate(types)], spread(9), "huffman", "dense"))
    records, sections = [], []
    for case in cases:
        found, payload = section(*case, len(sections))
        records += found
        sections.append(payload)
    return to_bytes(records, sections, parameters=sum(record.count for record in records))


GOLDEN: dict[str, Callable[[], bytes]] = {"codebook-layouts": layouts, "codebook-options": options}


if __name__ == "__main__":
    make_golden.GOLDEN = GOLDEN
    make_golden.main()
