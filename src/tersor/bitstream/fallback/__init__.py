"""The decoding half of the native kernel in Python and NumPy: slow, equal bit for bit, and needs no compiler.

`native.function(name)` takes these where there is no kernel, or where the environment says TERSOR_KERNEL=none.
Each has the name, the arguments and the results of the C function (error codes included) that it stands for, so
that nothing above `native` knows of it. Encoding needs the kernel.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from ...errors import KernelError

_PLACES = {
    "tersor_simd_level": "maps",
    "tersor_mix": "maps",
    "tersor_trellis_restore": "maps",
    "tersor_integers_state_size": "integers",
    "tersor_integers_start": "integers",
    "tersor_integers_decode": "integers",
    "tersor_huffman_decode": "huffman",
    "tersor_fixed_decode": "huffman",
    "tersor_rans_decode": "rans",
    "tersor_kernels_decode": "kernels",
    "tersor_context_decode": "context",
}
"""Function -> module of this package."""

BAD_ARGUMENT, TRUNCATED, CORRUPT = -1, -2, -3
"""Error codes of the kernel; see `tersor.bitstream.native`."""


def function(name: str) -> Callable[..., Any]:
    """What stands for the kernel's function `name`; raises KernelError for one that only encoders call."""
    if name not in _PLACES:
        raise KernelError(f"{name}: this needs tersor's native kernel, which was not built; without it tersor reads "
                          f"files and does not write them. `pip install .` builds it where there is a C++17 compiler")
    module = importlib.import_module(f".{_PLACES[name]}", __name__)
    found: Callable[..., Any] = getattr(module, name.removeprefix("tersor_"))
    return found
