"""Layers that compute from the compressed form: less memory than the dense network, the same numbers."""

from .codebook import CodebookConv2d, CodebookLinear, from_file, memory_bytes

__all__ = ["CodebookConv2d", "CodebookLinear", "from_file", "memory_bytes"]
