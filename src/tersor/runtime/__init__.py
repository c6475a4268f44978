"""Layers that compute from the compressed form: less memory or fewer operations than the dense network."""

from .codebook import CodebookConv2d, CodebookLinear, memory_bytes
from .files import from_file
from .kernels import KernelCodebookConv2d, from_kernels
from .transform import TransformConv2d, TransformLinear, from_transforms

__all__ = ["CodebookConv2d", "CodebookLinear", "KernelCodebookConv2d", "TransformConv2d", "TransformLinear",
           "from_file", "from_kernels", "from_transforms", "memory_bytes"]
