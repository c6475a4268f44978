"""From a file to a model whose layers compute from the compressed form."""

from __future__ import annotations

from torch import nn

from ..adapters.module import load_into
from ..bitstream.container import open_source, read_section
from ..bitstream.source import Readable
from ..decoder import TersorFile, tool_name
from ..limits import DEFAULT_LIMITS, Limits
from ..synthesis import kernels
from ..synthesis.codebook import CodebookCode, decode_codebook
from ..synthesis.transform import TransformCode, decode_codes
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
    limits = limits or DEFAULT_LIMITS
    codebooks: list[tuple[list[str], CodebookCode]] = []
    transforms: dict[str, TransformCode] = {}
    kernel_codes: dict[str, kernels.KernelCode] = {}
    with TersorFile(open_source(file), limits) as found:
        for i, section in enumerate(found.manifest.sections):
            tool = tool_name(section.tool)
            if tool not in ("codebook", "transform", "kernels"):
                continue
            records = found.manifest.records_of(i)
            names = [record.name for record in records]
            payload = read_section(found._source, found.manifest, i)
            if tool == "codebook":
                codebooks.append((names, decode_codebook(payload, records, limits)))
            elif tool == "kernels":
                kernel_codes |= zip(names, kernels.decode_codes(payload, records, limits), strict=True)
            else:
                transforms |= zip(names, decode_codes(payload, records, limits), strict=True)
        load_into(model, found.read_all(), found.aliases if found.tied else None)
    return from_kernels(from_transforms(from_codes(model, codebooks), transforms), kernel_codes)
