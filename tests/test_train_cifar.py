"""The training script of the zoo: it learns, repeats itself, and goes on where it was stopped."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "examples"))

Image = pytest.importorskip("PIL.Image", reason="reading JPEG copies needs Pillow")

import image_data  # noqa: E402
import networks  # noqa: E402
import train_cifar  # noqa: E402


@pytest.fixture
def colours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder in which the colour of an image is its class."""
    parts = []
    for i in range(10):
        with io.BytesIO() as file:
            Image.new("RGB", (32, 32), (255 * (i & 1), 255 * (i >> 1 & 1), 60 * (i >> 2))).save(file, "JPEG")
            parts.append(file.getvalue())
    for name, count in [("jpeg_train", 340), ("jpeg_test", 30)]:
        copies = [parts[i % 10] for i in range(count)]
        np.savez(
            tmp_path / f"{name}.npz",
            bytes=np.frombuffer(b"".join(copies), np.uint8),
            offsets=np.cumsum([0, *map(len, copies)]),
            labels=(np.arange(count) % 10).astype(np.uint8),
        )
    monkeypatch.setattr(train_cifar, "split", lambda data: image_data.split(data, 20))
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, out: str, *more: str) -> dict[str, torch.Tensor]:
    options = ["--network", "resnet18", "--width", "0.0625", "--batch", "16", "--epochs", "4", "--rate", "0.05"]
    places = ["--data", str(folder), "--out", str(folder / out)]
    monkeypatch.setattr(sys, "argv", ["train_cifar.py", *options, *places, *more])
    train_cifar.main()
    return load_file(folder / out)


def test_it_learns_and_goes_on_where_it_was_stopped(
    colours: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = run(monkeypatch, colours, "whole.safetensors")
    said = re.search(r"test ([\d.]+)% on 30 images", capsys.readouterr().out)
    assert said is not None
    assert float(said[1]) >= 40  # by chance 10
    assert {t.dtype for t in whole.values() if t.ndim > 1} == {torch.float16}
    assert whole["layer4.1.bn2.running_var"].dtype == torch.float32

    class Stopped(Exception):
        pass

    save = torch.save

    def save_and_stop(state: dict[str, object], path: Path) -> None:
        save(state, path)
        if state["epochs"] == 1:
            raise Stopped

    checkpoint = ["--checkpoint", str(colours / "checkpoint.pt")]
    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", save_and_stop)
        with pytest.raises(Stopped):
            run(patched, colours, "parts.safetensors", *checkpoint)
    parts = run(monkeypatch, colours, "parts.safetensors", *checkpoint)
    assert whole.keys() == parts.keys() == networks.cifar("resnet18").state_dict().keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, parts[name]), name
