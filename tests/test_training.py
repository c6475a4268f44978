"""Trainable files: what they compute, what moves, and that what was trained is what the file restores."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from encoder_models import build, inputs
from torch import Tensor, nn
from torch.nn import functional as F

import tersor
from tersor.errors import ModelError
from tersor.sections import Contents
from tersor.synthesis.scalar import ScalarCode
from tersor.training.matrices import Matrix
from tersor.training.rates import CodeLengths, classes_of, expected
from tersor.training.rounding import look_up, rounded, rounded_within
from tersor.training.trellis import levels, search

WAYS: dict[str, dict[str, Any]] = {
    "scalar": {"effort": 5}, "trellis": {"effort": 6}, "transform": {"tools": ("transform",), "effort": 5},
    "fixed": {"tools": ("transform",), "transform": tersor.TransformConfig(("elt",), coder="fixed")},
    "kernels": {"tools": ("kernels",), "effort": 1, "kernels": tersor.KernelConfig(size=8)},
    "codebook": {"tools": ("codebook",)}, "exact": {"keep_exact": True, "effort": 3},
}
PACKED: dict[str, tersor.Packed] = {}


class Wide(nn.Module):
    """One layer that is large enough for a trellis."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.conv2, self.bn2 = nn.Conv2d(12, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24)
        self.head = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn2(self.conv2(torch.relu(self.bn(self.conv(x))))))
        return self.head(x.mean((2, 3)))


def network(way: str) -> nn.Module:
    if way != "trellis":
        return build("residual")
    torch.manual_seed(0)
    return Wide().eval()


def data(count: int = 24, seed: int = 1) -> Tensor:
    return inputs("residual", count, seed)


def packed(way: str) -> tersor.Packed:
    if way not in PACKED:
        model = network(way)
        PACKED[way] = tersor.compress(model, tersor.calibrate(model, [data()]), bits=4.5 if way == "exact" else 4.0,
                                      **WAYS[way])
    return PACKED[way]


def restored(file: tersor.Packed, way: str) -> nn.Module:
    model = network(way)
    for parameter in model.parameters():
        parameter.data.uniform_()
    return tersor.restore(file.data, into=model).eval()


@pytest.mark.parametrize("lean", [0.0, 0.45])
@pytest.mark.parametrize("way", WAYS)
def test_begins_as_the_file(way, lean):
    file = packed(way)
    trainable = file.trainable(network(way), lean=lean)
    with torch.no_grad():
        torch.testing.assert_close(trainable(data()), restored(file, way)(data()), rtol=1e-4, atol=1e-5)
    if lean == 0.0 or way != "trellis":
        assert trainable.repack().data == file.data


def test_the_trellis_is_in_use():
    states = [code.trellis for section in Contents.of(packed("trellis").data).sections for code in section.codes
              if isinstance(code, ScalarCode)]
    assert max(states) == 8


@pytest.mark.parametrize("way", WAYS)
def test_what_was_trained_is_what_is_restored(way):
    file, teacher = packed(way), network(way)
    trainable = file.trainable(teacher)
    assert {name for name, _ in trainable.named_parameters()}.isdisjoint(dict(teacher.named_parameters()))
    optimizer = torch.optim.Adam(trainable.groups(latents=0.03, values=0.01, small=0.003))
    with torch.no_grad():
        wanted = 0.7 * teacher(data(64, 2)) + 0.3 * teacher(data(64, 2)).flip(1)
        before = float(F.mse_loss(restored(file, way)(data(64, 2)), wanted))
    for step in range(40):
        if step % 5 == 0:
            trainable.refresh()
        loss = F.mse_loss(trainable(data(64, 2)), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    again = trainable.repack()
    assert again.data != file.data and again.size < 1.5 * file.size
    plain = restored(again, way)
    with torch.no_grad():
        torch.testing.assert_close(trainable(data()), plain(data()), rtol=1e-4, atol=1e-5)
        after = float(F.mse_loss(plain(data(64, 2)), wanted))
        assert after < 0.5 * before
        torch.testing.assert_close(trainable.restored()(data()), plain(data()))
    one, other = Contents.of(file.data), Contents.of(again.data)
    assert [section.tool for section in one.sections] == [section.tool for section in other.sections]
    for a, b in zip(one.sections, other.sections, strict=True):
        if a.tool == "kernels":
            assert all(np.array_equal(c.index.shape, d.index.shape) for c, d in zip(a.codes, b.codes, strict=True))
        if a.tool == "raw":
            assert a.payload == b.payload
    model = network(way)
    assert all(torch.equal(p, q) for p, q in zip(teacher.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize("way", ["scalar", "transform", "trellis"])
def test_latents_lean_to_the_weights_that_they_stand_for(way):
    file, model = packed(way), network(way)
    plain, leaning = file.trainable(model, lean=0.0), file.trainable(model)
    wanted = {name: p.detach().flatten(1) for name, p in model.named_parameters() if p.ndim > 1}

    def latent(trainable: tersor.Trainable) -> dict[str, Tensor]:
        """The weights were nothing rounded."""
        found = copy.deepcopy(trainable)
        for matrix in found.matrices():
            matrix.forward = lambda m=matrix: m.latents * m.step  # type: ignore[method-assign,misc]
        return {name: weight.detach().flatten(1) for name, weight in found.weights().items() if name in wanted}

    closer = []
    for name, own in wanted.items():
        for row in range(len(own)):
            def angle(w: Tensor, own: Tensor = own[row]) -> float:
                return float(F.cosine_similarity(w, own, dim=0))

            closer.append(angle(latent(leaning)[name][row]) - angle(latent(plain)[name][row]))
    assert np.mean(closer) > 0 and np.mean(np.array(closer) >= -1e-6) > 0.9
    stranger = file.trainable(build("residual", 9) if way != "trellis" else Wide().eval())
    middle = [float((m.latents - m.integers()).detach().abs().max()) for m in stranger.matrices() if not m.trellis]
    assert np.mean(np.array(middle) < 0.3) > 0.4, "rows of another network stay in the middle"


def test_gradients_pass_the_rounding():
    x = torch.tensor([0.2, 1.7, -3.4, 9.0], requires_grad=True)
    (rounded(x) * torch.arange(4.0)).sum().backward()
    assert torch.equal(x.grad, torch.arange(4.0))
    x.grad = None
    found = rounded_within(x, torch.tensor(-2.0), torch.tensor(3.0))
    found.sum().backward()
    assert found.tolist() == [0.0, 2.0, -2.0, 3.0] and x.grad.tolist() == [1.0, 1.0, 0.0, 0.0]


def test_the_gradient_of_a_centre_is_the_sum_over_its_members():
    values = torch.randn(5, dtype=torch.float64, requires_grad=True)
    index = torch.randint(0, 4, (6, 7, 2), generator=torch.Generator().manual_seed(1))
    factor = torch.randn(6, 7, 2, dtype=torch.float64)
    (look_up(values, index).sin() * factor).sum().backward()
    for j in range(5):
        members = factor[index == j] * values[j].detach().cos()
        assert torch.isclose(values.grad[j], members.sum(), rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(lambda v: look_up(v, index), values)


def integers(rows: int, columns: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    spread = torch.rand(rows, 1, generator=generator) * 2
    return (torch.randn(rows, columns, generator=generator) * spread).round()


def test_code_lengths_tell_loud_rows_from_quiet_ones():
    q = integers(40, 90)
    lengths, known = CodeLengths(), classes_of(expected(q, 9))
    bits = lengths.fit([(q, known)])
    values, counts = np.unique(q.numpy(), return_counts=True)
    share = counts / counts.sum()
    assert len(values) > 3 and bits < -(share * np.log2(share)).sum() * q.numel()
    assert bits == pytest.approx(float(lengths.of(q, known).sum()))
    x = (q + 0.2 * torch.randn(q.shape)).requires_grad_()
    value = lengths.surrogate(x, q, known)
    value.backward()
    assert float(value.detach()) == pytest.approx(bits, rel=1e-5)
    assert float((x.grad * x.detach().sign()).mean()) > 0.3, "large integers are dear"
    assert float(lengths.of(torch.tensor([[900.0]]), torch.tensor([[20]]))) > 20


@pytest.mark.parametrize("way", ["scalar", "transform", "trellis"])
def test_the_estimate_follows_the_file_and_its_slope_makes_it_smaller(way):
    file = packed(way)
    trainable = file.trainable(network(way))
    estimate = trainable.refresh()
    assert 0.6 < estimate / (8 * file.weight_bytes) < 1.2
    optimizer = torch.optim.Adam(trainable.groups(latents=0.05))
    for step in range(40):
        if step % 5 == 0:
            trainable.refresh()
        optimizer.zero_grad()
        trainable.rate().backward()
        optimizer.step()
    again = trainable.repack()
    assert again.size < 0.9 * file.size and trainable.fit() < 0.8 * estimate


def test_the_nearest_path():
    rng = np.random.default_rng(0)
    wanted = rng.normal(size=(20, 60)) * 2
    q = search(wanted, 8, 0.0)
    error = ((levels(q, 8) - wanted) ** 2).mean()
    assert error < 4 / 12 * 0.75, "better than a scalar quantiser of the same rate, with steps of two"
    assert np.array_equal(search(levels(q, 8).astype(np.float64), 8), q)
    dear = search(wanted, 8, 2.0)
    assert np.abs(dear).sum() < np.abs(q).sum()
    assert search(np.zeros((0, 4)), 8).shape == (0, 4)


def test_other_models_are_refused():
    with pytest.raises(ModelError):
        packed("scalar").trainable(build("mlp"))
    code = ScalarCode(np.ones((4, 6), np.int32), 0)
    matrix = Matrix(replace(code, shift=(8, 4)), 1, torch.zeros(1))
    assert np.allclose(matrix().detach().numpy(), replace(code, shift=(8, 4)).matrix())
