"""Training of kernel codebooks: gradients, rounding, gains, re-assignment; codes are valid throughout."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from make_golden_kernels import book, code
from torch import nn
from torch.nn import functional as F

from tersor.errors import ConfigError, ModelError
from tersor.kernel_tuning import KernelValues, finetune_kernels
from tersor.synthesis import kernels

SHAPES = {"0.weight": (6, 2, 3, 3), "2.weight": (6, 6, 3, 3), "4.weight": (4, 96)}


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), nn.Flatten(),
                         nn.Linear(96, 4))


def coded(gain: str = "gains") -> dict[str, kernels.KernelCode]:
    """Both convolutions in one codebook, the linear layer in vectors of 8."""
    shared, pairs = np.clip(book(1, 7, 9), -25, 25), np.clip(book(2, 5, 8), -25, 25)
    found = {name: code(i, shape, shared if len(shape) == 4 else pairs, gain=gain, step=-200, rows=i == 1)
             for i, (name, shape) in enumerate(SHAPES.items())}
    return {name: replace(one, row_resolution=3) for name, one in found.items()}


def data(count: int = 4) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(7)
    return [(torch.randn(8, 2, 4, 4, generator=generator), torch.randint(0, 4, (8,), generator=generator))
            for _ in range(count)]


def mean_loss(model: nn.Module) -> float:
    with torch.no_grad():
        return float(sum(F.cross_entropy(model(x), y) for x, y in data()))


@pytest.mark.parametrize("gain", ["", "signs", "gains"])
def test_weights_are_those_of_the_codes(gain):
    tuned = KernelValues(network(), coded(gain))
    for name, weight in tuned.weights().items():
        exact = coded(gain)[name].tensor(SHAPES[name])
        assert weight.shape == exact.shape
        assert np.allclose(weight.detach().numpy(), exact, rtol=1e-5, atol=1e-7)
    again = tuned.codes()
    for name, one in coded(gain).items():
        assert np.array_equal(again[name].values, one.values) and np.array_equal(again[name].index, one.index)
        assert (one.gain is None) == (again[name].gain is None)
        assert one.gain is None or np.array_equal(again[name].gain, one.gain)
    assert again["0.weight"].values is again["2.weight"].values


def test_gradient_of_an_entry_is_the_sum_over_its_kernels():
    model, codes = network(), coded()
    tuned = KernelValues(model, codes)
    x, y = data()[0]
    F.cross_entropy(tuned(x), y).backward()
    tuned.write_back()
    model.zero_grad()
    F.cross_entropy(model(x), y).backward()
    unit = float(np.median(codes["0.weight"].row_steps()))
    expected = np.zeros((7, 9))
    for name in ("0.weight", "2.weight"):
        one = codes[name]
        slope = model.get_parameter(name).grad.numpy().reshape(*one.index.shape, 9)
        slope = slope * one.gain[..., None] * one.row_steps()[:, None, None] / unit
        np.add.at(expected, one.index, slope)
    assert np.allclose(tuned.values[0].grad.numpy(), expected, rtol=1e-4, atol=1e-7)


def test_only_what_is_told_moves():
    tuned = KernelValues(network(), coded())
    names = {name for name, _ in tuned.named_parameters()}
    assert names == {"values.0", "values.1", "model.0.bias", "model.2.bias", "model.4.bias"}
    assert len(list(KernelValues(network(), coded(), gains=True).parameters())) == 8


@pytest.mark.parametrize("gains", [False, True])
def test_training_lowers_the_loss_and_gives_codes_back(gains):
    model, codes = network(), coded()
    KernelValues(model, codes).write_back()
    before = mean_loss(model)
    seen = []
    found = finetune_kernels(model, codes, data(), F.cross_entropy, lambda p: torch.optim.Adam(p, lr=1e-2), 6,
                             gains=gains, progress=lambda epoch, loss: seen.append((epoch, loss)))
    assert mean_loss(model) < 0.8 * before and [epoch for epoch, _ in seen] == list(range(6))
    changed = 0
    for name, one in found.items():
        assert np.array_equal(one.index, codes[name].index)
        assert int(one.values.min()) >= -32 and int(one.values.max()) < 32
        assert np.array_equal(np.sign(one.gain), np.sign(codes[name].gain))
        changed += int((one.gain != codes[name].gain).sum())
        restored = one.tensor(SHAPES[name]).astype(np.float32)
        assert np.array_equal(model.get_parameter(name).detach().numpy(), restored)
    assert not np.array_equal(found["0.weight"].values, codes["0.weight"].values)
    assert (changed > 0) is gains
    payload = kernels.encode(list(found.values()), list(SHAPES.values()))
    assert len(payload) < 1.3 * len(kernels.encode(list(codes.values()), list(SHAPES.values())))


def test_entries_stay_within_their_bits():
    tuned = KernelValues(network(), coded(), value_bits=6)
    with torch.no_grad():
        tuned.values[0].fill_(1e9)
    values = tuned.codes()["0.weight"].values
    assert (values == 31).all()
    tuned(data()[0][0]).sum().backward()
    assert not tuned.values[0].grad.any()  # beyond the range nothing pulls
    wide = {name: replace(one, values=one.values * 100) for name, one in coded().items()}
    assert np.array_equal(KernelValues(network(), wide).codes()["2.weight"].values, wide["2.weight"].values)


def test_reassignment():
    model, codes = network(), coded()
    tuned = KernelValues(model, codes)
    assert tuned.reassign(1e-2) == 0  # no gradient has been seen
    tuned.write_back()
    before = mean_loss(model)
    for x, y in data():
        F.cross_entropy(tuned(x), y).backward()
    changed = tuned.reassign(0.3)
    assert 0 < changed < sum(one.index.size for one in codes.values()) / 2
    tuned.write_back()
    assert mean_loss(model) < before
    for name, one in tuned.codes().items():
        assert np.array_equal(one.values, codes[name].values)
        alive = codes[name].gain != 0
        assert np.array_equal(one.index[~alive], codes[name].index[~alive])
    assert tuned.reassign(0.3) == 0
    with pytest.raises(ConfigError, match="rate"):
        tuned.reassign(0.0)


def test_reassignment_between_epochs():
    found = {}
    for rate in (None, 0.5):
        model = network()
        found[rate] = finetune_kernels(model, coded(), data(), F.cross_entropy,
                                       lambda p: torch.optim.SGD(p, lr=1e-4), 2, reassign=rate)
    assert np.array_equal(found[None]["2.weight"].index, coded()["2.weight"].index)
    assert not np.array_equal(found[0.5]["2.weight"].index, coded()["2.weight"].index)


def test_same_seed_same_bits():
    runs = [finetune_kernels(network(), coded(), data(), F.cross_entropy, lambda p: torch.optim.Adam(p, lr=1e-3), 2)
            for _ in range(2)]
    for one, other in zip(runs[0].values(), runs[1].values(), strict=True):
        assert np.array_equal(one.values, other.values)


def test_what_does_not_fit_is_named():
    codes = coded()
    with pytest.raises(ModelError, match="absent"):
        KernelValues(network(), {"absent": codes["0.weight"]})
    with pytest.raises(ModelError, match=r"2\.weight"):
        KernelValues(network(), {"2.weight": codes["0.weight"]})
    with pytest.raises(ConfigError, match="epochs"):
        finetune_kernels(network(), codes, data(), F.cross_entropy, lambda p: torch.optim.SGD(p, lr=1), 0)
    with pytest.raises(ConfigError, match="no batches"):
        finetune_kernels(network(), codes, iter(()), F.cross_entropy, lambda p: torch.optim.SGD(p, lr=1), 1)
