"""The second walk: the original and the compressed network side by side; layers make up for those before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from encoder_models import MODELS, Residual, build, decibels, inputs, outputs, pooled, seeded  # noqa: E402
from torch import Tensor, nn  # noqa: E402

import tersor  # noqa: E402
import tersor.job  # noqa: E402

Walks = list[Tensor | None]


@pytest.fixture
def walks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Walks]:
    """What each second walk returned as the compressed network's outputs."""
    seen: Walks = []
    original = tersor.job.lockstep_walk

    def spy(*args: Any) -> Any:
        result = original(*args)
        seen.append(result[-1] if isinstance(result, tuple) else result)
        return result

    monkeypatch.setattr(tersor.job, "lockstep_walk", spy)
    return iter([seen]).__next__()


def compressed(model: nn.Module, batches: list[Any], **options: Any) -> tuple[tersor.Packed, nn.Module]:
    """A packed model and what it restores to."""
    import copy

    stats = tersor.calibrate(model, batches)
    packed = tersor.compress(model, stats, **options)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in other.state_dict().values():
            tensor.zero_()
    return packed, tersor.restore(packed.data, into=other)


FOLLOWED = ["mlp", "wide", "residual", "conv3d", "transposed"]


@pytest.mark.parametrize("name", FOLLOWED)
@pytest.mark.parametrize("bits", [3.5, 8.0])
def test_the_second_half_is_the_restored_network(name: str, bits: float, walks: Walks) -> None:
    """All that the walk sees is what a decoder gives: outputs agree to rounding of float32."""
    model, x = build(name), inputs(name)
    packed, restored = compressed(model, [x], bits=bits)
    assert packed.notes == [] and walks
    y_hat = outputs(restored, x)
    followed = [y for y in walks if y is not None]
    if name in ("residual", "wide", "mlp"):
        assert len(followed) == len(walks), "nothing was left to encode after the walk"
    assert not followed or min(float((y - y_hat).abs().max()) for y in followed) < 1e-4
    assert packed.snr == pytest.approx(decibels(outputs(model, x), y_hat), abs=0.02)


@pytest.mark.parametrize("name", MODELS)
def test_the_reported_ratio_is_that_of_the_file(name: str) -> None:
    model, x = build(name), inputs(name)
    packed, restored = compressed(model, [x[:10], x[10:]], bits=20 if name == "oddities" else 7)
    assert packed.snr == pytest.approx(decibels(outputs(model, x), outputs(restored, x)), abs=0.02)


def test_the_second_walk_pays() -> None:
    """At equal size, more dB than from statistics alone (a mean of three rates: networks as small as this one jump)."""
    model, x = build("residual"), inputs("residual", 200)
    gains = [compressed(model, [x], bits=bits, effort=5)[0].snr - compressed(model, [x], bits=bits, effort=3)[0].snr
             for bits in (3.0, 3.5, 5.0)]
    assert sum(gains) / 3 > 1.0


def test_mean_outputs_are_kept() -> None:
    """Biases and BatchNorms take up mean errors, up to their own precision, also at a low rate."""
    model, x = build("residual"), inputs("residual", 100)
    _, restored = compressed(model, [x], bits=2.5)
    y, y_hat = outputs(model, x), outputs(restored, x)
    error = y_hat - y
    assert float((error.mean(0) ** 2).sum() / (error**2).mean(0).sum()) < 0.05


class BatchSecond(nn.Module):
    """[time, images, features] inside."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x.transpose(0, 1)))).mean(0)


class Mixed(nn.Module):
    """Images depend on each other."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.second(h - h.mean(0, keepdim=True) + 0.1 * h)


class ByBatch(nn.Module):
    """Reshapes with a number of images that it counts itself, and cuts the batch into images."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(x.reshape(len(x) * 5, 8)))
        return torch.stack([self.second(image).mean(0) for image in h.reshape(len(x), 5, 16)])


@pytest.mark.parametrize(("make", "shape"), [(BatchSecond, (5, 8)), (Mixed, (8,)), (ByBatch, (5, 8))])
def test_models_that_do_not_split_fall_back_with_a_note(make: Callable[[], nn.Module],
                                                        shape: tuple[int, ...]) -> None:
    model, x = seeded(make), torch.randn(24, *shape)
    packed, restored = compressed(model, [x], bits=8)
    walks = [note for note in packed.notes if "smaller than asked" not in note]  # these models are tiny
    assert len(walks) == 1 and walks[0].startswith("no second walk: ")
    assert packed.snr == pytest.approx(decibels(outputs(model, x), outputs(restored, x)), abs=0.02)
    assert packed.snr is not None and packed.snr > 25


def test_functional_batchnorm_is_followed() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
            self.head = nn.Linear(8, 10)

        def forward(self, x: Tensor) -> Tensor:
            bn = self.bn
            h = self.conv(x)
            h = torch.nn.functional.batch_norm(h, bn.running_mean, bn.running_var, bn.weight, bn.bias)
            return self.head(torch.relu(h).mean((2, 3)))

    model, x = seeded(Functional), torch.randn(24, 3, 7, 7)
    packed, restored = compressed(model, [x], bits=10)
    assert packed.notes == []
    assert decibels(outputs(model, x), outputs(restored, x)) > 35


def test_batchnorm_that_normalises_by_the_batch_is_left_alone() -> None:
    """A BatchNorm always in training mode is another function than y = a z + b."""
    class Batchwise(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 10)

        def forward(self, x: Tensor) -> Tensor:
            bn = self.bn
            h = torch.nn.functional.batch_norm(self.conv(x), None, None, bn.weight, bn.bias, training=True)
            return self.head(torch.relu(h).mean((2, 3)))

    model, x = seeded(Batchwise), torch.randn(24, 3, 7, 7)
    packed, _ = compressed(model, [x], bits=12)
    assert packed.notes and "over the batch" in packed.notes[0]


def test_dead_channels_and_constant_inputs() -> None:
    model = seeded(Residual)
    with torch.no_grad():
        model.stem.weight[2] = 0.0
        model.conv1.weight.zero_()
        model.bn.running_var[3] = 0.0
        model.bn2.weight[1] = 0.0
        model.bn3.weight.mul_(1e-6)
    for x in (torch.randn(16, 3, 8, 8), torch.zeros(16, 3, 8, 8), torch.ones(1, 3, 8, 8).expand(16, 3, 8, 8)):
        packed, restored = compressed(model, [x], bits=6)
        assert not any("walk" in note for note in packed.notes)
        assert all(tensor.isfinite().all() for tensor in restored.state_dict().values())
        assert decibels(outputs(model, x), outputs(restored, x)) > 20


@pytest.mark.parametrize("name", ["residual", "conv2d, grouped, depthwise", "mlp", "words"])
def test_one_image_is_enough_not_to_crash(name: str) -> None:
    model, x = build(name), inputs(name, 1)
    packed, restored = compressed(model, [x], bits=8)
    assert decibels(outputs(model, x), outputs(restored, x)) > 20
    assert packed.snr is not None


def test_weights_that_are_used_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.bn = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)
            self.again = nn.Conv2d(8, 8, 3, padding=1)
            self.head = nn.Sequential(*pooled(), nn.Linear(8, 10))

        def forward(self, x: Tensor) -> Tensor:
            h = torch.relu(self.bn(self.again(torch.relu(self.first(x)))))
            return self.head(torch.relu(self.bn(self.again(h))))

    model, x = seeded(Twice), torch.randn(24, 3, 6, 6)
    packed, restored = compressed(model, [x], bits=9)
    assert packed.notes == []
    assert decibels(outputs(model, x), outputs(restored, x)) > 30


def test_models_called_with_keywords() -> None:
    class Keywords(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.head = nn.Embedding(30, 12), nn.Linear(12, 10)

        def forward(self, *, ids: Tensor, scale: Tensor) -> dict[str, Tensor]:
            return {"logits": self.head(torch.tanh(self.words(ids).sum(1) * scale))}

    model = seeded(Keywords)
    batch = {"ids": torch.randint(0, 30, (24, 5)), "scale": torch.rand(24, 1) + 0.5}
    stats = tersor.calibrate(model, [batch])
    packed = tersor.compress(model, stats, bits=8)
    restored = tersor.restore(packed.data, into=seeded(Keywords, 3))
    with torch.no_grad():
        y, y_hat = (m(**batch)["logits"].double() for m in (model, restored))
    assert packed.notes == []
    assert packed.snr == pytest.approx(decibels(y, y_hat), abs=0.02) and packed.snr > 25


def test_without_the_module_there_is_a_note() -> None:
    model, x = build("residual"), inputs("residual")
    stats = tersor.calibrate(model, [x])
    state = model.state_dict()
    assert tersor.compress(state, stats, bits=5).notes == ["no second walk: it needs the nn.Module"]
    assert tersor.compress(state, stats, bits=5, effort=4).notes == []  # which would make none anyway


def test_without_samples_there_is_a_note() -> None:
    model, x = build("residual"), inputs("residual")
    stats = tersor.calibrate(model, [x], keep=0)
    packed = tersor.compress(model, stats, bits=5)
    assert packed.notes == ["no second walk: the statistics kept no samples"] and packed.snr is None
    with pytest.raises(tersor.TersorError, match="samples"):
        tersor.compress(model, stats, snr=30)


def test_scouts_look_for_lambda_with_some_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where running the networks takes longest: the file that is kept is of all samples, and meets its size."""
    model, x = build("residual"), inputs("residual")
    stats = tersor.calibrate(model, [x])
    plain = tersor.compress(model, stats, bits=6.0)
    monkeypatch.setattr("tersor.stage.WEIGHT", 0.0)
    monkeypatch.setattr("tersor.stage.FEWEST_SCOUTS", 2)
    counts: list[int] = []
    original = tersor.job.lockstep_walk

    def spy(encoding: Any, network: Any, stage: Any) -> Any:
        counts.append(len(stage))
        return original(encoding, network, stage)

    monkeypatch.setattr(tersor.job, "lockstep_walk", spy)
    monkeypatch.setattr("tersor.stage.SCOUTS", len(x) // 2)
    packed = tersor.compress(model, stats, bits=6.0)
    assert counts[0] == 2 and counts[-1] == len(x) and sorted(counts) == counts
    assert packed.bits_per_weight <= 6.0 and packed.size > 0.97 * plain.size and packed.snr is not None


def test_more_images_are_seen_at_fewer_positions() -> None:
    """So that the moments take as long to sum; but at no fewer than 16 of each image."""
    from tersor.columns import Columns

    layer = nn.Conv2d(2, 4, 3, padding=1)
    x = torch.randn(2, 2, 12, 12)
    inventory = tersor.adapters.module.inventory_of_module(layer)
    target = tersor.plan.Plan(inventory, None, tersor.Config()).target("weight")
    generator = torch.Generator().manual_seed(0)
    counts = []
    for images in (2, 320, 640, 1280, 5000):
        columns = Columns(target, nn.functional.conv2d, [x, layer.weight, None, 1, 1], {}, generator, images)
        u, v, s = columns.of(x, x, torch.zeros(2, 4, 12, 12), None)
        assert u.equal(v) and s is None
        counts.append(u.shape[2] // len(x))
    assert counts == [64, 64, 32, 16, 16]
