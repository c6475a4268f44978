"""Makes .tersor files byte by byte, also wrong ones with right checksums, for the tests."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Sequence

import numpy as np

from tersor.bitstream.container import MAGIC, TensorRecord, to_bytes
from tersor.bitstream.deflate import deflate
from tersor.bitstream.dictionary import DICTIONARY
from tersor.synthesis import batchnorm, raw, vector


def varints(values: Iterable[int]) -> bytes:
    """LEB128, written independently of the library."""
    out = bytearray()
    for value in values:
        while value >= 128:
            out.append(value % 128 + 128)
            value //= 128
        out.append(value)
    return bytes(out)


def file_of(manifest: bytes, payloads: bytes = b"", *, container: int = 1, tools: int = 1, flags: int = 0,
            stored: bytes | None = None, inflated_length: int | None = None) -> bytes:
    """A file around any inflated manifest (or stored one), with a valid header checksum."""
    stored = deflate(manifest, DICTIONARY) if stored is None else stored
    length = len(manifest) if inflated_length is None else inflated_length
    header = MAGIC + bytes([container, tools, 0, 1, 0, flags]) + struct.pack("<II", len(stored), length)
    return header + struct.pack("<I", zlib.crc32(header + stored)) + stored + payloads


def manifest_of(*, names: Sequence[tuple[int, bytes]] = ((0, b"w\0"),), dtypes: Sequence[int] = (0,),
                axes: Sequence[int] = (1,), dims: Sequence[int] = (4,), homes: Sequence[int] = (1,),
                targets: Sequence[int] = (), sections: Sequence[tuple[int, bytes]] = ((0, bytes(13)),),
                metadata: bytes = b"\0", count: int | None = None, tail: bytes = b"") -> bytes:
    """An inflated manifest, column by column; the default holds w, F32 [3], three zeros, in a raw section."""
    return b"".join([
        varints([3, len(names) if count is None else count]), varints(shared for shared, _ in names),
        *(suffix for _, suffix in names), varints(dtypes), varints(axes), varints(dims), varints(homes),
        varints(targets), varints([len(sections)]), varints(tool for tool, _ in sections),
        varints(len(payload) for _, payload in sections),
        *(struct.pack("<I", zlib.crc32(payload)) for _, payload in sections), metadata, tail])


def tiny_file(payload: bytes = b"\0" + bytes(12), tool: int = 0, **columns: object) -> bytes:
    """The default manifest around one payload."""
    return file_of(manifest_of(sections=((tool, payload),), **columns), payload)  # type: ignore[arg-type]


def small_file() -> tuple[bytes, dict[str, np.ndarray]]:
    """A file with the raw, batchnorm and vector tools, an alias, metadata, odd shapes; and its tensors."""
    rng = np.random.default_rng(5)
    exact = {"steps": np.array(64000), "mask": np.array([[True, False, True]]),
             "void": np.zeros((0, 3), "f4"), "table": rng.standard_normal((3, 5)).astype("f2")}
    norm = batchnorm.BatchNormCode(np.array([-20, -17, 0, -25]), np.array([1, -1, 0, 1], np.int8), 4,
                                   np.array([3, -5, 2, 0]), -100, 1e-5)
    bias = vector.VectorCode(np.array([7, -7, 100]), -64)
    sections = [(0, raw.encode(list(exact.values()))), (2, batchnorm.encode([norm])),
                (3, vector.encode([bias]))]
    dtypes = {"steps": "I64", "mask": "BOOL", "void": "F32", "table": "F16"}
    records = [TensorRecord(name, dtypes[name], array.shape, 0) for name, array in exact.items()]
    keys = ("bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
    records += [TensorRecord(name, "F32", (4,), 1) for name in keys]
    records += [TensorRecord("fc.bias", "F32", (3,), 2),
                TensorRecord("tied", "F16", (3, 5), None, alias_of=3)]
    values = (norm.scale(), norm.shift(), np.zeros(4), np.full(4, 1 - np.float64(np.float32(1e-5))))
    expected = dict(exact)
    expected |= {name: value.astype("f4") for name, value in zip(keys, values, strict=True)}
    expected |= {"fc.bias": bias.values().astype("f4"), "tied": exact["table"]}
    return to_bytes(records, sections, parameters=26, metadata={"from": "a test", "é": ""}), expected
