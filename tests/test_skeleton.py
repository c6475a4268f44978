"""Files with holes: cut, stored, checked and filled again."""

from __future__ import annotations

import json
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.adapters.skeleton import Checksum, FileWithHoles, Hole, Skeleton, cut, safe_relative
from tersor.errors import FormatError, ModelError


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.binary(max_size=9), st.integers(0, 12)), max_size=6), st.binary(max_size=9))
def test_any_file_comes_back(parts, end):
    data, spans, tensors = b"", [], {}
    for number, (between, count) in enumerate(parts):
        data += between
        array = np.frombuffer(bytes(range(4 * count)), dtype="<f4")
        spans.append((len(data), array.nbytes, f"t{number}", None))
        tensors[f"t{number}"] = array
        data += array.tobytes()
    data += end
    skeleton = Skeleton("x", [cut("", data, spans[::-1])])
    names = list(tensors)[::-1]
    again = Skeleton.from_bytes(skeleton.to_bytes(names), names)
    assert again == skeleton
    assert again.filled(tensors) == {"": data}


def test_axes_and_checksums():
    weight = np.arange(6, dtype="<f4").reshape(2, 3)
    crc = zlib.crc32(weight.T.tobytes()).to_bytes(4, "little")
    data = b"head" + weight.T.tobytes() + crc + b"tail"
    file = cut("", data, [(4, 24, "w", (1, 0))], [Checksum(4, 24, (28,))])
    assert file.kept == b"head" + crc + b"tail"
    assert file.filled({"w": weight}) == data
    other = file.filled({"w": weight + 1})
    assert other[28:32] == zlib.crc32((weight + 1).T.tobytes()).to_bytes(4, "little")


def test_companions_are_written_first_and_nothing_is_overwritten(tmp_path):
    skeleton = Skeleton("onnx", [FileWithHoles("", b"graph"), FileWithHoles("sub/m.data", b"ab", [Hole(1, "w")])])
    tensors = {"w": np.array([7], np.uint8)}
    assert skeleton.write(tmp_path / "m.onnx", tensors) == 5 + 3
    assert (tmp_path / "m.onnx").read_bytes() == b"graph" and (tmp_path / "sub/m.data").read_bytes() == b"a\7b"
    with pytest.raises(FileExistsError, match=r"sub/m\.data belongs to the model.* choose another folder"):
        skeleton.write(tmp_path / "other.onnx", tensors, overwrite=False)
    assert not (tmp_path / "other.onnx").exists()


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc/passwd", "a//b", "", "C:x", "a\\b", "a/./b", "a\0"])
def test_paths_that_lead_out(path):
    assert not safe_relative(path)
    head = {"format": "x", "files": [{"path": "", "kept": 0, "holes": [], "crc": []},
                                     {"path": path, "kept": 0, "holes": [], "crc": []}]}
    with pytest.raises(FormatError):
        Skeleton.from_bytes(json.dumps(head).encode() + b"\n", [])


FILE = {"path": "", "kept": 2, "holes": [[1, 0]], "crc": []}


@pytest.mark.parametrize("change", [
    {"kept": 3}, {"kept": 1}, {"kept": -1}, {"kept": "2"}, {"holes": [[1, 1]]}, {"holes": [[3, 0]]}, {"path": 3},
    {"holes": [[1, -1]]}, {"holes": [[True, 0]]}, {"holes": [[1]]}, {"holes": [[1, 0, [0], 1]]}, {"holes": 1},
    {"holes": [[1, 0, [1]]]}, {"holes": [[1, 0, [0, 1]]]}, {"crc": [[0]]}, {"crc": [[0, 9, 0]]}, {"crc": [[0, 1, 1]]}])
def test_descriptions_that_are_wrong(change):
    data = json.dumps({"format": "x", "files": [FILE | change]}).encode() + b"\nab"
    with pytest.raises(FormatError):
        Skeleton.from_bytes(data, ["w"]).filled({"w": np.zeros(1, np.uint8)})


@pytest.mark.parametrize("data", [b"", b"{}\n", b"[]\n", b"\xff\n", b'{"format": "x", "files": []}\n', b"[" * 10**5])
def test_bytes_that_are_no_description(data):
    with pytest.raises(FormatError):
        Skeleton.from_bytes(data, [])


def test_holes_that_overlap():
    with pytest.raises(ModelError, match="overlap"):
        cut("", bytes(9), [(0, 5, "a", None), (4, 2, "b", None)])


def test_texts_that_repeat_are_packed():
    data = bytes(range(256)) * 5 + np.random.default_rng(0).bytes(40_000) * 3
    skeleton = Skeleton("x", [FileWithHoles("", data)])
    stored = skeleton.to_bytes([])
    assert stored.startswith(b"\xfd7zXZ") and len(stored) < 42_000 and Skeleton.from_bytes(stored, []) == skeleton
    assert skeleton.to_bytes([]) == stored
    for length in range(0, len(stored), 4001):
        with pytest.raises(FormatError):
            Skeleton.from_bytes(stored[:length], [])
    with pytest.raises(FormatError, match="followed by other bytes"):
        Skeleton.from_bytes(stored + b"x", [])


def test_bombs_are_not_unpacked(monkeypatch):
    stored = Skeleton("x", [FileWithHoles("", bytes(1 << 20))]).to_bytes([])
    assert len(stored) < 1000
    monkeypatch.setattr("tersor.adapters.skeleton._MOST_BYTES", 1 << 16)
    with pytest.raises(FormatError, match="truncated, too long"):
        Skeleton.from_bytes(stored, [])
