"""Sections of tool scalar in mode fast to tensors on a device."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..bitstream import rans
from ..bitstream.buffers import torch_dtype
from ..bitstream.fallback.rans_header import Refused
from ..bitstream.manifest import TensorRecord
from ..decoder import TersorFile
from ..synthesis import scalar
from ..synthesis.scalar import Coded
from .batch import Batch
from .jobs import Job, job_of

MOST_ELEMENTS = 1 << 28
"""Of sections that are decoded at once, as far as one alone is not larger: each takes a byte."""
_TYPES = {"F16", "BF16", "F32", "F64"}

Targets = Mapping[int, Tensor]
"""Place in its section -> where a tensor is wanted."""


@dataclass(frozen=True)
class _Section:
    """What its parameters say, and its parts as jobs; None for a part without elements."""

    number: int
    records: Sequence[TensorRecord]
    coded: Sequence[Coded]
    cuts: Sequence[slice]
    jobs: Sequence[Job | None]

    @property
    def elements(self) -> int:
        return sum(job.elements for job in self.jobs if job is not None)


def decode(file: TersorFile, wanted: Mapping[int, Targets],
           device: torch.device) -> Iterator[tuple[int, dict[int, Tensor]]]:
    """Each section that kernels can decode and have found right, with its wanted tensors by their places: the targets
    themselves where the weights were written right there. `wanted`: sections of tool scalar.
    """
    ready: list[_Section] = []
    for number in wanted:
        section = _read(file, number)
        if section is None:
            continue
        if ready and sum(one.elements for one in ready) + section.elements > MOST_ELEMENTS:
            yield from _together(ready, wanted, device)
            ready = []
        ready.append(section)
    yield from _together(ready, wanted, device)


def _read(file: TersorFile, number: int) -> _Section | None:
    """None where the CPU is to decode the section, or to say what is wrong with it."""
    records = file.manifest.records_of(number)
    mode, coded, data, cuts = scalar.read_payload(file.payload(number), records)
    if mode != scalar.FAST or any(record.dtype not in _TYPES for record in records):
        return None
    jobs = []
    for i, part in enumerate(data):
        shapes = [(c.shape.rows, c.shape.columns) for c in ([coded[0].part(cuts[i])] if cuts else coded)]
        rans.check_shapes(shapes, file.limits)
        empty = not any(rows * columns for rows, columns in shapes)
        try:
            job = None if empty else job_of(bytes(part), shapes)
        except Refused:
            return None
        if (job is None and not empty) or (empty and len(part)):
            return None
        jobs.append(job)
    return _Section(number, records, coded, cuts, jobs)


def _together(sections: Sequence[_Section], wanted: Mapping[int, Targets],
              device: torch.device) -> Iterator[tuple[int, dict[int, Tensor]]]:
    jobs = [job for section in sections for job in section.jobs if job is not None]
    if not jobs:
        return
    there = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    with there:
        batch = Batch(jobs, device)
        refused = batch.run()
        first = 0
        for section in sections:
            own = range(first, first + sum(job is not None for job in section.jobs))
            first = own.stop
            if refused.isdisjoint(own):
                found = _tensors(section, batch, own, wanted[section.number])
                if found is not None:
                    yield section.number, found


def _tensors(section: _Section, batch: Batch, own: range, targets: Targets) -> dict[int, Tensor] | None:
    """The wanted tensors of a section. None where the CPU must refuse it."""
    numbers = iter(own)
    parts = [None if job is None else next(numbers) for job in section.jobs]
    try:
        escapes = {number: batch.escapes(number) for number in own}
    except Refused:
        return None
    found: dict[int, Tensor] = {}
    for place, target in targets.items():
        coded, record = section.coded[place], section.records[place]
        matrix = _matrix_for(coded, target, batch.device)
        for i, number in enumerate(parts):
            if number is None:
                continue
            if section.cuts:
                rows = section.cuts[i]
                batch.restore(number, 0, coded.part(rows), matrix[rows], escapes[number])
            else:
                batch.restore(number, place, coded, matrix, escapes[number])
        tensor = _as_tensor(matrix, coded, record)
        if tensor is None:
            return None
        found[place] = target if tensor.data_ptr() == target.data_ptr() else tensor
    return found


def _matrix_for(coded: Coded, target: Tensor, device: torch.device) -> Tensor:
    """Where the matrix of a tensor is decoded: the target's memory where it can be the tensor, else new memory."""
    shape = (coded.shape.rows, coded.shape.columns)
    if target.dtype == torch.float32 and not coded.swapped and target.is_contiguous() and target.device == device:
        return target.detach().view(shape)
    return torch.empty(shape, dtype=torch.float32, device=device)


def _as_tensor(matrix: Tensor, coded: Coded, record: TensorRecord) -> Tensor | None:
    """The tensor of a matrix view, in its own element type; None with a value beyond its range."""
    shape = record.shape
    if coded.swapped:
        matrix = matrix.reshape(shape[1], shape[0], *shape[2:]).swapaxes(0, 1).contiguous()
    tensor = matrix.reshape(shape).to(torch_dtype(record.dtype))
    safe = record.dtype == "F32" and float(np.max(coded.steps, initial=0.0)) <= scalar.SAFE_STEP
    return tensor if safe or bool(torch.isfinite(tensor).all()) else None
