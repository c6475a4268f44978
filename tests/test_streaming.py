"""Models too large for memory: layers are coded as the encoder goes on, the file is the same; memory is told first."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
from encoder_models import Residual, seeded

import tersor
from tersor import encoding as encoding_module
from tersor import writer
from tersor.config import TransformConfig
from tersor.sensitivity import calibrate
from tersor.tools import (
    metric,
    scalar,
    target,
)

RNG = np.random.default_rng(5)


def layers(shapes: list[tuple[int, ...]]) -> dict[str, Any]:
    return {f"l{i}.weight": RNG.normal(0, 0.05, shape).astype(np.float32) for i, shape in enumerate(shapes)}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sections of 3,000 weights, streamed whatever the size; the most integers that were held at once."""
    held: list[int] = []
    monkeypatch.setattr(writer, "GROUP", 3000)
    monkeypatch.setattr(writer, "STREAMED", 0)
    call = writer.Stream.__call__

    def watched(self: writer.Stream, name: str) -> None:
        call(self, name)
        held.append(sum(code.q.size for code in self.encoding.scalars.values()))

    monkeypatch.setattr(writer.Stream, "__call__", watched)
    return held


@pytest.mark.parametrize("options", [{"mode": "fast"}, {"mode": "small", "effort": 4}, {"effort": 6}])
def test_the_file_is_the_same_and_integers_are_let_go(small: list[int], monkeypatch: pytest.MonkeyPatch,
                                                      options: dict[str, Any]) -> None:
    model = layers([(40, 50), (20, 30), (64, 100), (30, 20), (10, 10), (40, 60), (7, 9)])
    streamed = tersor.compress(model, bits=3.0, **options)
    assert small and max(small) <= 6400 < sum(array.size for array in model.values())
    monkeypatch.setattr(writer, "STREAMED", 1 << 60)
    small.clear()
    assert tersor.compress(model, bits=3.0, **options).data == streamed.data
    assert not small, "the second time it was not streamed"
    restored = streamed.load()
    assert all(np.abs(restored[name] - array).mean() < 0.02 for name, array in model.items())


def test_a_transform_after_sections_were_coded(small: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    smooth = np.linspace(-1, 1, 5)[:, None] * np.linspace(1, 2, 5) + RNG.normal(0, 1, (16, 16, 1, 1))
    model = layers([(64, 64), (64, 50)]) | {"last.weight": smooth.astype(np.float32)}
    options: dict[str, Any] = {"effort": 4, "tools": ("scalar", "transform"), "transform": TransformConfig(("dct1",))}
    streamed = tersor.compress(model, bits=3.0, **options)
    assert small and streamed.decisions["last.weight"]["tool"] == "transform"
    monkeypatch.setattr(writer, "STREAMED", 1 << 60)
    assert tersor.compress(model, bits=3.0, **options).data == streamed.data


def test_rows_in_slabs_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = layers([(64, 50), (40, 33)])
    whole = [tersor.compress(model, bits=2.5, effort=effort).data for effort in (2, 6)]
    for module in (scalar, encoding_module):
        monkeypatch.setattr(module, "SLAB", 700)
    assert [tersor.compress(model, bits=2.5, effort=effort).data for effort in (2, 6)] == whole


def test_factors_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = seeded(Residual)
    import torch
    stats = calibrate(model, torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    calls: list[int] = []

    def counted(matrix: Any, damping: float = metric.DAMPING) -> metric.Triangular:
        calls.append(matrix.ndim)
        return metric.triangular(matrix, damping)

    monkeypatch.setattr(target, "triangular", counted)
    kept = tersor.compress(model, stats, bits=3.0, effort=5)
    once = calls.count(2)
    assert once == 2 * len(stats.layers), "A and G of each layer, whatever the number of trials"
    monkeypatch.setattr(encoding_module, "FACTORS", 0)
    calls.clear()
    assert tersor.compress(model, stats, bits=3.0, effort=5).data == kept.data
    assert calls.count(2) > 2 * once
