"""Files as codes: putting back what was read gives the same bytes, whatever the tools and coders."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from encoder_models import build, inputs
from forge import small_file

import tersor
from tersor.errors import FormatError
from tersor.sections import Contents
from tersor.synthesis.batchnorm import BatchNormCode

WAYS = {
    "default": {}, "fast": {"mode": "fast"}, "plain": {"effort": 5}, "exact": {"keep_exact": True},
    "transform": {"tools": ("transform",)}, "kernels": {"tools": ("kernels",), "effort": 3,
                "kernels": tersor.KernelConfig(size=16)},
    "kernels, 6 bits": {"tools": ("kernels",), "effort": 3,
                        "kernels": tersor.KernelConfig(size=16, coder="fixed", value_bits=6)},
    "codebook": {"tools": ("codebook",)},
    "codebook, huffman": {"tools": ("codebook",), "codebook": tersor.CodebookConfig(coder="huffman")},
    "transform, fixed": {"tools": ("transform",), "transform": tersor.TransformConfig(("elt",), coder="fixed")},
}


@pytest.mark.parametrize("way", WAYS)
def test_the_same_codes_give_the_same_file(way):
    model = build("residual")
    stats = tersor.calibrate(model, [inputs("residual")])
    packed = tersor.compress(model, stats, bits=4.5, **WAYS[way])
    contents = Contents.of(packed.data)
    data, weight_bytes = contents.counted(contents.codes())
    assert data == packed.data == contents.with_codes(contents.codes()) and contents.size == len(data)
    assert weight_bytes == packed.weight_bytes


@pytest.mark.parametrize("name", ["words", "oddities", "transposed"])
def test_other_models(name):
    model = build(name)
    packed = tersor.compress(model, tersor.calibrate(model, [inputs(name)]), bits=12.0)
    contents = Contents.of(packed.data)
    assert contents.with_codes(contents.codes()) == packed.data


def test_other_codes_are_what_is_restored():
    model = build("mlp")
    packed = tersor.compress(model, tersor.calibrate(model, [inputs("mlp")]), bits=8.0, digest=True)
    contents = Contents.of(packed.data)
    codes = [list(own) for own in contents.codes()]
    place = next(i for i, section in enumerate(contents.sections) if section.tool == "batchnorm")
    before = codes[place][0]
    assert isinstance(before, BatchNormCode)
    codes[place][0] = replace(before, shift_index=before.shift_index + 3)
    with tersor.load(contents.with_codes(codes)) as file:
        file.verify()
        tensors = file.read_all()
    moved = np.float32(before.shift() + 3 * 2.0 ** (before.shift_step_index / 32))
    assert np.allclose(tensors["1.bias"], moved, rtol=1e-6)
    other = tersor.load(packed.data).read_all()
    assert all(np.array_equal(tensors[name], other[name]) for name in tensors if name != "1.bias")


def test_damaged_files_are_refused():
    data = bytearray(small_file()[0])
    contents = Contents.of(bytes(data))
    assert contents.with_codes(contents.codes()) == bytes(data)
    data[-1] ^= 1
    with pytest.raises(FormatError):
        Contents.of(bytes(data))
