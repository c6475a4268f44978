"""A sweep: its files are those of compress, it goes on where it was stopped, its record is true."""

from __future__ import annotations

import copy
import hashlib
import json
import math

import numpy as np
import pytest
import torch
from encoder_models import Residual, seeded

import tersor
from tersor import evaluate
from tersor.adapters import safetensors as safetensors_adapter
from tersor.errors import ConfigError, DataError
from tersor.sweep import baselines, read, sweep

pytest.importorskip("zstandard")


@pytest.fixture(scope="module")
def subject():
    model = seeded(Residual)
    inputs = torch.randn(24, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        labels = model(inputs[16:]).argmax(1)
    return model, tersor.calibrate(model, [inputs[:16]]), [(inputs[16:], labels)]


@pytest.fixture(scope="module")
def swept(subject, tmp_path_factory):
    model, stats, batches = subject
    folder = tmp_path_factory.mktemp("sweep")
    document = sweep(model, stats, [8, 5], folder, batches=batches, config=tersor.Config(effort=5), name="residual")
    return folder, document


def test_files_are_those_of_compress(subject, swept):
    model, stats, batches = subject
    folder, document = swept
    assert [point["asked_bits"] for point in document["points"]] == [5, 8]
    for point in document["points"]:
        data = (folder / point["file"]).read_bytes()
        assert data == tersor.compress(model, stats, bits=point["asked_bits"], effort=5).data
        assert (point["bytes"], point["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
        assert point["payload_bytes"] + point["side_bytes"] + point["header_bytes"] == len(data)
        restored = tersor.restore(data, into=Residual())
        reference, other = (evaluate.logits(network, batches) for network in (model, restored))
        assert point["measured"] == evaluate.compare(reference, other, batches[0][1]).as_dict()


def test_record_is_what_was_returned(swept):
    folder, document = swept
    assert read(folder) == json.loads(json.dumps(document)) == json.loads((folder / "sweep.json").read_text())
    assert document["top1"] == 1.0 and document["samples"] == 8 and document["name"] == "residual"
    assert document["calibration_images"] == 16


def test_baselines_are_measured_in_the_same_run(subject, swept):
    model, _, batches = subject
    _, document = swept
    names = [row["codec"] for row in document["baselines"]]
    assert names == ["int8 per channel + zstd -19"] + ["RTN per layer + ideal entropy"] * len(baselines.STEPS)
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    coded = baselines.int8_zstd(tensors)
    other = copy.deepcopy(model)
    other.load_state_dict({name: torch.from_numpy(array) for name, array in coded.tensors.items()}, strict=False)
    reference, after = (evaluate.logits(network, batches) for network in (model, other))
    assert document["baselines"][0]["bytes"] == len(coded.blob)
    assert document["baselines"][0]["measured"]["kl"] == pytest.approx(evaluate.compare(reference, after).kl)
    kl = [row["measured"]["kl"] for row in document["baselines"][1:]]
    sizes = [row["bytes"] for row in document["baselines"][1:]]
    assert sizes == sorted(sizes, reverse=True) and kl[0] < kl[-1]


def test_goes_on_where_it_was_stopped(subject, swept, tmp_path):
    model, stats, batches = subject
    _, document = swept
    told: list[str] = []

    def stop(text: str) -> None:
        told.append(text)
        if text.startswith("8"):
            raise KeyboardInterrupt

    options = {"batches": batches, "config": tersor.Config(effort=5), "name": "residual"}
    with pytest.raises(KeyboardInterrupt):
        sweep(model, stats, [5, 8], tmp_path, progress=stop, **options)
    assert [point["asked_bits"] for point in read(tmp_path)["points"]] == [5]
    again = sweep(model, stats, [5, 8], tmp_path, progress=told.append, **options)
    assert told == ["5 bits/weight", "8 bits/weight", "8 bits/weight", "baselines"]
    assert without_times(again) == without_times(document)
    more = sweep(model, stats, [6], tmp_path, progress=told.append, **options)
    assert [point["asked_bits"] for point in more["points"]] == [5, 6, 8] and told[4:] == ["6 bits/weight"]
    (tmp_path / "8-bits.tersor").write_bytes(b"damaged")
    sweep(model, stats, [5, 8], tmp_path, progress=told.append, **options)
    assert told[5:] == ["8 bits/weight"]
    assert tersor.load(tmp_path / "8-bits.tersor")


def without_times(document):
    points = [{key: value for key, value in point.items() if key != "encode_seconds"} for point in document["points"]]
    return document | {"points": points}


def test_another_sweep_in_the_same_folder(subject, tmp_path):
    model, stats, batches = subject
    sweep(model, stats, [8], tmp_path, config=tersor.Config(effort=1), peers=False)
    for changed in ({"config": tersor.Config(effort=2)}, {"config": tersor.Config(effort=1), "batches": batches}):
        with pytest.raises(DataError, match="of another sweep"):
            sweep(model, stats, [8], tmp_path, **changed)
    (tmp_path / "sweep.json").write_text("{}")
    with pytest.raises(DataError, match="no record of a sweep"):
        read(tmp_path)
    (tmp_path / "sweep.json").write_text("[1, 2")
    with pytest.raises(DataError, match="no JSON"):
        read(tmp_path)


def test_a_record_cannot_name_files_elsewhere(subject, tmp_path):
    model, stats, _ = subject
    config = tersor.Config(effort=1)
    sweep(model, stats, [8], tmp_path / "s", config=config, peers=False)
    document = read(tmp_path / "s")
    document["points"][0]["file"] = "../8-bits.tersor"
    (tmp_path / "8-bits.tersor").write_bytes((tmp_path / "s" / "8-bits.tersor").read_bytes())
    (tmp_path / "s" / "8-bits.tersor").unlink()
    (tmp_path / "s" / "sweep.json").write_text(json.dumps(document))
    told: list[str] = []
    sweep(model, stats, [8], tmp_path / "s", config=config, peers=False, progress=told.append)
    assert told == ["8 bits/weight"]


def test_bare_tensors_and_rates_out_of_reach(tmp_path):
    generator = np.random.default_rng(0)
    safetensors_adapter.write(tmp_path / "m.safetensors", {"a.weight": generator.normal(size=(64, 96)).astype("f4")})
    inventory = safetensors_adapter.read(tmp_path / "m.safetensors")
    document = sweep(inventory, None, [0.001, 6], tmp_path / "s")
    low, good = document["points"]
    assert "out of reach" in low["error"] and good["measured"] is None and good["bytes"] > 0
    assert all(row["measured"] is None for row in document["baselines"])
    assert not math.isnan(json.loads((tmp_path / "s" / "sweep.json").read_text())["points"][1]["bits_per_weight"])
    with pytest.raises(ConfigError, match="only its tensors"):
        sweep(inventory, None, [6], tmp_path / "s", batches=[torch.ones(1)])
    with pytest.raises(ConfigError, match="positive numbers"):
        sweep(inventory, None, [], tmp_path / "s")
