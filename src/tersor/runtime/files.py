"""From a file to a model whose layers compute from the compressed form."""

from __future__ import annotations

from torch import nn

from ..adapters.module import load_into
from ..bitstream.container import open_source
from ..bitstream.source import Readable
from ..codes import codes_of, shared_codes_of
from ..decoder import TersorFile
from ..limits import Limits
from ..synthesis.kernels import KernelCode
from ..synthesis.transform import TransformCode
from .codebook import from_codes
from .kernels import from_kernels
from .transform import from_transforms


def from_file(file: Readable, model: nn.Module, *, limits: Limits | None = None) -> nn.Module:
    """Restore a .tersor file into `model`: with codebook layers wherever the file has codebooks (of values, or of
    kernels in Conv2d layers), and with layers in the transform domain where it has transforms and they take fewer
    operations than the dense layer.

    The model is changed in place and returned. Raises `FormatError` for a bad file and `ModelError` for one
    of another architecture; the model is then unchanged. All else stays dense.
    """
    with TersorFile(open_source(file), limits) as found:
        codebooks = shared_codes_of(found, limits=limits)
        codes = codes_of(found, ("transform", "kernels"), limits=limits)
        load_into(model, found.read_all(), found.aliases if found.tied else None)
    transforms = {name: code for name, code in codes.items() if isinstance(code, TransformCode)}
    kernels = {name: code for name, code in codes.items() if isinstance(code, KernelCode)}
    return from_kernels(from_transforms(from_codes(model, codebooks), transforms), kernels)
