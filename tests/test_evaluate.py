"""evaluate.py against formulas written out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tersor.errors import ConfigError
from tersor.evaluate import compare, logits


def test_identical_logits() -> None:
    y = torch.randn(7, 5)
    result = compare(y, y.clone(), torch.zeros(7, dtype=torch.long))
    assert (result.kl, result.snr, result.agreement, result.top1_change) == (0, math.inf, 1, 0)


def test_kl_by_hand() -> None:
    reference = torch.tensor([[0.75, 0.25]]).log()
    other = torch.tensor([[0.5, 0.5]]).log()
    result = compare(reference + 3, other - 1)  # softmax does not see a constant
    assert result.kl == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), rel=1e-6)
    assert result.top1 is None and result.top1_change_error is None


def test_snr_by_hand() -> None:
    assert compare(torch.full((2, 5), 10.0), torch.full((2, 5), 9.0)).snr == pytest.approx(20)
    assert compare(torch.zeros(2, 2), torch.ones(2, 2)).snr == -math.inf


def test_paired_difference() -> None:
    right = torch.tensor([[1.0, 0.0]])
    wrong = torch.tensor([[0.0, 1.0]])
    reference = torch.cat([right, right, right, wrong])
    other = torch.cat([right, right, wrong, wrong])
    result = compare(reference, other, torch.zeros(4, dtype=torch.long))
    assert (result.top1_reference, result.top1, result.top1_change, result.agreement) == (
        0.75,
        0.5,
        -0.25,
        0.75,
    )
    assert result.top1_change_error == pytest.approx(torch.tensor([0.0, 0.0, -1.0, 0.0]).std().item() / 2)


def test_positions_count_as_samples() -> None:
    y = torch.randn(3, 4, 6)
    assert compare(y, y, torch.zeros(3, 4, dtype=torch.long)).count == 12


def test_non_finite_logits_show() -> None:
    y = torch.randn(3, 4)
    assert math.isnan(compare(y, torch.full_like(y, math.nan)).kl)


def test_wrong_shapes() -> None:
    with pytest.raises(ConfigError, match=r"\[2, 3\].*\[2, 4\]"):
        compare(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ConfigError, match="labels have shape"):
        compare(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(3))
    with pytest.raises(ConfigError, match="empty"):
        compare(torch.zeros(0, 3), torch.zeros(0, 3))


def test_logits_keeps_flags_and_stacks() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5))
    model[0].eval()
    x = torch.randn(5, 3)
    outputs = logits(model, [x[:2], (x[2:], torch.zeros(3))])
    assert torch.equal(outputs, torch.cat([model[0](x[:2]), model[0](x[2:])]))
    assert model.training and model[1].training and not model[0].training
    with pytest.raises(ConfigError, match="no batches"):
        logits(model, [])


def test_logits_of_other_outputs() -> None:
    class Two(nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logits": x}

    x = torch.randn(2, 3)
    assert torch.equal(logits(Two(), [x], output=lambda answer: answer["logits"]), x)
    with pytest.raises(ConfigError, match="output="):
        logits(Two(), [x])
