"""What a file says of each of its weights: the tool, its transform, trellis, codebook, steps, and its bytes.

    for part in anatomy("resnet20.tersor"):
        print(part.name, part.tool, part.detail, part.bits_per_weight)

Decodes integers, restores no tensor, needs no torch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .bitstream import varint
from .bitstream.container import open_source, read_section
from .bitstream.integers import IntegerReader
from .bitstream.manifest import TensorRecord
from .bitstream.source import Readable
from .decoder import TersorFile, tool_name
from .limits import DEFAULT_LIMITS, Limits
from .synthesis import codebook, grid, kernels, scalar, transform
from .synthesis.scalar import ScalarCode
from .synthesis.transform import FIXED, TransformCode
from .synthesis.transform_code import extents
from .synthesis.transform_maps import Dct

TOOLS = ("scalar", "transform", "kernels", "codebook")
"""Tools that code weights."""


@dataclass(frozen=True)
class Part:
    """One weight in a file.

    * `bytes`: its share of the payload of its section. Weights of the tools scalar and transform are coded one after
      the other by a coder that goes on learning: the share is what the section grows by when the weight is added to
      those before it. Of shared codebooks: in proportion to what each weight would take alone.
    * `detail`: what is particular, for people. `steps`: smallest and largest step of its rows (sub-steps with a
      trellis; of the codebook tool: its smallest and largest value). `trellis`: states, 0 for none.
    * `size`: centres or kernels of its codebook, 0 where there is none. `zeros`: share of integers that are 0.
    """

    name: str
    tool: str
    weights: int
    bytes: float
    detail: str
    steps: tuple[float, float]
    trellis: int = 0
    size: int = 0
    zeros: float = math.nan

    @property
    def bits_per_weight(self) -> float:
        return 8.0 * self.bytes / max(1, self.weights)

    def report(self) -> dict[str, Any]:
        """As plain data."""
        return {"name": self.name, "tool": self.tool, "detail": self.detail, "weights": self.weights,
                "bytes": round(self.bytes, 1), "bits_per_weight": self.bits_per_weight, "steps": list(self.steps),
                "trellis": self.trellis, "codebook_size": self.size, "zeros": self.zeros}


def anatomy(file: Readable, *, limits: Limits | None = None) -> list[Part]:
    """Every weight of a .tersor file (path, bytes or binary file) that is coded by one of TOOLS, in the file's order.

    Raises FormatError for a bad file, OSError where a path cannot be read.
    """
    limits = limits or DEFAULT_LIMITS
    found: list[Part] = []
    with TersorFile(open_source(file), limits) as opened:
        for i, section in enumerate(opened.manifest.sections):
            tool = tool_name(section.tool)
            if tool in TOOLS:
                payload = read_section(opened._source, opened.manifest, i)
                found += _PARTS[tool](payload, opened.manifest.records_of(i), limits)
        order = {name: place for place, name in enumerate(opened)}
    return sorted(found, key=lambda part: order[part.name])


def _scalars(payload: bytes, records: Sequence[TensorRecord], limits: Limits) -> list[Part]:
    codes = scalar.decode_codes(payload, records, limits)
    mode = _mode(payload)
    shapes = [record.shape for record in records]
    shares = _growth(len(payload), [len(scalar.encode(codes[:k], shapes[:k], mode)) for k in range(1, len(codes))])
    return [Part(record.name, "scalar", record.count, share, _trellis(code.trellis) or "integers x steps",
                 _range(code.row_steps()), code.trellis, zeros=_zeros(code.q))
            for record, code, share in zip(records, codes, shares, strict=True)]


def _transforms(payload: bytes, records: Sequence[TensorRecord], limits: Limits) -> list[Part]:
    codes = transform.decode_codes(payload, records, limits)
    mode = _mode(payload)
    shapes = [record.shape for record in records]
    shares = _growth(len(payload), [len(transform.encode(codes[:k], shapes[:k], mode)) for k in range(1, len(codes))])
    found = []
    for record, code, share in zip(records, codes, shares, strict=True):
        what = code.coefficients
        states = what.trellis if isinstance(what, ScalarCode) else 0
        steps = what.row_steps() if isinstance(what, ScalarCode) else grid.value(what.step_index[what.depths > 0])
        detail = ", ".join(part for part in (_maps(code, record), _trellis(states)) if part)
        found.append(Part(record.name, "transform", record.count, share, detail, _range(steps), states,
                          zeros=_zeros(what.q)))
    return found


def _kernels(payload: bytes, records: Sequence[TensorRecord], limits: Limits) -> list[Part]:
    codes = kernels.decode_codes(payload, records, limits)
    alone = [float(len(kernels.encode([code], [record.shape]))) for code, record in zip(codes, records, strict=True)]
    found = []
    for record, code, share in zip(records, codes, _shared(len(payload), alone), strict=True):
        members = sum(code.same_codebook(other) for other in codes)
        gains = "" if code.gain is None else ", signs" if int(np.abs(code.gain).max(initial=0)) <= 1 else ", gains"
        detail = f"{len(code.values)} kernels of {code.taps}{gains}" + (f", shared by {members}" if members > 1 else "")
        found.append(Part(record.name, "kernels", record.count, share, detail, _range(code.row_steps()),
                          size=len(code.values)))
    return found


def _codebooks(payload: bytes, records: Sequence[TensorRecord], limits: Limits) -> list[Part]:
    code = codebook.decode_codebook(payload, records, limits)
    share_of = code.counts() / max(1, code.count)
    with np.errstate(divide="ignore"):
        length = np.where(share_of > 0, -np.log2(share_of), 0.0)
    alone = [float(length[index].sum()) for index in code.indexes]
    detail = f"{code.values.size} values" + (f", shared by {len(records)}" if len(records) > 1 else "")
    return [Part(record.name, "codebook", record.count, share, detail, _range(code.values), size=code.values.size,
                 zeros=float((index == code.zero).mean()) if index.size else math.nan)
            for record, index, share in zip(records, code.indexes, _shared(len(payload), alone), strict=True)]


_PARTS: dict[str, Callable[[bytes, Sequence[TensorRecord], Limits], list[Part]]] = {
    "scalar": _scalars, "transform": _transforms, "kernels": _kernels, "codebook": _codebooks}


def _mode(payload: bytes) -> int:
    """The coder of a section of the tools scalar or transform: its first integer."""
    cursor = varint.ByteReader(payload, "payload")
    return IntegerReader(cursor.take(cursor.varint(), "bytes of parameters")).one(0, 0, FIXED, "the coder of a section")


def _maps(code: TransformCode, record: TensorRecord) -> str:
    """The transforms of a layer in words, with the ranks of stored bases."""
    of = extents(record.shape, code.swapped)
    words = []
    for basis, most, what in ((code.rows, of.rows, "outputs"),
                              (code.channels, of.channels * (of.taps if code.joint else 1),
                               "inputs and taps" if code.joint else "inputs"), (code.taps, of.taps, "taps")):
        if isinstance(basis, Dct):
            words.append(f"DCT-{'I' * basis} of taps")
        elif basis is not None:
            words.append(f"basis of {what}, {len(basis.q)} of {most}")
    return " x ".join(words) or "no transform"


def _trellis(states: int) -> str:
    return f"trellis of {states}" if states else ""


def _growth(total: int, before: Sequence[int]) -> list[float]:
    """Shares of `total` from the lengths of the payload with one, two, ... weights."""
    return [float(after - first) for first, after in itertools.pairwise([0, *before, total])]


def _shared(total: int, alone: Sequence[float]) -> list[float]:
    whole = sum(alone)
    return [total * (one / whole if whole else 1.0 / len(alone)) for one in alone]


def _range(steps: Any) -> tuple[float, float]:
    return (float(np.min(steps)), float(np.max(steps))) if np.size(steps) else (math.nan, math.nan)


def _zeros(q: Any) -> float:
    return float((q == 0).mean()) if np.size(q) else math.nan
