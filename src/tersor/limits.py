"""What a file may ask for before tersor refuses: the defence against decompression bombs."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import LimitError


@dataclass(frozen=True)
class Limits:
    """Upper bounds that are checked *before* anything is allocated.

    The defaults admit every network that we know of up to about 16 billion parameters per tensor
    table; services that decode files of strangers should set `max_bytes` to what they expect.
    """

    max_bytes: int = 64 << 30
    """Sum over tensors of decoded bytes."""
    max_tensor_bytes: int = 16 << 30
    """Decoded bytes of one tensor."""
    max_tensors: int = 1 << 20
    """Number of tensors in one file."""
    max_sections: int = 1 << 20
    """Number of sections in one file."""
    max_dimensions: int = 16
    """Axes of one tensor."""
    max_name_bytes: int = 4096
    """UTF-8 bytes of one tensor name."""
    max_manifest_bytes: int = 64 << 20
    """Inflated bytes of the manifest."""

    def check(self, what: str, value: int, bound: str) -> None:
        """Raise `LimitError` if `value` is above the limit called `bound`.

        >>> Limits(max_tensors=2).check("tensors in the manifest", 2, "max_tensors")
        """
        limit = getattr(self, bound)
        if value > limit:
            raise LimitError(f"{what}: {value:,} is above Limits.{bound} = {limit:,}; "
                             f"if you trust the file, raise that limit")


DEFAULT_LIMITS = Limits()
