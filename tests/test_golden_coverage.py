"""The golden files together hold every option of the format, read off while the library decodes them. Whoever adds
an option to docs/format*.md adds it here, and a golden file that has it."""

from __future__ import annotations

from collections import defaultdict

import pytest
from make_golden import FOLDER

from tersor.bitstream import digest, rans
from tersor.bitstream.integers import IntegerReader
from tersor.decoder import TIED, load

Seen = defaultdict[tuple[int, int], set[int]]

PARAMETERS: dict[tuple[int, int], set[int]] = {
    # (tool, context of the integer code): values that must occur, as the tables of docs/format*.md give them
    (1, 0): {0, 1}, (1, 1): {0, 1, 2, 3, 4, 5}, (1, 3): {0, 48}, (1, 4): {0, 24}, (1, 5): {-1, 0, 1, 2, 3, 4, 5},
    (1, 7): {0, 1},
    (2, 0): {0, 1}, (2, 1): set(range(13)), (2, 3): {-28800}, (2, 5): {-1, 0, 1},
    (3, 0): {-28800}, (3, 2): {0, 7},
    (4, 0): {0, 1, 2, 3}, (4, 1): {0}, (4, 2): {0, 1}, (4, 4): {0, 1}, (4, 5): {0}, (4, 6): {3}, (4, 7): {0, 16},
    (4, 10): {0},
    (5, 0): {0, 1, 2}, (5, 1): {0, 1, 2, 3, 4, 5}, (5, 2): {0, 1}, (5, 3): {0, 1, 2}, (5, 4): {0, 1, 2, 3, 4, 5},
    (5, 5): {0}, (5, 9): {0, 24}, (5, 10): {-1, 1, 2, 4, 5}, (5, 13): {0, 1}, (5, 14): {0, 1, 2, 254},
    (6, 0): {0, 1, 2}, (6, 1): {0, 1}, (6, 2): {0, 1}, (6, 3): {0, -1}, (6, 6): {0, 1, 16}, (6, 7): {256},
    (6, 9): {-1, 0, 1, 2, 3, 4, 5}, (6, 11): {0, 1}, (6, 13): {0}}

HEADS: dict[str, set[object]] = {
    # of rANS payloads, docs/format-rans.md sections 1 and 2
    "lanes": {1, 2, 4, 8, 16, 32, 64}, "precision": {12, 13, 14}, "classes": {1, 2, 3, 4, 5, 6, 7, 8},
    "bypass of each matrix": {True, False}, "bypass": {0, 24},
    "histogram": {0, 1}, "escape": {0, 1}, "asymmetric": {0, 1}, "mantissa": {0, 1, 2, 3, 5, 13}}


@pytest.fixture(scope="module")
def seen() -> tuple[Seen, dict[str, set[object]], set[int], set[str], set[str]]:
    """Integers by tool and context, fields of rANS payloads, tools, types, metadata keys of the format's own."""
    integers: Seen = defaultdict(set)
    heads: dict[str, set[object]] = defaultdict(set)
    tools: set[int] = set()
    types: set[str] = set()
    keys: set[str] = set()
    tool = 0
    take, run = IntegerReader.take, rans._run

    def taking(self, count, context):
        values = take(self, count, context)
        integers[tool, context].update(values.tolist())
        return values

    def running(payload, shapes, *arguments):
        if payload:
            head, low = payload[0], payload[1]
            heads["lanes"].add(1 << (head & 7))
            heads["precision"].add(12 + (head >> 3 & 3))
            heads["classes"].add((head >> 5) + 1)
            heads["bypass of each matrix"].add(low == 255)
            heads["bypass"].add(low)
            at = 2 + (len(shapes) if low == 255 else 0)
            for kind in kinds_of_tables(payload, at, 12 + (head >> 3 & 3), (head >> 5) + 1):
                heads["histogram"].add(kind & 1)
                heads["escape"].add(kind >> 1 & 1)
                heads["asymmetric"].add(kind >> 2 & 1)
                if kind & 1:
                    heads["mantissa"].add(kind >> 4)
        return run(payload, shapes, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(IntegerReader, "take", taking)
        patch.setattr(rans, "_run", running)
        for path in sorted(FOLDER.glob("*.tersor")):
            with load(path, threads=1) as file:
                types |= {record.dtype for record in file.manifest.tensors}
                keys |= set(file.manifest.metadata)
                for section, about in enumerate(file.manifest.sections):
                    tool = about.tool
                    tools.add(tool)
                    file._decode(section, 1)
    return integers, heads, tools, types, keys


def kinds_of_tables(payload: bytes, at: int, precision: int, classes: int) -> list[int]:
    """The first byte of each table of a payload, which the library's own fallback parses."""
    from tersor.bitstream.fallback.rans_header import Bytes, Table
    source, kinds = Bytes(payload), []
    source.at = at
    for _ in range(classes):
        kinds.append(payload[source.at])
        Table(source, precision)
    return kinds


def test_parameters(seen):
    missing = {key: wanted - seen[0][key] for key, wanted in PARAMETERS.items() if not wanted <= seen[0][key]}
    assert not missing


def test_rans(seen):
    missing = {what: wanted - seen[1][what] for what, wanted in HEADS.items() if not wanted <= seen[1][what]}
    assert not missing


def test_tools_types_and_metadata(seen):
    assert seen[2] == set(range(7))
    assert len(seen[3]) == 16
    assert digest.KEY in seen[4]


def test_known_keys():
    assert TIED != digest.KEY
