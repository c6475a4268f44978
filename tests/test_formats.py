"""Models from files, folders and Python paths, and the same files back."""

from __future__ import annotations

import io
import json
import os
import pickle
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from encoder_models import build, inputs, outputs  # noqa: E402
from exact_files import exact, there_and_back  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

import tersor  # noqa: E402
from tersor.cli import main  # noqa: E402
from tersor.commands.inspect import contents  # noqa: E402
from tersor.errors import ConfigError, ModelError  # noqa: E402


@pytest.mark.parametrize("name", ["residual", "words", "oddities", "transposed"])
def test_state_dicts_come_back_byte_for_byte(name, tmp_path):
    model = build(name)
    torch.save(model.state_dict(), tmp_path / "a.pt")
    opened = there_and_back(tmp_path / "a.pt", tmp_path)
    assert (opened.format, opened.module, opened.notes) == ("pytorch", None, [])
    assert opened.bytes == (tmp_path / "a.pt").stat().st_size


def test_a_lossy_state_dict_is_an_ordinary_one(tmp_path):
    model = build("residual")
    torch.save(model.state_dict(), tmp_path / "a.pth")
    packed = tersor.compress(tmp_path / "a.pth", bits=20)
    assert packed.size * 8 <= 20 * packed.parameters
    tersor.restore_file(packed.data, tmp_path / "b.pth")
    with zipfile.ZipFile(tmp_path / "b.pth") as archive:
        assert archive.testzip() is None  # checksums are those of the new bytes
    state, original = torch.load(tmp_path / "b.pth", weights_only=True), model.state_dict()
    assert list(state) == list(original) and state._metadata == original._metadata
    with packed.load() as file:
        assert all(np.array_equal(state[key].numpy(), file[key]) for key in state)
    assert not torch.equal(state["conv1.weight"], original["conv1.weight"])
    x = inputs("residual")
    other = build("residual", seed=5)
    other.load_state_dict(state)
    restored = tersor.restore(packed.data, into=build("residual", seed=6))
    assert torch.equal(outputs(other, x), outputs(restored, x))
    assert (outputs(model, x) - outputs(other, x)).abs().max() < 0.05


@pytest.mark.parametrize("key", ["state_dict", "model", "ema_state_dict"])
def test_nested_state_dicts(key, tmp_path):
    state = build("residual").state_dict()
    torch.save({"epoch": 3, key: state, "arch": "x"}, tmp_path / "a.pt")
    opened = there_and_back(tmp_path / "a.pt", tmp_path)
    assert opened.inventory.names == list(state)


def test_tensors_beside_the_state_dict_are_left_out_and_said(tmp_path):
    model = build("mlp")
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(inputs("mlp")).sum().backward()
    optimizer.step()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "a.pt")
    opened = tersor.open_model(tmp_path / "a.pt")
    assert "optimizer" in opened.notes[0] and opened.inventory.names == list(model.state_dict())
    tersor.restore_file(exact(opened), tmp_path / "b.pt")
    back = torch.load(tmp_path / "b.pt", weights_only=True)
    assert all(torch.equal(back[name], tensor) for name, tensor in model.state_dict().items())


def test_old_files_and_views_come_back_in_todays_format(tmp_path):
    model = build("residual")
    torch.save(model.state_dict(), tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    flat = torch.arange(40.0)
    torch.save({"a": flat[:30], "b": flat[10:]}, tmp_path / "views.pt")
    for name in ("a.pt", "views.pt"):
        opened = tersor.open_model(tmp_path / name)
        assert "today's format" in opened.notes[0]
        tersor.restore_file(exact(opened), tmp_path / "b.pt")
        old, new = (torch.load(path, weights_only=True) for path in (tmp_path / name, tmp_path / "b.pt"))
        assert list(old) == list(new) and all(torch.equal(old[key], new[key]) for key in old)


def test_other_orders_of_axes(tmp_path):
    model = build("residual").to(memory_format=torch.channels_last)
    torch.save(model.state_dict(), tmp_path / "a.pt")
    assert not model.conv1.weight.is_contiguous()
    opened = there_and_back(tmp_path / "a.pt", tmp_path)
    assert opened.inventory.tensors["conv1.weight"].shape == (8, 8, 3, 3)


class Call:
    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.mark.parametrize("content, reason", [
    ({"w": Call(os.system, "touch proof")}, "calls posix.system, which no model needs"),
    ({"w": Call(eval, "1")}, "calls .*eval, which no model needs"),
    (build("mlp"), "whole module"),
    (Call(io.StringIO, "x"), "is code"),
    ([1, 2], "holds a list, and no state dict"),
    ({"epoch": 3}, "the keys epoch, and no state dict"),
    ({3: torch.ones(2)}, "no state dict")])
@pytest.mark.skipif(os.name == "nt", reason="names of functions are those of POSIX")
def test_pickles_with_code_are_refused(content, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ModelError, match=reason):
        tersor.open_model("a.pt")
    assert not (tmp_path / "proof").exists()


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"nonsense", pickle.dumps({"a": 1}),
                                  pickle.dumps(Call(print, 1))])
def test_files_that_are_no_state_dict(data, tmp_path):
    (tmp_path / "a.bin").write_bytes(data)
    with pytest.raises(ModelError, match=r"a\.bin"):
        tersor.open_model(tmp_path / "a.bin")


def test_truncated_state_dicts(tmp_path):
    torch.save(build("mlp").state_dict(), tmp_path / "a.pt")
    data = (tmp_path / "a.pt").read_bytes()
    for length in range(0, len(data), 397):
        (tmp_path / "b.pt").write_bytes(data[:length])
        with pytest.raises(ModelError):
            tersor.open_model(tmp_path / "b.pt")


def test_torchscript_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("a/constants.pkl", b"")
    with pytest.raises(ModelError, match="TorchScript"):
        tersor.open_model(tmp_path / "a.pt")


def test_safetensors_with_a_header_of_their_own(tmp_path):
    header = (b'{"b.weight": {"shape": [2, 2], "dtype": "F32", "data_offsets": [4, 20]},\n'
              b' "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "__metadata__": {"z": "1", "a": "2"}}')
    data = len(header).to_bytes(8, "little") + header + np.arange(5, dtype="<f4").tobytes()
    (tmp_path / "a.safetensors").write_bytes(data)
    opened = there_and_back(tmp_path / "a.safetensors", tmp_path)
    assert opened.inventory.source and opened.inventory.metadata == {"z": "1", "a": "2"}
    save_file({"w": torch.ones(3, 3)}, tmp_path / "b.safetensors")
    assert not there_and_back(tmp_path / "b.safetensors", tmp_path).inventory.source  # needs none


def hub_folder(folder: Path) -> dict[str, torch.Tensor]:
    """Two shards, an index, a configuration; and a tokenizer, which is none of the model's."""
    folder.mkdir()
    state = build("residual").state_dict()
    names = list(state)
    shards = {"model-00001-of-00002.safetensors": names[:9], "model-00002-of-00002.safetensors": names[9:]}
    for file, members in shards.items():
        save_file({name: state[name] for name in members}, folder / file, metadata={"format": "pt"})
    index = {"metadata": {"total_size": 1}, "weight_map": {name: file for file in shards for name in shards[file]}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    (folder / "config.json").write_text('{"model_type": "residual"}\n')
    (folder / "tokenizer.json").write_text("{}")
    return dict(state)


def test_folders(tmp_path):
    state = hub_folder(tmp_path / "hub")
    opened = tersor.open_model(tmp_path / "hub")
    assert opened.format == "folder" and set(opened.inventory.names) == set(state)
    tersor.restore_file(exact(opened), tmp_path / "back")
    back = {path.name: path.read_bytes() for path in (tmp_path / "back").iterdir()}
    assert back == {path.name: path.read_bytes() for path in (tmp_path / "hub").iterdir() if "token" not in path.name}
    tersor.restore_file(exact(opened), tmp_path / "all.safetensors")  # the tensors alone
    assert all(torch.equal(tensor, state[name]) for name, tensor in load_file(tmp_path / "all.safetensors").items())


def test_folders_of_one_file(tmp_path):
    (tmp_path / "hub").mkdir()
    with pytest.raises(ModelError, match=r"has none of model\.safetensors"):
        tersor.open_model(tmp_path / "hub")
    torch.save(build("mlp").state_dict(), tmp_path / "hub" / "pytorch_model.bin")
    assert tersor.open_model(tmp_path / "hub").format == "pytorch"
    save_file(build("mlp").state_dict(), tmp_path / "hub" / "model.safetensors")
    assert tersor.open_model(tmp_path / "hub").format == "folder"


@pytest.mark.parametrize("shard, reason", [
    ("../secret.safetensors", "outside the folder"), ("/etc/passwd", "outside the folder"), (3, "not an index"),
    ("link.safetensors", "outside the folder"), ("gone.safetensors", "not there"), ("one.safetensors", "do not agree")])
@pytest.mark.skipif(os.name == "nt", reason="needs links")
def test_an_index_that_names_other_files(shard, reason, tmp_path):
    (tmp_path / "hub").mkdir()
    for path in ("secret.safetensors", "hub/one.safetensors"):
        save_file({"x": torch.ones(3)}, tmp_path / path)
    (tmp_path / "hub" / "link.safetensors").symlink_to(tmp_path / "secret.safetensors")
    index = {"weight_map": {"w": shard}}
    (tmp_path / "hub" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=reason):
        tersor.open_model(tmp_path / "hub")


def test_the_hubs_own_cache_has_links(tmp_path):
    hub_folder(tmp_path / "hub")
    blobs, snapshot = tmp_path / "models--x" / "blobs", tmp_path / "models--x" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate((tmp_path / "hub").iterdir()):
        (blobs / str(number)).write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(blobs / str(number))
    assert tersor.open_model(snapshot).inventory.names == tersor.open_model(tmp_path / "hub").inventory.names


FACTORIES = """
from torch import nn
def small(): return nn.Linear(3, 2)
def fails(): raise RuntimeError("no weights here")
def needs(width): return nn.Linear(width, 2)
def text(): return "x"
ready = nn.Linear(4, 2)
class Nets:
    @staticmethod
    def one(): return nn.Linear(5, 2)
"""


def test_python_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("my_nets.py").write_text(FACTORIES)
    for spec, width in (("my_nets:small", 3), ("my_nets:ready", 4), ("my_nets:Nets.one", 5)):
        opened = tersor.open_model(spec)
        assert opened.format == "module" and opened.module.weight.shape == (2, width)
    for spec, reason in (("my_nets:fails", "RuntimeError: no weights here"), ("my_nets:needs", "without arguments"),
                         ("my_nets:gone", "has no 'gone'"), ("no_such_module:x", "no module 'no_such_module'"),
                         ("my_nets:text", "gives a str"), ("what.is.this", "is no file and no folder")):
        with pytest.raises(ModelError, match=reason):
            tersor.open_model(spec)
    monkeypatch.delitem(sys.modules, "my_nets")


def test_libraries_that_are_not_installed(monkeypatch):
    for name in ("timm", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(ConfigError, match=rf"pip install 'tersor\[{name}\]'"):
            tersor.open_model(f"{name}:resnet18")


def test_timm(monkeypatch):
    """Whatever the library says, the error says where weights come from; and its networks can be restored into."""
    timm = pytest.importorskip("timm", reason="timm is not installed (it needs torchvision)")
    model = timm.create_model("test_resnet.r160_in1k", pretrained=False)
    packed = tersor.compress(model, bits=8)
    again = tersor.restore(packed.data, into=timm.create_model("test_resnet.r160_in1k", pretrained=False))
    assert again.state_dict().keys() == model.state_dict().keys()


class FakeTimm:
    """Stands for timm: `create_model(name, pretrained)`."""

    @staticmethod
    def create_model(name, pretrained):
        if name != "residual":
            raise RuntimeError(f"Unknown model ({name})\nmore")
        return build("residual").train()


def test_a_library_that_makes_networks(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", FakeTimm)
    opened = tersor.open_model("timm:residual")
    assert opened.format == "module" and not opened.module.training
    with pytest.raises(ModelError, match=r"Unknown model \(x\)\. Weights come from the local cache"):
        tersor.open_model("timm:x")
    packed = tersor.compress(opened, bits=20)
    assert tersor.restore(packed.data, into=FakeTimm.create_model("residual", False)) is not None


def test_transformers_folder(tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
                                     vocab_size=40, max_position_embeddings=16)
    model = transformers.BertModel(config)
    model.save_pretrained(tmp_path / "bert")
    opened = tersor.open_model(tmp_path / "bert")
    tersor.restore_file(tersor.compress(opened, bits=12).data, tmp_path / "back")
    back = transformers.AutoModel.from_pretrained(tmp_path / "back")
    assert back.state_dict().keys() == model.state_dict().keys()
    assert tersor.open_model(f"transformers:{tmp_path / 'back'}").module is not None


def test_the_other_format_is_refused(tmp_path):
    torch.save(build("mlp").state_dict(), tmp_path / "a.pt")
    data = tersor.compress(tmp_path / "a.pt", bits=24).data
    with pytest.raises(ConfigError, match=r"was a PyTorch state dict, which \.onnx is not: give a name with \.pt or"):
        tersor.restore_file(data, tmp_path / "b.onnx")
    tersor.restore_file(data, tmp_path / "b.safetensors")
    assert load_file(tmp_path / "b.safetensors").keys() == build("mlp").state_dict().keys()
    with pytest.raises(FileExistsError):
        tersor.restore_file(data, tmp_path / "a.pt", overwrite=False)


def test_on_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.save(build("residual").state_dict(), "a.pt")
    hub_folder(Path("hub"))
    assert main(["compress", "a.pt", "--bits", "20", "--effort", "2"]) == 0
    assert main(["restore", "a.tersor", "-o", "b.pt"]) == 0
    assert torch.load("b.pt", weights_only=True).keys() == build("residual").state_dict().keys()
    assert main(["restore", "a.tersor", "-o", "c.pt", "--runtime", "compressed"]) == 2
    assert "tersor.runtime.from_file" in capsys.readouterr().err
    assert main(["compress", "hub", "--bits", "20", "--effort", "2"]) == 0
    assert main(["restore", "hub.tersor", "-o", "again"]) == 0 and Path("again/config.json").is_file()
    assert main(["restore", "hub.tersor", "-o", "again"]) == 1
    assert main(["restore", "hub.tersor", "-o", "again", "-f"]) == 0


def test_the_rest_is_no_tensor_of_the_model(tmp_path):
    torch.save(build("mlp").state_dict(), tmp_path / "a.pt")
    packed = tersor.compress(tmp_path / "a.pt", bits=24)
    with packed.load() as file:
        assert list(file) == list(build("mlp").state_dict()) and "tersor.source" not in file
        assert file.source_format == "pytorch" and file.metadata == {}
        file.verify()
        report = contents(file)
    assert report["source_format"] == "pytorch" and "tersor.source" not in str(report["tensors"])
    assert report["bytes_by_tool"]["rest of the source file"] > 100
    assert sum(report["bytes_by_tool"].values()) + report["header_bytes"] == packed.size
    assert packed.size * 8 <= 24 * packed.parameters
