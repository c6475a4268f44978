"""Layers from codebooks give the dense layer's numbers, in less memory, also straight from a file."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from tersor.bitstream import container
from tersor.bitstream.manifest import TensorRecord
from tersor.errors import ModelError
from tersor.runtime import CodebookConv2d, CodebookLinear, from_file, memory_bytes
from tersor.runtime.codebook import from_codes
from tersor.synthesis import codebook, raw
from tersor.synthesis.codebook import CodebookCode

CONVOLUTIONS = [
    {"kernel_size": 3, "padding": 1, "stride": 2},
    {"kernel_size": (1, 3), "padding": (0, 2), "dilation": (1, 2), "bias": False},
    {"kernel_size": 3, "padding": "same", "groups": 2},
    {"kernel_size": (2, 4), "padding": "same", "padding_mode": "reflect"},
    {"kernel_size": 3, "padding": (1, 2), "padding_mode": "circular", "groups": 4},
    {"kernel_size": 3, "padding": "valid", "padding_mode": "replicate"},
]


def codes_for(weight: torch.Tensor, k: int) -> tuple[torch.Tensor, np.ndarray]:
    rng = np.random.default_rng(k)
    return torch.from_numpy(np.sort(rng.standard_normal(k)).astype(np.float32)), rng.integers(
        0, k, weight.shape
    )


@pytest.mark.parametrize("options", CONVOLUTIONS)
def test_convolutions_equal_the_dense_ones(options):
    dense = nn.Conv2d(4, 8, **options)
    values, index = codes_for(dense.weight, 11)
    layer = CodebookConv2d(dense, values, index)
    with torch.no_grad():
        dense.weight.copy_(values[torch.from_numpy(index)])
    x = torch.randn(3, 4, 9, 10)
    assert torch.equal(layer(x), dense(x)) and torch.equal(layer.weight, dense.weight)
    assert not [name for name, _ in layer.named_parameters() if name != "bias"]
    assert repr(layer)


@pytest.mark.parametrize(
    ("k", "dtype"),
    [(1, torch.uint8), (256, torch.uint8), (257, torch.uint16), (65536, torch.uint16), (65537, torch.int32)],
)
def test_linear_layers_with_the_smallest_indexes(k, dtype):
    dense = nn.Linear(70, 30)
    values, index = codes_for(dense.weight, k)
    index.flat[:2] = 0, k - 1
    layer = CodebookLinear(dense, values, index)
    assert layer.index.dtype == dtype
    with torch.no_grad():
        dense.weight.copy_(values[torch.from_numpy(index)])
    x = torch.randn(5, 2, 70)
    assert torch.equal(layer(x), dense(x))
    assert layer.memory_bytes() == 4 * k + dtype.itemsize * 2100 + 4 * 30 == memory_bytes(layer)


def test_indexes_that_do_not_fit():
    dense = nn.Linear(3, 2)
    with pytest.raises(ModelError, match="5 indexes"):
        CodebookLinear(dense, torch.zeros(2), np.zeros(5, np.int32))
    with pytest.raises(ModelError, match="codebook of 2"):
        CodebookLinear(dense, torch.zeros(2), np.full((2, 3), 2))
    with pytest.raises(ModelError, match=r"nothing\.weight"):
        from_codes(
            nn.Sequential(dense), [(["nothing.weight"], CodebookCode.of([0.0], [np.zeros((2, 3), np.int32)]))]
        )


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2),
        nn.ConvTranspose2d(32, 8, 2),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(128, 10),
    ).eval()


@pytest.fixture
def file():
    """A file with one codebook for two convolutions and a linear layer, one for another layer."""
    state = {name: tensor.numpy() for name, tensor in network().state_dict().items()}
    groups = [["0.weight", "4.weight", "7.weight"], ["3.weight"]]
    rng = np.random.default_rng(1)
    sections, home = [], {}
    for names in groups:
        values = np.sort(rng.standard_normal(9)).astype(np.float32) * 0.1
        values[4] = 0.0
        code = CodebookCode.of(
            values, [rng.integers(0, 9, (state[n].shape[0], state[n][0].size), dtype=np.int32) for n in names]
        )
        payload, _ = codebook.encode(code, [state[name].shape for name in names], "huffman")
        home |= dict.fromkeys(names, len(sections))
        sections.append((4, payload))
    rest = [name for name in state if name not in home]
    home |= dict.fromkeys(rest, len(sections))
    sections.append((0, raw.encode([state[name] for name in rest])))
    dtypes = {"float32": "F32", "int64": "I64"}
    records = [TensorRecord(n, dtypes[str(a.dtype)], a.shape, home[n]) for n, a in state.items()]
    return container.to_bytes(
        records, sections, parameters=sum(p.numel() for p in network().parameters()), metadata={}
    )


def test_from_file(file):
    import tersor

    dense = tersor.restore(file, into=network())
    compact = from_file(file, network())
    assert [type(compact[i]).__name__ for i in (0, 3, 4, 7)] == [
        "CodebookConv2d",
        "CodebookConv2d",
        "ConvTranspose2d",
        "CodebookLinear",
    ]
    x = torch.randn(2, 3, 12, 12)
    with torch.no_grad():
        assert torch.equal(compact(x), dense(x))
    assert compact[0].values.data_ptr() == compact[7].values.data_ptr(), "one codebook, held once"
    saved = sum(3 * compact[i].index.numel() for i in (0, 3, 7))  # a byte for four
    assert memory_bytes(compact) == memory_bytes(dense) - saved + 2 * 9 * 4
    assert memory_bytes(compact) < 0.5 * memory_bytes(dense)


def test_tied_weights_stay_dense():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    code = CodebookCode.of([0.0, 1.0], [np.ones((4, 4), np.int32)])
    assert type(from_codes(copy.deepcopy(model), [(["0.weight"], code)])[0]) is nn.Linear
