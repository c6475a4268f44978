"""The trained networks of examples/zoo are what its README says: parameters, sizes, accuracy where the images are."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "examples"))

import networks  # noqa: E402

README = (ROOT / "examples" / "zoo" / "README.md").read_text()
ROWS = {
    row[0]: (int(row[1].replace(",", "")), float(row[2]) / 100)
    for row in re.findall(r"^\| `(\w+)\.safetensors` \|[^|]*\| ([\d,]+) \|[^|]*\| ([\d.]+)% \|", README, re.MULTILINE)
}
"""Name: parameters, top-1 on the 10,000 JPEG test images."""
IMAGES = 300
DATA = Path(os.environ.get("TERSOR_DATA") or ROOT.parent / "shared" / "data") / "cifar10" / "jpeg_test.npz"


def test_every_network_has_a_row() -> None:
    assert set(ROWS) == {path.stem for path in networks.ZOO.glob("*.safetensors")}
    assert "vgg16_bn_cifar" in ROWS


@pytest.mark.parametrize("name", ROWS)
def test_parameters_and_sizes(name: str) -> None:
    path = networks.ZOO / f"{name}.safetensors"
    assert path.stat().st_size < 2_500_000
    stored = load_file(path)
    assert all(tensor.dtype == torch.float16 for tensor in stored.values() if tensor.ndim > 1)
    model = networks.load_zoo(name)
    assert not model.training
    assert sum(parameter.numel() for parameter in model.parameters()) == ROWS[name][0]
    for key, tensor in model.state_dict().items():
        assert tensor.isfinite().all(), key
        assert torch.equal(tensor, stored[key].to(tensor.dtype)), key
    with torch.no_grad():
        assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("name", ROWS)
def test_accuracy_is_the_promised_one(name: str) -> None:
    pytest.importorskip("PIL.Image", reason="reading JPEG copies needs Pillow")
    if not DATA.exists():
        pytest.skip("needs CIFAR-10 as JPEG copies in cifar10/jpeg_test.npz (TERSOR_DATA)")
    import image_data

    found = image_data.accuracy(networks.load_zoo(name), image_data.read(DATA, count=IMAGES))
    promised = ROWS[name][1]
    # A few hundred images of the 10,000: three standard errors around the accuracy on all of them.
    assert abs(found - promised) < 3 * (promised * (1 - promised) / IMAGES) ** 0.5
