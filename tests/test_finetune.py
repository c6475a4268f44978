"""The ready loop: never a worse file, sizes held and reached, checkpoints that go on to the same bytes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoder_models import build, inputs
from torch import Tensor, nn
from torch.nn import functional as F

import tersor
from tersor.errors import ConfigError, TargetError
from tersor.sections import Contents
from tersor.training.loop import SLACK
from tersor.training.masks import keep_masks
from tersor.training.pricing import RAMP, Pricing
from tersor.training.recovery import recover, views

BATCHES = [inputs("residual", 16, seed) for seed in range(12)]
CACHE: dict[str, tersor.Packed] = {}


def student(tools: tuple[str, ...] = ("scalar",)) -> tersor.Packed:
    key = tools[0]
    if key not in CACHE:
        model = build("residual")
        extra: dict[str, Any] = {"kernels": tersor.KernelConfig(size=8)} if key == "kernels" else {}
        CACHE[key] = tersor.compress(model, tersor.calibrate(model, BATCHES[:1]), bits=4.0, tools=tools, effort=1,
                                     **extra)
    return CACHE[key]


def adam(rate: float) -> Any:
    def make(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        for group in groups:
            group["lr"] *= rate if group["name"] == "latents" else rate / 4.0
        return torch.optim.Adam(groups)

    return make


def labelled(count: int = 12) -> list[tuple[Tensor, Tensor]]:
    """Answers that differ from those of the network: there is something to learn."""
    model = build("residual", 3)
    with torch.no_grad():
        return [(x, model(x)) for x in BATCHES[:count]]


def judged(file: tersor.Packed, batches: list[tuple[Tensor, Tensor]]) -> float:
    model = tersor.restore(file.data, into=build("residual", 5)).eval()
    with torch.no_grad():
        return float(np.mean([float(F.mse_loss(model(x), y)) for x, y in batches]))


@pytest.mark.parametrize("tools", [("scalar",), ("kernels",)])
def test_a_better_file_of_no_more_bytes(tools):
    file, data = student(tools), labelled()
    lines: list[str] = []
    model = build("residual")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    better = tersor.finetune(file, model, data, loss=F.mse_loss, epochs=4, optimizer=adam(30.0), progress=lines.append,
                             reassign=0.02 if tools == ("kernels",) else None)
    assert better.size <= file.size + (SLACK if tools == ("kernels",) else 0) and better.data != file.data
    assert judged(better, data[-1:]) < 0.8 * judged(file, data[-1:])
    assert "fine-tuned" in better.notes[-1] and "held-out" in better.notes[-1] and len(lines) >= 10
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    indexes = [[code.index for code in section.codes if hasattr(code, "gain")]
               for section in Contents.of(better.data).sections]
    assert any(indexes) == (tools == ("kernels",))


def test_without_labels_and_shrinking():
    file, model = student(), build("residual")
    smaller = tersor.finetune(file, model, BATCHES, size=int(0.96 * file.size), steps=100, optimizer=adam(40.0))
    assert 0.85 * file.size < smaller.size <= 0.96 * file.size
    with torch.no_grad():
        before, after = (tersor.restore(f.data, into=build("residual", 5)).eval()(BATCHES[-1]) for f in (file, smaller))
        found = tersor.evaluate.compare(model(BATCHES[-1]), after)
    assert found.kl < 0.1 and torch.isfinite(before).all()
    with pytest.raises(TargetError, match="no file of at most 100 bytes"):
        tersor.finetune(file, model, BATCHES, size=100, steps=2)


def test_nothing_better_gives_the_same_file():
    file, model = student(), build("residual")
    same = tersor.finetune(file, model, BATCHES, steps=4, optimizer=lambda groups: torch.optim.SGD(groups, lr=0.0))
    assert same.data == file.data and "nothing better" in same.notes[-1]
    noisy = tersor.finetune(file, model, BATCHES, steps=4, optimizer=adam(400.0))
    assert noisy.data == file.data


def test_recovery_on_calibration_samples():
    model = build("residual")
    samples = torch.cat(BATCHES[:4])
    file = student()
    better = recover(file, model, samples, steps=30)
    assert better.size <= file.size and ("fine-tuned" in better.notes[-1] or better.data == file.data)
    assert better.data == recover(file, model, samples, steps=30).data
    assert recover(file, model, samples[:8]) is file, "too few to tell"


def test_views_are_shifted_mirrored_and_blended():
    images = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 2, 8, 8) + torch.linspace(0, 0.1, 8)
    generator = torch.Generator().manual_seed(0)
    found = views(images, generator)
    assert found.shape == images.shape and not torch.equal(found, images)
    assert float(found.min()) >= 0.0 and float(found.max()) <= 5.11
    slopes = found[:, 0, 0, -1] - found[:, 0, 0, 0]
    assert bool((slopes > 0).any()) and bool((slopes < 0).any())
    words = torch.randint(0, 9, (6, 5))
    assert torch.equal(views(words, generator), words)
    assert views(torch.randn(6, 7), generator).shape == (6, 7)


def test_patience_ends_training():
    looks: list[str] = []
    tersor.finetune(student(), build("residual"), BATCHES, steps=100, every=1, patience=2, optimizer=adam(0.0),
                    progress=looks.append)
    assert len(looks) < 50


def stop_after(count: int) -> Any:
    """A progress function that ends the run."""
    seen = []

    def look(line: str) -> None:
        seen.append(line)
        if len(seen) == count:
            raise KeyboardInterrupt

    return look


@pytest.mark.parametrize("shuffled", [False, True])
def test_a_checkpoint_goes_on_to_the_same_bytes(tmp_path, shuffled):
    data: Any = labelled(8)
    held = data[-2:]
    if shuffled:  # draws from torch's generator
        whole = torch.utils.data.TensorDataset(torch.cat([x for x, _ in data]), torch.cat([y for _, y in data]))
        data = torch.utils.data.DataLoader(whole, batch_size=16, shuffle=True)

    model = nn.Sequential(build("residual"), nn.Dropout(0.2)).eval()
    file = tersor.compress(model, tersor.calibrate(model, BATCHES[:1]), bits=4.0, effort=1)

    def run(path: Path | None = None, progress: Any = None) -> bytes:
        return tersor.finetune(file, model.train(), data, loss=F.mse_loss, steps=30, every=5, held_out=held, seed=3,
                               optimizer=adam(20.0), checkpoint=path, progress=progress).data

    state = torch.get_rng_state()
    whole_run = run()
    assert torch.equal(torch.get_rng_state(), state), "the caller's generator is untouched"
    path = tmp_path / "state.pt"
    for count in (3, 2):
        with pytest.raises(KeyboardInterrupt):
            run(path, stop_after(count))
    torch.rand(3)
    assert run(path) == whole_run
    assert run(path, stop_after(1)) == whole_run, "a finished run answers at once"


def test_a_checkpoint_of_something_else(tmp_path):
    path = tmp_path / "state.pt"
    tersor.finetune(student(), build("residual"), BATCHES, steps=2, checkpoint=path)
    with pytest.raises(ConfigError, match="other options"):
        tersor.finetune(student(), build("residual"), BATCHES, steps=3, checkpoint=path)
    path.write_bytes(b"nonsense")
    with pytest.raises(ConfigError, match="no checkpoint"):
        tersor.finetune(student(), build("residual"), BATCHES, steps=2, checkpoint=path)


def test_what_is_refused():
    file, model = student(), build("residual")
    for options, message in (
            ({"batches": BATCHES, "epochs": 1, "steps": 1}, "not both"),
            ({"batches": BATCHES, "steps": 0}, "0 steps"),
            ({"batches": iter(BATCHES), "steps": 3}, "give held_out"),
            ({"batches": lambda _: BATCHES, "held_out": BATCHES}, "give steps"),
            ({"batches": BATCHES, "held_out": []}, "held_out has no"),
            ({"batches": BATCHES, "loss": F.mse_loss, "steps": 1}, "without targets|needs"),
            ({"batches": iter(BATCHES[:1]), "held_out": BATCHES[:1], "steps": 3}, "epoch 1 has no batches"),
            ({"batches": BATCHES, "steps": 1, "size": 0}, "size=0"),
            ({"batches": BATCHES, "steps": 2, "held_out": BATCHES[:1], "optimizer": adam(1e400)}, "loss is nan")):
        with pytest.raises(ConfigError, match=message):
            tersor.finetune(file, model, **options)
    raw = tersor.compress(model, size=11_060, tools=("raw",), keep_exact=True)
    with pytest.raises(ConfigError, match="nothing that can be trained"):
        tersor.finetune(raw, model, BATCHES, steps=1)


def pricing(start, limit, fixed=None):
    found = Pricing(start, limit, fixed)
    found.begin(0.1, 4000)
    found.measured(start, 8.0 * start)
    return found


def test_the_price_follows_the_size():
    held = pricing(1000, 1000)
    held.steer(8000.0, 0.0)
    held.steer(8400.0, 0.02)
    dearer = held.price
    held.steer(7000.0, 0.03)
    assert dearer > held.first > 0 and held.price < dearer
    fixed = pricing(1000, 1000, 0.25)
    fixed.steer(8000.0, 0.0)
    fixed.steer(1e9, 0.5)
    assert fixed.price == 0.25
    ramp = pricing(1000, 500)
    for progress in (0.0, 0.1, 0.2):
        ramp.steer(8000.0 * (1.0 - 0.5 * progress / RAMP), progress)
    assert ramp.price == pytest.approx(ramp.first, rel=0.1), "on its way"
    again = pricing(1000, 500)
    again.load(ramp.state())
    assert again == ramp


def test_the_price_begins_at_what_compression_has_cost(monkeypatch):
    """A loss that the original network has as well is worth no bits."""
    seen = []
    begin = Pricing.begin
    monkeypatch.setattr(Pricing, "begin", lambda self, loss, weights: (seen.append(loss), begin(self, loss, weights)))
    file, model, file_loss = student(), build("residual"), 0.0
    with torch.no_grad():
        answers = [(x, model(x)) for x in BATCHES]
    for offset in (0.0, 3.0, 1e6):
        added = offset * file_loss
        tersor.finetune(file, model, answers, steps=1, loss=lambda y, x, added=added: F.mse_loss(y, x) + added)
        file_loss = seen[0]
    assert seen[1] == pytest.approx(seen[0], rel=1e-3) and seen[2] == pytest.approx(0.02e6 * seen[0], rel=1e-3)
    with pytest.raises(TargetError):  # a file that is to shrink needs a price at once
        tersor.finetune(file, model, answers, steps=1, size=100, loss=lambda y, x: F.mse_loss(y, x) + 3.0 * file_loss)
    assert seen[3] == pytest.approx(4.0 * seen[0], rel=1e-3)


@pytest.mark.parametrize(("haste", "force"), [(0.05, 60.0), (0.02, 60.0), (0.1, 200.0)])
def test_a_price_that_acts_late_does_not_swing(haste, force):
    """Integers as a price finds them: each must first move through its step. Ten percent of the bits have to go."""
    held = pricing(1000, 900)
    speed, bits, sizes, prices = 0.0, 8000.0, [], []
    for step in range(1000):
        held.steer(bits, step / 1000)
        speed += haste * (-force * math.log(held.price / held.first) - speed)
        bits += speed * 0.2
        sizes.append(bits / 8.0)
        prices.append(held.price / held.first)
    assert max(abs(size - 900.0) for size in sizes[500:]) < 9.0
    assert min(sizes) > 880.0 and max(prices) < 3.0 and min(prices) > 1 / 3


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 4))


def test_masks_are_kept_under_momentum():
    model, generator = network(), torch.Generator().manual_seed(7)
    data = [(torch.randn(8, 2, 4, 4, generator=generator), torch.randint(0, 4, (8,), generator=generator))
            for _ in range(4)]
    mask = {"3.weight": np.random.default_rng(1).random((4, 96)) < 0.3}
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=0.01)
    for x, y in data:  # momentum builds up before the weights are pruned
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    weight = model.get_parameter("3.weight")
    with keep_masks(model, mask, optimizer):
        for x, y in data:
            assert torch.equal(weight != 0, torch.from_numpy(mask["3.weight"]))
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    kept = weight.detach().clone()
    optimizer.step()
    assert not torch.equal(weight, kept) and bool((weight[~torch.from_numpy(mask["3.weight"])] != 0).any())
    with pytest.raises(tersor.TersorError, match=r"0\.weight"), \
            keep_masks(model, {"0.weight": np.ones(3, bool)}, optimizer):
        pass
