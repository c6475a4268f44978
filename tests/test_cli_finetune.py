"""`tersor finetune`, and the batches that it trains on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from network_module import installed
from torch import nn

import tersor
from tersor import cli
from tersor.adapters import safetensors as safetensors_adapter
from tersor.codes import codes_of
from tersor.errors import ConfigError, FormatError
from tersor.repack import repack
from tersor.training import sampling
from tersor.training.sampling import Lessons, Samples

NETWORK = """
import torch
from torch import nn

def make(width=12):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 16, 3),
                         nn.ReLU(), nn.Flatten(), nn.Linear(256, 4)).eval()

def other():
    return make(8)

def pairs():
    x = torch.randn(60, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    for part in x.split(20):
        yield part, make()(part).argmax(1)

def words():
    yield {"x": torch.zeros(4, 3, 8, 8)}
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A module with a network, training inputs with labels, and a file of it at a low rate."""
    model = installed("tuned_networks", NETWORK, tmp_path, monkeypatch)["make"]()
    torch.manual_seed(5)
    x = torch.randn(400, 3, 8, 8)
    with torch.no_grad():
        np.savez("train.npz", images=x.numpy(), labels=model(x).argmax(1).numpy())
    packed = tersor.compress(model, tersor.calibrate(model, x[:64].split(32)), bits=2.2, effort=4)
    packed.save("a.tersor")
    return model, x, packed


def tune(*more: str, code: int = 0, file: str = "a.tersor", network: str = "make") -> None:
    assert cli.main(["finetune", f"tuned_networks:{network}", file, "--data", "train.npz", "--steps", "60", "--batch",
                     "32", "--rate", "0.02", *more]) == code


def test_a_file_comes_nearer_at_no_more_bytes(place, capsys):
    model, x, packed = place
    tune("--json", "--views", "none")
    report = json.loads(capsys.readouterr().out)
    data = Path("a-finetuned.tersor").read_bytes()
    assert report["output"] == "a-finetuned.tersor" and report["better"]
    assert report["total_bytes"] == len(data) <= packed.size == report["file_bytes"]
    assert (report["trained_on"], report["held_out"]) == (360, 40)
    assert report["after"]["kl"] < 0.9 * report["before"]["kl"]
    judges = x[torch.arange(40) * 10]  # figures are those of the file
    restored = tersor.restore(data, into=nn.Sequential(*place_copy()))
    found = tersor.evaluate.compare(model(judges).detach(), restored(judges).detach(), model(judges).argmax(1))
    assert found.kl == pytest.approx(report["after"]["kl"], rel=1e-5)
    assert found.top1 == report["after"]["top1"]
    tune("--views", "none", "-o", "b.tersor", "-q")
    assert Path("b.tersor").read_bytes() == data  # the same again


def place_copy() -> list[nn.Module]:
    space: dict[str, object] = {}
    exec(NETWORK, space)
    return list(space["make"]())  # type: ignore[operator]


def test_an_interrupted_training_goes_on(place, monkeypatch):
    tune("-o", "whole.tersor", "--state", "first", "-q")
    from tersor.training import checkpoint
    saved = checkpoint.save

    def interrupted(run, path):  # type: ignore[no-untyped-def]
        saved(run, path)
        if run.step >= 30:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save", interrupted)
    tune("-o", "half.tersor", "--state", "second", "-q", code=130)
    assert not Path("half.tersor").exists()
    monkeypatch.setattr(checkpoint, "save", saved)
    tune("-o", "half.tersor", "--state", "second", "-q")
    assert Path("half.tersor").read_bytes() == Path("whole.tersor").read_bytes()


def test_a_smaller_size_and_labels(place, capsys):
    _, _, packed = place
    size = packed.size * 9 // 10
    tune("--size", str(size), "--label-weight", "50", "--views", "shift", "--json", "--patience", "8")
    report = json.loads(capsys.readouterr().out)
    assert report["total_bytes"] <= size
    assert "finetuned.tersor" in report["output"]


def test_functions_of_the_users_give_inputs(place, capsys):
    assert cli.main(["finetune", "tuned_networks:make", "a.tersor", "--data", "tuned_networks:pairs", "--epochs", "2",
                     "--batch", "16", "--label-weight", "20", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["trained_on"], report["held_out"]) == (54, 6) and "top1" in report["before"]


def test_where_nothing_is_better_the_file_stays(place, capsys):
    tune("--rate", "1e-9", "--steps", "1", "--held-out", "50")
    assert "nothing better" in capsys.readouterr().err
    assert Path("a-finetuned.tersor").read_bytes() == Path("a.tersor").read_bytes()


@pytest.mark.parametrize(("more", "message"), [
    (["--label-weight", "50", "--views", "blend"], "blended inputs have no label"),
    (["--held-out", "0"], "some must be left on either side"),
    (["--views", "flip"], "is not none, nor a list of shift, mirror, blend"),
    (["-o", "a.tersor"], "is an input"),
    (["--steps", "5", "--epochs", "5"], "not allowed with"),
])  # fmt: skip
def test_wrong_usage_is_told(place, capsys, more, message):
    try:
        code = cli.main(["finetune", "tuned_networks:make", "a.tersor", "--data", "train.npz", *more])
    except SystemExit as error:
        code = int(str(error.code))
    assert code == 2 and message in capsys.readouterr().err


def test_other_mistakes_are_told(place, capsys, monkeypatch):
    tune(code=1, network="other")
    assert "shape" in capsys.readouterr().err
    assert cli.main(["finetune", "tuned_networks:make", "a.tersor", "--data", "tuned_networks:words"]) == 2
    assert "tersor.finetune in Python" in capsys.readouterr().err
    np.save("bare.npy", np.zeros((20, 3, 8, 8), "f4"))
    assert cli.main(["finetune", "tuned_networks:make", "a.tersor", "--data", "bare.npy", "--label-weight", "9"]) == 2
    assert "there are none" in capsys.readouterr().err
    monkeypatch.setattr(sampling, "MOST_BYTES", 1 << 10)
    tune(code=2)
    assert "give --images N" in capsys.readouterr().err
    Path("bad.tersor").write_bytes(b"TERSOR" + bytes(40))
    tune(code=3, file="bad.tersor")
    assert not Path("a-finetuned.tersor").exists() and not Path("bad-finetuned.tersor").exists()


def test_weights_alone_cannot_be_trained(place, capsys):
    model, _, _ = place
    safetensors_adapter.write("w.safetensors", {name: value.numpy() for name, value in model.state_dict().items()})
    assert cli.main(["finetune", "w.safetensors", "a.tersor", "--data", "train.npz"]) == 2
    assert "fine-tuning needs a network" in capsys.readouterr().err


def test_an_onnx_file_stays_one(place, capsys):
    pytest.importorskip("onnx")
    import warnings
    model, x, _ = place
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (x[:2],), "a.onnx", dynamo=False, opset_version=17, input_names=["x"],
                          dynamic_axes={"x": {0: "n"}})
    assert cli.main(["compress", "a.onnx", "--data", "train.npz", "--bits", "3.5", "--effort", "4", "-f"]) == 0
    assert cli.main(["finetune", "a.onnx", "a.tersor", "--data", "train.npz", "--steps", "60", "--views", "none",
                     "--rate", "0.02", "--json", "-o", "o-finetuned.tersor"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["total_bytes"] <= report["file_bytes"] and report["after"]["kl"] < report["before"]["kl"]
    assert cli.main(["restore", "o-finetuned.tersor", "-o", "back.onnx"]) == 0


# ---- batches -------------------------------------------------------------------------------------------


def test_every_sample_is_seen_once_an_epoch():
    x = torch.arange(100.0).view(100, 1)
    training, judges = Samples(x, torch.arange(100)).split(0.1)
    assert judges.inputs.ravel().tolist() == [10 * i for i in range(10)]
    lessons = Lessons(nn.Identity(), training, batch=30)
    epochs = [torch.cat(list(lessons.epoch(number))).ravel() for number in (0, 0, 1)]
    assert torch.equal(epochs[0], epochs[1]) and not torch.equal(epochs[0], epochs[2])
    assert lessons.steps == 3 and len(set(epochs[0].tolist())) == 90
    assert not set(epochs[0].tolist()) & set(judges.inputs.ravel().tolist())
    assert torch.equal(torch.cat(lessons.judging(judges)), judges.inputs)


def test_labels_stay_with_their_inputs():
    x = torch.randn(50, 4)
    lessons = Lessons(nn.Identity(), Samples(x, x.argmax(1)), label_weight=0.5, batch=8)
    for inputs, (answers, labels) in lessons.epoch(0):
        assert torch.equal(inputs.argmax(1), labels) and torch.equal(answers, inputs)
    loss = lessons.loss
    assert loss is not None
    own = float(loss(x, (x, x.argmax(1))))
    assert own == pytest.approx(0.5 * float(nn.functional.cross_entropy(x, x.argmax(1), label_smoothing=0.05)))
    assert float(loss(-x, (x, x.argmax(1)))) > own


@pytest.mark.parametrize("view", ["mirror", "shift"])
def test_views_are_what_they_say(view):
    x = torch.rand(40, 1, 8, 16)
    seen = next(Lessons(nn.Identity(), Samples(x), views=(view,), batch=40).epoch(0))
    again = next(Lessons(nn.Identity(), Samples(x), batch=40).epoch(0))  # the same order
    if view == "mirror":
        same, flipped = ((seen == other).flatten(1).all(1) for other in (again, again.flip(3)))
        assert (same ^ flipped).all() and 8 < int(flipped.sum()) < 32
    else:
        middle = seen[:, :, 1:-1, 2:-2]
        moved = [(again[:, :, 1 + dy : 7 + dy, 2 + dx : 14 + dx] == middle).flatten(1).all(1)
                 for dy in (-1, 0, 1) for dx in (-2, -1, 0, 1, 2)]
        assert torch.stack(moved).sum(0).eq(1).all() and not moved[7].all()


@pytest.mark.parametrize(("batches", "message"), [
    ([torch.zeros(4, 3), torch.zeros(4, 2)], "all must be alike"),
    ([torch.tensor([[1.0, float("nan")]])], "NaN or infinity"),
    ([(torch.zeros(4, 3), torch.zeros(3))], "labels of shape"), ([], "has no inputs"), ([()], "tensors are needed"),
])  # fmt: skip
def test_odd_inputs_are_told(batches, message):
    with pytest.raises(ConfigError, match=message):
        Samples.of(batches, "it")


def test_one_input_and_unknown_classes():
    with pytest.raises(ConfigError, match="left on either side"):
        Samples.of([torch.zeros(1, 3)], "it").split(0.1)
    lessons = Lessons(nn.Identity(), Samples(torch.zeros(9, 4), torch.full((9,), 4)), label_weight=0.5)
    with pytest.raises(ConfigError, match="the model has 4 classes"):
        next(lessons.epoch(0))


@pytest.mark.parametrize(("inputs", "views", "message"), [
    (torch.zeros(9, 4), ("shift",), "only images"), (torch.zeros(9, 4, dtype=torch.long), ("blend",), "no views"),
    (torch.zeros(9, 4), ("turn",), "is not one of"),
])  # fmt: skip
def test_views_that_there_are_not(inputs, views, message):
    with pytest.raises(ConfigError, match=message):
        Lessons(nn.Identity(), Samples(inputs), views=views)


def test_a_file_that_was_read_again(place):
    model, _, packed = place
    again = tersor.Packed.read("a.tersor")
    assert (again.data, again.parameters, again.weight_bytes) == (packed.data, packed.parameters, packed.weight_bytes)
    assert np.isnan(again.price) and again.snr is None and not again.decisions
    assert tersor.Packed.read(packed.data).report()["payload_bytes"] == packed.report()["payload_bytes"]
    with pytest.raises(FormatError):
        tersor.Packed.read(packed.data[:-9])
    with pytest.raises(ConfigError, match="price=nan"):
        repack(model, codes_of(packed.data), tersor.calibrate(model, [torch.zeros(8, 3, 8, 8)]), price=again.price)
