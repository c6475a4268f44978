"""Several processes under torch.distributed: the same statistics as from one, and a clear end when one is lost."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
import torch.distributed as dist  # noqa: E402
from encoder_models import Residual, Words, seeded  # noqa: E402
from parallel_team import run  # noqa: E402
from torch import Tensor, nn  # noqa: E402

import tersor  # noqa: E402
from tersor import encoding, parallel, writer  # noqa: E402
from tersor.calibration.exact import Sum  # noqa: E402
from tersor.encoding import Encoding  # noqa: E402
from tersor.errors import ConfigError, StatisticsError, TersorError, WorkerError  # noqa: E402
from tersor.parallel import ALONE, Team, everybody  # noqa: E402
from tersor.sensitivity import calibrate  # noqa: E402
from tersor.statistics import Statistics  # noqa: E402


def networks() -> dict[str, tuple[nn.Module, list[Tensor]]]:
    """Models with seven batches of unequal sizes each."""
    generator = torch.Generator().manual_seed(3)
    sizes = (5, 4, 6, 3, 5, 2, 4)
    images = [torch.randn(size, 3, 8, 8, generator=generator) * 10.0 ** (i - 3) for i, size in enumerate(sizes)]
    words = [torch.randint(0, 50, (size, 9), generator=generator) for size in sizes]
    return {"residual": (seeded(Residual), images), "words": (seeded(Words), words)}


def measured(team: Team, share: slice) -> dict[str, Statistics]:
    """Statistics of both; few positions, several random vectors, fewer samples than images."""
    return {name: calibrate(model, batches[share], vectors=2, keep=13, max_positions=20, team=team)
            for name, (model, batches) in networks().items()}


def test_sums_do_not_depend_on_order_or_grouping() -> None:
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(2, 50, 50, generator=generator).exp() * 10.0**k for k in (-3, 0, -6, -9, 2, 1, -1)]

    def total(order: list[int]) -> Tensor:
        found = Sum.zeros((2, 50, 50))
        found.add(parts[1])
        found.begin()
        for i in order:
            found.add(parts[i], 0.3)
        return found.value

    forwards, backwards = total([0, 1, 2, 3, 4, 5, 6]), total([6, 5, 4, 3, 2, 1, 0])
    assert torch.equal(forwards, backwards)
    assert torch.equal(forwards, total([4, 2, 0]) + total([1, 3, 5, 6]))
    exact = 0.3 * torch.stack(parts).double().sum(0)
    assert float(((forwards - exact) / exact).abs().max()) < 1e-8
    plain = [torch.stack([parts[i].double() * 0.3 for i in order]) for order in ([0, 1, 2, 3], [3, 2, 1, 0])]
    assert not torch.equal(*(sum(part) for part in plain)), "the test would pass anyway"


def test_sums_without_a_unit_are_plain() -> None:
    found = Sum.zeros(())
    found.begin()
    found.add(torch.tensor(0.1, dtype=torch.float64))
    assert found.unit == 0.0 and float(found.value) == 0.1
    broken = Sum(torch.tensor([float("inf")], dtype=torch.float64))
    broken.begin()
    assert broken.unit == 0.0 and float(broken.value) == 0.0


def test_alone() -> None:
    assert everybody() is ALONE and ALONE.is_alone
    assert ALONE.gather(3) == [3] and ALONE.broadcast("x") == "x"
    x = torch.ones(3)
    ALONE.add(x)
    assert x.tolist() == [1, 1, 1]


def batches_until(wanted: int, action: Any) -> Any:
    """Small batches; before number `wanted`, something happens."""
    for number in range(4):
        if number == wanted:
            action()
        yield torch.full((2, 4), 1.0 + number)


def ended(team: Team, batches: Any, model: nn.Module | None = None) -> str:
    """How a calibration ends, and after how many seconds since the last batch."""
    try:
        calibrate(model or nn.Linear(4, 3), batches, team=team)
    except (StatisticsError, WorkerError) as error:
        return f"{type(error).__name__}: {error}"
    return "well"


def work(rank: int, size: int, folder: Path) -> dict[str, Any]:
    """What each of three processes does: statistics, then three bad ends."""
    groups = [dist.new_group([0, 1]), *(dist.new_group() for _ in range(3))]
    if rank < 2:
        for name, stats in measured(Team(rank, 2, groups[0], number=101), slice(rank, None, 2)).items():
            stats.save(folder / f"{name}-2-{rank}")
    for name, stats in measured(everybody(), slice(rank, None, size)).items():
        stats.save(folder / f"{name}-3-{rank}")
    found: dict[str, Any] = {}
    torch.manual_seed(0)
    model, bad = nn.Linear(4, 3), torch.full((2, 4), float("nan"))
    # One batch is enough for three.
    found["few"] = calibrate(model, [torch.ones(2, 4)] if rank == 0 else []).images
    found["another model"] = ended(Team(rank, size, groups[1], number=102), [bad], nn.Linear(4, 3 + (rank == 1)))
    team = Team(rank, size, groups[2], number=103)
    found["NaN"] = ended(team, [torch.ones(2, 4), bad if rank == 1 else torch.ones(2, 4)], model)
    found["again"] = ended(team, [torch.ones(2, 4)], model)
    parallel.GRACE = 2.0
    team = Team(rank, size, groups[3], number=104)
    found["killed"] = ended(team, batches_until(2 if rank == 2 else -1, lambda: os._exit(9)), model)
    return found


def test_the_same_statistics_from_one_two_and_three_processes_and_clear_ends(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    alone = measured(ALONE, slice(None))
    results = run(work, 3, tmp_path, tmp_path)
    for name, stats in alone.items():
        stats.save(tmp_path / "alone")
        expected = (tmp_path / "alone").read_bytes()
        assert stats.images == 29 and stats.samples is not None and len(stats.samples) == 13
        for place in ("2-0", "2-1", "3-0", "3-1", "3-2"):
            assert (tmp_path / f"{name}-{place}").read_bytes() == expected, (name, place)
    first, second, killed = results
    assert isinstance(first, dict) and isinstance(second, dict), results
    assert killed is None, "it has left no word"
    assert first["few"] == second["few"] == 2
    assert first["another model"].startswith("StatisticsError: rank 1 calibrates with another model than rank 0")
    assert "NaN or infinity" in second["NaN"] and second["NaN"].startswith("StatisticsError")
    assert first["NaN"].startswith("WorkerError: rank 0 of 3: rank 1 has stopped: StatisticsError: weight: the input")
    for result in (first, second):
        assert result["again"].startswith("WorkerError") and "start the job again" in result["again"]
        assert result["killed"].startswith("WorkerError") and ": rank 2 died or does not answer" in result["killed"]


def encodings() -> dict[str, tuple[Any, Any, dict[str, Any]]]:
    """Name -> model, statistics, options: with and without the second walk, shared values, several tools."""
    model = seeded(Residual)
    stats = calibrate(model, torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(0)), team=ALONE)
    rng = np.random.default_rng(0)
    plain = {f"l{i}.weight": rng.normal(size=(30, 20 + i)).astype(np.float32) for i in range(6)}
    layers = {r"l[01]\.weight": tersor.LayerConfig(tool="codebook")}
    rivals = {"tools": ("scalar", "transform", "kernels"), "transform": tersor.TransformConfig(("dct1",)),
              "kernels": tersor.KernelConfig(size=4, gains=False)}
    return {"walk": (model, stats, {"bits": 3.0, "effort": 5, **rivals}),
            "static": (model, stats, {"bits": 3.0, "effort": 4, **rivals}),
            "data-free": (plain, None, {"bits": 3.0, "layers": layers})}


def trained(rank: int) -> bytes:
    """A file trained under DistributedDataParallel, each process on batches of its own."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 5)).eval()
    trainable = tersor.compress(model, bits=5.0, effort=2).trainable(model)
    shared = nn.parallel.DistributedDataParallel(trainable)
    optimizer = torch.optim.Adam(trainable.groups(), lr=1e-2)
    generator = torch.Generator().manual_seed(rank)
    for _ in range(3):
        trainable.refresh()
        x = torch.randn(16, 30, generator=generator)
        loss = (shared(x) - model(x).detach() - 0.1).square().mean() + 1e-6 * trainable.rate()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    packed: tersor.Packed = trainable.repack()
    return packed.data


def student() -> nn.Module:
    """A network that is to be trained to give twice its outputs."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 5)).eval()


def lesson(seed: int, part: slice) -> tuple[Tensor, Tensor]:
    """Some of a batch of inputs, with what they are to become."""
    x = torch.randn(32, 30, generator=torch.Generator().manual_seed(seed))[part]
    return x, 2.0 * student()(x).detach()


def tune(team: Team, folder: Path, dies: int | None = None, steps: int = 12) -> bytes:
    """A file of `tersor.finetune`: a process has its share of each batch, and dies after so many steps."""
    model, part, seen = student(), slice(team.rank, None, team.size), []

    def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        for number in range(5):
            seen.append(number)
            if dies is not None and len(seen) > dies:
                os._exit(9)
            yield lesson(5 * epoch + number, part)

    return tersor.finetune(tersor.compress(model, bits=5.0, effort=2), model, batches, steps=steps, every=4,
                           held_out=[lesson(999, part)], team=team, loss=nn.functional.mse_loss,
                           optimizer=lambda groups: torch.optim.Adam([{**group, "lr": 0.05} for group in groups]),
                           checkpoint=folder / "checkpoint").data


def tune_together(rank: int, size: int, folder: Path, dies: int | None) -> Any:
    """On two processes, of which one may die; what it came to."""
    team = everybody()
    parallel.GRACE = 2.0
    try:
        return tune(team, folder, dies if rank == 1 else None)
    except WorkerError as error:
        return str(error)


def disagree(rank: int, size: int, folder: Path) -> str:
    """Two processes that are not asked for the same."""
    try:
        tune(everybody(), folder, steps=12 + rank)
    except ConfigError as error:
        return str(error)
    return "well"


def test_fine_tuning_on_two_processes_and_from_a_checkpoint(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    folders = [tmp_path / name for name in ("alone", "whole", "killed", "again", "other")]
    for folder in folders:
        folder.mkdir()
    alone = tune(ALONE, folders[0])
    first, second = run(tune_together, 2, folders[1], folders[1], None)
    assert isinstance(first, bytes) and first == second
    # The mean gradient of two halves is that of the batch, up to rounding: files of the same quality.
    x, y = lesson(999, slice(None))
    losses = [float(nn.functional.mse_loss(tersor.restore(data, into=student())(x), y).detach())
              for data in (tersor.compress(student(), bits=5.0, effort=2).data, alone, first)]
    assert losses[2] < 0.9 * losses[0] and losses[2] == pytest.approx(losses[1], rel=0.02)
    # One process is lost in the sixth batch, after the look at the fourth.
    told, lost = run(tune_together, 2, folders[2], folders[2], 5)
    assert lost is None and "rank 1 died or does not answer" in told
    (folders[3] / "checkpoint").write_bytes((folders[2] / "checkpoint").read_bytes())
    assert run(tune_together, 2, folders[3], folders[3], None) == [first, first]
    assert all("has another file or other options" in text for text in run(disagree, 2, folders[4], folders[4]))


def encode(rank: int, size: int, folder: Path) -> dict[str, Any]:
    """Encode on two processes; the last time, rank 1 is killed in the second trial."""
    writer.GROUP = 1000
    encoding.WAVE = 2000
    found: dict[str, Any] = {}
    groups = [dist.new_group() for _ in range(3)]
    for name, (model, stats, options) in encodings().items():
        found[name] = tersor.compress(model, stats, team=everybody(), **options).data
    model, stats, options = encodings()["walk"]
    for name, bad, number, options_here in (("other options", model, 0, {"bits": 3.0 + rank}),
                                            ("other weights", seeded(Residual, rank), 1, {"bits": 5.0, "effort": 2})):
        try:
            tersor.compress(bad, None, team=Team(rank, size, groups[number], number=201 + number), **options_here)
        except TersorError as error:
            found[name] = str(error)
    found["trained"] = trained(rank)
    (folder / f"trained-{rank}").write_bytes(found["trained"])
    parallel.GRACE = 2.0
    real, calls = Encoding.quantise_layer, []

    def dying(self: Encoding, target: Any) -> None:
        calls.append(target.name)
        if rank == 1 and len(calls) == 8:
            os._exit(9)
        real(self, target)

    Encoding.quantise_layer = dying  # type: ignore[method-assign]
    try:
        tersor.compress(model, stats, team=Team(rank, size, groups[2], number=203), state=folder / "state", **options)
    except WorkerError as error:
        found["killed"] = str(error)
    return found


def test_the_same_file_from_one_and_from_two_processes_and_from_a_state(tmp_path: Path,
                                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(writer, "GROUP", 1000)
    alone = {name: tersor.compress(model, stats, **options).data
             for name, (model, stats, options) in encodings().items()}
    first, killed = run(encode, 2, tmp_path, tmp_path)
    assert isinstance(first, dict) and killed is None, first
    assert first["trained"] == (tmp_path / "trained-1").read_bytes()
    for name, data in alone.items():
        assert first[name] == data, name
    assert first["other options"] == ("rank 1 compresses another model or with other options than rank 0; give all "
                                      "processes the same")
    assert "rank 1 has made other bytes than rank 0" in first["other weights"]
    assert "rank 1 died or does not answer" in first["killed"] and "with state= it goes on" in first["killed"]
    # One process goes on where two were stopped.
    quantised: list[str] = []
    real = Encoding.quantise_layer
    monkeypatch.setattr(Encoding, "quantise_layer",
                        lambda self, target: (quantised.append(target.name), real(self, target))[1])
    model, stats, options = encodings()["walk"]
    assert tersor.compress(model, stats, state=tmp_path / "state", **options).data == alone["walk"]
    with_state = len(quantised)
    quantised.clear()
    tersor.compress(model, stats, **options)
    assert with_state <= len(quantised) - 6, "some layers were there"


def test_tasks_are_dealt_out_by_cost() -> None:
    assert parallel.dealt([5, 1, 1, 1, 1, 1], 2) == [0, 1, 1, 1, 1, 1]
    assert parallel.dealt([1, 4, 2, 3], 2) == [0, 0, 1, 1]
    assert parallel.dealt([], 3) == [] and parallel.dealt([1], 3) == [0]
    assert ALONE.share([1, 2], lambda i: i * 10) == [0, 10]
