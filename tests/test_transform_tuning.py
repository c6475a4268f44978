"""Training in the form of the file: W = S C with both rounded; and the file of what was trained."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from make_golden_transform import block_matrix, code, scalar_matrix
from torch import Tensor, nn
from torch.nn import functional as F

import tersor
from tersor.errors import ConfigError, ModelError
from tersor.repack import codes_of, repack
from tersor.synthesis.scalar import ScalarCode
from tersor.synthesis.transform import Dct, TransformCode
from tersor.transform_tuning import TransformedNetwork, finetune_transforms

SHAPE = (6, 4, 3, 3)
WIDE = 32
KINDS: dict[str, dict[str, Any]] = {
    "plain": {}, "channels, dct": {"channels": 3, "taps": Dct.II, "scaled": True},
    "all": {"rows": 5, "channels": 4, "taps": 7},
    "joint": {"joint": 6, "rows": 4}, "swapped": {"channels": 5, "taps": Dct.I, "swapped": True},
}


def network(dtype: torch.dtype = torch.float32, width: int = 6) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(4, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                         nn.Flatten(), nn.Linear(width, 5)).eval().to(dtype)


def shaped(code: TransformCode | ScalarCode, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(np.array(code.tensor(shape)))


@pytest.mark.parametrize("make", [scalar_matrix, block_matrix])
@pytest.mark.parametrize("in_steps", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_begins_with_what_a_decoder_restores(make, in_steps, kind):
    made = code(make, 4, SHAPE, **KINDS[kind])
    net = TransformedNetwork(network(), {"0.weight": made}, in_steps=in_steps)
    expected = shaped(made, SHAPE)
    scale = float(expected.abs().max())
    torch.testing.assert_close(net.weights()["0.weight"], expected, rtol=1e-5, atol=1e-6 * scale)
    found = net.codes()["0.weight"]
    for a, b in zip((*made.bases(), made.coefficients), (*found.bases(), found.coefficients), strict=True):
        assert np.array_equal(a.q, b.q) and b.q.dtype == np.int32
    assert torch.equal(net.write_back()[0].weight, expected)


def test_a_scalar_code_with_shifts():
    made = replace(scalar_matrix(4, 6, 36), shift=(9, 4))
    net = TransformedNetwork(network(), {"0.weight": made})
    assert torch.equal(net.weights()["0.weight"], shaped(made, SHAPE))
    assert np.array_equal(net.codes()["0.weight"].q, made.q) and isinstance(net.codes()["0.weight"], ScalarCode)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_smooth_map(kind, monkeypatch):
    """Without rounding, finite differences; with it, the same gradients (straight through) where nothing moved."""
    def plain_matrix(seed: int, rows: int, columns: int, unit: int = 1) -> ScalarCode:
        return replace(scalar_matrix(seed, rows, columns), shift=(0, 0))

    made = code(plain_matrix, 2, SHAPE, **KINDS[kind])
    x = torch.randn(3, 4, 5, 5, dtype=torch.float64)

    def gradients(net: TransformedNetwork) -> list[Tensor]:
        net.zero_grad()
        net(x).square().sum().backward()
        return [p.grad.clone() for p in net.parts.parameters()]

    net = TransformedNetwork(network(torch.float64), {"0.weight": made})
    through = gradients(net)
    monkeypatch.setattr("tersor.transform_tuning._Matrix.forward", lambda self: self.scaled() * self.step)
    for p, found, other in zip(net.parts.parameters(), gradients(net), through, strict=True):
        torch.testing.assert_close(found, other, rtol=1e-9, atol=1e-12)
        place = int(found.abs().argmax())
        with torch.no_grad():
            values = []
            for sign in (1, -1, -1):
                values.append(float(net(x).square().sum()))
                p.view(-1)[place] += sign * 1e-6
            p.view(-1)[place] += 1e-6
        assert (values[1] - values[2]) / 1e-6 == pytest.approx(float(found.view(-1)[place]), rel=1e-3)


def test_blocks_are_clipped_to_their_depth():
    made = code(block_matrix, 4, SHAPE)
    net = TransformedNetwork(network(), {"0.weight": made}, in_steps=True)
    (values,) = net.parts.parameters()
    with torch.no_grad():
        values += 1e6
    blocks = net.codes()["0.weight"].coefficients
    blocks.check()
    for box, depth in zip(blocks.boxes(), blocks.depths.tolist(), strict=True):
        assert (blocks.cuts.view(blocks.q)[box] == max((1 << depth >> 1) - 1, 0)).all()
    net(torch.randn(2, 4, 5, 5)).sum().backward()
    assert not values.grad.any(), "no gradient beyond the range"


def teach(compressed: tersor.Packed, epochs: int = 3, **options: Any):
    """A tiny network trained to give the answers of the one that was compressed."""
    model, teacher = tersor.restore(compressed.data, into=network(width=WIDE)), network(width=WIDE)
    x = torch.randn(128, 4, 6, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        y = teacher(x)
        before = float(F.mse_loss(model(x), y))
    batches = list(zip(x.split(32), y.split(32), strict=True))
    codes = finetune_transforms(model, codes_of(compressed.data), batches, F.mse_loss,
                                lambda p: torch.optim.Adam(p, lr=0.03), epochs, in_steps=True, **options)
    with torch.no_grad():
        after = float(F.mse_loss(model(x), y))
    return model, codes, before, after, x


def compressed(tools: tuple[str, ...], bits: float = 3.0) -> tersor.Packed:
    model = network(width=WIDE)
    x = torch.randn(64, 4, 6, 6, generator=torch.Generator().manual_seed(2))
    return tersor.compress(model, tersor.calibrate(model, [x]), bits=bits, tools=tools, effort=5)


@pytest.mark.parametrize("tools", [("scalar",), ("transform",), ("scalar", "transform")])
def test_the_file_is_the_trained_network(tools):
    packed = compressed(tools, 2.0)
    model, codes, before, after, x = teach(packed, epochs=15)
    assert after < 0.8 * before and "0.weight" in codes
    again = repack(model, codes, tersor.calibrate(model, [x]), price=packed.price / 50)
    restored = tersor.restore(again.data, into=network(width=WIDE))
    assert torch.equal(restored[0].weight, model[0].weight)
    found = codes_of(again.data)
    assert found.keys() == codes.keys()
    with torch.no_grad():
        expected, got = model(x), restored(x)
    assert float((got - expected).square().mean()) < 1e-3 * float(expected.square().mean())
    fine = tersor.restore(repack(model, codes, config=tersor.Config(keep_exact=True)).data,
                          into=network(width=WIDE))
    assert torch.equal(fine(x), expected)


def test_the_same_again():
    first, second = teach(compressed(("transform",))), teach(compressed(("transform",)))
    for name, made in first[1].items():
        assert np.array_equal(made.coefficients.q, second[1][name].coefficients.q)
    assert first[3] == second[3]
    states = zip(first[0].state_dict().values(), second[0].state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in states)


def test_a_price_makes_the_file_smaller():
    packed = compressed(("scalar",), 4.0)
    sizes = []
    for price in (0.0, 1e-3):
        model, codes, *_ = teach(packed, 10, price=price)
        sizes.append(repack(model, codes).size)
    assert sizes[1] < 0.9 * sizes[0]


def test_the_papers_recipe_and_batchnorm():
    packed = compressed(("scalar", "transform"))
    model = tersor.restore(packed.data, into=network(width=WIDE))
    model.train()
    before = copy.deepcopy(model.state_dict())
    flags = [module.training for module in model.modules()]
    x = torch.randn(8, 4, 6, 6)
    finetune_transforms(model, codes_of(packed.data), [(x, torch.zeros(8, 5))], F.mse_loss)
    after = model.state_dict()
    assert torch.equal(before["1.running_var"], after["1.running_var"]), "statistics are part of the file's y = a z + b"
    assert not torch.equal(before["1.weight"], after["1.weight"]) and not torch.equal(before["0.bias"], after["0.bias"])
    assert [module.training for module in model.modules()] == flags
    finetune_transforms(model, codes_of(packed.data), [(x, torch.zeros(8, 5))], F.mse_loss, freeze_batchnorm=False)
    assert not torch.equal(before["1.running_var"], model[1].running_var)


def test_what_cannot_be_trained():
    made = scalar_matrix(1, 6, 36)
    for codes, error, message in (
            ({"0.weight": replace(made, shift=(0, 0), trellis=8)}, ConfigError, "trellis"),
            ({"0.weight": scalar_matrix(1, 6, 35)}, ModelError, "does not fit"),
            ({"0.weight": TransformCode(made, joint=True)}, ModelError, "joint"),
            ({"9.weight": made}, ModelError, "9.w")):
        with pytest.raises(error, match=message):
            TransformedNetwork(network(), codes)
        if "trellis" not in message:
            with pytest.raises(ModelError):
                repack(network(), codes)
    with pytest.raises(ConfigError, match="price"):
        finetune_transforms(network(), {"0.weight": made}, [], F.mse_loss, price=-1.0)
    with pytest.raises(ConfigError, match="no batches"):
        finetune_transforms(network(), {"0.weight": made}, [], F.mse_loss)
    statistics = tersor.calibrate(network(), [torch.randn(4, 4, 6, 6)])
    with pytest.raises(ConfigError, match="price"):
        repack(network(), {"0.weight": made}, statistics)
