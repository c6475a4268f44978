"""From paths to what a report shows: .tersor files, folders of `tersor sweep`, and what `compress --json` prints.

All of it may come from strangers: numbers are checked to be numbers here, text is escaped by the page.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..anatomy import anatomy
from ..decoder import load, tool_name
from ..errors import DataError, TersorError
from ..limits import Limits

SWEEP = "sweep.json"
MOST_LAYERS = 5000
"""Of a JSON file."""


@dataclass(frozen=True)
class Layer:
    """One weight of a file.

    `bits` per weight, `bytes`: its share of the file. `error`: its share of the error at the network's output, by the
    quadratic model of the encoder. `losers`: (another way to code it, its cost J over that of the chosen one). None:
    not known.
    """

    name: str
    tool: str
    label: str
    weights: int
    bits: float | None = None
    bytes: float | None = None
    error: float | None = None
    zeros: float | None = None
    losers: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Coded:
    """One file: its size, where the bytes are, its layers, what was measured.

    `measured`: fields of `tersor.evaluate.Comparison`. `path`: where it is, None if it is not there.
    """

    title: str
    bytes: int
    parameters: int
    budget: dict[str, int]
    layers: list[Layer]
    measured: dict[str, float] = field(default_factory=dict)
    snr: float | None = None
    notes: list[str] = field(default_factory=list)
    path: Path | None = None

    @property
    def bits(self) -> float:
        """Bits per weight, everything counted."""
        return 8 * self.bytes / max(1, self.parameters)


@dataclass(frozen=True)
class Baseline:
    """What somebody would have done without tersor; `ideal`: a code length, no file."""

    codec: str
    setting: str
    bytes: int
    ideal: bool
    measured: dict[str, float]


@dataclass(frozen=True)
class Subject:
    """A model: its files, smallest first, and baselines. `raw_bytes`: of its tensors, None if not known."""

    title: str
    parameters: int
    raw_bytes: int | None
    files: list[Coded]
    baselines: list[Baseline] = field(default_factory=list)
    top1: float | None = None
    samples: int = 0
    facts: dict[str, str] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)


def collect(paths: Sequence[str | os.PathLike[str]], *, limits: Limits | None = None) -> list[Subject]:
    """A subject for each path: a .tersor file, a folder with sweep.json, or JSON as `tersor compress --json` prints it.

    Raises `DataError` for anything else, `FormatError` for a damaged file, OSError.
    """
    found = []
    for given in paths:
        path = Path(given)
        if path.is_dir() and (path / SWEEP).is_file():
            found.append(_of_sweep(path, _json(path / SWEEP), limits))
        elif path.is_dir():
            raise DataError(f"{path} holds no {SWEEP}; tersor sweep makes such folders")
        elif path.suffix == ".json":
            document = _json(path)
            found.append(_of_sweep(path.parent, document, limits) if document.get("kind") == "tersor sweep"
                         else _of_decisions(path, document))
        else:
            found.append(_of_file(path, limits))
    return found


def _of_file(path: Path, limits: Limits | None) -> Subject:
    with load(path, limits) as file:
        manifest = file.manifest
        raw = sum(record.nbytes for record in manifest.tensors if record.alias_of is None)
        budget = {"header and manifest": file.size - manifest.payload_bytes}
        for section in manifest.sections:
            name = tool_name(section.tool)
            budget[name] = budget.get(name, 0) + section.length
        facts = {"tensors": f"{len(manifest.tensors):,}",
                 "written by": "tersor " + ".".join(map(str, manifest.library_version)),
                 **{f"metadata: {key}": value for key, value in file.metadata.items()}}
        coded = Coded(path.name, file.size, manifest.parameters, budget, _layers(path, {}, limits), path=path)
    return Subject(path.name, manifest.parameters, raw, [coded], facts=facts)


def _of_sweep(folder: Path, document: Mapping[str, Any], limits: Limits | None) -> Subject:
    where = str(folder / SWEEP)
    parameters = int(_number(document, "parameters", where, least=0))
    files, failed = [], []
    for point in _list(document, "points", where):
        if "error" in point:
            failed.append(f"{_number(point, 'asked_bits', where):g} bits/weight: {point['error']}")
            continue
        path: Path | None = folder / Path(str(point.get("file"))).name  # never elsewhere
        path = path if path is not None and path.is_file() else None
        files.append(_coded(f"{_number(point, 'asked_bits', where):g} bits/weight", point, parameters, where, path,
                            limits, size="bytes"))
    baselines = [Baseline(str(row.get("codec")), str(row.get("setting")), int(_number(row, "bytes", where, least=1)),
                          bool(row.get("ideal")), _measured(row, where))
                 for row in _list(document, "baselines", where)]
    raw = document.get("raw_bytes")
    facts = {"encoded by": f"tersor {document.get('tersor', '?')}"}
    if isinstance(document.get("calibration_images"), int):
        facts["calibrated on"] = f"{document['calibration_images']:,} inputs"
    facts["options"] = str(document.get("options", ""))
    facts |= {f"note {i}": str(note) for i, note in enumerate(_list(document, "notes", where), 1)}
    top1 = document.get("top1")
    return Subject(str(document.get("name") or folder.resolve().name), parameters,
                   int(_number(document, "raw_bytes", where, least=1)) if raw is not None else None,
                   sorted(files, key=lambda coded: coded.bytes), baselines,
                   None if top1 is None else _number(document, "top1", where),
                   int(_number(document, "samples", where, least=0)), facts, failed)


def _of_decisions(path: Path, document: Mapping[str, Any]) -> Subject:
    """What `Packed.report` says, or that under "decisions" alone."""
    if "decisions" not in document or "total_bytes" not in document:
        raise DataError(f"{path} is neither a {SWEEP} nor what tersor compress --json prints")
    where = str(path)
    parameters = int(_number(document, "parameters", where, least=0))
    output = document.get("output")
    file = path.parent / Path(str(output)).name if isinstance(output, str) else None
    coded = _coded(path.stem, document, parameters, where, file if file is not None and file.is_file() else None, None,
                   size="total_bytes")
    raw = document.get("input_bytes")
    return Subject(str(document.get("input") or path.stem), parameters,
                   int(_number(document, "input_bytes", where, least=1)) if raw is not None else None, [coded])


def _coded(title: str, point: Mapping[str, Any], parameters: int, where: str, path: Path | None,
           limits: Limits | None, size: str) -> Coded:
    parts = {"header and manifest": "header_bytes", "steps, BatchNorm, small tensors": "side_bytes",
             "codes of weights": "payload_bytes"}
    budget = {label: int(_number(point, key, where, least=0)) for label, key in parts.items()}
    decisions = point.get("decisions")
    decisions = decisions if isinstance(decisions, Mapping) else {}
    if len(decisions) > MOST_LAYERS:
        raise DataError(f"{where}: {len(decisions):,} layers are more than a page can show ({MOST_LAYERS:,})")
    snr = point.get("snr_db")
    return Coded(title, int(_number(point, size, where, least=1)), parameters, budget,
                 _layers(path, decisions, limits), _measured(point, where),
                 None if snr is None else _number(point, "snr_db", where),
                 [str(note) for note in _list(point, "notes", where)], path)


def _layers(path: Path | None, decisions: Mapping[str, Any], limits: Limits | None) -> list[Layer]:
    """From the file where it is there, and from the encoder's decisions where there are any."""
    total = math.fsum(_number(each, "distortion", name) for name, each in decisions.items())
    found: dict[str, Layer] = {}
    if path is not None:
        try:
            for part in anatomy(path, limits=limits):
                zeros = None if math.isnan(part.zeros) else part.zeros
                found[part.name] = Layer(part.name, part.tool, part.detail, part.weights, part.bits_per_weight,
                                         part.bytes, zeros=zeros)
        except TersorError:
            if not decisions:
                raise
    for name, each in decisions.items():
        known = found.get(name)
        losers = tuple((str(label), float(ratio)) for label, ratio in _list(each, "losers", name)
                       if isinstance(ratio, int | float))
        weights = int(_number(each, "weights", name, least=1))
        found[name] = Layer(
            name, str(each.get("tool")), str(each.get("label")), weights,
            known.bits if known is not None else _number(each, "bits", name),
            known.bytes if known is not None else _number(each, "bits", name) * weights / 8,
            _number(each, "distortion", name) / total if total > 0 else None,
            known.zeros if known is not None else None, tuple(sorted(losers, key=lambda loser: loser[1])))
    return list(found.values())


def _measured(point: Mapping[str, Any], where: str) -> dict[str, float]:
    given = point.get("measured")
    if not isinstance(given, Mapping):
        return {}
    return {str(key): _number(given, key, where) for key, value in given.items() if value is not None}


def _json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is no JSON: {error}") from error
    if not isinstance(document, dict):
        raise DataError(f"{path} holds no object")
    return document


def _number(values: Any, key: str, where: str, least: float = -math.inf) -> float:
    value = values.get(key) if isinstance(values, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < least \
            or abs(value) > 1e15:
        raise DataError(f"{where}: {key} is {value!r}, not a number that can be")
    return float(value)


def _list(values: Mapping[str, Any], key: str, where: str) -> list[Any]:
    found = values.get(key, [])
    if not isinstance(found, list):
        raise DataError(f"{where}: {key} is no list")
    return found
