"""The example networks, the shipped digits network, and the peers of the benchmarks."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path += [str(ROOT / "examples"), str(ROOT / "benchmarks")]

import digits_data  # noqa: E402
import networks  # noqa: E402
import peers  # noqa: E402


@pytest.mark.parametrize(
    ("model", "shape", "parameters"),
    [
        (networks.CifarResNet(20), (3, 32, 32), 269_722),
        (networks.CifarResNet(56), (3, 32, 32), 853_018),
        (networks.LeNet5(), (1, 28, 28), 431_080),
        (networks.SqueezeNet(), (3, 64, 64), 1_235_496),
        (networks.ResNet18(10, small_input=True), (3, 32, 32), 11_173_962),
        (networks.DigitsNet(), (1, 8, 8), 270_940),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, torch.nn.Module) else "",
)
def test_parameters_and_shapes(model: torch.nn.Module, shape: tuple[int, ...], parameters: int) -> None:
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    with torch.no_grad():
        assert model.eval()(torch.zeros(2, *shape)).shape[0] == 2


def test_digits_split_is_disjoint() -> None:
    train, test = digits_data.train_split()[0], digits_data.test_split()[0]
    assert (len(train), len(test)) == (1000, 797)
    assert all(
        torch.equal(batch, train[80 * i : 80 * (i + 1)])
        for i, batch in enumerate(digits_data.calibration_batches())
    )
    seen = {image.numpy().tobytes() for image in train}
    assert not any(image.numpy().tobytes() in seen for image in test)


def test_shipped_network_is_accurate() -> None:
    path = ROOT / "examples" / "digits.safetensors"
    assert path.stat().st_size < 2_000_000
    images, labels = digits_data.test_split()
    with torch.no_grad():
        right = networks.load(networks.DigitsNet(), path)(images).argmax(1) == labels
    assert right.float().mean() > 0.985


def test_load_names_what_does_not_fit() -> None:
    with pytest.raises(KeyError, match="layer1"):
        networks.load(networks.SqueezeNet(), ROOT / "examples" / "digits.safetensors")


def tensors() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {
        "conv.weight": generator.normal(size=(6, 4, 3, 3)).astype(np.float32),
        "bn.running_var": np.full(6, 1e-12, np.float32),  # too small for fp16
        "fc.bias": generator.normal(size=3).astype(np.float32),
        "zero.weight": np.zeros((2, 2), np.float32),
    }


@pytest.mark.parametrize(
    ("code", "tolerance"),
    [
        (lambda t: peers.int8_zstd(t), 0.02),
        (lambda t: peers.rtn_zstd(t, 0.1), 0.07),
        (lambda t: peers.rtn_zstd(t, 0.001, "layer"), 0.001),  # symbols beyond int8
        (lambda t: peers.rtn_entropy(t, 0.1), 0.07),
        (lambda t: peers.kmeans_zstd(t, 200), 0.1),
    ],
)
def test_peers_restore_what_they_were_given(code, tolerance) -> None:  # type: ignore[no-untyped-def]
    original = tensors()
    coded = code(original)
    assert coded.tensors.keys() == original.keys()
    for name, array in original.items():
        assert coded.tensors[name].shape == array.shape
        np.testing.assert_allclose(
            coded.tensors[name], array, atol=tolerance if array.ndim > 1 else 0, rtol=1e-3
        )
    assert coded.ideal or coded.size == len(coded.blob)


def test_at_bytes_stays_below() -> None:
    coded = peers.at_bytes(lambda step: peers.rtn_entropy(tensors(), step), 350, 0.01, 30)
    assert 330 <= coded.size <= 350
