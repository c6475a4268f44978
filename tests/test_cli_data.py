"""The command line with data: calibrate and compress in one command, targets that need a network, sweeps."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from network_module import installed

import tersor
from tersor import cli
from tersor.adapters import safetensors as safetensors_adapter

pytest.importorskip("zstandard")

NETWORK = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(),
                         nn.Linear(256, 4))

def broken():
    raise RuntimeError("no weights here")

def batches():
    for seed in range(3):
        yield torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(seed))

wrong = dict
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A module with a network, its weights, calibration and evaluation arrays with labels."""
    model = installed("my_networks", NETWORK, tmp_path, monkeypatch)["make"]()
    torch.manual_seed(5)
    x = torch.randn(464, 3, 8, 8)
    with torch.no_grad():
        labels = model(x).argmax(1)
    np.save("train.npy", x[:64].numpy())
    np.savez("test.npz", images=x[64:].numpy(), labels=labels[64:].numpy())
    tensors = {name: value.numpy() for name, value in model.state_dict().items()}
    safetensors_adapter.write("weights.safetensors", tensors)
    return model, x


def test_one_command_calibrates_and_compresses(place, capsys):
    model, x = place
    assert cli.main(["compress", "my_networks:make", "--data", "train.npy", "--bits", "6", "--effort", "5"]) == 0
    err = capsys.readouterr().err
    assert re.search(r"make -> make\.tersor: [\d,]+ -> [\d,]+ bytes, .* 5\.9\d\d bits/weight, [\d.]+ dB", err)
    stats = tersor.calibrate(model, [x[:32], x[32:64]])
    assert Path("make.tersor").read_bytes() == tersor.compress(model, stats, bits=6, effort=5).data


def test_weights_into_the_network(place, capsys):
    Path("blank.py").write_text(NETWORK.replace("manual_seed(0)", "manual_seed(1)"))
    command = ["--data", "train.npy", "--bits", "6", "--effort", "3", "-o"]
    assert cli.main(["compress", "my_networks:make", *command, "a.tersor"]) == 0
    assert cli.main(["compress", "blank:make", "--weights", "weights.safetensors", *command, "b.tersor"]) == 0
    assert "blank:make -> b.tersor" in capsys.readouterr().err
    assert Path("a.tersor").read_bytes() == Path("b.tersor").read_bytes()


def test_calibrate_then_compress(place, capsys):
    assert cli.main(["calibrate", "my_networks:make", "--data", "my_networks:batches", "--images", "40"]) == 0
    assert "make-stats.safetensors: 3 layers measured on 40 inputs" in capsys.readouterr().err
    stats = tersor.Statistics.load("make-stats.safetensors")
    assert stats.images == 40
    for model in ("my_networks:make", "weights.safetensors"):
        assert cli.main(["compress", model, "--stats", "make-stats.safetensors", "--bits", "6", "--effort", "5",
                         "-o", "x.tersor", "-f"]) == 0
    assert cli.main(["calibrate", "my_networks:make", "--data", "train.npy"]) == 1
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize("effort", ["3", "5"])
def test_signal_to_noise(place, capsys, effort):
    command = ["compress", "my_networks:make", "--data", "train.npy", "--snr", "25dB", "--effort", effort]
    assert cli.main([*command, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    jumped = any("misses 25 dB" in note for note in report["notes"])  # by the second walk, which chooses by the data
    assert 25 <= report["snr_db"] <= (26 if effort == "5" and jumped else 25.25)
    assert cli.main([*command, "--json", "--dry-run"]) == 0
    foretold = json.loads(capsys.readouterr().out)
    assert foretold["total_bytes"] == pytest.approx(report["total_bytes"], rel=0.35) and foretold["dry_run"]


def test_as_many_bytes_as_another_file(place, capsys):
    Path("other.tersor").write_bytes(bytes(6000))
    assert cli.main(["compress", "weights.safetensors", "--like", "other.tersor", "-q"]) == 0
    assert 5900 < os.path.getsize("weights.tersor") <= 6000


def test_bound_on_the_drop(place, capsys):
    command = ["compress", "my_networks:make", "--data", "train.npy", "--effort", "3", "-f", "--max-drop", "3"]
    assert cli.main([*command, "--eval-data", "test.npz"]) == 0
    assert "95% interval" in (err := capsys.readouterr().err) and "the worst end of the interval counts" in err
    size = os.path.getsize("make.tersor")
    assert cli.main([*command, "--eval-data", "test.npz", "--drop-end", "mean", "--json"]) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert report["drop"]["mean"] <= 3 and report["drop"]["count"] == 400 and report["total_bytes"] <= size
    assert cli.main(command) == 2
    assert "train.npy has no labels" in capsys.readouterr().err


def test_dry_run_writes_nothing(place, capsys):
    before = set(os.listdir("."))
    assert cli.main(["compress", "my_networks:make", "--data", "train.npy", "--bits", "4", "--dry-run"]) == 0
    err = capsys.readouterr().err
    assert re.search(r"my_networks:make: about [\d,]+ bytes, 4\.00 bits/weight, about [\d.]+ dB; .*\(foretold", err)
    assert cli.main(["compress", "weights.safetensors", "--size", "3kB", "--dry-run"]) == 0
    assert "about 3,000 bytes" in (err := capsys.readouterr().err) and "dB" not in err
    assert set(os.listdir(".")) - before <= {"__pycache__"}


def test_sweep(place, capsys):
    command = ["sweep", "my_networks:make", "--data", "train.npy", "--eval-data", "test.npz", "--effort", "3",
               "--bits", "8", "6", "-o", "out"]
    assert cli.main([*command, "-v"]) == 0
    out, err = capsys.readouterr()
    assert {"8-bits.tersor", "6-bits.tersor", "sweep.json", "stats.safetensors"} == set(os.listdir("out"))
    assert len(out.splitlines()) == 10 and out.splitlines()[0].split()[:2] == ["codec", "bytes"]
    assert "my_networks:make -> out: 2 files" in err and "calibrating" in err
    assert cli.main([*command, "-v", "--json"]) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert "calibrating" not in err and "statistics of 64 inputs from out" in err
    assert "6 bits/weight" not in err, "finished points are kept"
    assert [point["measured"]["count"] for point in document["points"]] == [400, 400]
    assert document["notes"] == ["compared on 400 inputs of test.npz"] and document["name"] == "make"
    assert cli.main([*command, "--layer", "0.weight=raw"]) == 1
    assert "of another sweep" in capsys.readouterr().err


def test_bad_images_are_named(place, capsys):
    image = pytest.importorskip("PIL.Image")
    os.mkdir("photos")
    for i in range(20):
        image.fromarray(np.full((8, 8, 3), 10 * i, np.uint8)).save(f"photos/{i:02}.png")
    Path("photos/03.png").write_text("nothing")
    command = ["calibrate", "my_networks:make", "--data", "photos", "--preprocess", "none", "-f"]
    assert cli.main(command) == 0
    assert "note: skipped 03.png: cannot identify image file" in capsys.readouterr().err
    assert cli.main([*command, "--max-bad", "1"]) == 1
    assert "1 of 20 inputs are bad, more than 1%: 03.png" in capsys.readouterr().err


@pytest.mark.parametrize(("arguments", "code", "message"), [
    (["compress", "weights.safetensors", "--bits", "4", "--data", "train.npy"], 2, "--data needs a network that can"),
    (["calibrate", "weights.safetensors", "--data", "train.npy"], 2, "calibration needs a network"),
    (["calibrate", "my_networks:make"], 2, "required: --data"),
    (["compress", "my_networks:make", "--snr", "20"], 2, "give --data, or --stats"),
    (["compress", "my_networks:make", "--snr", "loud"], 2, "not a number of decibels"),
    (["compress", "my_networks:make", "--max-drop", "1"], 2, "needs labelled inputs"),
    (["compress", "my_networks:make", "--max-drop", "1", "--dry-run"], 2, "foretells bytes"),
    (["compress", "my_networks:make", "--bits", "4", "--eval-data", "test.npz"], 2, "--eval-data and --labels are for"),
    (["compress", "my_networks:absent", "--bits", "4"], 1, "my_networks has no 'absent'"),
    (["compress", "my_networks:broken", "--bits", "4"], 1, "fails: RuntimeError: no weights here"),
    (["compress", "my_networks:wrong", "--bits", "4"], 1, "gives a dict, not a torch.nn.Module"),
    (["compress", "weights.safetensors", "--weights", "weights.safetensors", "--bits", "4"], 2, "weights of its own"),
    (["compress", "my_networks:make", "--weights", "other.safetensors", "--bits", "4"], 1, "lacks 0.weight"),
    (["compress", "my_networks:make", "--bits", "4", "--data", "train.npy", "--stats", "x"], 2, "not both"),
    (["compress", "my_networks:make", "--bits", "4", "--data", "absent.npy"], 1, "No such file"),
    (["compress", "my_networks:make", "--bits", "4", "--data", "train.npy", "--mean", "0.5"], 1, "taken as it is"),
    (["compress", "my_networks:make", "--bits", "4", "--mean", "a,b"], 2, "not a list of numbers"),
    (["compress", "my_networks:make", "--bits", "4", "--images", "0"], 2, "not a positive whole number"),
    (["compress", "my_networks:make", "--like", "absent.tersor"], 2, "there is no file"),
    (["sweep", "weights.safetensors", "--bits", "4", "-o", "out", "--eval-data", "test.npz"], 2, "needs a network"),
    (["sweep", "my_networks:make", "--bits", "4", "-o", "out", "--labels", "x"], 2, "--labels is for --eval-data"),
    (["sweep", "my_networks:make", "--bits", "4"], 2, "required: -o"),
])
def test_errors(place, capsys, arguments, code, message):
    safetensors_adapter.write("other.safetensors", {"x": np.ones((3, 3), "f4")})
    try:
        found = cli.main(arguments)
    except SystemExit as stopped:
        found = stopped.code
    err = capsys.readouterr().err
    assert (found, message in err) == (code, True), err
    assert err.splitlines()[-1].startswith("tersor: error: ")
