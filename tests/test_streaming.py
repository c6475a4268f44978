"""Models too large for memory: layers are coded as the encoder goes on, the file is the same; memory is told first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
from encoder_models import Residual, seeded

import tersor
from tersor import job, writer
from tersor import plan as plan_module
from tersor.adapters.inventory import Inventory, WeightLayer
from tersor.config import TransformConfig
from tersor.memory import available
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
    for module in (scalar, plan_module):
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
    monkeypatch.setattr(plan_module, "FACTORS", 0)
    calls.clear()
    assert tersor.compress(model, stats, bits=3.0, effort=5).data == kept.data
    assert calls.count(2) > 2 * once


def test_memory_is_told_before_it_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def inventory(count: int) -> Inventory:
        """Layers of 16 million weights that are not there."""
        large = np.broadcast_to(np.float32(0.01), (4096, 4096))
        tensors = {f"l{i}.weight": large for i in range(count)}
        return Inventory(tensors, list(tensors), {}, [WeightLayer(name, "linear") for name in tensors], [], 0)

    few, many = (tersor.footprint(inventory(count), effort=2) for count in (2, 8))
    assert many.weights == 4 * few.weights == 8 << 24 and many.largest == "l0.weight"
    assert many.layer == few.layer, "one layer at a time"
    assert many.mapped == 4 * few.mapped == 4 * many.weights
    assert many.kept < 4 * few.kept, "integers are let go"
    assert many.memory == pytest.approx(many.mapped + many.kept + many.layer, abs=600e6)
    assert tersor.footprint(inventory(2), effort=9).layer > 3 * many.layer
    small = layers([(40, 50)])
    said: list[str] = []
    monkeypatch.setattr(job, "available", lambda: 10**6)
    packed = tersor.compress(small, bits=3.0, progress=said.append)
    assert any(note.startswith("memory may not suffice: about 0.5 GB") for note in packed.notes)
    assert said[0] in packed.notes
    monkeypatch.setattr(job, "available", lambda: None)
    assert not any("memory" in note for note in tersor.compress(small, bits=3.0).notes)
    assert available() is None or available() > 10**6


def test_the_second_walk_is_counted() -> None:
    import torch
    model = seeded(Residual)
    stats = calibrate(model, torch.randn(8, 3, 8, 8))
    without, walk = tersor.footprint(model, stats, effort=3), tersor.footprint(model, stats, effort=5)
    widest = 2 * 8 * (8 * 8 * 8 * 4)  # both networks, 8 images, 8 maps of 8 x 8
    assert widest < walk.memory - without.memory < 30 * widest
    assert walk.layer == without.layer and walk.weights == sum(p.numel() for p in model.parameters() if p.ndim > 1)


def test_statistics_stay_on_disk(tmp_path: Path) -> None:
    import torch
    stats = calibrate(seeded(Residual), torch.randn(8, 3, 8, 8))
    stats.save(tmp_path / "stats")
    loaded = tersor.Statistics.load(tmp_path / "stats")
    layer = loaded.layers["conv1.weight"]
    assert not layer.A.flags.owndata and not layer.A.flags.writeable
    assert np.array_equal(layer.A, stats.layers["conv1.weight"].A)
    assert isinstance(loaded.samples, torch.Tensor)
    loaded.samples.zero_()  # a copy
    again = tersor.Statistics.load(tmp_path / "stats")
    assert isinstance(again.samples, torch.Tensor) and bool(again.samples.any())
