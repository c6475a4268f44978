"""Makes the golden files of scalar tensors with a trellis; conventions, and the JSON beside each, as in make_golden.py.

    python tests/make_golden_trellis.py          # writes those that are missing
"""

from __future__ import annotations

from collections.abc import Callable

import make_golden
import numpy as np
from make_golden import Member, Shape, laplace, scalars

from tersor.synthesis.scalar import FAST, SMALL, ScalarCode


def member(name: str, dtype: str, shape: Shape, seed: int, states: int, *, scale: float = 1.3, step: int = -150,
           rows: bool = False, swapped: bool = False) -> Member:
    """A tensor whose integers are as a search over a trellis leaves them, but for their parities."""
    q = laplace(seed, shape, scale, swapped)
    exponents = np.rint(np.random.default_rng(seed + 1).normal(0, 3, len(q))).astype(np.int64) if rows else None
    return name, dtype, shape, ScalarCode(q, step, exponents, 2, (0, 0) if states else (9, 4), swapped, states)


def trellis(mode: int) -> bytes:
    """Both numbers of states beside tensors with none, in one section; row steps, swapped axes, odd shapes, low
    bits, element types, parts."""
    wide = np.array([[2**31 - 1, -(2**31) + 1, 1, -1, 3, 0, -2, 2**24 + 1, -(2**25) - 3, 1]], np.int32)
    together = [
        member("conv", "F32", (9, 4, 3, 3), 200, 8), member("plain", "F32", (6, 4, 3, 3), 202, 0),
        member("linear", "F32", (17, 30), 204, 4, rows=True), member("line", "F32", (40,), 206, 8),
        member("embedding", "F32", (30, 7), 208, 4, swapped=True),
        member("transposed", "F32", (5, 6, 2, 2), 210, 8, swapped=True, rows=True),
        member("norows", "F32", (0, 3, 2, 2), 212, 8), member("nocolumns", "F32", (4, 0), 214, 4),
        member("fine", "F32", (10, 30), 216, 8, scale=90.0, step=-250),
        *(member(dtype, dtype, (4, 25), 218 + i, (4, 8)[i % 2], rows=True)
          for i, dtype in enumerate(("F64", "F16", "BF16", "F8_E4M3", "F8_E5M2")))]
    ends: list[Member] = [("ends", "F32", (2, 5), ScalarCode(wide.reshape(2, 5), -900, None, 2, (0, 0), False, 8))]
    return scalars((together, mode, 0), (ends, mode, 0),
                   ([member("parts", "F32", (11, 4, 3, 3), 230, 8, rows=True)], mode, 4),
                   ([member("halves", "F32", (12, 20), 232, 4)], mode, 6))


GOLDEN: dict[str, Callable[[], bytes]] = {"trellis-fast": lambda: trellis(FAST),
                                          "trellis-small": lambda: trellis(SMALL)}


if __name__ == "__main__":
    make_golden.GOLDEN = GOLDEN
    make_golden.main()
