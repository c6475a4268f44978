"""Convolutions from codebooks of kernels: the dense layer's numbers, from less memory and with fewer operations."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from make_golden_kernels import book, code
from torch import nn

from tersor.bitstream.container import to_bytes
from tersor.bitstream.dtypes import name_of
from tersor.bitstream.manifest import TensorRecord
from tersor.errors import ModelError
from tersor.runtime import KernelCodebookConv2d, from_file, from_kernels, memory_bytes
from tersor.runtime import kernels as runtime
from tersor.runtime.kernels import ratios
from tersor.synthesis import kernels, raw

GEOMETRIES = [
    {"kernel_size": 3, "padding": 1, "stride": 2},
    {"kernel_size": (1, 3), "padding": (0, 2), "dilation": (1, 2), "bias": False},
    {"kernel_size": (2, 4), "padding": "same", "padding_mode": "reflect"},
    {"kernel_size": 3, "padding": "valid", "groups": 2},
    {"kernel_size": 3, "padding": (1, 2), "padding_mode": "circular", "stride": (2, 1)},
    {"kernel_size": 5, "padding": 2, "groups": 8},
]


def made(dense, gain="", k=6, swapped=False, seed=3):
    """A code for a convolution, whose weight becomes the restored one."""
    shape = tuple(dense.weight.shape)
    one = code(seed, shape, book(seed, k, int(np.prod(shape[2:]))), gain=gain, rows=True, swapped=swapped)
    with torch.no_grad():
        dense.weight.copy_(torch.from_numpy(one.tensor(shape).astype(np.float32)))
    return one


@pytest.mark.parametrize("mode", ["codebook", "dense", "auto"])
@pytest.mark.parametrize("gain", ["", "signs", "gains"])
@pytest.mark.parametrize("options", GEOMETRIES, ids=str)
def test_equals_the_dense_layer(options, gain, mode):
    torch.manual_seed(0)
    dense = nn.Conv2d(8, 16, **options)
    layer = KernelCodebookConv2d(dense, made(dense, gain), mode)
    assert torch.equal(layer.weight, dense.weight)
    x = torch.randn(3, 8, 9, 10)
    with torch.no_grad():
        found, expected = layer(x), dense(x)
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    counted = layer.macs((9, 10))
    if mode != "auto" or abs(counted.codebook - counted.dense) > dense.weight.numel():
        expected_way = counted.codebook < counted.dense if mode == "auto" else mode == "codebook"
        assert layer.from_codebook((9, 10)) is expected_way
    assert "kernels=" in repr(layer)


def test_in_parts(monkeypatch):
    """Maps that do not fit into memory at one time are computed some channels after others."""
    dense = nn.Conv2d(8, 16, 3, padding=1)
    layer = KernelCodebookConv2d(dense, made(dense, "gains"), "codebook")
    x = torch.randn(2, 8, 7, 7)
    whole = layer(x)
    monkeypatch.setattr(runtime, "ROOM", 1500)
    assert torch.allclose(layer(x), whole, atol=1e-5 * float(whole.detach().abs().max()))


def test_counted_operations():
    """Each of 16 channels is convolved with 4 kernels instead of 64, then 64 x 16 maps are gathered."""
    dense = nn.Conv2d(16, 64, 3, padding=1, bias=False)
    index = np.resize(np.arange(4, dtype=np.int32), (64, 16)) * 0 + np.arange(64, dtype=np.int32)[:, None] % 4
    one = replace(made(dense, k=4), index=index)
    layer = KernelCodebookConv2d(dense, one)
    assert layer.macs((10, 12)) == (120 * 64 * 16 * 9, 120 * (16 * 4 * 9 + 64 * 16))
    assert layer.from_codebook((10, 12))
    gains = np.ones((64, 16), np.int32)
    gains[:, 3:] = 0
    layer = KernelCodebookConv2d(dense, replace(one, gain=gains))
    assert layer.macs((10, 12)).codebook == 120 * (3 * 4 * 9 + 64 * 3)


def test_dense_where_that_is_cheaper():
    dense = nn.Conv2d(8, 8, 3, groups=8)
    layer = KernelCodebookConv2d(dense, made(dense, k=8))
    assert not layer.from_codebook((5, 5)) and layer.macs((5, 5)).codebook > layer.macs((5, 5)).dense


def test_memory_and_ratios():
    dense = nn.Conv2d(32, 64, 3, padding=1)
    layer = KernelCodebookConv2d(dense, made(dense, "signs", k=8))
    expected = 8 * 9 + 64 * 32 + 64 * 32 + 64 * 8 + 64 * 4
    assert layer.memory_bytes() == memory_bytes(layer) == expected
    found = ratios(layer, dense, torch.randn(1, 32, 8, 8), repeats=2)
    assert found.memory == expected / (4 * (64 * 32 * 9 + 64))
    assert found.macs < 0.4 and found.time > 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_types(dtype):
    dense = nn.Conv2d(4, 6, 3)
    one = made(dense, "gains")
    layer = KernelCodebookConv2d(dense.to(dtype), one)
    exact = torch.from_numpy(one.tensor((6, 4, 3, 3)))
    assert torch.equal(layer.weight, exact if dtype == torch.float64 else exact.float().to(dtype))


def test_vectors_and_swapped_codes_are_put_together():
    dense = nn.Conv2d(12, 10, 1)
    one = code(1, (10, 12, 1, 1), book(2, 5, 5), gain="signs")
    layer = KernelCodebookConv2d(dense, one, "codebook")
    assert not layer.from_codebook((3, 3))
    assert torch.equal(layer.weight, torch.from_numpy(one.tensor((10, 12, 1, 1)).astype(np.float32)))
    dense = nn.Conv2d(4, 6, 3)
    one = made(dense, swapped=True)
    assert torch.equal(KernelCodebookConv2d(dense, one).weight, dense.weight)


def test_what_does_not_fit():
    dense = nn.Conv2d(8, 16, 3)
    one = made(dense)
    with pytest.raises(ModelError, match="do not fit"):
        KernelCodebookConv2d(nn.Conv2d(8, 15, 3), one)
    with pytest.raises(ModelError, match=r"0\.\.5"):
        KernelCodebookConv2d(dense, replace(one, index=one.index + 6))
    with pytest.raises(ModelError, match="no such weight"):
        from_kernels(nn.Sequential(dense), {"1.weight": one})


def test_from_file():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(72, 4))
    codes = {f"{i}.weight": made(model[i], "gains", seed=i) for i in (0, 2)}
    line = code(9, (4, 72), book(1, 6, 8))
    with torch.no_grad():
        model[4].weight.copy_(torch.from_numpy(line.tensor((4, 72)).astype(np.float32)))
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    weights = ["0.weight", "2.weight", "4.weight"]
    records = [TensorRecord(name, name_of(array.dtype), array.shape, int(name not in weights))
               for name, array in state.items()]
    payloads = [(6, kernels.encode([*codes.values(), line], [state[name].shape for name in weights])),
                (0, raw.encode([array for name, array in state.items() if name not in weights]))]
    x = torch.randn(2, 3, 5, 5)
    expected = model(x)
    other = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(72, 4))
    found = from_file(to_bytes(records, payloads, parameters=1000), other)
    assert isinstance(found[0], KernelCodebookConv2d) and isinstance(found[4], nn.Linear)
    assert torch.allclose(found(x), expected, atol=1e-5 * float(expected.detach().abs().max()))
    assert memory_bytes(found) < 0.8 * memory_bytes(model)
