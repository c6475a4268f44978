"""What a file says of each weight, for every tool."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
import torch
from torch import nn

import tersor
from tersor import KernelConfig, TransformConfig, cli
from tersor.anatomy import TOOLS, anatomy
from tersor.decoder import tool_name
from tersor.errors import FormatError
from tersor.tools.rate_distortion import scalar_rate, waterfill_rate
from tersor.tools.ruler import overall


class Small(nn.Module):
    """Two convolutions with a BatchNorm each, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.conv2, self.bn2 = nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)
        self.fc = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        return self.fc(torch.relu(self.bn2(self.conv2(x))).mean((2, 3)))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(3)
    model = Small().train()
    x = torch.randn(64, 3, 8, 8)
    for _ in range(20):
        model(x)
    return model.eval()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    smooth = nn.functional.avg_pool2d(torch.randn(48, 3, 10, 10, generator=torch.Generator().manual_seed(5)), 3, 1)
    return smooth * 3


@pytest.fixture(scope="module")
def stats(network, images):
    return tersor.calibrate(network, images.split(16))


WAYS = {
    "scalar": {"tools": ("scalar",), "effort": 5},
    "trellis": {"tools": ("scalar",), "effort": 6},
    "fast": {"tools": ("scalar",), "effort": 5, "mode": "fast"},
    "transform": {"tools": ("transform",), "effort": 5, "transform": TransformConfig(("elt+dct2",))},
    "fixed": {"tools": ("transform",), "transform": TransformConfig(("klt",), coder="fixed")},
    "kernels": {"tools": ("kernels",), "effort": 5, "kernels": KernelConfig(size=64)},
    "codebook": {"tools": ("codebook",)},
}


@pytest.mark.parametrize("way", WAYS)
def test_shares_add_up_to_the_sections(way, network, stats):
    packed = tersor.compress(network, stats, bits=4 if way == "kernels" else 4.5, **WAYS[way])
    parts = anatomy(packed.data)
    with packed.load() as file:
        assert [part.name for part in parts] == [name for name in file if name in {p.name for p in parts}]
        sections = [s for s in file.manifest.sections if tool_name(s.tool) in TOOLS]
        assert sum(part.bytes for part in parts) == pytest.approx(sum(s.length for s in sections))
        assert {part.tool for part in parts} == {tool_name(s.tool) for s in sections}
        for part in parts:
            assert part.weights == file[part.name].size and part.bytes > 0
            assert part.bits_per_weight == 8 * part.bytes / part.weights
    assert {part.name for part in parts} == {"conv1.weight", "conv2.weight", "fc.weight"}
    by_name = {part.name: part for part in parts}
    conv = by_name["conv2.weight"]
    if way == "trellis":
        assert conv.trellis == 8 and conv.detail == "trellis of 8" and by_name["conv1.weight"].trellis == 0
    if way in ("transform", "fixed"):
        assert "basis of inputs" in conv.detail and ("DCT-II of taps" in conv.detail) == (way == "transform")
    if way == "kernels":
        assert conv.size > 1 and conv.detail.startswith(f"{conv.size} kernels of 9")
    if way == "codebook":
        assert conv.size > 1 and conv.detail == f"{conv.size} values, shared by 3"
        assert conv.steps[0] < 0 < conv.steps[1]
    else:
        assert 0 < conv.steps[0] <= conv.steps[1] < 1


def test_steps_and_zeros_are_those_of_the_weights(network, stats):
    packed = tersor.compress(network, stats, bits=4, tools=("scalar",), effort=5)
    with packed.load() as file:
        for part in anatomy(packed.data):
            weights = file[part.name]
            assert part.zeros == pytest.approx(np.mean(weights == 0))
            if part.steps[0] == part.steps[1]:
                q = weights / np.float32(part.steps[0])
                assert np.allclose(q, np.rint(q), atol=1e-3)


def test_damaged_files_are_told(network, stats):
    data = bytearray(tersor.compress(network, stats, bits=4).data)
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(FormatError):
        anatomy(bytes(data))


def test_limits_of_a_file(network, stats):
    """With the network, bits and errors are those that the encoder has counted; the limits are below."""
    packed = tersor.compress(network, stats, bits=4)
    rows = tersor.rate_limits(packed.data, network, stats)
    assert [row.name for row in rows] == ["conv1.weight", "conv2.weight", "fc.weight"]
    share = {part.name: part.bits_per_weight for part in anatomy(packed.data)}
    for row in rows:
        assert row.bits == pytest.approx(share[row.name])
        assert 0 < row.shannon < row.scalar and row.exact
        assert row.distortion == pytest.approx(packed.decisions[row.name]["distortion"], rel=0.15)
    whole = overall(rows)
    assert whole.weights == sum(row.weights for row in rows)
    assert whole.bits == pytest.approx(8 * sum(part.bytes for part in anatomy(packed.data)) / whole.weights)
    fine, coarse = (tersor.rate_limits(tersor.compress(network, stats, bits=bits).data, network, stats)
                    for bits in (6, 3.5))
    assert all(a.shannon > b.shannon and a.distortion < b.distortion for a, b in zip(fine, coarse, strict=True))


def test_limits_without_a_network_count_from_the_original_weights(network, stats):
    state = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    packed = tersor.compress(network, stats, bits=4, effort=4)  # no second walk: nothing is made up for
    alone, beside = (tersor.rate_limits(packed.data, model, stats) for model in (state, network))
    assert [row.name for row in alone] == [row.name for row in beside]
    first = [rows[0] for rows in (alone, beside)]
    assert first[0].distortion == pytest.approx(first[1].distortion, rel=0.1), "nothing stands before the first layer"
    assert all(a.distortion > 0 for a in alone)


def test_limits_against_closed_forms():
    """White weights, plain metric, nearest rounding: the ruler's two bounds are those of a Gaussian source."""
    torch.manual_seed(1)
    model = nn.Linear(400, 300, bias=False)
    with torch.no_grad():
        model.weight.normal_(0, 0.1)
    x = torch.randn(4096, 400)
    measured = tersor.calibrate(model, x.split(512))
    plain = replace(measured.layers["weight"], A=np.eye(400, dtype=np.float32)[None],
                    G=np.eye(300, dtype=np.float32)[None], coherent=None)
    measured = replace(measured, layers={"weight": plain})
    packed = tersor.compress(model, measured, bits=3.2, effort=1, tools=("scalar",))
    row, = tersor.rate_limits(packed.data, {"weight": model.weight.detach().numpy()}, measured)
    error = np.mean((tersor.load(packed.data)["weight"] - model.weight.detach().numpy()) ** 2)
    assert row.shannon == pytest.approx(0.5 * np.log2(0.01 / error), abs=0.01)
    assert row.shannon == pytest.approx(waterfill_rate(np.full(9, 0.01), error), abs=0.05)
    assert row.scalar == pytest.approx(scalar_rate(np.full(9, 0.01), error), abs=0.05)
    assert -0.02 < row.scalar_gap < 0.1, "entropy-coded uniform quantization, and what coding costs"


def test_wrong_models_are_told(network, stats, images):
    packed = tersor.compress(network, stats, bits=4)
    other = Small().eval()
    with pytest.raises(tersor.TersorError, match="belong to another model"):
        tersor.rate_limits(packed.data, other, stats)
    head = nn.Linear(5, 2)
    with pytest.raises(tersor.TersorError, match="is not in the file"):
        tersor.rate_limits(packed.data, head, tersor.calibrate(head, torch.randn(8, 5)))
    with pytest.raises(tersor.TersorError, match="none of the file's coded weights"):
        tersor.rate_limits(packed.data, network, replace(stats, layers={}))


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    code = cli.main(list(arguments))
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_inspect_shows_layers_and_limits(tmp_path: Path, capsys, network, stats, images, monkeypatch):
    packed = tersor.compress(network, stats, bits=4)
    file, measured = tmp_path / "small.tersor", tmp_path / "small.stats"
    packed.save(file)
    stats.save(measured)
    code, out, _ = run(capsys, "inspect", "-v", str(file))
    assert code == 0 and "trellis of 8" in out and "bits/weight" in out
    code, out, _ = run(capsys, "inspect", "-v", "--json", str(file))
    layers = json.loads(out)["layers"]
    assert code == 0 and layers == [json.loads(json.dumps(part.report())) for part in anatomy(packed.data)]
    module = tmp_path / "small_network.py"
    module.write_text("from test_anatomy import Small\n")
    monkeypatch.setitem(sys.modules, "test_anatomy", sys.modules[__name__])
    monkeypatch.syspath_prepend(tmp_path)
    torch.save(network.state_dict(), tmp_path / "small.pt")
    given = ("--limits", "--stats", str(measured), "--model", "small_network:Small", "--weights",
             str(tmp_path / "small.pt"))
    code, out, error = run(capsys, "inspect", *given, str(file))
    assert code == 0, error
    assert "limit" in out and "all layers" in out and "conv2.weight" in out
    code, out, _ = run(capsys, "inspect", *given, "--json", str(file))
    rows = json.loads(out)["limits"]
    assert [row["name"] for row in rows] == ["conv1.weight", "conv2.weight", "fc.weight", "all layers"]
    assert rows[-1]["gap"] == pytest.approx(rows[-1]["bits"] - rows[-1]["shannon"])
    code, _, error = run(capsys, "inspect", "--limits", str(file))
    assert code == 2 and "--model and --stats" in error


def test_compress_keeps_its_decisions(tmp_path: Path, capsys, network):
    torch.save(network.state_dict(), tmp_path / "small.pt")
    where = tmp_path / "decisions.json"
    code, _, error = run(capsys, "compress", str(tmp_path / "small.pt"), "--bits", "5", "--decisions", str(where))
    assert code == 0, error
    kept = json.loads(where.read_text())
    assert kept["weights"]["conv2.weight"]["losers"] and kept["lambda"] > 0
