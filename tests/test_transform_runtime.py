"""Layers in the transform domain: the dense layer's numbers with fewer operations, exported like any module."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from make_golden_transform import code, scalar_matrix
from torch import nn

import tersor
from tersor.bitstream import container
from tersor.bitstream.manifest import TensorRecord
from tersor.errors import ModelError
from tersor.runtime import TransformConv2d, TransformLinear, from_file, from_transforms, memory_bytes
from tersor.runtime.transform import paper_ratio, stages
from tersor.synthesis import raw, transform
from tersor.synthesis.scalar import ScalarCode
from tersor.synthesis.transform import SMALL, Dct, TransformCode

GEOMETRIES = [
    {"kernel_size": 3, "padding": 1, "stride": 2},
    {"kernel_size": (1, 3), "padding": (0, 2), "dilation": (1, 2), "bias": False},
    {"kernel_size": (2, 4), "padding": "same", "padding_mode": "reflect"},
    {"kernel_size": 3, "padding": "valid"},
    {"kernel_size": 3, "padding": (1, 2), "padding_mode": "circular", "stride": (2, 1)},
    {"kernel_size": 1},
]
MAPS = [{}, {"channels": 4}, {"rows": 3}, {"rows": 5, "channels": 6, "taps": Dct.II}, {"taps": Dct.I}, {"joint": 2},
        {"joint": 8, "rows": 8}, {"joint": 3, "rows": 2}, {"channels": 2, "rows": 2, "swapped": True}]


def restored(dense, made):
    """`dense` with the weight that a decoder restores from `made`."""
    shape = tuple(dense.weight.shape)
    with torch.no_grad():
        dense.weight.copy_(torch.from_numpy(np.array(made.tensor(shape, "F64"))))
    return dense


def assert_same(layer, dense, x):
    with torch.no_grad():
        found, expected = layer(x), dense(x)
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("maps", MAPS, ids=str)
@pytest.mark.parametrize("options", GEOMETRIES, ids=str)
def test_convolutions_equal_the_dense_ones(options, maps, fold):
    torch.manual_seed(0)
    dense = nn.Conv2d(7, 9, **options)
    taps = dense.weight[0, 0].numel()
    if taps == 1 and maps.get("joint") == 8:
        maps = {"joint": 7, "rows": 7}
    made = code(scalar_matrix, 9, tuple(dense.weight.shape), **maps)
    layer = TransformConv2d(restored(dense, made), made, fold)
    assert_same(layer, dense, torch.randn(3, 7, 9, 10))
    assert repr(layer)
    macs = layer.macs((9, 10))
    height, width = dense(torch.zeros(1, 7, 9, 10)).shape[2:]
    assert macs.dense == dense.weight.numel() * height * width
    if fold:
        assert macs.transformed <= TransformConv2d(dense, made, fold=False).macs((90, 100)).transformed
    if not fold and maps.get("rows") and "swapped" not in maps:
        assert layer.last.shape[1] <= maps["rows"]


@pytest.mark.parametrize("groups", [7, 1])
def test_groups_keep_their_maps_over_taps(groups):
    dense = nn.Conv2d(7, 14, 3, padding=1, groups=groups)
    for maps in ({"taps": Dct.II}, {"taps": 4}, {"rows": 5, "taps": Dct.I}):
        made = code(scalar_matrix, 3, tuple(dense.weight.shape), **maps)
        layer = TransformConv2d(restored(dense, made), made, fold=False)
        assert_same(layer, dense, torch.randn(2, 7, 6, 6))
        assert groups == 1 or (layer.is_dense and layer.macs((6, 6)).transformed == layer.macs((6, 6)).dense)


@pytest.mark.parametrize("maps", [{}, {"channels": 3}, {"rows": 2, "channels": 20}, {"joint": 12}, {"rows": 30}],
                         ids=str)
def test_linear_layers(maps):
    dense = nn.Linear(70, 30)
    made = code(scalar_matrix, 6, (30, 70), **maps)
    for fold in (True, False):
        layer = TransformLinear(restored(dense, made), made, fold)
        assert_same(layer, dense, torch.randn(5, 2, 70))
        assert layer.macs(4).dense == 4 * 2100 and repr(layer)
        assert layer.memory_bytes() == memory_bytes(layer) == 4 * (layer.macs().transformed + 30)
        assert not fold or layer.macs().transformed <= 2100


def test_rows_that_are_zero_are_dropped():
    shape = (16, 12, 3, 3)
    made = code(scalar_matrix, 3, shape, rows=16, channels=12, taps=Dct.II)
    q = made.coefficients.q.reshape(16, 12, 9).copy()
    q[4:], q[:, 3:] = 0, 0
    q[0, 0, 0] = q[1, 1, 1] = q[2, 2, 2] = q[3, 2, 2] = 1
    made = TransformCode(ScalarCode(q.reshape(16, 108), -60), made.rows, made.channels, made.taps)
    dense = restored(nn.Conv2d(12, 16, 3, padding=1), made)
    layer = TransformConv2d(dense, made)
    assert (tuple(layer.first.shape), tuple(layer.weight.shape), tuple(layer.last.shape)) == (
        (3, 12, 1, 1), (4, 3, 3, 3), (16, 4, 1, 1))
    assert_same(layer, dense, torch.randn(2, 12, 8, 8))
    macs = layer.macs((8, 8))
    assert macs == (12 * 16 * 9 * 64, (12 * 3 + 4 * 3 * 9 + 16 * 4) * 64)
    assert layer.memory_bytes() == 4 * (12 * 3 + 4 * 3 * 9 + 16 * 4 + 16)


def test_layers_of_zeros():
    q = np.zeros((8, 54), np.int32)
    made = TransformCode(ScalarCode(q, 0), channels=scalar_matrix(1, 6, 6))
    dense = restored(nn.Conv2d(6, 8, 3), made)
    for one in (made, made.compact((8, 6, 3, 3))):
        layer = TransformConv2d(dense, one)
        assert_same(layer, dense, torch.randn(1, 6, 5, 5))
        assert layer.is_dense


def test_stages_at_full_rank_are_folded():
    """A basis of full rank costs operations and saves none; with strides even more."""
    made = code(scalar_matrix, 1, (16, 16, 3, 3), channels=16, taps=Dct.II)
    assert stages(made, (16, 16, 3, 3)).first is None
    assert stages(made, (16, 16, 3, 3), fold=False).first.shape == (16, 16)
    low = code(scalar_matrix, 1, (16, 16, 3, 3), channels=13)
    assert stages(low, (16, 16, 3, 3), area=1).first is not None
    assert stages(low, (16, 16, 3, 3), area=4).first is None
    joint = code(scalar_matrix, 1, (8, 16, 3, 3), joint=3)
    assert stages(joint, (8, 16, 3, 3)).joint and stages(joint, (8, 16, 3, 3)).first.shape == (3, 144)


def test_the_papers_count():
    assert paper_ratio(256, 256, 3, 3, 256) == pytest.approx(1 + 0.5 / 9)
    assert paper_ratio(64, 128, 1, 1, 32) == (0.5 * 64 * 32 + 128 * 32) / (128 * 64)
    dense = nn.Conv2d(64, 128, 3, padding=1)
    layer = TransformConv2d(dense, code(scalar_matrix, 3, (128, 64, 3, 3), channels=16))
    macs = layer.macs((10, 10))
    ours = paper_ratio(64, 128, 3, 3, 16) + 0.5 * 64 * 16 / (9 * 128 * 64)
    assert macs.transformed / macs.dense == pytest.approx(ours)


def test_wrong_codes():
    made = code(scalar_matrix, 1, (8, 6, 3, 3), channels=6)
    with pytest.raises(ModelError, match="does not fit"):
        TransformConv2d(nn.Conv2d(5, 8, 3), made)
    with pytest.raises(ModelError, match="does not fit"):
        TransformLinear(nn.Linear(5, 8), made)
    swapped = code(scalar_matrix, 1, (8, 6), joint=3, swapped=True)
    with pytest.raises(ModelError, match="joint"):
        TransformLinear(nn.Linear(6, 8), swapped)
    assert type(from_transforms(nn.Sequential(nn.Linear(6, 8)), {"0.weight": swapped})[0]) is nn.Linear
    with pytest.raises(ModelError, match=r"nothing\.weight"):
        from_transforms(nn.Sequential(nn.Linear(6, 8)), {"nothing.weight": made})


# ---- whole models ------------------------------------------------------------------------------------

CODES = {"0.weight": {"channels": 3}, "3.weight": {"channels": 6, "rows": 9, "taps": Dct.II}, "4.weight": {"rows": 3},
         "5.weight": {"taps": Dct.II}, "9.weight": {"channels": 5}}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2),
        nn.ConvTranspose2d(32, 8, 2), nn.Conv2d(8, 8, 3, groups=8), nn.AdaptiveAvgPool2d(4), nn.Flatten(),
        nn.Linear(128, 128), nn.Linear(128, 10)).eval()


@pytest.fixture(scope="module")
def file():
    """A file with transforms for five layers; one of them has no layer that computes from it."""
    state = {name: tensor.numpy() for name, tensor in network().state_dict().items()}
    codes = {name: code(scalar_matrix, 3 * i + 3, state[name].shape, **maps)
             for i, (name, maps) in enumerate(CODES.items())}
    rest = [name for name in state if name not in codes]
    sections = [(5, transform.encode(list(codes.values()), [state[name].shape for name in codes], SMALL)),
                (0, raw.encode([state[name] for name in rest]))]
    dtypes = {"float32": "F32", "int64": "I64"}
    records = [TensorRecord(n, dtypes[str(a.dtype)], a.shape, int(n not in codes)) for n, a in state.items()]
    return container.to_bytes(records, sections, parameters=1)


def test_from_file(file):
    dense, compact = tersor.restore(file, into=network()), from_file(file, network())
    kinds = [type(compact[i]).__name__ for i in (0, 3, 4, 5, 8, 9)]
    assert kinds == ["Conv2d", "TransformConv2d", "ConvTranspose2d", "Conv2d", "Linear", "TransformLinear"]
    assert_same(compact, dense, torch.randn(2, 3, 12, 12))
    assert memory_bytes(compact) < memory_bytes(dense)
    macs = compact[3].macs((12, 12))
    assert macs.transformed < 0.5 * macs.dense


def test_exported_saved_and_trained(file, tmp_path):
    model = from_file(file, network())
    x = torch.randn(2, 3, 12, 12)
    expected = model(x)
    exported = torch.export.export(model, (x,))
    assert torch.allclose(exported.module()(x), expected, atol=1e-5)
    torch.save(model.state_dict(), tmp_path / "state.pt")
    other = from_file(file, network())
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(other(x), expected)
    expected.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model[3].parameters())
    assert from_file(file, network()).double()(x.double()).dtype == torch.float64


def low_rank_network() -> nn.Sequential:
    """Its convolution needs 2 of 24 combinations of input channels."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(24, 24, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                          nn.Linear(24, 10)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.einsum("okhw,ki->oihw", torch.randn(24, 2, 3, 3), torch.randn(2, 24)) / 10)
    return model


def test_compressed_network():
    """From the encoder: a layer of low rank runs in the transform domain, one of 10 outputs has 10 vectors at most."""
    data = tersor.compress(low_rank_network(), bits=3.0, tools=("transform",)).data
    dense, compact = tersor.restore(data, into=low_rank_network()), from_file(data, low_rank_network())
    assert type(compact[0]) is TransformConv2d
    macs = compact[0].macs((6, 6))
    assert macs.transformed < 0.3 * macs.dense
    assert_same(compact, dense, torch.randn(2, 24, 6, 6))
