"""A file as the codes of its tensors, and the same file with other codes in their place.

    contents = Contents.of("model.tersor")
    contents.codes()                                     # per section: its codes, or None where it is raw
    contents.with_codes(contents.codes()) == Path("model.tersor").read_bytes()

Everything but the codes stays as it was: names, order, tools, entropy coders, how layers share sections.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from .bitstream import container, digest
from .bitstream.manifest import Manifest, TensorRecord
from .bitstream.source import Readable, open_source
from .decoder import TersorFile, load, tool_name
from .limits import DEFAULT_LIMITS, Limits
from .synthesis import batchnorm, codebook, kernels, scalar, transform, vector
from .synthesis.batchnorm import BatchNormCode
from .synthesis.codebook import CodebookCode
from .synthesis.kernels import KernelCode
from .synthesis.scalar import ScalarCode
from .synthesis.transform import TransformCode
from .synthesis.vector import VectorCode

Code: TypeAlias = ScalarCode | TransformCode | KernelCode | CodebookCode | BatchNormCode | VectorCode
Encode: TypeAlias = Callable[[Sequence[Any]], tuple[bytes, int]]
"""Codes -> payload, and how many of its bytes are codes of weights."""


@dataclass(frozen=True)
class Section:
    """One section of a file.

    * `tool`: its name. `records`: its tensors, in the order of the payload.
    * `codes`: one for each tensor; of a "batchnorm" one for each four (weight, bias, mean, variance); of a
      "codebook" a single one for all; none of a "raw" section.
    """

    tool: str
    records: tuple[TensorRecord, ...]
    codes: tuple[Code, ...]
    payload: bytes
    encode: Encode

    @property
    def names(self) -> tuple[str, ...]:
        """Of its tensors."""
        return tuple(record.name for record in self.records)


@dataclass(frozen=True)
class Contents:
    """A file, decoded to codes. `size`: its bytes."""

    manifest: Manifest
    sections: tuple[Section, ...]
    size: int

    @classmethod
    def of(cls, file: Readable, limits: Limits | None = None) -> Contents:
        """Read a file: path, bytes or binary file. Raises FormatError where it is damaged."""
        limits = limits or DEFAULT_LIMITS
        with TersorFile(open_source(file), limits) as opened:
            manifest = opened.manifest
            sections = tuple(_section(tool_name(section.tool), tuple(manifest.records_of(i)), opened.payload(i), limits)
                             for i, section in enumerate(manifest.sections))
            return cls(manifest, sections, opened.size)

    def codes(self) -> list[tuple[Code, ...]]:
        """Of each section."""
        return [section.codes for section in self.sections]

    def with_codes(self, codes: Sequence[Sequence[Code]]) -> bytes:
        """The file with other codes (for tensors of the same shapes) in the place of its own."""
        return self.counted(codes)[0]

    def counted(self, codes: Sequence[Sequence[Code]]) -> tuple[bytes, int]:
        """The same, and how many of its bytes are codes of weights."""
        payloads, weight_bytes = [], 0
        for known, section, own in zip(self.manifest.sections, self.sections, codes, strict=True):
            payload, count = section.encode(own)
            payloads.append((known.tool, payload))
            weight_bytes += count
        return self._written(payloads), weight_bytes

    def _written(self, payloads: Sequence[tuple[int, bytes]]) -> bytes:
        manifest = self.manifest
        metadata = dict(manifest.metadata)

        def written() -> bytes:
            return container.to_bytes(manifest.tensors, payloads, parameters=manifest.parameters, metadata=metadata)

        data = written()
        if digest.KEY in metadata:  # other codes, other tensors
            with load(data) as file:
                metadata[digest.KEY] = file.digest()
            data = written()
        return data


def _section(tool: str, records: tuple[TensorRecord, ...], payload: bytes, limits: Limits) -> Section:
    shapes = [record.shape for record in records]

    def made(codes: Sequence[Code], encode: Encode) -> Section:
        return Section(tool, records, tuple(codes), payload, encode)

    if tool == "scalar":
        mode, rows = scalar.layout_of(payload, records)
        return made(scalar.decode_codes(payload, records, limits),
                    lambda codes: scalar.encode_counted(codes, shapes, mode, rows))
    if tool == "transform":
        mode, rows = transform.layout_of(payload, records, limits)
        return made(transform.decode_codes(payload, records, limits),
                    lambda codes: transform.encode_counted(codes, shapes, mode, rows))
    if tool == "kernels":
        coder, bits = kernels.layout_of(payload, records)
        return made(kernels.decode_codes(payload, records, limits),
                    lambda codes: kernels.encode_counted(codes, shapes, coder, bits))
    if tool == "codebook":
        by = codebook.coder_of(payload)
        return made([codebook.decode_codebook(payload, records, limits)],
                    lambda codes: codebook.encode(codes[0], shapes, by))
    if tool == "batchnorm":
        return made(batchnorm.decode_codes(payload, records), lambda codes: (batchnorm.encode(codes), 0))
    if tool == "vector":
        return made(vector.decode_codes(payload, records), lambda codes: (vector.encode(codes), 0))
    return made([], lambda _: (payload, 0))
