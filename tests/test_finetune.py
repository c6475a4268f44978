"""Shared values: gradients are sums over members, indexes and zeros stay, codebooks are valid throughout."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tersor.errors import ConfigError, ModelError
from tersor.finetune import SharedValues, finetune_shared, keep_masks, look_up
from tersor.synthesis.codebook import CodebookCode


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 4))


def coded(model: nn.Module, zero: bool = True) -> list[tuple[list[str], CodebookCode]]:
    """Both weights in one codebook of seven values; one of them 0 where asked for."""
    rng = np.random.default_rng(5)
    values = np.array([-0.3, -0.2, -0.1, 0.0 if zero else 0.01, 0.1, 0.2, 0.3], np.float32)
    names = [name for name, p in model.named_parameters() if p.ndim >= 2]
    known = dict(model.named_parameters())
    indexes = [
        rng.integers(0, 7, known[name].shape, dtype=np.int32).reshape(len(known[name]), -1) for name in names
    ]
    return [(names, CodebookCode.of(values, indexes))]


def data(count: int = 4) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(7)
    return [
        (torch.randn(8, 2, 4, 4, generator=generator), torch.randint(0, 4, (8,), generator=generator))
        for _ in range(count)
    ]


def test_gradient_of_a_centre_is_the_sum_over_its_members():
    values = torch.randn(5, dtype=torch.float64, requires_grad=True)
    index = torch.randint(0, 4, (6, 7, 2), generator=torch.Generator().manual_seed(1))
    factor = torch.randn(6, 7, 2, dtype=torch.float64)
    (look_up(values, index).sin() * factor).sum().backward()
    for j in range(5):
        members = factor[index == j] * values[j].detach().cos()
        assert values.grad is not None
        assert torch.isclose(values.grad[j], members.sum(), rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(lambda v: look_up(v, index), values)


def test_gradients_of_a_network_against_plain_autograd():
    model = network()
    ((names, code),) = codes = coded(model)
    shared = SharedValues(model, codes)
    x, y = data()[0]
    F.cross_entropy(shared(x), y).backward()
    found = shared.values[0].grad
    assert found is not None
    shared.write_back()
    known = dict(model.named_parameters())
    F.cross_entropy(model(x), y).backward()
    for j in range(7):
        expected = 0.0
        for name, index in zip(names, code.indexes, strict=True):
            gradient = known[name].grad
            assert gradient is not None
            expected += float(gradient.double().reshape(index.shape)[torch.from_numpy(index == j)].sum())
        assert float(found[j]) == pytest.approx(0.0 if j == code.zero else expected, rel=1e-4, abs=1e-7)


def test_training_moves_values_and_biases_but_neither_indexes_nor_zeros():
    model = network()
    codes = coded(model)
    before = codes[0][1]
    biases = [p.detach().clone() for p in model.parameters() if p.ndim == 1]
    seen = []
    trained = finetune_shared(
        model,
        codes,
        data(),
        F.cross_entropy,
        lambda p: torch.optim.Adam(p, lr=0.01),
        3,
        progress=lambda epoch, loss: seen.append((epoch, loss)),
    )
    assert [epoch for epoch, _ in seen] == [0, 1, 2] and seen[2][1] < seen[0][1]
    (code,) = trained
    assert not np.array_equal(code.values, before.values)
    assert code.zero >= 0 and code.values[code.zero] == 0.0
    assert not any(
        torch.equal(a, b) for a, b in zip(biases, (p for p in model.parameters() if p.ndim == 1), strict=True)
    )
    known = dict(model.named_parameters())
    for name, old, tensor in zip(
        codes[0][0], before.indexes, code.tensors([known[n].shape for n in codes[0][0]]), strict=True
    ):
        assert np.array_equal(known[name].detach().numpy(), tensor), (
            "the model holds what the file would restore"
        )
        assert np.array_equal(tensor.reshape(old.shape) == 0, old == before.zero)
        for j in range(7):  # members of a centre stay together
            assert len(np.unique(tensor.reshape(old.shape)[old == j])) <= 1


def test_codes_are_valid_at_every_step_even_when_centres_pass_each_other():
    model = network()
    codes = coded(model)
    shared = SharedValues(model, codes)
    with torch.no_grad():
        shared.values[0].copy_(torch.tensor([0.3, -0.2, 0.05, 9.0, 0.1, -0.7, 0.3]))
    (code,) = shared.codes()
    assert np.all(np.diff(code.values) >= 0) and code.values[code.zero] == 0.0
    looked_up = shared.weights()
    for name, tensor in zip(codes[0][0], code.tensors([w.shape for w in looked_up.values()]), strict=True):
        assert np.array_equal(looked_up[name].detach().numpy(), tensor)


def test_parameters_leave_out_the_weights_that_are_looked_up():
    model = network()
    shared = SharedValues(model, coded(model))
    assert [name for name, _ in shared.named_parameters()] == ["model.0.bias", "model.3.bias", "values.0"]
    assert len(list(shared.parameters())) == 3


def test_same_seed_same_bits():
    def run(seed: int) -> bytes:
        model = nn.Sequential(network(), nn.Dropout(0.3))
        trained = finetune_shared(
            model,
            coded(model),
            data(),
            F.cross_entropy,
            lambda p: torch.optim.SGD(p, lr=0.1),
            2,
            seed=seed,
            scheduler=lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.9),
        )
        return trained[0].values.tobytes()

    state = torch.get_rng_state()
    first = run(1)
    torch.set_rng_state(state)
    torch.rand(3)
    assert run(1) == first != run(2)


def test_separate_codebooks_per_layer():
    model = network()
    ((names, code),) = coded(model)
    codes = [
        ([name], CodebookCode.of(code.values, [index]))
        for name, index in zip(names, code.indexes, strict=True)
    ]
    trained = finetune_shared(model, codes, data(), F.cross_entropy, lambda p: torch.optim.SGD(p, lr=0.1), 1)
    assert len(trained) == 2 and not np.array_equal(trained[0].values, trained[1].values)


def test_what_does_not_fit_is_named():
    model = network()
    ((names, code),) = coded(model)
    with pytest.raises(ModelError, match=r"7\.weight"):
        SharedValues(model, [(["7.weight", names[1]], code)])
    with pytest.raises(ModelError, match=r"3\.weight: 108 indexes for 384"):
        SharedValues(model, [([names[1], names[0]], code)])
    with pytest.raises(ModelError, match="two codebooks"):
        SharedValues(model, [(names, code), (names, code)])
    with pytest.raises(ConfigError, match="epochs=0"):
        finetune_shared(
            model, [(names, code)], data(), F.cross_entropy, lambda p: torch.optim.SGD(p, lr=0.1), 0
        )
    with pytest.raises(ConfigError, match="epoch 1 has no batches"):
        finetune_shared(
            model, [(names, code)], iter(data()), F.cross_entropy, lambda p: torch.optim.SGD(p, lr=0.1), 2
        )
    with pytest.raises(ConfigError, match="the loss is nan"):
        finetune_shared(
            model,
            [(names, code)],
            data(),
            lambda y, t: y.sum() * torch.nan,
            lambda p: torch.optim.SGD(p, lr=0.1),
            1,
        )


def test_masks_are_kept_under_momentum():
    model = network()
    mask = {"3.weight": np.random.default_rng(1).random((4, 96)) < 0.3}
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=0.01)
    for x, y in data():  # momentum builds up before the weights are pruned
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    weight = model.get_parameter("3.weight")
    with keep_masks(model, mask, optimizer):
        for x, y in data():
            assert torch.equal(weight != 0, torch.from_numpy(mask["3.weight"]))
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    kept = weight.detach().clone()
    optimizer.step()
    assert not torch.equal(weight, kept) and bool((weight[~torch.from_numpy(mask["3.weight"])] != 0).any())
    with (
        pytest.raises(ModelError, match=r"0\.weight"),
        keep_masks(model, {"0.weight": np.ones(3, bool)}, optimizer),
    ):
        pass
