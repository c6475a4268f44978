"""What a file may ask for before tersor refuses: the defence against decompression bombs."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import LimitError


@dataclass(frozen=True)
class Limits:
    """Upper bounds that are checked *before* anything is allocated.

    The defaults admit every network that we know of up to about 16 billion parameters; services that decode
    files of strangers should set `max_bytes` and `max_elements` to what they expect.

    What they bound: opening a file takes at most its size, `max_manifest_bytes`, and 1 kB for each tensor and
    section. Decoding takes 4 kB more for each of these, at most `WORK_BYTES` bytes for each element of the tensors
    that are decoded (the results included), and time proportional to the number of elements. tests/test_bombs.py.
    """

    max_bytes: int = 64 << 30
    """Sum over tensors, aliases included, of decoded bytes."""
    max_elements: int = 16 << 30
    """Sum over tensors, without aliases, of elements, where an axis of size 0 counts as 1."""
    max_tensor_bytes: int = 16 << 30
    """Decoded bytes of one tensor."""
    max_tensors: int = 1 << 18
    """Number of tensors in one file."""
    max_sections: int = 1 << 18
    """Number of sections in one file."""
    max_dimensions: int = 16
    """Axes of one tensor."""
    max_name_bytes: int = 4096
    """UTF-8 bytes of one tensor name."""
    max_manifest_bytes: int = 16 << 20
    """Inflated bytes of the manifest."""

    def check(self, what: str, value: int, bound: str) -> None:
        """Raise `LimitError` if `value` is above the limit called `bound`.

        >>> Limits(max_tensors=2).check("tensors in the manifest", 2, "max_tensors")
        """
        limit = getattr(self, bound)
        if value > limit:
            raise LimitError(f"{what}: {value:,} is above Limits.{bound} = {limit:,}; "
                             f"if you trust the file, raise that limit")


WORK_BYTES = 80
"""Memory that decoding takes for each element at most, whatever the tool: bases and coefficients of a transform as
integers, single and double precision numbers need the most. Scalar weights need 4 to 36."""

DEFAULT_LIMITS = Limits()
