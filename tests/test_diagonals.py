"""Diagonals of curvature against exact ones, made element by element on tiny networks."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tersor.diagonals import adam_second_moment, gauss_newton_diagonal, hessian_diagonal, usable
from tersor.errors import StatisticsError


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, stride=2, groups=2), nn.BatchNorm2d(4), nn.Tanh(),
                         nn.Flatten(), nn.Linear(16, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def data(n=6, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 2, 4, 4, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 3, (n,), generator=generator)


def exact_hessian(model, x, target):
    """[parameters, parameters] of the mean cross-entropy, parameters flattened in the model's order."""
    model = copy.deepcopy(model).eval()
    shapes = {name: p.shape for name, p in model.named_parameters()}

    def value(flat):
        parts = flat.split([shape.numel() for shape in shapes.values()])
        tensors = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
        return F.cross_entropy(torch.func.functional_call(model, tensors, (x,)), target)

    flat = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    return torch.autograd.functional.hessian(value, flat).numpy()


def flat_of(diagonal, model):
    return np.concatenate([diagonal[name].reshape(-1) for name, _ in model.named_parameters()])


def brute_gauss_newton(model, x, of):
    """sum over elements, images, logits: rows of every Jacobian, one autograd.grad each."""
    model = copy.deepcopy(model).eval()
    names = [name for name, p in model.named_parameters()]
    sums = {name: np.zeros(p.shape) for name, p in model.named_parameters()}
    for image in x:
        y = model(image[None])[0]
        rows = [torch.autograd.grad(y[k], list(model.parameters()), retain_graph=True) for k in range(3)]
        p = y.softmax(0).detach()
        B = torch.eye(3).double() if of == "logits" else p.diag() - p[:, None] * p
        for i, name in enumerate(names):
            J = torch.stack([row[i] for row in rows])
            sums[name] += torch.einsum("k...,kl,l...->...", J, B, J).numpy()
    return {name: total / len(x) for name, total in sums.items()}


@pytest.mark.parametrize("samples", [100, 2000])
def test_hutchinson_against_the_exact_hessian(samples):
    model, (x, target) = network(), data()
    exact = exact_hessian(model, x, target)
    found = hessian_diagonal(model, [(x, target)], F.cross_entropy, samples=samples, seed=3)
    for name, p in model.named_parameters():
        assert found[name].shape == p.shape and found[name].dtype == np.float32
    # With random signs the variance of element i is the sum of the squares of the rest of its row.
    deviation = np.sqrt((exact**2).sum(1) - exact.diagonal() ** 2) / np.sqrt(samples)
    z = (flat_of(found, model) - exact.diagonal()) / deviation
    assert abs(z).max() < 5.0
    assert 0.5 < (z**2).mean() < 2.0


def test_hutchinson_is_exact_for_a_diagonal_hessian_and_weighs_batches_by_images():
    # One weight per input and output: loss = mean (w_i x_i)^2 / 2, Hessian diag(mean x^2).
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(5))

        def forward(self, x):
            return self.w * x

    x = torch.randn(9, 5)
    batches = [(x[:2], x[:2]), (x[2:], x[2:])]
    found = hessian_diagonal(Scale(), batches, lambda y, _: (y**2).sum() / (2 * len(y)))
    assert np.allclose(found["w"], (x**2).mean(0), rtol=1e-5)


@pytest.mark.parametrize("of", ["logits", "cross_entropy"])
def test_gauss_newton_is_exact(of):
    model, (x, _) = network(), data()
    exact = brute_gauss_newton(model, x, of)
    found = gauss_newton_diagonal(model, [x[:4], (x[4:], None)], of=of)
    assert set(found) == {"0.weight", "0.bias", "4.weight", "4.bias", "6.weight", "6.bias"}
    for name, diagonal in found.items():
        assert diagonal.dtype == np.float32
        assert np.allclose(diagonal, exact[name], rtol=1e-5, atol=1e-9), name


@pytest.mark.parametrize("of", ["logits", "cross_entropy"])
def test_random_vectors_are_unbiased(of):
    model, (x, _) = network(), data(3)
    exact = gauss_newton_diagonal(model, [x], of=of)
    found = gauss_newton_diagonal(model, [x], of=of, vectors=2000)
    for name, diagonal in exact.items():
        assert np.allclose(found[name], diagonal, rtol=0.2, atol=0.1 * diagonal.mean()), name


def test_gauss_newton_of_a_linear_network_is_the_hessian():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(32, 3)).double(), data()[0]
    hessian = exact_hessian(model, x, torch.zeros(6, dtype=torch.long)).diagonal()
    found = gauss_newton_diagonal(model, [x], of="cross_entropy")
    assert np.allclose(flat_of(found, model), hessian, rtol=1e-5, atol=1e-9)


def test_a_layer_used_twice_and_small_chunks(monkeypatch):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.f, self.g = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.g(torch.tanh(self.f(torch.tanh(self.f(x)))))

    torch.manual_seed(0)
    model, x = Twice().double(), torch.randn(5, 4).double()
    monkeypatch.setattr("tersor.diagonals.BUDGET", 1000)
    exact, found = brute_gauss_newton(model, x, "logits"), gauss_newton_diagonal(model, x)
    for name in exact:
        assert np.allclose(found[name], exact[name], rtol=1e-5), name


def test_the_model_is_left_as_it_was():
    model, (x, target) = network().train(), data()
    model[0].weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    hessian_diagonal(model, [(x, target)], F.cross_entropy)
    gauss_newton_diagonal(model, [x])
    assert all(module.training for module in model.modules()) and not model[0].weight.requires_grad
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_adam_second_moments_by_identity(kind):
    model, (x, target) = network(), data()
    named = dict(model.named_parameters())
    order = list(named)[::-1]  # not the model's order, two groups
    optimizer = kind([{"params": [named[name] for name in order[:3]]},
                      {"params": [named[name] for name in order[3:]], "betas": (0.9, 0.99)}], lr=1e-3)
    squares = {name: [] for name in named}
    for _ in range(4):
        optimizer.zero_grad()
        F.cross_entropy(model(x), target).backward()
        for name, p in named.items():
            squares[name].append(p.grad.double().square().numpy().copy())
        optimizer.step()
    found = adam_second_moment(optimizer, model)
    assert found.keys() == named.keys()
    for name, history in squares.items():
        beta = 0.999 if name in order[:3] else 0.99
        share = beta ** np.arange(4)[::-1]
        expected = np.sqrt(sum(s * g for s, g in zip(share, history, strict=True)) / share.sum())
        assert np.allclose(found[name], expected, rtol=1e-5), name


def test_adam_errors():
    model, (x, target) = network(), data()
    optimizer = torch.optim.Adam(model.parameters())
    with pytest.raises(StatisticsError, match="no step yet"):
        adam_second_moment(optimizer, model)
    F.cross_entropy(model(x), target).backward()
    optimizer.step()
    with pytest.raises(StatisticsError, match="a copy of this one"):
        adam_second_moment(optimizer, copy.deepcopy(model))
    momentum = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    momentum.step()
    with pytest.raises(StatisticsError, match="SGD keeps no second moments"):
        adam_second_moment(momentum, model)


def test_errors():
    model, (x, target) = network(), data()
    with pytest.raises(StatisticsError, match="no images"):
        gauss_newton_diagonal(model, [])
    with pytest.raises(StatisticsError, match="no images"):
        hessian_diagonal(model, [], F.cross_entropy)
    with pytest.raises(StatisticsError, match=r"NaN|infinity"):
        hessian_diagonal(model, [(x * np.nan, target)], F.cross_entropy)
    with pytest.raises(StatisticsError, match="of='loss'"):
        gauss_newton_diagonal(model, [x], of="loss")


def test_usable_is_positive():
    a, b = np.array([-1.0, 0.0, 3.0], "f4"), np.array([1.0, np.nan, -np.inf], "f4")
    made = usable({"a": a, "b": b}, floor=0.1)
    least = 0.1 * 4 / 2
    assert usable({"a": -abs(a)})["a"].tolist() == [1, 1, 1]
    assert np.allclose(made["a"], [least, least, 3.0]) and np.allclose(made["b"], [1.0, least, least])
