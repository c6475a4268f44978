"""The files in examples/zoo restore, are as small as promised, and, where the images are, as accurate."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tersor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "examples"))

import networks  # noqa: E402

ZOO = ROOT / "examples" / "zoo"
DATA = Path(os.environ.get("TERSOR_DATA") or ROOT.parent / "shared" / "data")

LENET5_RATIO, RESNET32_RATIO = 51.25, 22.17
"""Best of the paper's Table 1, here as ratios of whole files."""


def restored(name: str, model: nn.Module) -> nn.Module:
    """The network from its file alone: what it had before is overwritten with NaN."""
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(float("nan") if tensor.is_floating_point() else 0)
    return tersor.restore(ZOO / name, into=model).eval()


@torch.no_grad()
def right(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return torch.cat([model(batch).argmax(1) for batch in images.split(250)]) == labels


@pytest.mark.parametrize(
    ("name", "make", "ratio"),
    [
        ("lenet5.tersor", networks.LeNet5, LENET5_RATIO),
        ("lenet5_pruned.tersor", networks.LeNet5, 20.0),
        ("resnet32.tersor", lambda: networks.CifarResNet(32), RESNET32_RATIO),
    ],
)
def test_files_restore_and_are_small(name, make, ratio) -> None:  # type: ignore[no-untyped-def]
    model = restored(name, make())
    parameters = sum(p.numel() for p in model.parameters())
    assert 4 * parameters / (ZOO / name).stat().st_size > ratio
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())
    with tersor.load(ZOO / name) as file:
        file.verify()
        assert file.manifest.parameters == parameters
        assert list(file) == list(model.state_dict())


def test_lenet5_is_as_accurate_as_the_network_it_came_from() -> None:
    path = DATA / "mnist" / "mnist.npz"
    if not path.exists():
        pytest.skip(f"needs MNIST in {DATA.name}/mnist (TERSOR_DATA)")
    with np.load(path) as file:
        images = torch.from_numpy(file["test_images"]).float()[:, None] / 256
        labels = torch.from_numpy(file["test_labels"].astype(np.int64))
    assert right(restored("lenet5.tersor", networks.LeNet5()), images, labels).float().mean() >= 0.9914


def test_resnet32_is_as_accurate_as_the_network_it_came_from() -> None:
    folder = DATA / "cifar10"
    if not folder.exists():
        pytest.skip(f"needs CIFAR-10 in {DATA.name}/cifar10 (TERSOR_DATA)")
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with np.load(folder / "test.npz") as file:
        images = ((torch.from_numpy(file["images"]).float() / 255 - mean) / deviation).permute(0, 3, 1, 2)
        labels = torch.from_numpy(file["labels"].astype(np.int64))
    given = networks.load(networks.CifarResNet(32), folder / "resnet32.safetensors")
    found = right(restored("resnet32.tersor", networks.CifarResNet(32)), images, labels).double()
    change = found - right(given, images, labels).double()
    assert change.mean() >= 0, f"{float(change.mean()):+.2%} on {len(change)} images"


ROWS = re.findall(r"^\| `(\w+)\.tersor`(?:, fine-tuned)? \| ([\d,]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+)% "
                  r"\| ([\d.]+)% \|", (ZOO / "README.md").read_text(), re.MULTILINE)
"""Name, bytes, times smaller, bits/weight, top-1 of fp32 and of the file."""


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_compressed_networks_are_what_the_table_says(row: tuple[str, ...]) -> None:
    name, size, ratio, bits, before, after = row
    own = name.removesuffix("_cifar")
    made = networks.AlexNetCifar() if own == "alexnet" else networks.cifar(own) if own != name else \
        networks.CifarResNet(int(name[6:]))
    model = restored(f"{name}.tersor", made)
    parameters = sum(p.numel() for p in model.parameters())
    found = (ZOO / f"{name}.tersor").stat().st_size
    assert found == int(size.replace(",", "")) and abs(float(before) - float(after)) < 1.0
    assert float(ratio) == pytest.approx(4 * parameters / found, abs=0.06)
    assert float(bits) == pytest.approx(8 * found / parameters, abs=0.006)
    if (ZOO / f"{name}.safetensors").exists():
        reference = networks.load_zoo(name)
        images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            wanted, got = reference(images), model(images)
        assert float((got - wanted).square().sum()) < 0.2 * float(wanted.square().sum())
