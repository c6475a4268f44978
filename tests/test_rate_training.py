"""Rate-aware training of the examples: files hold exactly the trained network; a price lowers the rate."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "examples"), str(ROOT / "benchmarks")]

import cifar_views  # noqa: E402
import lnq_lenet5  # noqa: E402
import lnq_resnet32  # noqa: E402
import lnq_table1  # noqa: E402
import lossless  # noqa: E402
import networks  # noqa: E402
from rate_training import RoundedNetwork, file_of  # noqa: E402

import tersor  # noqa: E402


def random_digits() -> lnq_lenet5.Digits:
    generator = torch.Generator().manual_seed(0)

    def pair(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.rand(count, 1, 28, 28, generator=generator), torch.arange(count) % 10

    return lnq_lenet5.Digits(pair(512), pair(500), pair(500))


def rounded_network(rows: bool = False) -> RoundedNetwork:
    torch.manual_seed(1)
    model = networks.LeNet5()
    names = [name for name, _ in model.named_parameters() if name != "ip1.bias"]
    exponents = {"ip2.weight": np.arange(10) - 5} if rows else {}
    latents = {name: model.get_parameter(name).detach() * 30 for name in names}
    return RoundedNetwork(model, latents, dict.fromkeys(names, 0.03), exponents)


@pytest.mark.parametrize("rows", [False, True])
def test_a_file_holds_exactly_the_rounded_network(rows) -> None:  # type: ignore[no-untyped-def]
    rounded = rounded_network(rows)
    weights = {name: weight.detach().clone() for name, weight in rounded.weights().items()}
    restored = dict(tersor.restore(file_of(rounded), into=networks.LeNet5()).named_parameters())
    for name, weight in weights.items():
        torch.testing.assert_close(restored[name].detach(), weight, rtol=1e-6, atol=0)
    bias = rounded.model.get_parameter("ip1.bias").detach()
    torch.testing.assert_close(restored["ip1.bias"].detach(), bias, rtol=0.02, atol=1e-3)


def test_estimated_bits_are_about_those_of_the_file() -> None:
    rounded = rounded_network()
    estimate = rounded.refresh() / 8
    assert estimate == pytest.approx(len(file_of(rounded)), rel=0.25)


def test_a_price_lowers_the_rate() -> None:
    rounded = rounded_network()
    before = rounded.refresh()
    optimizer = torch.optim.Adam(rounded.x, lr=0.05)
    for _ in range(10):
        optimizer.zero_grad()
        rounded.rate().backward()
        optimizer.step()
    assert rounded.refresh() < 0.7 * before


def test_masks_keep_the_share_that_was_asked_for() -> None:
    weights = {"a": torch.randn(40, 50), "b": torch.randn(10, 20) * 1000}
    masks = lnq_lenet5.adaptive_masks(weights, 0.1)
    assert sum(int(mask.sum()) for mask in masks.values()) == 220
    assert 0 < int(masks["b"].sum()) < 200, "the scale of a layer does not matter"
    for name, mask in masks.items():
        assert weights[name].abs()[mask == 0].max() <= weights[name].abs()[mask == 1].min()


def test_stages_run_and_repeat() -> None:
    def run() -> tuple[bytes, float]:
        torch.manual_seed(0)
        trainer = lnq_lenet5.Trainer(random_digits(), seed=3, exact=True)
        teacher = trainer.dense(networks.LeNet5(), 1)
        pruned = trainer.prune(teacher, 0.05, 3)
        alive = sum(int((p != 0).sum()) for p in pruned.parameters() if p.ndim > 1)
        return trainer.round(pruned, teacher, 5000, 1), alive / 430_500

    data, share = run()
    assert share == pytest.approx(0.05, rel=0.01)
    assert len(data) < 40_000
    assert run()[0] == data


def test_the_table_names_every_method() -> None:
    row = lnq_table1.Row("uniform", "2 bits", 0.99, 0.001, 0.001, 0.03, 0.99, 178.0, 9675, 178.2, 1.0)
    text = lnq_table1.document({"lenet5": [row]})
    assert "| uniform | 2 bits | 99.00% | +0.10% ± 0.10% | 178.00x | 178.20x | 9,675 | 99.28, 51.25x |" in text
    assert "40.65x" in text and "Open:" in text


def test_distance_without_a_teacher_is_the_cross_entropy() -> None:
    output, labels = torch.randn(6, 10), torch.arange(6)
    assert torch.equal(lnq_lenet5.distance(output, labels, None), F.cross_entropy(output, labels))


def test_resnet32_as_integers_and_back() -> None:
    model = networks.CifarResNet(32)
    tersor.restore(ROOT / "examples" / "zoo" / "resnet32.tersor", into=model)
    before = {name: tensor.clone() for name, tensor in model.eval().state_dict().items()}
    rounded = lnq_resnet32.integers_of(model, copy.deepcopy(model))
    for name, weight in rounded.weights().items():
        torch.testing.assert_close(weight.detach(), before[name], rtol=1e-6, atol=0)
    restored = tersor.restore(file_of(rounded), into=networks.CifarResNet(32)).state_dict()
    for name, tensor in before.items():
        torch.testing.assert_close(restored[name], tensor, rtol=0.01, atol=0.05)


def random_views(count: int) -> cifar_views.Views:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    torch.manual_seed(0)
    return cifar_views.Views.of(images, [networks.CifarResNet(8).eval() for _ in range(2)])


def shrinking(size: int, steps: int) -> lnq_resnet32.Shrinking:
    torch.manual_seed(1)
    student = networks.CifarResNet(8).eval()
    names = [name for name, p in student.named_parameters() if p.ndim > 1]
    latents = {name: student.get_parameter(name).detach() * 20 for name in names}
    rounded = RoundedNetwork(student, latents, dict.fromkeys(names, 0.05), train_steps=False)
    return lnq_resnet32.Shrinking(rounded, random_views(40), steps, size, 0, rate=0.02)


def test_training_brings_the_size_down() -> None:
    training = shrinking(9000, 20)
    assert training.start > 12_000
    training.run()
    assert len(file_of(training.rounded)) < 0.95 * training.start


def test_training_goes_on_from_a_checkpoint(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(lnq_resnet32, "CHECKPOINT", 10)
    path, lines = tmp_path / "checkpoint", []
    whole = shrinking(9000, 14)
    whole.run(path, lines.append)
    assert len(lines) == 1 and not path.exists()
    broken = shrinking(9000, 14)
    monkeypatch.setattr(lnq_resnet32, "distance", stopping(12))
    with pytest.raises(InterruptedError):
        broken.run(path, lines.append)
    monkeypatch.undo()
    resumed = shrinking(9000, 14)
    resumed.run(path)
    assert all(torch.equal(a, b) for a, b in zip(whole.rounded.x, resumed.rounded.x, strict=True))


def stopping(after: int):  # type: ignore[no-untyped-def]
    """The distance of lnq_resnet32 that can be called only so often."""
    distance, calls = lnq_resnet32.distance, 0

    def limited(*arguments):  # type: ignore[no-untyped-def]
        nonlocal calls
        calls += 1
        if calls > after:
            raise InterruptedError
        return distance(*arguments)

    return limited


def test_pruning_a_network_that_learns() -> None:
    torch.manual_seed(2)
    model, views = networks.CifarResNet(8), random_views(64)
    h = {name: np.ones(p.shape) for name, p in model.named_parameters() if p.ndim > 1}
    before = model.bn1.weight.detach().clone()
    lnq_resnet32.prune(model, h, views, 0.6, 5, 0)
    weights = torch.cat([model.get_parameter(name).flatten() for name in h])
    assert float((weights == 0).double().mean()) == pytest.approx(0.6, abs=1e-4)
    assert not torch.equal(model.bn1.weight, before)


def test_views_are_crops_and_blends_of_the_sources() -> None:
    dark = torch.full((3, 3, 32, 32), 100, dtype=torch.uint8)
    bright = torch.full((5, 3, 32, 32), 200, dtype=torch.uint8)
    generator = torch.Generator().manual_seed(0)
    views = torch.cat(list(cifar_views.mixed([dark, bright], 700, generator)))
    assert views.shape == (700, 3, 32, 32) and views.dtype == torch.uint8
    centres = views[:, 0, 16, 16]
    assert set(centres.tolist()) > {100, 200}
    assert 0.2 < float((centres == 100).double().mean()) < 0.5 and int(centres.min()) == 100
    assert (views[:, 0, 0, 0] == 0).any(), "black where a crop reaches beyond the image"


def test_copies_are_left_out() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.nn.functional.interpolate(torch.rand(20, 3, 8, 8, generator=generator) * 255, 32).to(torch.uint8)
    noisy = (images[:4].float() + 4 * torch.randn(4, 3, 32, 32, generator=generator)).clamp(0, 255).to(torch.uint8)
    assert torch.equal(cifar_views.without_copies(images, noisy), images[4:])
    assert len(cifar_views.without_copies(images[:0], noisy)) == 0


def test_a_file_without_loss() -> None:
    model = networks.LeNet5()
    few = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in few.parameters():
            parameter.copy_((parameter * 20).round() / 20)
    for network, ratio in ((model, 1.0), (few, 8.0)):
        data = lossless.lossless(network)
        assert 4 * 431_080 / len(data) > ratio
        restored = tersor.restore(data, into=networks.LeNet5()).state_dict()
        assert all(torch.equal(restored[name], tensor) for name, tensor in network.state_dict().items())
