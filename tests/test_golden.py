"""Golden files decode for ever to the bytes that they decoded to when they were made (see make_golden.py)."""

from __future__ import annotations

import hashlib
import json

import golden_integers
import numpy as np
import pytest
from make_golden import FOLDER, GOLDEN, describe, main

from tersor.bitstream.dtypes import name_of, to_bytes
from tersor.decoder import load
from tersor.synthesis.scalar import ScalarCode

FILES = sorted(FOLDER.glob("*.tersor"))


@pytest.mark.parametrize("simd", ["0", "1", "2"])
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_decodes_to_the_same_bytes(path, simd, monkeypatch):
    monkeypatch.setenv("TERSOR_SIMD", simd)
    assert describe(path.read_bytes()) == json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_verifies(path):
    for threads in (1, 3):
        with load(path, threads=threads) as file:
            file.verify()
    with load(path, threads=2) as file:
        expected = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["tensors"]
        found = file.read_all()
        assert list(found) == list(expected)
        for name, array in found.items():
            assert {"dtype": name_of(array.dtype), "shape": list(array.shape),
                    "sha256": hashlib.sha256(to_bytes(array)).hexdigest()} == expected[name]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_integers(path):
    assert golden_integers.sections(path) == json.loads(golden_integers.KEPT.read_text())[path.stem]


def test_hashes_see_every_integer():
    one = np.zeros((2, 3), np.int32)
    other = [np.array(a) for a in (one, one.reshape(3, 2), one + (np.arange(6).reshape(2, 3) == 5))]
    seen = {tuple((a.shape, a.tobytes()) for a in golden_integers.parts(ScalarCode(q, step, shift=(shift, 0))))
            for q in other for step in (0, 1) for shift in (0, 1)}
    assert len(seen) == 12


def test_all_are_there_and_small():
    assert set(GOLDEN) <= {path.stem for path in FILES}
    assert {path.stem for path in FOLDER.iterdir()} == {path.stem for path in FILES}
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 150_000


def test_golden_files_are_never_overwritten(monkeypatch, tmp_path):
    monkeypatch.setattr("make_golden.FOLDER", tmp_path)
    monkeypatch.setattr("make_golden.GOLDEN", {"vector": GOLDEN["vector"]})
    main()
    made = (tmp_path / "vector.tersor").read_bytes()
    assert made == (FOLDER / "vector.tersor").read_bytes()  # deterministic
    (tmp_path / "vector.tersor").write_bytes(b"old")
    main()
    assert (tmp_path / "vector.tersor").read_bytes() == b"old"


def test_every_tool_and_mode_is_covered():
    tools, types = set(), set()
    for path in FILES:
        with load(path) as file:
            tools |= {section.tool for section in file.manifest.sections}
            types |= {record.dtype for record in file.manifest.tensors}
    assert tools >= {0, 1, 2, 3}
    assert len(types) == 16
