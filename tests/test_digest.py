"""The digest of decoded tensors: what it covers, where it is kept, and that `verify` compares it."""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import replace

import numpy as np
import pytest
from forge import small_file, varints
from make_golden import FOLDER

from tersor.bitstream import digest
from tersor.bitstream.container import TensorRecord, to_bytes
from tersor.bitstream.dtypes import CODES
from tersor.decoder import load
from tersor.errors import ChecksumError
from tersor.packed import Packed
from tersor.synthesis import raw, scalar

ROOT = FOLDER.parent.parent
GOLDEN = sorted(FOLDER.glob("*.tersor"))


def expected(tensors: dict[str, tuple[str, tuple[int, ...], bytes]]) -> str:
    """As docs/format.md says, from name -> (type, shape, SHA-256 of the elements)."""
    lines = b"".join(varints([len(name.encode())]) + name.encode() + varints([CODES[dtype], len(shape), *shape])
                     + content for name, (dtype, shape, content) in tensors.items())
    return hashlib.sha256(lines).hexdigest()


def test_of_a_file():
    data, tensors = small_file()
    file = load(data)
    assert file.stored_digest is None
    lines = {name: (file.record(name).dtype, array.shape, hashlib.sha256(array.tobytes()).digest())
             for name, array in tensors.items()}
    assert file.digest() == expected(lines)
    assert lines["tied"][1:] == lines["table"][1:]


@pytest.mark.parametrize("path", GOLDEN[:8], ids=lambda path: path.stem)
def test_of_golden_files(path):
    described = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["tensors"]
    lines = {name: (about["dtype"], tuple(about["shape"]), bytes.fromhex(about["sha256"]))
             for name, about in described.items()}
    assert load(path).digest() == expected(lines)


def test_any_byte_order_and_layout():
    array = np.arange(6, dtype="<i4").reshape(2, 3)
    value = hashlib.sha256(struct.pack("<6i", *range(6))).digest()
    assert digest.of_array(array) == digest.of_array(array.astype(">i4")) == value
    assert digest.of_array(np.asfortranarray(array)) == value
    assert digest.of_array(np.array(7, np.int8)) == hashlib.sha256(b"\7").digest()
    assert digest.of_array(np.zeros((0, 3))) == hashlib.sha256(b"").digest()


def test_same_tensors_same_digest_however_they_are_coded():
    q = np.array([[1, -2, 0], [3, 0, 1]], np.int32)
    code = scalar.ScalarCode(q, -64)
    record = TensorRecord("w", "F32", (2, 3), 0)
    files = [to_bytes([record], [(0, raw.encode([code.tensor((2, 3))]))], parameters=6),
             *(to_bytes([record], [(1, scalar.encode([code], [(2, 3)], mode))], parameters=6) for mode in (0, 1))]
    assert len({load(data).digest() for data in files}) == 1
    other = [replace(record, name="v"), replace(record, dtype="I32"), replace(record, shape=(3, 2))]
    payload = (0, raw.encode([code.tensor((2, 3))]))
    assert len({load(to_bytes([r], [payload], parameters=6)).digest() for r in [record, *other]}) == 4


def test_kept_and_compared():
    packed = Packed(small_file()[0], 26, 1.0).with_digest()
    with packed.load() as file:
        assert file.stored_digest == file.digest() == load(small_file()[0]).digest()
        assert file.metadata == {"from": "a test", "é": ""}
        file.verify()
    assert packed.with_digest() == packed
    assert 40 < packed.size - len(small_file()[0]) <= Packed.DIGEST_BYTES


def test_another_digest_is_damage():
    manifest = load(small_file()[0]).manifest
    payloads = [(section.tool, load(small_file()[0]).payload(i)) for i, section in enumerate(manifest.sections)]
    for wrong in ("0" * 64, "", "no digest"):
        data = to_bytes(manifest.tensors, payloads, parameters=26, metadata={digest.KEY: wrong})
        assert len(load(data).read_all()) == 10  # reading does not compute it
        with pytest.raises(ChecksumError, match="SHA-256"):
            load(data).verify()


def test_example_of_the_document():
    record = TensorRecord("w", "U8", (3,), 0)
    data = to_bytes([record], [(0, raw.encode([np.array([1, 2, 3], np.uint8)]))], parameters=3)
    assert load(data).digest() in (ROOT / "docs" / "format.md").read_text(encoding="utf-8")


def test_compress():
    import tersor
    rng = np.random.default_rng(3)
    weights = {"a.weight": rng.standard_normal((40, 30)).astype("f4"), "a.bias": rng.standard_normal(40).astype("f4")}
    for options in ({"size": 900}, {"bits": 6.0}):
        packed = tersor.compress(weights, digest=True, effort=2, **options)
        with packed.load() as file:
            assert file.stored_digest == file.digest()
            file.verify()
        assert packed.size <= options.get("size", 6.0 * 1240 / 8)
        assert packed.report()["total_bytes"] == packed.size
    assert tersor.compress(weights, size=900, effort=2).load().stored_digest is None
