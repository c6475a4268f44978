"""TersorFile: lazy, shared, threaded, without torch."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from forge import small_file

from tersor import decoder
from tersor.bitstream.container import TensorRecord, to_bytes
from tersor.decoder import load, tool_name
from tersor.synthesis import raw


def test_is_a_mapping_in_state_dict_order():
    data, expected = small_file()
    file = load(data)
    assert list(file) == list(expected)
    assert len(file) == len(expected)
    assert "table" in file
    assert "nothing" not in file
    with pytest.raises(KeyError):
        file["nothing"]
    assert file["steps"].shape == ()
    assert file["void"].shape == (0, 3)
    assert file.metadata == {"from": "a test", "é": ""}
    assert file.aliases == {"tied": "table"}
    assert file["tied"] is file["table"]
    assert file.record("mask") == TensorRecord("mask", "BOOL", (1, 3), 0)
    assert file.bits_per_weight == pytest.approx(8 * len(data) / 26)
    assert tool_name(file.manifest.sections[1].tool) == "batchnorm"


def test_each_section_is_decoded_once_and_only_when_needed(monkeypatch):
    decoded = []
    real = decoder.decoder_of
    monkeypatch.setattr(decoder, "decoder_of", lambda tool: decoded.append(tool) or real(tool))
    file = load(small_file()[0])
    assert decoded == []
    assert "bn.weight" in file
    assert decoded == []
    assert file["bn.weight"] is file["bn.weight"]
    assert decoded == [2]
    file.forget()
    assert file["bn.bias"].shape == (4,)
    assert decoded == [2, 2]
    file.verify()
    assert decoded == [2, 2, 0, 2, 3]


def test_arrays_are_read_only():
    file = load(small_file()[0])
    for array in file.values():
        assert not array.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        file["table"][0] = 1


def many_sections(count: int = 40) -> bytes:
    records = [TensorRecord(f"w{i}", "I32", (500,), i) for i in range(count)]
    sections = [(0, raw.encode([np.full(500, i, np.int32)])) for i in range(count)]
    return to_bytes(records, sections, parameters=1)


@pytest.mark.parametrize("threads", [1, 2, 8, 64, None])
def test_threads(threads):
    file = load(many_sections(), threads=threads)
    assert [int(array[0]) for array in file.read_all().values()] == list(range(40))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(file.__getitem__, list(file) * 5))
    assert all(array is file[f"w{i % 40}"] for i, array in enumerate(found))
    with pytest.raises(ValueError, match="threads"):
        load(many_sections(), threads=0)


def test_close(tmp_path):
    path = tmp_path / "x.tersor"
    path.write_bytes(small_file()[0])
    with load(path) as file:
        table = file["table"]
    assert table.shape == (3, 5)
    with pytest.raises(ValueError, match="closed"):
        file["bn.weight"]


def test_torch_is_not_imported(tmp_path):
    path = tmp_path / "x.tersor"
    path.write_bytes(small_file()[0])
    code = ("import sys\nfrom tersor.decoder import load\nfile = load(sys.argv[1])\nfile.verify()\n"
            "import tersor.adapters.safetensors\nassert 'torch' not in sys.modules\n")
    subprocess.run([sys.executable, "-c", code, path], check=True, timeout=60)
