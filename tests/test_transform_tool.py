"""The transform tool's offers: scales of a DCT's frequencies, trellises, what a decoder will have."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

import tersor
from tersor.adapters.module import inventory_of_module
from tersor.config import Config
from tersor.plan import Plan
from tersor.tools import transform
from tersor.tools.target import LayerTarget

CONFIG = Config(tools=("scalar", "transform"))


@cache
def smooth_layer() -> tuple[LayerTarget, float]:
    """5 x 5 kernels and inputs that are smooth: errors of low frequencies cost much more. A layer, and a lambda."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(8, 12, 5, padding=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                          nn.Linear(12, 10)).eval()
    with torch.no_grad():
        model[0].weight.copy_((torch.randn(12, 8, 1, 1) * torch.ones(5, 5) + 0.3 * torch.randn(12, 8, 5, 5)) * 0.05)
        x = nn.functional.avg_pool2d(torch.randn(16, 8, 14, 14), 5, 1)
    plan = Plan(inventory_of_module(model), tersor.calibrate(model, [x]), CONFIG)
    target = plan.target("0.weight")
    scale = float(np.trace(target.A[0]) * np.trace(target.G[0])) * float((target.W**2).mean())
    return target, 1e-3 * scale / target.count


@pytest.mark.parametrize("name", ["dct1", "dct2", "elt+dct2"])
def test_frequencies_are_scaled_by_what_they_cost(name, monkeypatch):
    target, price = smooth_layer()
    scaled = transform.propose(target, price, name, CONFIG)
    exponents = scaled.code.tap_scale
    assert exponents.shape == (25,) and exponents[0] == exponents.min() < -2 and exponents.max() > 0
    monkeypatch.setattr(transform, "_scale_frequencies", lambda target, basis: basis)
    plain = transform.propose(target, price, name, CONFIG)
    assert plain.code.tap_scale is None and scaled.cost(price) < plain.cost(price)


@pytest.mark.parametrize("name", ["dct2", "klt-taps", "elt+dct1", "elt-joint", "elt-outputs"])
@pytest.mark.parametrize("trellis", [0, 8])
def test_an_offer_is_what_a_decoder_restores(name, trellis):
    target, price = smooth_layer()
    offer = transform.propose(target, price, name, CONFIG, trellis=trellis)
    assert offer.code.coefficients.trellis == trellis and ("trellis of 8" in offer.label) == bool(trellis)
    assert all(basis.trellis == 0 for basis in offer.code.bases())
    assert np.allclose(offer.code.tensor(target.shape, "F64").reshape(offer.restored[0].shape), offer.restored[0])


def test_a_trellis_saves_bits():
    target, price = smooth_layer()
    plain, chained = (transform.propose(target, price, "dct2", CONFIG, trellis=states) for states in (0, 8))
    assert chained.cost(price) < plain.cost(price)
