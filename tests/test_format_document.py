"""The worked examples of docs/format.md are what the library reads and writes."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from tersor.bitstream.container import HEADER_BYTES
from tersor.bitstream.deflate import inflate
from tersor.bitstream.dictionary import DICTIONARY
from tersor.bitstream.dtypes import NAMES
from tersor.bitstream.integers import IntegerReader, IntegerWriter
from tersor.bitstream.manifest import TensorRecord
from tersor.decoder import load, tool_name
from tersor.limits import DEFAULT_LIMITS
from tersor.synthesis import batchnorm, grid, vector

TEXT = (Path(__file__).parent.parent / "docs" / "format.md").read_text(encoding="utf-8")
HEX = r"((?:[0-9a-f]{2}\s+)*[0-9a-f]{2})"


def coded_as(before: str) -> bytes:
    """The bytes that follow `before` ... "coded as"."""
    found = re.search(re.escape(before) + r"[^:]*?coded as\s+" + HEX, TEXT)
    assert found is not None, before
    return bytes.fromhex(found[1])


def whole_file() -> tuple[bytes, bytes]:
    """The file at the end, and its inflated manifest."""
    tail = TEXT[TEXT.index("## A whole file"):]
    file, manifest = tail.split("inflates to these")
    lines = [line for line in file.splitlines() if line.startswith("    ")]
    columns = [line[4:46] for line in manifest.splitlines() if line.startswith("    ")]
    return bytes.fromhex("".join(lines)), bytes.fromhex("".join(columns))


def test_whole_file():
    data, manifest = whole_file()
    assert len(data) == 93
    stored = int.from_bytes(data[14:18], "little")
    assert inflate(data[HEADER_BYTES : HEADER_BYTES + stored], 58, "the manifest", DICTIONARY) == manifest
    file = load(data)
    assert file["fc.weight"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert file["fc.bias"].tolist() == [1.75, -1.75, 25]
    assert file.aliases == {"tied": "fc.weight"}
    assert (file.metadata, file.manifest.parameters) == ({"k": "v"}, 9)


def test_dictionary():
    block = TEXT.split("## Preset dictionary")[1].split("```")[1]
    assert b"".join(name.encode() + b"\0" for name in block.split()) == DICTIONARY


def test_tables():
    block = TEXT.split("**Element types**")[1].split("The names")[0]
    types = dict(re.findall(r"(\d+) \| ([A-Z][A-Z0-9_]+) \|", block))
    assert types == {str(code): name for code, name in enumerate(NAMES)}
    tools = re.findall(r"\| (\d) \| (\w+) \|", TEXT.split("## Sections")[1].split("## Log")[0])
    assert [(tool, tool_name(int(tool))) for tool, _ in tools] == tools


@pytest.mark.parametrize(("before", "lists"), [
    ("The integers 0, 1, -1, 5, 300", [([0, 1, -1, 5, 300], 0)]),
    ("The integers 3, 3, 4", [([3, 3, 4], 0), ([-2], 1)])])
def test_integers(before, lists):
    writer, reader = IntegerWriter(), IntegerReader(coded_as(before))
    for values, context in lists:
        writer.put(values, context)
        assert reader.take(len(values), context).tolist() == values
    assert writer.finish() == coded_as(before)


def test_vector_and_batchnorm():
    record = TensorRecord("v", "F32", (3,), 0)
    (found,) = vector.decode(coded_as("A tensor [7, -7, 100]"), [record], DEFAULT_LIMITS, 1)
    assert found.tolist() == [1.75, -1.75, 25]
    records = [TensorRecord(name, "F64", (4,), 0) for name in "abcd"]
    a, b, mean, var = batchnorm.decode(coded_as("One BatchNorm with C = 4"), records, DEFAULT_LIMITS, 1)
    assert a.tolist() == [grid.value(-40), -grid.value(-34), 0, grid.value(-50)]
    assert np.array_equal(b, np.array([3, -5, 2, 0]) * grid.value(-100))
    assert (mean.tolist(), var.tolist()) == ([0] * 4, [1 - float(np.float32(1e-5))] * 4)


def test_grid():
    for index, value in re.findall(r"value\((-?\d+)\) = (0x[0-9a-f.p+-]+\d|[\d.]+\d)", TEXT):
        assert float(grid.value(int(index))) == (float.fromhex(value) if "x" in value else float(value))
