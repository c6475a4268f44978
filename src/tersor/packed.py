"""A compressed model in memory: what `tersor.compress` returns."""

from __future__ import annotations

import importlib
import math
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from .bitstream import digest
from .bitstream.atomic import atomic_write
from .bitstream.container import to_bytes
from .decoder import TersorFile, load, tool_name


@dataclass(frozen=True)
class Packed:
    """A finished file and how it came about.

    * `data`: the file, byte for byte.
    * `parameters`: the denominator of bits/weight. `price`: lambda. `snr`: signal-to-noise ratio at the
      output in dB on the calibration samples, None where it was not measured.
    * `notes`: what the encoder wants its user to know.
    * `decisions`: weight name -> how it is coded and what the other ways would have cost, as plain data, where
      several were tried: tool, label, weights, bits (per weight, all included), side_bits (of them for bases and
      codebooks), distortion, losers: [label, J over the winner's J].
    * `drop`: of a file with a bound on it, what was measured: `tersor.evaluate.Drop` as plain data.
    """

    DIGEST_BYTES: ClassVar[int] = 84
    """What `with_digest` adds to a file at most."""

    data: bytes = field(repr=False)
    parameters: int
    price: float
    snr: float | None = None
    weight_bytes: int = 0
    notes: list[str] = field(default_factory=list)
    decisions: dict[str, dict[str, Any]] = field(default_factory=dict)
    drop: dict[str, float | int] | None = None

    @classmethod
    def read(cls, file: str | os.PathLike[str] | bytes) -> Packed:
        """A finished file, to be trained further with `tersor.finetune`.

        What only its encoder knew is not in it: `price` is NaN, `snr` None, and there are no `decisions`. Raises
        FormatError for a bad file, OSError.
        """
        data = file if isinstance(file, bytes) else Path(file).read_bytes()
        contents = importlib.import_module(".sections", __package__).Contents.of(data)
        return cls(data, contents.manifest.parameters, math.nan, weight_bytes=contents.counted(contents.codes())[1])

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return len(self.data)

    @property
    def bits_per_weight(self) -> float:
        """8 * size / parameters: everything counted."""
        return 8.0 * self.size / max(1, self.parameters)

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = True) -> int:
        """Write the file atomically; returns its size in bytes. Raises FileExistsError, OSError."""
        with atomic_write(path, overwrite=overwrite) as file:
            file.write(self.data)
        return self.size

    def load(self) -> TersorFile:
        """The tensors, decoded from the file's bytes."""
        return load(self.data)

    def trainable(self, model: Any, **options: Any) -> Any:
        """A module whose parameters are what this file holds, for a training loop of one's own: see
        `tersor.Trainable(packed, model, **options)`, which this is. (`tersor.finetune` is the ready loop.)"""
        return importlib.import_module(".training.trainable", __package__).Trainable(self, model, **options)

    def with_digest(self) -> Packed:
        """The same file with the SHA-256 of its decoded tensors in its metadata, which `TersorFile.verify` compares."""
        with self.load() as file:
            manifest = file.manifest
            sections = [(section.tool, file.payload(i)) for i, section in enumerate(manifest.sections)]
            metadata = {**manifest.metadata, digest.KEY: file.digest()}
        return replace(self, data=to_bytes(manifest.tensors, sections, parameters=manifest.parameters,
                                           metadata=metadata))

    def report(self) -> dict[str, object]:
        """Where the bytes go, and what the encoder measured.

        total_bytes = header_bytes (header and manifest) + payload_bytes (codes of the weights) + side_bytes
        (all else: steps and tables, BatchNorm, biases, lossless tensors).
        """
        with self.load() as file:
            sections = file.manifest.sections
            header = self.size - sum(section.length for section in sections)
            by_tool: dict[str, int] = {}
            for section in sections:
                by_tool[tool_name(section.tool)] = by_tool.get(tool_name(section.tool), 0) + section.length
        return {
            "total_bytes": self.size, "header_bytes": header, "payload_bytes": self.weight_bytes,
            "side_bytes": self.size - header - self.weight_bytes, "bytes_by_tool": by_tool,
            "bits_per_weight": self.bits_per_weight, "parameters": self.parameters,
            "lambda": self.price, "snr_db": self.snr, "notes": list(self.notes), "decisions": dict(self.decisions),
            "drop": self.drop,
        }
