"""The integers of a file's weights as they are, without restoring the weights.

    codes = codes_of("model.tersor")        # {"conv1.weight": KernelCode(...), "fc.weight": ScalarCode(...)}
    shared_codes_of("model.tersor")         # [(("a.weight", "b.weight"), CodebookCode(...))]

What `repack` takes, and layers that compute from the
compressed form (`tersor.runtime`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TypeAlias

from .bitstream.container import open_source
from .bitstream.manifest import TensorRecord
from .bitstream.source import Readable
from .decoder import TersorFile, tool_name
from .limits import DEFAULT_LIMITS, Limits
from .synthesis import codebook, kernels, scalar, transform
from .synthesis.codebook import CodebookCode
from .synthesis.kernels import KernelCode
from .synthesis.scalar import ScalarCode
from .synthesis.transform import TransformCode

Code: TypeAlias = ScalarCode | TransformCode | KernelCode
"""Of one weight."""
Decode: TypeAlias = Callable[[bytes, Sequence[TensorRecord], Limits], Sequence[Code]]
SharedCodes: TypeAlias = list[tuple[tuple[str, ...], CodebookCode]]
"""(names of the weights, their codebook) per section of a file: `code.indexes[i]` belongs to `names[i]`."""

_DECODERS: dict[str, Decode] = {"scalar": scalar.decode_codes, "transform": transform.decode_codes,
                                "kernels": kernels.decode_codes}
"""Of the tools that code every weight for itself."""


def codes_of(file: Readable | TersorFile, tools: Collection[str] = tuple(_DECODERS), *,
             limits: Limits | None = None) -> dict[str, Code]:
    """The integers of all weights that `tools` (of "scalar", "transform", "kernels") have coded, by name.

    * `file`: path, bytes, binary file, or an open `TersorFile`. `limits`: of what it may ask for.

    Raises FormatError for a bad file.
    """
    found: dict[str, Code] = {}
    for tool, records, payload in _sections(file, tools, limits):
        codes = _DECODERS[tool](payload, records, limits or DEFAULT_LIMITS)
        found |= zip((record.name for record in records), codes, strict=True)
    return found


def shared_codes_of(file: Readable | TersorFile, *, limits: Limits | None = None) -> SharedCodes:
    """The codebooks of values, with the names of the weights that share each; arguments and errors as `codes_of`."""
    return [(tuple(record.name for record in records),
             codebook.decode_codebook(payload, records, limits or DEFAULT_LIMITS))
            for _, records, payload in _sections(file, ("codebook",), limits)]


def _sections(file: Readable | TersorFile, tools: Collection[str],
              limits: Limits | None) -> Iterator[tuple[str, list[TensorRecord], bytes]]:
    """Tool, tensors and payload of each section by one of `tools`."""
    if not isinstance(file, TersorFile):
        with TersorFile(open_source(file), limits) as opened:
            yield from _sections(opened, tools, limits)
        return
    for i, section in enumerate(file.manifest.sections):
        tool = tool_name(section.tool)
        if tool in tools:
            yield tool, file.manifest.records_of(i), file.payload(i)
