"""From a .tersor file to named arrays: lazily, in threads, without torch.

    with tersor.load("resnet18.tersor") as tensors:
        tensors["conv1.weight"]            # decodes the one section that holds it, once
        state = dict(tensors)              # decodes everything

The decoder only follows: it looks up the coding tool of a section and lets it restore the section's
tensors. A new tool is one module in `tersor.synthesis` and one line in `_TOOLS`.
"""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from .bitstream import digest as digest_module
from .bitstream.buffers import as_array, on_gpu
from .bitstream.container import open_source, read_manifest, read_section
from .bitstream.dtypes import NUMPY
from .bitstream.manifest import Manifest, TensorRecord
from .bitstream.source import Readable, Source
from .errors import ChecksumError, FormatError, UnsupportedError
from .limits import DEFAULT_LIMITS, Limits
from .synthesis import scalar

Array: TypeAlias = npt.NDArray[np.generic]
Decode: TypeAlias = Callable[[bytes, Sequence[TensorRecord], Limits, int], list[Array]]

_TOOLS: dict[int, str] = {0: "raw", 1: "scalar", 2: "batchnorm", 3: "vector", 4: "codebook",
                          5: "transform", 6: "kernels"}
"""Tool id -> module in `tersor.synthesis` with `decode(payload, records, limits, threads)`."""

_SCALAR = 1
"""The tool that can decode into given memory."""

TIED = "tersor.tied"
"""Metadata key; "1" where aliases are one tensor in the model too, and not only equal by their values."""
SOURCE = "tersor.source"
"""Metadata key: the format that the model was a file of; and then the name of the tensor that holds the rest of that
file, which is none of the model's (see `tersor.adapters.skeleton`)."""
OWN_KEYS = (TIED, SOURCE, digest_module.KEY)
"""Metadata that is the format's own, and not the model's."""


def tool_name(tool: int) -> str:
    """The name of a coding tool.

    >>> tool_name(0), tool_name(99)
    ('raw', 'unknown tool 99')
    """
    return _TOOLS.get(tool, f"unknown tool {tool}")


def decoder_of(tool: int) -> Decode:
    """The `decode` of a tool. Raises UnsupportedError for a number that this version does not know."""
    if tool not in _TOOLS:
        raise UnsupportedError(f"the file uses coding tool {tool}, which this version of tersor does not "
                               f"know; install a newer one")
    module = importlib.import_module(f".synthesis.{_TOOLS[tool]}", __package__)
    decode: Decode = module.decode
    return decode


class TersorFile(Mapping[str, Array]):
    """The tensors of an open file by name, in state-dict order; decoded section by section when asked for.

    Arrays are kept until `forget()`, so that a name gives the same array every time, and tied names give
    *the same object*. They are read-only for that reason: take `array.copy()` to change one. All methods
    may be called from several threads at once.

    Raises FormatError (or a child of it) when the file is not valid: at once for the manifest, when
    a tensor is asked for if its section is damaged.
    """

    def __init__(self, source: Source, limits: Limits | None = None, threads: int | None = None) -> None:
        """`source`: see `tersor.bitstream.source`; closed by `close()`. `threads`: None for all cores."""
        if threads is not None and threads < 1:
            raise ValueError(f"threads={threads}: give 1 or more, or None for all cores")
        self._source = source
        self.limits = limits or DEFAULT_LIMITS
        """What it may ask for; see `Limits`."""
        self._threads = threads or cores()
        self.manifest: Manifest = read_manifest(source, self.limits)
        """What the file says of itself; reading it decodes nothing."""
        self._index = {record.name: i for i, record in enumerate(self.manifest.tensors)}
        self._rest = self._index.pop(SOURCE, None) if SOURCE in self.manifest.metadata else None
        self._sections: dict[int, list[Array]] = {}
        self._locks = [threading.Lock() for _ in self.manifest.sections]
        self._places = {index: place for members in self.manifest.members  # of each tensor in its section
                        for place, index in enumerate(members)}

    def __getitem__(self, name: str) -> Array:
        section, place = self.place(name)
        return self._decoded(section)[place]

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, name: object) -> bool:  # Mapping's own would decode the tensor
        return name in self._index

    def __repr__(self) -> str:
        return f"<TersorFile {self._source.label}: {len(self)} tensors, {self.size:,} bytes>"

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return self._source.size

    @property
    def bits_per_weight(self) -> float:
        """8 * file bytes / model parameters, everything counted; NaN for a model without parameters."""
        return 8 * self.size / self.manifest.parameters if self.manifest.parameters else float("nan")

    @property
    def metadata(self) -> dict[str, str]:
        """The text pairs that came with the model."""
        return {key: value for key, value in self.manifest.metadata.items() if key not in OWN_KEYS}

    @property
    def tied(self) -> bool:
        """Whether `aliases` were one tensor in the model that was compressed, or only had equal values."""
        return dict(self.manifest.metadata).get(TIED) == "1"

    @property
    def source_format(self) -> str | None:
        """What the model was a file of ("onnx", "pytorch", "pt2" ...), where the file holds all the rest of it too."""
        return self.manifest.metadata.get(SOURCE) if self._rest is not None else None

    @property
    def source(self) -> bytes:
        """All but the weights of the file that the model was, for `tersor.adapters.skeleton`; empty if there is none.

        Raises FormatError where it is damaged.
        """
        if self._rest is None:
            return b""
        record = self.manifest.tensors[self._rest]
        if record.section is None or record.dtype != "U8" or len(record.shape) != 1:
            raise FormatError(f"the rest of the source file is {record.dtype} {list(record.shape)}: corrupt file")
        return self._decoded(record.section)[self._places[self._rest]].tobytes()

    @property
    def aliases(self) -> dict[str, str]:
        """Name -> earlier name of the tensor that it shares its values with; see `tied`."""
        tensors = self.manifest.tensors
        return {record.name: tensors[record.alias_of].name
                for record in tensors if record.alias_of is not None}

    def record(self, name: str) -> TensorRecord:
        """dtype and shape of a tensor, without decoding it."""
        return self.manifest.tensors[self._index[name]]

    def place(self, name: str) -> tuple[int, int]:
        """The section that holds a tensor (or the one that it shares its values with), and its place in there."""
        index = self._index[name]
        alias = self.manifest.tensors[index].alias_of
        index = index if alias is None else alias
        section = self.manifest.tensors[index].section
        assert section is not None  # the manifest was checked: an alias points to a plain tensor
        return section, self._places[index]

    def payload(self, section: int) -> bytes:
        """The coded bytes of a section of the manifest, checked, not decoded."""
        return read_section(self._source, self.manifest, section)

    def read_all(self) -> dict[str, Array]:
        """All tensors, in state-dict order: the quickest way to a whole model.

        Where there are enough sections to go round, each thread decodes sections of its own, largest
        first; otherwise the sections come one by one and the coding tool uses the threads.
        """
        sections = sorted(range(len(self._locks)), key=lambda i: -self.manifest.sections[i].length)
        if 1 < self._threads <= len(sections) // 2:
            with ThreadPoolExecutor(self._threads) as pool:
                for _ in pool.map(lambda section: self._decoded(section, 1), sections):
                    pass
        return dict(self)

    def read_into(self, buffers: Mapping[str, Any]) -> None:
        """Decode tensors into memory that the caller owns; keeps nothing.

        buffers: name -> C-contiguous NumPy array or torch tensor of the file's element type and shape. Float32
        weights of tool scalar are decoded right there, all else is copied. Tensors may be on a GPU: see `tersor.gpu`. A
        section is decoded once, so give all names at once. Raises KeyError for an unknown name, ValueError or TypeError
        for a buffer that does not fit, before anything is written; after a FormatError the content of the buffers means
        nothing.
        """
        if any(on_gpu(buffer) for buffer in buffers.values()):
            # By name, as coding tools are: this module needs no torch, and that one does.
            importlib.import_module(".gpu", __package__).read_into(self, buffers)
            return
        wanted: dict[int, list[tuple[int, Array]]] = {}
        for name, buffer in buffers.items():
            record = self.record(name)
            section, place = self.place(name)
            wanted.setdefault(section, []).append((place, as_array(name, buffer, record.dtype, record.shape)))
        several = 1 < self._threads <= len(wanted) // 2

        def fill(section: int) -> None:
            targets, kept = wanted[section], self._sections.get(section)
            first = dict(reversed(targets))
            if kept is None:
                places = range(len(self.manifest.members[section]))
                kept = self._decode(section, 1 if several else self._threads, [first.get(place) for place in places])
            for place, target in targets:
                if target is not kept[place]:
                    np.copyto(target, kept[place])

        order = sorted(wanted, key=lambda i: -self.manifest.sections[i].length)
        if several:
            with ThreadPoolExecutor(self._threads) as pool:
                list(pool.map(fill, order))
        else:
            for section in order:
                fill(section)

    def forget(self) -> None:
        """Let go of the decoded arrays; they are decoded again when asked for."""
        self._sections.clear()

    def verify(self) -> None:
        """Check everything: every checksum, that every section decodes, and the digest if there is one. Keeps
        nothing in memory.

        Raises the FormatError that a reader would meet, ChecksumError where the tensors have another digest.
        """
        for section in range(len(self.manifest.sections)):
            self.payload(section)  # damage shows before anything is decoded
        stored = self.stored_digest
        if stored is None:
            for section in range(len(self.manifest.sections)):
                self._decode(section, self._threads)
        elif (found := self.digest()) != stored:
            raise ChecksumError(f"{self._source.label}: the tensors have the SHA-256 {found}, and the file says "
                                f"{stored!r}; it was changed, or this decoder does not do what the encoder did")

    @property
    def stored_digest(self) -> str | None:
        """The SHA-256 of the tensors that the file itself states, if it does; `verify` compares."""
        return self.manifest.metadata.get(digest_module.KEY)

    def digest(self) -> str:
        """The SHA-256 of all tensors as they are decoded here, in hexadecimal; see docs/format.md, "Digest".

        Two files with the same digest restore the same network, however they are coded. Keeps nothing in memory.
        """
        tensors = self.manifest.tensors
        content: dict[int, bytes] = {}
        for section, members in enumerate(self.manifest.members):
            for index, array in zip(members, self._decode(section, self._threads), strict=True):
                content[index] = digest_module.of_array(array)
        return digest_module.of_tensors(
            (record, content[i if record.alias_of is None else record.alias_of]) for i, record in enumerate(tensors))

    def close(self) -> None:
        """Close the file. Arrays that were decoded stay."""
        self._source.close()

    def __enter__(self) -> TersorFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        self.close()

    def _decoded(self, section: int, threads: int | None = None) -> list[Array]:
        with self._locks[section]:
            arrays = self._sections.get(section)
            if arrays is None:
                arrays = self._sections[section] = self._decode(section, threads or self._threads)
            return arrays

    def _decode(self, section: int, threads: int, into: Sequence[Array | None] | None = None) -> list[Array]:
        return decode_section(self.manifest, section, self.payload(section), self.limits, threads, into)


def decode_section(manifest: Manifest, section: int, payload: bytes, limits: Limits, threads: int,
                   into: Sequence[Array | None] | None = None) -> list[Array]:
    """The tensors of a section, read-only; the coding tool is held to its contract.

    into: for each tensor an array of its type and shape that receives it (and is in the result as it is), or None.
    """
    tool = manifest.sections[section].tool
    decode = decoder_of(tool)
    records = manifest.records_of(section)
    targets = into or [None] * len(records)
    if tool == _SCALAR and into is not None:
        arrays = scalar.decode(payload, records, limits, threads, targets)
    else:
        arrays = decode(payload, records, limits, threads)
    out = []
    for record, array, target in zip(records, arrays, targets, strict=True):
        if array.shape != record.shape or array.dtype != NUMPY[record.dtype]:
            raise FormatError(f"tensor {record.name!r}: the {tool_name(tool)} tool restored "
                              f"{array.dtype} {array.shape} for {record.dtype} {record.shape}")
        if target is None:
            array.flags.writeable = False
        elif array.ctypes.data != target.ctypes.data:
            np.copyto(target, array)
        out.append(array if target is None else target)
    return out


def load(file: Readable, limits: Limits | None = None, threads: int | None = None) -> TersorFile:
    """Open a .tersor file: a path, bytes, an mmap, or a seekable binary file (`tersor.stream` reads others). Decodes
    nothing yet.

    limits: what the file may ask for; `tersor.limits.DEFAULT_LIMITS` if None.
    threads: for decoding; None for all cores.
    Raises FormatError where it is no valid .tersor file, OSError where a path cannot be read.
    """
    source = open_source(file)
    try:
        return TersorFile(source, limits, threads)
    except BaseException:
        source.close()
        raise


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
