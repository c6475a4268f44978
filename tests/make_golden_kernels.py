"""Makes the golden files of the kernel tool; conventions, and the JSON beside each, as in make_golden.py.

    python tests/make_golden_kernels.py          # writes those that are missing
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import make_golden
import numpy as np
import numpy.typing as npt

from tersor.bitstream.container import to_bytes
from tersor.bitstream.manifest import TensorRecord
from tersor.synthesis import kernels
from tersor.synthesis.kernel_code import channels_of
from tersor.synthesis.kernels import CODERS, Coder, KernelCode

Shape = tuple[int, ...]
Member = tuple[str, str, Shape, KernelCode]
"""Name, dtype, shape and code of a tensor in a kernel section."""


def book(seed: int, k: int, t: int, spread: float = 9.0) -> npt.NDArray[np.int32]:
    return np.rint(np.random.default_rng(seed).normal(0, spread, (k, t))).clip(-32768, 32767).astype(np.int32)


def code(seed: int, shape: Shape, values: npt.NDArray[np.int32], *, gain: str = "", rows: bool = False,
         swapped: bool = False, step: int = -100) -> KernelCode:
    """Indexes that like the first entries, in runs; gains "", "signs", "gains" or "large"."""
    rng = np.random.default_rng(seed)
    size = channels_of(shape, swapped, values.shape[1])
    index = np.minimum(rng.geometric(3 / (len(values) + 3), size) - 1, len(values) - 1).astype(np.int32)
    index[:, ::3] = index[:, :1]
    kinds = {"signs": rng.choice([-1, 1], size), "gains": np.rint(rng.laplace(0, 1.5, size)),
             "large": np.rint(rng.normal(900, 300, size))}
    exponents = rng.integers(-5, 6, size[0]) if rows else None
    made = None if not gain else kinds[gain].astype(np.int32)
    return KernelCode(values, index, step, made, exponents, int(rng.integers(0, 6)), swapped)


def sections(*wanted: tuple[Sequence[Member], Coder, int | None]) -> bytes:
    """A file of kernel sections: (members, coder, bits of values)."""
    records, payloads = [], []
    for i, (members, coder, bits) in enumerate(wanted):
        records += [TensorRecord(name, dtype, shape, i) for name, dtype, shape, _ in members]
        payloads.append((6, kernels.encode([m[3] for m in members], [m[2] for m in members], coder, bits)))
    return to_bytes(records, payloads, parameters=sum(record.count for record in records))


def group(prefix: str) -> list[Member]:
    """Tensors of all kinds, some with a codebook in common, to share one section."""
    shared, other, pairs = book(1, 40, 9), book(2, 7, 9), book(3, 5, 8)
    return [
        (prefix + "plain", "F32", (12, 8, 3, 3), code(1, (12, 8, 3, 3), shared)),
        (prefix + "gains", "F32", (10, 6, 3, 3), code(2, (10, 6, 3, 3), other, gain="gains", rows=True)),
        (prefix + "shared", "F32", (9, 5, 3, 3), code(3, (9, 5, 3, 3), shared, gain="gains", step=-70)),
        (prefix + "vectors", "F32", (10, 30), code(4, (10, 30), pairs, gain="signs")),
        (prefix + "swapped", "F32", (6, 4, 2, 2), code(5, (6, 4, 2, 2), book(4, 4, 4), swapped=True)),
        (prefix + "void", "F32", (0, 3, 3, 3), code(6, (0, 3, 3, 3), book(5, 1, 9))),
        (prefix + "one", "F32", (7,), code(7, (7,), book(6, 1, 1), gain="gains")),
        (prefix + "deep", "F32", (2, 3, 2, 2, 2), code(8, (2, 3, 2, 2, 2), book(7, 3, 8), gain="large")),
    ]


def options() -> bytes:
    """Every float type, wide values, large codebooks, codebooks of one kernel, steps far away."""
    types = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
    shape = (6, 4, 3, 3)
    typed = [(f"type.{dtype}", dtype, shape, code(i, shape, book(9, 12, 9), gain="signs", step=-160))
             for i, dtype in enumerate(types)]
    wide = code(20, shape, book(10, 9, 9, 12000.0))
    many = code(21, (40, 30, 1, 3), book(11, 300, 3))
    same = replace(code(22, shape, book(12, 1, 9)), step_index=-2000)
    zeros = replace(same, gain=np.zeros((6, 4), np.int32))
    flat = KernelCode(np.zeros((1, 9), np.int32), np.zeros((6, 4), np.int32), 5)
    wanted: list[tuple[Sequence[Member], Coder, int | None]] = [(typed, "adaptive", None)]
    for coder in CODERS:
        wanted += [([(f"{coder}.{name}", "F32", of, made)], coder, 6) for name, of, made in (
            ("wide", shape, wide), ("many", (40, 30, 1, 3), many), ("same", shape, same), ("zeros", shape, zeros),
            ("flat", shape, flat))]
    return sections(*wanted)


GOLDEN: dict[str, Callable[[], bytes]] = {
    "kernels-coders": lambda: sections(*((group(f"{coder}."), coder, None) for coder in CODERS)),
    "kernels-options": options,
}


if __name__ == "__main__":
    make_golden.GOLDEN = GOLDEN
    make_golden.main()
