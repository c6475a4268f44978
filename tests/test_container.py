"""Header, manifest and sections: what is written comes back, and nothing else is accepted."""

from __future__ import annotations

import contextlib
import io
import itertools
import zlib

import numpy as np
import pytest
from forge import file_of, manifest_of, small_file, tiny_file, varints
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.bitstream import varint
from tersor.bitstream.container import (
    HEADER_BYTES,
    MAGIC,
    TensorRecord,
    front,
    open_source,
    read_manifest,
    read_section,
    to_bytes,
)
from tersor.bitstream.dictionary import DICTIONARY
from tersor.bitstream.dtypes import NAMES
from tersor.decoder import load
from tersor.errors import ChecksumError, FormatError, LimitError, TersorError
from tersor.limits import Limits


def same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> bool:
    return list(found) == list(expected) and all(
        found[name].dtype == expected[name].dtype and found[name].shape == expected[name].shape
        and found[name].tobytes() == expected[name].tobytes() for name in expected)


# --- what is written comes back ---------------------------------------------------------------

names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12)
shapes = st.lists(st.integers(0, 40), max_size=4).map(tuple)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
plain = st.tuples(st.sampled_from(NAMES), shapes, st.integers(0, 3))


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(names, plain, max_size=12), st.dictionaries(text, text),
       st.integers(0, 2**63 - 1), st.randoms(use_true_random=False))
def test_round_trip(tensors, metadata, parameters, random):
    used = sorted({section for *_, section in tensors.values()})
    records = [TensorRecord(name, dtype, shape, used.index(section))
               for name, (dtype, shape, section) in tensors.items()]
    for i, record in enumerate(list(records)):
        if random.random() < 0.2:
            alias = f"{record.name}\x01{i}"
            records.append(TensorRecord(alias, record.dtype, record.shape, None, alias_of=i))
    sections = [(random.randrange(5), random.randbytes(random.randrange(9))) for _ in used]
    data = to_bytes(records, sections, parameters=parameters, metadata=metadata)
    source = open_source(data)
    manifest = read_manifest(source)
    assert list(manifest.tensors) == records
    assert manifest.parameters == parameters
    assert dict(manifest.metadata) == metadata
    assert [(s.tool, read_section(source, manifest, i)) for i, s in enumerate(manifest.sections)] == sections
    assert manifest.library_version == (0, 1, 0)


def test_same_parts_give_the_same_bytes():
    assert small_file()[0] == small_file()[0]


@pytest.mark.parametrize("kind", ["bytes", "bytearray", "memoryview", "path", "file", "bytesio", "rawio"])
def test_every_kind_of_source(kind, tmp_path):
    data, expected = small_file()
    path = tmp_path / "x.tersor"
    path.write_bytes(data)
    sources = {"bytes": bytes, "bytearray": bytearray, "memoryview": memoryview, "bytesio": io.BytesIO,
               "path": lambda _: path, "file": lambda _: path.open("rb"),
               "rawio": lambda _: path.open("rb", buffering=0)}
    given = sources[kind](data)
    with load(given) as file:
        assert same(dict(file), expected)
    if hasattr(given, "close"):
        assert not given.closed  # only what the library opened is closed
        given.close()


def test_text_files_and_pipes_are_refused(tmp_path):
    (tmp_path / "x").write_text("x")
    with open(tmp_path / "x") as text, pytest.raises(TypeError, match="binary"):
        load(text)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "absent")


def resnet20() -> list[tuple[str, str, tuple[int, ...], int]]:
    """Names of the CIFAR-10 ResNet-20 with num_batches_tracked."""
    def norm(prefix, c):
        keys = ("weight", "bias", "running_mean", "running_var")
        return [*((f"{prefix}.{key}", "F32", (c,), 1) for key in keys),
                (f"{prefix}.num_batches_tracked", "I64", (), 0)]
    out = [("conv1.weight", "F32", (16, 3, 3, 3), 2), *norm("bn1", 16)]
    width = 16
    for stage, c in enumerate((16, 32, 64), 1):
        for block in range(3):
            p = f"layer{stage}.{block}."
            out += [(p + "conv1.weight", "F32", (c, width, 3, 3), 2), *norm(p + "bn1", c),
                    (p + "conv2.weight", "F32", (c, c, 3, 3), 2), *norm(p + "bn2", c)]
            width = c
    return [*out, ("linear.weight", "F32", (10, 64), 2), ("linear.bias", "F32", (10,), 3)]


def test_header_and_manifest_of_resnet20_are_small():
    records = [TensorRecord(*row) for row in resnet20()]
    sections = [(0, b"q" * 14), (2, b"w" * 1100), (1, b"e" * 68_000), (3, b"r" * 9)]
    assert len(front(records, sections, parameters=269722)) <= 180


def test_the_dictionary_never_changes():
    assert (len(DICTIONARY), zlib.crc32(DICTIONARY)) == (1652, 0x5039B5BC)


# --- damage -----------------------------------------------------------------------------------

def test_truncation_at_every_byte():
    data, _ = small_file()
    for length in range(len(data)):
        with pytest.raises(FormatError):
            load(data[:length]).read_all()


def test_every_flipped_bit_is_found():
    data, _ = small_file()
    for position in range(len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[position] ^= 1 << bit
            with pytest.raises(TersorError):
                load(damaged).read_all()
            with pytest.raises(TersorError):
                load(damaged).verify()


def test_appended_bytes_are_found():
    data, _ = small_file()
    with pytest.raises(FormatError, match="bytes that do not belong"):
        load(data + b"\0")


def test_damaged_section_leaves_the_others_readable():
    data, expected = small_file()
    damaged = bytearray(data)
    damaged[-1] ^= 1  # the last section: fc.bias
    file = load(damaged)
    assert file["table"].tobytes() == expected["table"].tobytes()
    with pytest.raises(ChecksumError, match=r"fc\.bias"):
        file["fc.bias"]


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_forged_manifests_with_right_checksums(data):
    """Past the checksum: whatever the manifest says, the file decodes or raises TersorError."""
    payload = b"\0" + bytes(12)
    manifest = bytearray(manifest_of(names=((0, b"a\0"), (1, b"b\0")), dtypes=(0, 0), axes=(1, 1),
                                     dims=(4, 0), homes=(1, 0), targets=(0,), metadata=b"\1\1k\1v"))
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(manifest) - 1))
        manifest[position] = data.draw(st.integers(0, 255))
    with contextlib.suppress(TersorError):
        load(file_of(bytes(manifest), payload)).read_all()


# --- files that are not ours --------------------------------------------------------------------

@pytest.mark.parametrize(("data", "what"), [
    (b"", "empty"), (b"PK\x03\x04" + bytes(40), "zip"), (b"\x80\x02}" + bytes(40), "pickle"),
    (b"\x78\x00\x00\x00\x00\x00\x00\x00{\"w\":" + bytes(40), "safetensors"),
    (b"\x08\x07\x12\x07pytorch" + bytes(40), "ONNX"), (b"\x93NUMPY\x01\x00" + bytes(40), "npy"),
    (MAGIC[:5], "truncated"), (MAGIC.replace(b"\r\n", b"\n") + bytes(40), "as text"),
    (b"\x89HDF\r\n" + bytes(40), "HDF5"),
    (b"version https://git-lfs.github.com/spec/v1\n", "LFS"), (b"hello " * 9, "not a .tersor file"),
])
def test_foreign_files_are_recognised(data, what):
    with pytest.raises(FormatError, match=what):
        load(data)


def test_the_forge_makes_valid_files():
    assert load(tiny_file())["w"].tolist() == [0, 0, 0]
    columns = {"names": ((0, b"a\0"), (0, b"b\0")), "dtypes": (0, 0), "axes": (1, 1),
               "dims": (2, 3), "homes": (1, 1)}
    assert load(tiny_file(**columns))["b"].shape == (2,)


# --- limits ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("limits", [
    Limits(max_tensors=9), Limits(max_sections=2), Limits(max_bytes=100), Limits(max_tensor_bytes=29),
    Limits(max_dimensions=1), Limits(max_name_bytes=14), Limits(max_manifest_bytes=60)])
def test_limits(limits):
    with pytest.raises(LimitError, match=r"raise that limit"):
        load(small_file()[0], limits=limits)


def test_names_cannot_explode():
    """Shared prefixes would make gigabytes of names out of a few kilobytes."""
    count = 30_000
    long = b"x" * 4000
    suffixes = [f"{i:05d}" for i in range(count)]
    names = [(0, long + suffixes[0].encode() + b"\0")]
    for a, b in itertools.pairwise(suffixes):
        shared = next(i for i in range(5) if a[i] != b[i])
        names.append((4000 + shared, b[shared:].encode() + b"\0"))
    manifest = manifest_of(names=names, dtypes=(0,) * count, axes=(0,) * count, dims=(), homes=(1,) * count)
    assert len(file_of(manifest)) < 200_000
    with pytest.raises(LimitError, match="all tensor names"):
        load(file_of(manifest))


# --- what cannot be written -----------------------------------------------------------------------

@pytest.mark.parametrize("records", [
    [TensorRecord("a", "F32", (1,), 0), TensorRecord("a", "F32", (1,), 0)],
    [TensorRecord("", "F32", (1,), 0)], [TensorRecord("a\0b", "F32", (1,), 0)],
    [TensorRecord("\ud800", "F32", (1,), 0)], [TensorRecord("a", "F32", (1,), 1)],
    [TensorRecord("a", "F32", (1,), None)], [TensorRecord("a", "F32", (1,), 0, alias_of=0)],
    [TensorRecord("a", "F32", (-2,), 0)], [],
])
def test_contradictions_are_refused_when_writing(records):
    with pytest.raises(FormatError):
        to_bytes(records, [(0, b"")], parameters=1)


@given(st.integers(0, 2**63 - 1))
def test_varint(value):
    data = varint.encode([value])
    assert data == varints([value])
    reader = varint.ByteReader(data, "test")
    assert (reader.varint(), reader.left) == (value, 0)


def test_header_is_where_the_documentation_says():
    data = tiny_file()
    assert data[:8] == MAGIC
    assert HEADER_BYTES == 26
    assert int.from_bytes(data[14:18], "little") + 26 + 13 == len(data)
