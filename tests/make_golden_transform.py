"""Makes the golden files of the transform tool; conventions, and the JSON beside each, as in make_golden.py.

    python tests/make_golden_transform.py          # writes those that are missing
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import make_golden
import numpy as np
from make_golden import Shape

from tersor.bitstream.container import to_bytes
from tersor.bitstream.manifest import TensorRecord
from tersor.synthesis import transform
from tersor.synthesis.scalar import ScalarCode
from tersor.synthesis.transform import FAST, FIXED, SMALL, BlockCode, Cuts, Dct, TransformCode
from tersor.synthesis.transform_heads import Code

Member = tuple[str, str, Shape, TransformCode]
"""Name, dtype, shape and code of a tensor in a transform section."""
Maker = Callable[[int, int, int, int], Code]
"""(seed, rows, columns, columns of a unit) -> the integers of a matrix."""


def scalar_matrix(seed: int, rows: int, columns: int, unit: int = 1) -> ScalarCode:
    """Integers of a matrix whose rows fall off; with and without row exponents, shifts, all resolutions."""
    rng = np.random.default_rng(seed)
    falling = 3 * np.exp(-np.arange(rows) / max(rows, 1))
    q = np.rint(rng.laplace(0, 1, (rows, columns)) * falling[:, None]).astype(np.int32)
    exponents = -np.cumsum(rng.integers(0, 3, rows)) + rng.integers(-1, 2, rows) if seed % 3 else None
    return ScalarCode(q, -60 - seed % 50, exponents, seed % 6, ((0, 0), (9, 4), (3, 0))[seed % 3])


def block_matrix(seed: int, rows: int, columns: int, unit: int = 1) -> BlockCode:
    """Integers of all depths, in 1 to 17 blocks along either axis."""
    rng = np.random.default_rng(seed)
    axis, blocks = seed % 2, 1 + seed % 17
    depths = rng.integers(0, 17, blocks) if seed % 5 == 0 else rng.integers(0, 6, blocks)
    q = np.zeros((rows, columns), np.int32)
    return _filled(rng, q, depths, Cuts(channels=blocks, unit=unit) if axis else Cuts(rows=blocks, unit=unit))


def grid_matrix(seed: int, rows: int, columns: int, unit: int = 1) -> BlockCode:
    """Integers in blocks along rows, channels and taps at once, some of them empty."""
    rng = np.random.default_rng(seed)
    parts = rng.permutation([1 + seed % 2, 1 + seed % 5, min(unit, 9) + seed % 3])
    depths = rng.integers(0, 7, int(parts.prod()))
    return _filled(rng, np.zeros((rows, columns), np.int32), depths, Cuts(*parts.tolist(), unit=unit))


def _filled(rng: np.random.Generator, q: np.ndarray, depths: np.ndarray, cuts: Cuts) -> BlockCode:
    view = cuts.view(q)
    for box, depth in zip(cuts.boxes(q.shape), depths.tolist(), strict=True):
        half = 1 << depth >> 1
        view[box] = rng.integers(-half, half, view[box].shape) if depth else 0
    steps = np.where(depths > 0, rng.integers(-200, -100, len(depths)) - 16 * depths, 0)
    return BlockCode(q, depths, steps, cuts)


def code(make: Maker, seed: int, shape: Shape, *, rows: int | None = None, channels: int | None = None,
         taps: int | Dct | None = None, joint: int | None = None, swapped: bool = False, trellis: int = 0,
         scaled: bool = False) -> TransformCode:
    """A transform whose bases have these ranks; None for absent maps. trellis: states, of
    ScalarCodes. scaled: frequencies of the DCT have scales. All integers are made up."""
    of = transform.extents(shape, swapped)
    stored = taps if isinstance(taps, int) and not isinstance(taps, Dct) else None
    rank = joint if joint is not None else channels
    views = of.matrices([rows, rank, stored], joint is not None)
    units = [1] * (len(views) - 1) + [views[-1].taps]
    made = [make(seed + i, view.rows, view.columns, unit)
            for i, (view, unit) in enumerate(zip(views, units, strict=True))]
    if trellis and isinstance(made[-1], ScalarCode):
        made[-1] = replace(made[-1], shift=(0, 0), trellis=trellis)
    scale = np.random.default_rng(seed).integers(-9, 10, of.taps) if scaled else None
    left = iter(made)
    return TransformCode(
        rows=next(left) if rows is not None else None,
        channels=next(left) if rank is not None else None,
        taps=next(left) if stored is not None else Dct(taps) if taps is not None else None,
        coefficients=next(left), joint=joint is not None, swapped=swapped, tap_scale=scale)


def group(make: Maker, prefix: str) -> list[Member]:
    """Tensors and maps of all kinds, to share one section."""
    cases: list[tuple[str, str, Shape, dict[str, object]]] = [
        ("none", "F32", (6, 5, 3, 3), {}),
        ("elt", "F32", (9, 6, 3, 3), {"channels": 6}),
        ("low", "F32", (9, 6, 3, 3), {"channels": 2, "taps": Dct.II}),
        ("dct1", "F32", (8, 3, 5, 5), {"taps": Dct.I}),
        ("dct2", "F64", (4, 3, 2, 4, 3), {"taps": Dct.II}),
        ("all", "BF16", (7, 6, 3, 3), {"rows": 5, "channels": 4, "taps": 6}),
        ("rows", "F32", (6, 10), {"rows": 6}),
        ("both", "F16", (6, 10), {"rows": 3, "channels": 4}),
        ("joint", "F32", (12, 2, 2, 2), {"joint": 8}),
        ("joint.low", "F32", (12, 2, 3), {"joint": 3, "rows": 4}),
        ("taps", "F32", (5, 4, 7), {"taps": 3}),
        ("depthwise", "F32", (16, 1, 3, 3), {"taps": Dct.II}),
        ("transposed", "F32", (6, 4, 2, 2), {"channels": 6, "swapped": True, "taps": Dct.II}),
        ("embedding", "F32", (20, 6), {"rows": 6, "swapped": True}),
        ("one axis", "F32", (9,), {"rows": 1, "channels": 1}),
        ("patches", "F32", (3, 1, 16, 16), {"taps": Dct.II}),
        ("longest", "F32", (2, 1, 32), {"taps": Dct.I}),
        ("rank 0", "F32", (3, 4, 3, 3), {"channels": 0}),
        ("no taps", "F32", (3, 4, 3, 3), {"taps": 0}),
        ("no rows", "F32", (0, 3, 2, 2), {"taps": Dct.II, "rows": 0}),
        ("no columns", "F32", (4, 0), {"channels": 0}),
        ("no kernel", "F32", (2, 3, 0, 3), {"joint": 0}),
        ("scaled", "F32", (6, 5, 3, 3), {"taps": Dct.II, "scaled": True}),
        ("scaled low", "F64", (6, 4, 5), {"taps": Dct.I, "channels": 3, "scaled": True, "trellis": 4}),
        ("trellis", "F32", (7, 5, 3, 3), {"trellis": 8}),
        ("trellis all", "F32", (6, 4, 3, 3), {"rows": 4, "channels": 3, "taps": 5, "swapped": True, "trellis": 8}),
        ("trellis joint", "BF16", (12, 2, 2, 2), {"joint": 6, "trellis": 4}),
    ]
    return [(prefix + name, dtype, shape, code(make, 20 + 7 * i, shape, **maps))  # type: ignore[arg-type]
            for i, (name, dtype, shape, maps) in enumerate(cases)]


def sections(*made: tuple[list[Member], int, int]) -> bytes:
    """A file of transform sections: (members, coder, rows per part)."""
    records, payloads = [], []
    for i, (members, mode, rows_per_part) in enumerate(made):
        records += [TensorRecord(name, dtype, shape, i) for name, dtype, shape, _ in members]
        shapes = [shape for _, _, shape, _ in members]
        payloads.append((5, transform.encode([member[3] for member in members], shapes, mode, rows_per_part)))
    return to_bytes(records, payloads, parameters=sum(record.count for record in records))


def alone(mode: int, seed: int, shape: Shape, rows_per_part: int, **maps: int | Dct) -> tuple[list[Member], int, int]:
    """A section of one tensor, in parts."""
    made = code(scalar_matrix, seed, shape, **maps)  # type: ignore[arg-type]
    return [(f"{mode}.{seed}", "F32", shape, made)], mode, rows_per_part


def parts() -> bytes:
    """One tensor cut in parts: an incomplete last one, of one row, one part, none; no bases, no rows."""
    return sections(*(alone(mode, seed, shape, rows_per_part, **maps) for mode in (FAST, SMALL)
                      for seed, shape, rows_per_part, maps in (
                          (40, (17, 4, 3, 3), 5, {"channels": 4, "taps": Dct.II}), (41, (6, 30), 1, {"channels": 2}),
                          (42, (6, 30), 4, {}), (43, (6, 5, 3), 1000, {"joint": 4}),
                          (44, (9, 30), 2, {"rows": 3}), (45, (0, 30), 4, {"channels": 0}),
                          (46, (9, 4, 3), 0, {"taps": 2}),
                          (47, (9, 5, 3), 4, {"taps": Dct.II, "scaled": True, "trellis": 8}))))


def extremes() -> bytes:
    """Bypass bits, escapes, large and tiny steps, elements that are zero with a sign; deep blocks."""
    def big(seed: int, rows: int, columns: int, scale: float, step: int) -> ScalarCode:
        values = np.random.default_rng(seed).laplace(0, scale, (rows, columns))
        return ScalarCode(np.rint(values).astype(np.int32), step)

    tiny, square = big(6, 3, 4, 2, -4700), big(6, 3, 3, 2, -4000)
    made: list[tuple[list[Member], int, int]] = []
    for mode in (FAST, SMALL):
        fine = TransformCode(big(1, 8, 27, 5000, -500), channels=big(2, 3, 3, 300, -300), taps=Dct.II)
        coarse = TransformCode(big(3, 4, 4, 2e8, 900), channels=big(4, 4, 5, 40, -1000), rows=big(5, 4, 4, 1, 0))
        under = TransformCode(square, rows=big(7, 3, 3, 2, -28800), channels=big(8, 3, 4, 1, 28))
        flushed = TransformCode(square, channels=big(9, 3, 4, 1, -900))
        made.append(([(f"fine{mode}", "F32", (8, 3, 3, 3), fine), (f"coarse{mode}", "F64", (4, 5), coarse),
                      (f"under{mode}", "F64", (3, 4), under), (f"signs{mode}", "F32", (3, 4), TransformCode(tiny)),
                      (f"flushed{mode}", "F32", (3, 4), flushed)], mode, 0))
    deep = BlockCode(np.array([[-32768, 32767, 5], [0, 1, -2]], np.int32), np.array([16, 2]), np.array([-900, 700]),
                     Cuts(rows=2))
    many = BlockCode(np.zeros((2, 3), np.int32), np.zeros(255, np.int64), np.zeros(255, np.int64),
                     Cuts(channels=255))
    made.append(([("deep", "F32", (2, 3), TransformCode(deep)), ("many", "F32", (2, 3), TransformCode(many))],
                 FIXED, 0))
    return sections(*made)


GOLDEN: dict[str, Callable[[], bytes]] = {
    "transform-fast": lambda: sections((group(scalar_matrix, "fast."), FAST, 0)),
    "transform-small": lambda: sections((group(scalar_matrix, "small."), SMALL, 0)),
    "transform-fixed": lambda: sections((group(block_matrix, "fixed."), FIXED, 0)),
    "transform-grid": lambda: sections((group(grid_matrix, "grid."), FIXED, 0)),
    "transform-parts": parts,
    "transform-extremes": extremes,
}


if __name__ == "__main__":
    make_golden.GOLDEN = GOLDEN
    make_golden.main()
