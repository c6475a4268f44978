"""From an encoding to a file: which tensors share a section, and the manifest that says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from .adapters.inventory import Inventory
from .bitstream import container
from .bitstream.dtypes import name_of
from .bitstream.manifest import TensorRecord
from .decoder import OWN_KEYS, SOURCE, TIED
from .encoding import Encoding
from .errors import ModelError
from .parallel import ALONE, Team
from .synthesis import batchnorm, codebook, kernels, raw, scalar, transform, vector
from .synthesis.scalar import FAST, SMALL, ScalarCode
from .synthesis.transform import FIXED, BlockCode, TransformCode
from .threads import in_order
from .tools.kernels import file_coder

RAW, SCALAR, BATCHNORM, VECTOR, CODEBOOK, TRANSFORM, KERNELS = range(7)
"""Tool numbers in the file; see `tersor.decoder`."""

GROUP = 1 << 20
"""Layers share a section (and its adaptive state) until it holds this many weights: enough to learn from, and
still quick to decode for the sake of one tensor."""
PART = 1 << 21
"""A layer of twice this many weights is cut into parts of this size, which decode in parallel."""


STREAMED = 1 << 25
"""From so many weights on, sections are coded while the encoder goes on; their integers take four bytes each."""


@dataclass(frozen=True)
class Written:
    """The file's bytes, and how many of them are codes of weights."""

    data: bytes
    weight_bytes: int


def write(encoding: Encoding, team: Team = ALONE) -> Written:
    """The whole file of an encoding that is complete. team: processes that share its sections among them, each of which
    has the whole encoding, and gets the whole file."""
    plan = encoding.plan
    inventory = plan.inventory
    mode = FAST if plan.config.mode == "fast" else SMALL
    position = {name: i for i, name in enumerate(inventory.names)}
    home: dict[str, int] = {}
    sections: list[tuple[int, bytes]] = []
    weight_bytes = 0

    def add(tool: int, names: Sequence[str], payload: bytes) -> None:
        for name in names:
            home[name] = len(sections)
        sections.append((tool, payload))

    # One section where there is a transform: what the adaptive coder has learnt serves all layers.
    if encoding.transforms and encoding.sections:
        _unpack(encoding)
    scalars, transforms = dict(encoding.scalars), dict(encoding.transforms)
    if transforms:
        transforms |= {name: TransformCode(code, swapped=code.swapped) for name, code in scalars.items()}
        scalars = {}
    for names, (payload, streams) in encoding.sections.items():
        weight_bytes += streams
        add(SCALAR, names, payload)
    def shapes(names: Sequence[str]) -> list[tuple[int, ...]]:
        return [inventory.tensors[name].shape for name in names]

    def of_transforms(group: list[str]) -> tuple[bytes, int]:
        members = [transforms[name] for name in group]
        fixed = any(isinstance(code.coefficients, BlockCode) for code in members)
        cuts = 0 if fixed else _rows_per_part([code.coefficients.q for code in members])
        return transform.encode_counted(members, shapes(group), FIXED if fixed else mode, cuts)

    def of_kernels(group: list[str]) -> tuple[bytes, int]:
        options = plan.config.kernels
        return kernels.encode_counted([encoding.kernels[name] for name in group], shapes(group),
                                      file_coder(options, plan.config.mode), options.value_bits)

    tasks: list[tuple[int, Sequence[str], Callable[[], tuple[bytes, int]]]] = []
    for group in _groups(inventory, {name: code.q.size for name, code in scalars.items()}):
        tasks.append((SCALAR, group, partial(_scalar_section, encoding, group, scalars)))
    for group in _groups(inventory, {name: code.coefficients.q.size for name, code in transforms.items()}):
        tasks.append((TRANSFORM, group, partial(of_transforms, group)))
    for group in _groups(inventory, {name: code.index.size for name, code in encoding.kernels.items()}):
        tasks.append((KERNELS, group, partial(of_kernels, group)))
    for shared, code in encoding.codebooks.items():
        tasks.append((CODEBOOK, shared, partial(codebook.encode, code, shapes(shared), plan.config.codebook.coder)))
    costs = [float(sum(inventory.tensors[name].size for name in names)) for _, names, _ in tasks]
    alone = in_order(lambda task: task[2](), tasks) if team.is_alone else None
    coded = list(alone) if alone is not None else team.share(costs, lambda i: tasks[i][2]())
    for (tool, members, _), (payload, streams) in zip(tasks, coded, strict=True):
        weight_bytes += streams
        add(tool, members, payload)
    if plan.batchnorms:
        # The payload takes the four tensors of each BatchNorm in manifest order; Plan has seen to that.
        ordered = sorted(plan.batchnorms.values(), key=lambda bn: position[bn.weight])
        add(BATCHNORM, [name for bn in ordered for name in bn.names],
            batchnorm.encode([encoding.batchnorms[bn.prefix] for bn in ordered]))
    if plan.vectors:
        add(VECTOR, plan.vectors, vector.encode([encoding.vectors[name] for name in plan.vectors]))
    if plan.raw:
        add(RAW, plan.raw, raw.encode([inventory.tensors[name] for name in plan.raw]))
    records = []
    if inventory.source:
        rest = np.frombuffer(inventory.source, dtype=np.uint8)
        sections.append((RAW, raw.encode([rest])))
    for name in inventory.names:
        source = inventory.aliases.get(name)
        array = inventory.tensors[source if source is not None else name]
        records.append(TensorRecord(name, name_of(array.dtype), tuple(array.shape),
                                    None if source is not None else home[name],
                                    position[source] if source is not None else None))
    metadata = {key: value for key, value in inventory.metadata.items() if key not in OWN_KEYS}
    if inventory.source:
        if SOURCE in inventory.names:
            raise ModelError(f"a tensor is called {SOURCE!r}, which .tersor files reserve; rename it")
        records.append(TensorRecord(SOURCE, "U8", (len(inventory.source),), len(sections) - 1, None))
        metadata[SOURCE] = inventory.format
    if inventory.aliases and inventory.tied:
        metadata[TIED] = "1"
    data = container.to_bytes(records, sections, parameters=inventory.parameters, metadata=metadata)
    return Written(data, weight_bytes)


class Stream:
    """Codes a section of scalar layers as soon as it is full, and lets go of their integers: for `static_walk`, which
    visits layers in the order of the file. The file is the same as without."""

    def __init__(self, encoding: Encoding) -> None:
        self.encoding = encoding
        self.open: list[str] = []
        self.filled = 0

    def __call__(self, name: str) -> None:
        """Take note that a layer is encoded."""
        encoding = self.encoding
        if name not in encoding.scalars or encoding.transforms:
            return
        size = encoding.scalars[name].q.size
        if self.open and self.filled + size > GROUP:
            encoding.sections[tuple(self.open)] = _scalar_section(encoding, self.open, encoding.scalars)
            for done in self.open:
                del encoding.scalars[done]
            self.open, self.filled = [], 0
        self.open.append(name)
        self.filled += size


def stream_of(encoding: Encoding) -> Stream | None:
    """For models so large that their integers would fill memory, where layers come in the order of the file."""
    plan = encoding.plan
    order = [name for name in plan.inventory.tensors if name in plan.layers]
    weights = sum(plan.inventory.tensors[name].size for name in order)
    return Stream(encoding) if weights >= STREAMED and order == list(plan.layers) else None


def _scalar_section(encoding: Encoding, names: Sequence[str], codes: Mapping[str, ScalarCode]) -> tuple[bytes, int]:
    """Payload, and how many of its bytes are codes of weights."""
    mode = FAST if encoding.plan.config.mode == "fast" else SMALL
    members = [codes[name] for name in names]
    shapes = [encoding.plan.inventory.tensors[name].shape for name in names]
    return scalar.encode_counted(members, shapes, mode, _rows_per_part([code.q for code in members]))


def _unpack(encoding: Encoding) -> None:
    """Integers back from sections that were coded too early: a transform was chosen for a later layer."""
    for names, (payload, _) in encoding.sections.items():
        tensors = [encoding.plan.inventory.tensors[name] for name in names]
        records = [TensorRecord(name, name_of(tensor.dtype), tuple(tensor.shape), 0, None)
                   for name, tensor in zip(names, tensors, strict=True)]
        encoding.scalars |= zip(names, scalar.decode_codes(payload, records), strict=True)
    encoding.sections.clear()


def _groups(inventory: Inventory, sizes: Mapping[str, int]) -> Iterator[list[str]]:
    """Neighbouring layers until a group is full; large layers alone. sizes: integers of each layer that takes part."""
    group: list[str] = []
    filled = 0
    for name in inventory.tensors:
        if name not in sizes:
            continue
        if group and filled + sizes[name] > GROUP:
            yield group
            group, filled = [], 0
        group.append(name)
        filled += sizes[name]
    if group:
        yield group


def _rows_per_part(matrices: Sequence[npt.NDArray[np.int32]]) -> int:
    """0 for one part."""
    if len(matrices) != 1 or matrices[0].size < 2 * PART:
        return 0
    rows, columns = matrices[0].shape
    return int(max(1, min(rows, PART // max(1, columns))))
