"""`verify` finds any changed byte: every byte of small files, a sample of larger ones. fuzz/flips.py tries all of them:
of lenet5.tersor (51,480 changes), lenet5_pruned.tersor (50,077) and resnet32.tersor (80,379) of examples/zoo none was
missed."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest
from forge import small_file
from make_golden import FOLDER

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "fuzz"))
from flips import found, masks_of, unseen  # noqa: E402

LARGER = sorted(FOLDER.glob("*.tersor")) + sorted((ROOT / "examples" / "zoo").glob("*.tersor"))


def test_every_byte_of_a_small_file():
    data = small_file()[0]
    assert not found(data)
    assert unseen(data, range(len(data)), 9) == []


def test_masks_are_all_changes_of_a_byte():
    assert sorted(masks_of(5, 255)) == list(range(1, 256))
    assert len(set(masks_of(77, 8))) == 8


@pytest.mark.parametrize("path", LARGER, ids=lambda path: path.stem)
def test_a_sample_of_larger_files(path):
    data = path.read_bytes()
    rng = random.Random(len(data))
    places = {*range(26), len(data) - 1, *(rng.randrange(len(data)) for _ in range(25))}
    for place in places:
        assert unseen(data, range(place, place + 1), 1) == []


def test_cut_off_or_longer():
    data = small_file()[0]
    assert all(found(data[:length]) for length in range(len(data)))
    assert found(data + b"\0")
