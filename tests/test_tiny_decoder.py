"""The decoder that was written from the documents alone, and the library, decode alike."""

from __future__ import annotations

import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tiny_decoder
from tiny_decoder import Tensor

import tersor

GOLDEN = Path(__file__).parent / "golden"
FILES = sorted(GOLDEN.glob("*.tersor"))
DOCUMENT = Path(__file__).parents[1] / "docs" / "format.md"
F32 = np.dtype(np.float32)


def assert_decodes_like_the_library(data: bytes) -> None:
    found = tiny_decoder.decode(data)
    with tersor.load(data) as file:
        expected = file.read_all()
    assert set(found) == set(expected)
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        assert found[name].tobytes() == np.ascontiguousarray(array).tobytes(), name


def test_there_are_golden_files():
    assert FILES or not GOLDEN.exists()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_golden_file(path):
    assert_decodes_like_the_library(path.read_bytes())


@pytest.mark.parametrize("mode", ["small", "fast"])
@pytest.mark.parametrize("bits", [2.5, 6])
def test_compressed_weights(mode, bits):
    pytest.importorskip("torch")
    rng = np.random.default_rng(int(10 * bits))
    normal = rng.standard_normal
    model = {
        "a.weight": (0.1 * normal((16, 60)) * np.exp(normal((16, 1)))).astype(np.float32),
        "a.bias": normal(16).astype(np.float32),
        "b.weight": (normal((8, 6, 3, 3)) ** 3).astype(np.float32),
        "c.weight": np.where(normal((20, 30)) > 1, normal((20, 30)), 0).astype(np.float16),
        "steps": np.array(17),
    }
    assert_decodes_like_the_library(tersor.compress(model, None, bits=bits, mode=mode).data)


@pytest.mark.parametrize("mode", ["small", "fast"])
def test_compressed_network(mode):
    torch = pytest.importorskip("torch")
    torch.manual_seed(1)
    nn = torch.nn
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.ConvTranspose2d(16, 8, 2), nn.Flatten(),
        nn.Linear(8, 40), nn.LayerNorm(40), nn.Linear(40, 40), nn.Embedding(30, 20),
    )  # fmt: skip
    for buffer in (model[1].running_mean, model[1].running_var):
        buffer.copy_(torch.rand(16) + 0.5)
    model[7].weight = nn.Parameter(model[7].weight.detach() * 3)
    assert_decodes_like_the_library(tersor.compress(model.eval(), None, bits=5, mode=mode).data)


# The examples of the document: its "coded as" texts, decoded by the tool that stands before them.


def codes_of(heading: str) -> list[bytes]:
    """The hexadecimal texts of a chapter, of two bytes at least, that follow "coded as" or "in mode 0 as"."""
    chapter = DOCUMENT.read_text(encoding="utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    found = re.findall(r"(?:coded as|in mode 0 as)\s+((?:[0-9a-f]{2}\s+)*[0-9a-f]{2})\b", chapter)
    assert found
    return [bytes.fromhex(text) for text in found]


def tensors(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [Tensor(f"t{i}", F32, shape) for i, shape in enumerate(shapes)]


def test_example_of_the_integer_code():
    one, two = codes_of("Integer code")
    code = tiny_decoder.IntegerCode(one)
    assert [code.integer(0) for _ in range(5)] == [0, 1, -1, 5, 300]
    code = tiny_decoder.IntegerCode(two)
    assert [code.integer(context) for context in (0, 0, 0, 1)] == [3, 3, 4, -2]


def test_examples_of_the_scalar_tool():
    small, fast, parts = codes_of("Tool 1: scalar")
    for payload in (small, fast):
        a, b = tiny_decoder.scalar(payload, tensors((2, 1, 2, 2), (2, 3)))
        assert a.tolist() == [[[[0.21875, 0], [-0.21875, 0.484375]]], [[[0, -0.734375], [5.234375, 0.21875]]]]
        assert b.tolist() == np.float32([[0, -0.29730177, 0.25], [0.17677669, 0, 0]]).tolist()
    (c,) = tiny_decoder.scalar(parts, tensors((3, 2)))
    assert c.tolist() == [[-3, -2], [-1, 0], [1, 2]]


def test_example_of_the_batchnorm_tool():
    (payload,) = codes_of("Tool 2: batchnorm")
    weight, bias, mean, variance = tiny_decoder.batchnorm(payload, tensors(*[(4,)] * 4))
    assert weight.tolist() == np.float32([2 ** (-20 / 16), -(2 ** (-17 / 16)), 0, 2 ** (-25 / 16)]).tolist()
    assert bias.tolist() == np.float32(np.array([3, -5, 2, 0]) * 2 ** (-100 / 32)).tolist()
    assert mean.tolist() == [0] * 4
    assert (variance + np.float32(1e-5)).tolist() == [1] * 4


def test_example_of_the_vector_tool():
    (payload,) = codes_of("Tool 3: vector")
    assert tiny_decoder.vector(payload, tensors((3,)))[0].tolist() == [1.75, -1.75, 25]


def test_examples_of_the_codebook_tool():
    for payload in codes_of("Tool 4: codebook"):
        (found,) = tiny_decoder.codebook(payload, tensors((2, 4)))
        assert found.tolist() == [[0, 0, -0.5, 0], [0.25, 0, 0, 0.25]]


def test_examples_of_the_context_coder():
    one, two, three = codes_of("Adaptive context coder")
    (q,) = tiny_decoder.context_part(one, [tiny_decoder.Matrix(2, 4, 4, 2, 0)])
    assert q.tolist() == [[1, 0, -1, 2], [0, -3, 21, 1]]
    (q,) = tiny_decoder.context_part(two, [tiny_decoder.Matrix(1, 3, 1, 1, 4)])
    assert q.tolist() == [[100, -90, 37]]
    (q,) = tiny_decoder.context_part(three, [tiny_decoder.Matrix(1, 5, 1, 1, 0, 2, 1)])
    assert q.tolist() == [[1, 1, -2, 0, 3]]


def test_example_of_a_whole_file():
    chapter = DOCUMENT.read_text(encoding="utf-8").split("\n## A whole file\n")[1]
    data = bytes.fromhex(re.search(r"\n\n((?:    [0-9a-f ]+\n)+)", chapter)[1])
    assert_decodes_like_the_library(data)
    found = tiny_decoder.decode(data)
    assert {name: array.tolist() for name, array in found.items()} == {
        "fc.weight": [[0, 1, 2], [3, 4, 5]],
        "fc.bias": [1.75, -1.75, 25],
        "tied": [[0, 1, 2], [3, 4, 5]],
    }


# What the documents call invalid, both refuse; and what one decodes, the other decodes to the same.


def parts_of(data: bytes) -> tuple[bytes, list[tuple[int, int, int]], list[bytes]]:
    """The inflated manifest, its sections, and their payloads."""
    stored, inflated = struct.unpack("<2I", data[14:22])
    manifest = tiny_decoder.inflate(data[26 : 26 + stored], inflated, tiny_decoder.PRESET)
    sections = tiny_decoder.manifest(manifest)[3]
    reader = tiny_decoder.Reader(data[26 + stored :])
    return manifest, sections, [reader.take(length) for _, length, _ in sections]


def file_of(manifest: bytes, sections: list[tuple[int, int, int]], payloads: list[bytes]) -> bytes:
    """A file with other payloads: lengths and checksums are put in place in the manifest."""

    def columns(lengths: list[int], checksums: list[int]) -> bytes:
        numbers = [tool for tool, _, _ in sections] + lengths
        return b"".join(map(varint, numbers)) + struct.pack(f"<{len(sections)}I", *checksums)

    old = columns([length for _, length, _ in sections], [checksum for _, _, checksum in sections])
    assert manifest.count(old) == 1
    new = columns([len(payload) for payload in payloads], [zlib.crc32(payload) for payload in payloads])
    manifest = manifest.replace(old, new)
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, tiny_decoder.PRESET)
    stored = deflater.compress(manifest) + deflater.flush()
    head = tiny_decoder.MAGIC + bytes([1, 1, 0, 1, 0, 0]) + struct.pack("<2I", len(stored), len(manifest))
    return head + struct.pack("<I", zlib.crc32(head + stored)) + stored + b"".join(payloads)


def varint(number: int) -> bytes:
    result = bytearray()
    while number >= 128:
        result.append(number & 127 | 128)
        number >>= 7
    return bytes([*result, number])


def changed(payload: bytes, rng: np.random.Generator) -> bytes:
    """One bit, or one byte, or the end of a payload changed; most often near its beginning."""
    at = min(int(rng.exponential(12)) if rng.random() < 0.5 else rng.integers(len(payload)), len(payload) - 1)
    byte = int(rng.integers(256))
    return [
        payload[:at] + bytes([payload[at] ^ 1 << byte % 8]) + payload[at + 1 :],
        payload[:at] + bytes([byte]) + payload[at + 1 :],
        payload[:at] + bytes([byte]) + payload[at:],
        payload[: len(payload) - 1 - byte % 3],
        payload + bytes([byte % 2]),
    ][rng.integers(5)]


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_refuses_what_the_library_refuses(path):
    manifest, sections, payloads = parts_of(path.read_bytes())
    rng = np.random.default_rng(zlib.crc32(path.stem.encode()))
    for _ in range(5):
        other = list(payloads)
        i = int(rng.integers(len(other)))
        if other[i]:
            other[i] = changed(other[i], rng)
        data = file_of(manifest, sections, other)
        try:
            with tersor.load(data) as file:
                file.read_all()
        except tersor.TersorError:
            with pytest.raises(ValueError):
                tiny_decoder.decode(data)
        else:
            assert_decodes_like_the_library(data)
