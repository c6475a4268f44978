"""From a file to integers and back: every tool, codebooks that several layers share, what does not fit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import tersor
from tersor.codes import codes_of, shared_codes_of
from tersor.config import CodebookConfig, KernelConfig
from tersor.errors import ConfigError, FormatError, ModelError
from tersor.repack import repack
from tersor.runtime import from_file
from tersor.training.kernels import KernelBooks

EXACT = tersor.Config(keep_exact=True)


def network(seed: int = 1) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(4, 12, 3, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
                         nn.Conv2d(12, 12, 3), nn.Flatten(), nn.Linear(48, 6)).eval()  # fmt: skip


def inputs() -> torch.Tensor:
    return torch.randn(32, 4, 6, 6, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def statistics() -> tersor.Statistics:
    return tersor.calibrate(network(), [inputs()])


def packed_by(statistics, tools: tuple[str, ...], bits: float = 4.0, **options) -> tersor.Packed:
    return tersor.compress(network(), statistics, bits=bits, tools=tools, effort=3, **options)


@pytest.fixture(scope="module")
def by_kernels(statistics) -> tersor.Packed:
    return packed_by(statistics, ("kernels",))


@pytest.mark.parametrize("options", [
    {"tools": ("scalar",)}, {"tools": ("transform",)}, {"tools": ("scalar", "transform", "kernels")},
    {"tools": ("kernels",), "kernels": KernelConfig(size=9, scope="all")},
    {"tools": ("codebook",)}, {"tools": ("codebook",), "codebook": CodebookConfig(scope="layer"), "bits": 5.0},
], ids=str)
def test_the_same_file_comes_back(statistics, options):
    packed = packed_by(statistics, **options)
    model = tersor.restore(packed.data, into=network(5))
    codes, shared = codes_of(packed.data), shared_codes_of(packed.data)
    assert {*codes, *(name for names, _ in shared for name in names)} == {"0.weight", "3.weight", "5.weight"}
    again = repack(model, codes, config=EXACT, shared=shared)
    restored = tersor.restore(again.data, into=network(6))
    for (name, wanted), found in zip(model.state_dict().items(), restored.state_dict().values(), strict=True):
        assert torch.equal(wanted, found), name
    assert again.report()["bytes_by_tool"].keys() - {"raw"} <= packed.report()["bytes_by_tool"].keys()
    assert torch.equal(from_file(packed.data, network(7))(inputs()), from_file(again.data, network(8))(inputs()))
    second = repack(model, codes_of(again.data), config=EXACT, shared=shared_codes_of(again.data))
    assert second.data == again.data


def test_trained_kernels_and_small_tensors_are_in_the_file(by_kernels):
    packed = by_kernels
    model = tersor.restore(packed.data, into=network(5))
    kernels = codes_of(packed.data, ("kernels",))
    tuned = KernelBooks(list(kernels), list(kernels.values()), [model.get_parameter(name) for name in kernels])
    with torch.no_grad():
        tuned.values[0] *= 1.2
        model[1].bias += 0.5
        for name, weight in tuned.tensors().items():
            model.get_parameter(name).copy_(weight)
    codes = codes_of(packed.data) | dict(zip(kernels, tuned.codes(), strict=True))
    rough = repack(model, codes)
    fine = repack(model, codes, tersor.calibrate(model, [inputs()]), price=packed.price / 100)
    for again, error in ((rough, 0.02), (fine, 0.01)):
        restored = tersor.restore(again.data, into=network(6))
        # "up to the order of float32 products" (KernelBooks.tensors): the last place may differ.
        assert torch.allclose(restored[0].weight, model[0].weight, rtol=2.0**-22, atol=0.0)
        with torch.no_grad():
            wanted, found = model(inputs()), restored(inputs())
        assert torch.allclose(wanted, found, atol=error * float(wanted.abs().max()))
    assert fine.price == packed.price / 100 and rough.size < 1.1 * packed.size


def test_an_open_file_and_a_bad_one(by_kernels):
    packed = by_kernels
    with tersor.load(packed.data) as opened:
        assert codes_of(opened).keys() == codes_of(packed.data).keys()
        assert opened["0.weight"].shape == (12, 4, 3, 3), "it stays open"
        assert not shared_codes_of(opened) and not codes_of(opened, ("transform",))
    with pytest.raises(FormatError):
        codes_of(packed.data[:-5])


def test_what_does_not_fit(statistics, by_kernels):
    kernels = codes_of(by_kernels.data)
    (names, book), = shared_codes_of(packed_by(statistics, ("codebook",)).data)
    model = network()
    with pytest.raises(ModelError, match=r"0\.weight: kernel indexes"):
        repack(model, kernels | {"0.weight": kernels["3.weight"]})
    with pytest.raises(ModelError, match=r"9\.weight: the model has no weight"):
        repack(model, {"9.weight": kernels["0.weight"]})
    with pytest.raises(ModelError, match=r"9\.weight: the model has no weight"):
        repack(model, {}, shared=[(("9.weight",), replace(book, indexes=book.indexes[:1]))])
    with pytest.raises(ModelError, match="two codes"):
        repack(model, kernels, shared=[(names, book)])
    with pytest.raises(ModelError, match=r"0\.weight: 1728 indexes|0\.weight: 1296 indexes"):
        repack(model, {}, shared=[(names, replace(book, indexes=[book.indexes[1], *book.indexes[1:]]))])
    with pytest.raises(ConfigError, match="price"):
        repack(model, kernels, statistics)


def test_weights_of_a_codebook_in_another_order(statistics):
    (names, book), = shared_codes_of(packed_by(statistics, ("codebook",)).data)
    turned = (names[::-1], replace(book, indexes=book.indexes[::-1]))
    model = network()
    assert repack(model, {}, shared=[turned]).data == repack(model, {}, shared=[(names, book)]).data
    assert np.array_equal(shared_codes_of(repack(model, {}, shared=[turned]).data)[0][1].indexes[0], book.indexes[0])
