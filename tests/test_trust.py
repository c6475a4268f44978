"""Layers' distortions, measured at the network's output: exact on what the quadratic model describes exactly, a help
where its sensitivities are wrong, and never a worse file."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from encoder_models import Residual, inputs, seeded  # noqa: E402
from torch import Tensor, nn  # noqa: E402

import tersor  # noqa: E402
import tersor.job  # noqa: E402
from tersor.trust import FARTHEST  # noqa: E402

Ratios = dict[str, float]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Ratios]:
    """What each measurement found."""
    seen: list[Ratios] = []
    real = tersor.job.measured_ratios

    def spy(*args: Any) -> Ratios:
        seen.append(real(*args))
        return seen[-1]

    monkeypatch.setattr(tersor.job, "measured_ratios", spy)
    return seen


class Chain(nn.Module):
    """Without anything that is not linear: what the model of second order says is the truth."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(24, 40), nn.Linear(40, 40, bias=False), nn.Linear(40, 60)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x)))


def too_sensitive(stats: Any, name: str, factor: float) -> Any:
    """Statistics that say so of one layer."""
    layers = dict(stats.layers)
    layers[name] = dataclasses.replace(layers[name], G=layers[name].G * np.float32(factor), coherent=None)
    return dataclasses.replace(stats, layers=layers)


def test_where_the_model_is_exact_all_layers_are_trusted_alike(measured: list[Ratios]) -> None:
    torch.manual_seed(0)
    model = Chain().eval()
    stats = tersor.calibrate(model, torch.randn(400, 24), vectors=64)
    tersor.compress(model, stats, bits=5.0, measured=True)
    assert measured[0].keys() == {"a.weight", "b.weight", "c.weight"}
    assert all(0.8 < ratio < 1.25 for ratio in measured[0].values()), measured


def test_a_mean_or_scale_that_is_made_up_for_is_no_error(measured: list[Ratios]) -> None:
    """Taking a layer's errors back takes the corrections of its BatchNorm back as well."""
    model = seeded(Residual)
    stats = tersor.calibrate(model, torch.randn(200, 3, 20, 20), vectors=16)
    tersor.compress(model, stats, bits=6.0, measured=True, keep_exact=False)
    assert len(measured[0]) >= 5
    assert max(measured[0].values()) < 8.0 * min(measured[0].values()), measured


def test_wrong_sensitivities_are_found_and_made_up_for(measured: list[Ratios]) -> None:
    torch.manual_seed(0)
    model = Chain().eval()
    x = torch.randn(400, 24)
    stats = tersor.calibrate(model, x, vectors=16)
    wrong = too_sensitive(stats, "b.weight", 64.0)
    plain = tersor.compress(model, wrong, bits=4.0)
    better = tersor.compress(model, wrong, bits=4.0, measured=True)
    assert measured[0]["b.weight"] == pytest.approx(1.0 / FARTHEST)
    assert plain.snr is not None and better.snr is not None and better.snr > plain.snr + 0.5
    assert better.size <= 4.0 * better.parameters / 8
    assert any("made a better file" in note for note in better.notes)
    smaller = tersor.compress(model, wrong, snr=20.0, measured=True)
    assert smaller.snr is not None and smaller.snr >= 20.0
    assert smaller.size < tersor.compress(model, wrong, snr=20.0).size


def test_weights_that_the_user_gives_are_not_measured_away(measured: list[Ratios]) -> None:
    torch.manual_seed(0)
    model = Chain().eval()
    stats = tersor.calibrate(model, torch.randn(400, 24), vectors=64)
    tersor.compress(model, stats, bits=5.0, measured=True, layers={"b.weight": tersor.LayerConfig(weight=16.0)})
    assert 0.7 < measured[0]["b.weight"] < 1.4


@pytest.mark.parametrize("bits", [2.5, 4.0])
def test_never_worse_and_the_same_again(bits: float) -> None:
    model, x = seeded(Residual), inputs("residual")
    stats = tersor.calibrate(model, x)
    plain = tersor.compress(model, stats, bits=bits)
    packed = tersor.compress(model, stats, bits=bits, measured=True)
    assert packed.snr is not None and plain.snr is not None and packed.snr >= plain.snr
    assert packed.data == tersor.compress(model, stats, bits=bits, measured=True).data
    restored = tersor.restore(packed.data, into=copy.deepcopy(model))
    with torch.no_grad():
        y, y_hat = model(x), restored(x)
    assert 10 * torch.log10((y**2).sum() / ((y_hat - y) ** 2).sum()) == pytest.approx(packed.snr, abs=0.01)


def test_a_model_that_answers_with_one_number_each(measured: list[Ratios]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 40), nn.ReLU(), nn.Linear(40, 1), nn.Flatten(0)).eval()
    packed = tersor.compress(model, tersor.calibrate(model, torch.randn(64, 24)), bits=8.0, measured=True)
    assert packed.snr is not None and measured[0] and all(np.isfinite(list(measured[0].values())))


def test_without_a_second_walk_nothing_is_measured(measured: list[Ratios]) -> None:
    model = seeded(Residual)
    tersor.compress(dict(model.state_dict()), bits=4.0, effort=9)
    tersor.compress(model, tersor.calibrate(model, torch.randn(12, 3, 20, 20)), bits=4.0, effort=4, measured=True)
    assert measured == []


def test_an_interrupted_run_measures_no_second_time(measured: list[Ratios], tmp_path: Path) -> None:
    model = seeded(Residual)
    stats = tersor.calibrate(model, torch.randn(12, 3, 20, 20))
    plain = tersor.compress(model, stats, bits=4.0, measured=True)
    first = tersor.compress(model, stats, bits=4.0, measured=True, state=tmp_path / "state")
    again = tersor.compress(model, stats, bits=4.0, measured=True, state=tmp_path / "state")
    assert plain.data == first.data == again.data and len(measured) == 2
    assert plain.notes == first.notes == again.notes
