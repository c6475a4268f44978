"""Programs of torch.export: calibrated from the file, restored byte for byte, and nothing in them is run unseen."""

from __future__ import annotations

import io
import json
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from encoder_models import build, decibels, inputs, outputs  # noqa: E402
from exact_files import there_and_back  # noqa: E402
from test_formats import Call  # noqa: E402
from torch import nn  # noqa: E402

import tersor  # noqa: E402
from tersor.adapters.module import inventory_of_module  # noqa: E402
from tersor.errors import ModelError  # noqa: E402


def export(model: nn.Module, x: torch.Tensor, path: Path, decomposed: bool = False) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(model, (x[:2],), dynamic_shapes=({0: torch.export.Dim("n", min=1, max=999)},))
        torch.export.save(program.run_decompositions() if decomposed else program, path)
    return path


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name, decomposed", [("residual", False), ("residual", True), ("words", False),
                                              ("transposed", False), ("oddities", False)])
def test_the_network_is_the_program(name, decomposed, tmp_path):
    model, x = build(name), inputs(name)
    opened = there_and_back(export(model, x, tmp_path / "a.pt2", decomposed), tmp_path)
    assert (opened.format, opened.notes) == ("pt2", [])
    assert decibels(outputs(model, x), outputs(opened.module, x)) > 100
    own = {layer.name: layer.kind for layer in inventory_of_module(model).layers}
    found = {layer.name: layer.kind for layer in opened.inventory.layers}
    assert found == own or name in ("words", "oddities")  # whose parameters are not all used by layers
    assert found.keys() <= own.keys()


@pytest.mark.filterwarnings("ignore")
def test_calibration_sees_what_it_sees_in_the_module(tmp_path):
    model, x = build("residual"), inputs("residual", 16)
    opened = tersor.open_model(export(model, x, tmp_path / "a.pt2"))
    ours, theirs = tersor.calibrate(opened.module, x), tersor.calibrate(model, x)
    assert ours.graph.absorb == theirs.graph.absorb and ours.graph.order == theirs.graph.order
    assert ours.layers.keys() == theirs.layers.keys()
    for name, layer in theirs.layers.items():
        np.testing.assert_allclose(ours.layers[name].A, layer.A, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(ours.layers[name].G, layer.G, rtol=1e-4, atol=1e-6)
    packed = tersor.compress(opened, ours, size=len(opened.inventory.source) + 2500, effort=2)
    assert packed.notes == [] and packed.snr > 15
    tersor.restore_file(packed.data, tmp_path / "b.pt2")
    back = torch.export.load(tmp_path / "b.pt2").module()
    assert decibels(outputs(model, x), outputs_of(back, x)) == pytest.approx(packed.snr, abs=0.1)


def outputs_of(program: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """A program cannot be put into eval mode."""
    with torch.no_grad():
        return program(x).double()


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    return export(build("mlp"), inputs("mlp"), tmp_path_factory.mktemp("pt2") / "a.pt2")


def changed(path: Path, to: Path, change) -> Path:
    """The archive with records (name without the folder -> bytes) changed in place."""
    with zipfile.ZipFile(path) as source:
        records = {name.partition("/")[2]: source.read(name) for name in source.namelist()}
    change(records)
    with zipfile.ZipFile(to, "w") as target:
        for name, data in records.items():
            target.writestr(f"a/{name}", data)
    return to


def edit(name: str, change):
    def run(records: dict[str, bytes]) -> None:
        content = json.loads(records[name])
        change(content)
        records[name] = json.dumps(content).encode()
    return run


def pickled(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def add_expression(text: str):
    return lambda model: model["range_constraints"].update(s0={"min_val": 1, "expr_str": text})


WEIGHTS, CONSTANTS, MODEL = (f"{name}.json" for name in ("data/weights/model_weights_config",
                                                         "data/constants/model_constants_config", "models/model"))


@pytest.mark.parametrize("change, reason", [
    (edit(WEIGHTS, lambda c: c["config"]["0.weight"].update(use_pickle=True)), "weight '0.weight' is a pickled object"),
    (edit(CONSTANTS, lambda c: c["config"].update(x={"path_name": "custom_obj_0"})), "pickled object"),
    (edit(CONSTANTS, lambda c: c["config"].update(x={"path_name": "tensor_0", "use_pickle": True})), "pickled object"),
    (edit(CONSTANTS, lambda c: c["config"].update(x=3)), "not a whole archive"),
    (edit(MODEL, add_expression("__import__('os').system('x')")), "no expression over sizes"),
    (edit(MODEL, add_expression("Symbol.mro()")), "no expression over sizes"),
    (edit(MODEL, add_expression("S('open(1)')")), "no expression over sizes"),
    (edit(MODEL, add_expression("exit()")), "no expression over sizes"),
    (edit(MODEL, add_expression("(")), "no expression over sizes"),
    (lambda r: r.update({"data/sample_inputs/model.pt": pickled(Call(eval, "1"))}), "no model needs"),
    (lambda r: r.update({"models/other.json": b"{}"}), "2 programs"),
    (lambda r: r.update({"data/aotinductor/model/x.so": b""}), "compiled code"),
    (lambda r: r.pop(WEIGHTS), "no record"), (lambda r: r.update({MODEL: b"["}), "not a whole archive"),
    (lambda r: (r.pop(MODEL), r.update({"serialized_exported_program.json": b""})), "torch before 2.8")])
@pytest.mark.filterwarnings("ignore")
def test_archives_that_are_refused(change, reason, archive, tmp_path):
    with pytest.raises(ModelError, match=reason):
        tersor.open_model(changed(archive, tmp_path / "b.pt2", change))


@pytest.mark.filterwarnings("ignore")
def test_truncated_and_damaged_archives(archive, tmp_path):
    data = archive.read_bytes()
    for length in range(0, len(data), 2999):
        (tmp_path / "b.pt2").write_bytes(data[:length])
        with pytest.raises(ModelError):
            tersor.open_model(tmp_path / "b.pt2")
    with zipfile.ZipFile(tmp_path / "b.pt2", "w", zipfile.ZIP_DEFLATED) as target:
        target.writestr("a/archive_format", "pt2" * 99)
    with pytest.raises(ModelError, match="compressed or truncated"):
        tersor.open_model(tmp_path / "b.pt2")


@pytest.mark.filterwarnings("ignore")
def test_the_wrong_inputs(archive):
    opened = tersor.open_model(archive)
    with pytest.raises(ModelError, match=r"takes 1 inputs \(input_1\), 0 given"):
        opened.module()
