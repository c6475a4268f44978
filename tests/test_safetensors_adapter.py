"""Safetensors in and out, beside the reference library."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from tersor.adapters.safetensors import inventory_of_arrays, read, write
from tersor.bitstream.dtypes import NAMES, NUMPY
from tersor.errors import ModelError

RNG = np.random.default_rng(7)


def random_of(name: str, shape: tuple[int, ...]) -> np.ndarray:
    dtype = NUMPY[name]
    if dtype == np.bool_:
        return RNG.integers(0, 2, shape).astype(bool)
    return np.frombuffer(RNG.bytes(int(np.prod(shape)) * dtype.itemsize), dtype=dtype).reshape(shape)


def test_every_type_comes_back(tmp_path):
    tensors = {f"t.{name}": random_of(name, (3, 5)) for name in NAMES}
    tensors |= {"scalar": np.array(2.5), "void": np.zeros((0, 4), "f4"), "é.weight": np.ones((2, 2), "f4")}
    path = tmp_path / "x.safetensors"
    assert write(path, tensors, {"format": "pt", "ü": "1"}) == path.stat().st_size
    back = read(path)
    assert sorted(back.names) == sorted(tensors)
    assert back.metadata == {"format": "pt", "ü": "1"}
    for name, array in tensors.items():
        assert back.tensors[name].dtype == array.dtype
        assert back.tensors[name].shape == array.shape
        assert back.tensors[name].tobytes() == array.tobytes()
        assert not back.tensors[name].flags.writeable
    with safe_open(path, "np") as file:  # the reference library agrees
        assert set(file.keys()) == set(tensors)
        assert file.get_slice("t.BF16").get_dtype() == "BF16"


def test_the_librarys_files_come_back_byte_for_byte(tmp_path):
    path, copy = tmp_path / "x.safetensors", tmp_path / "y.safetensors"
    save_file({"z.weight": np.ones((4, 3), "f4"), "a.flag": np.array([True]), "n": np.arange(3),
               "h": np.ones(5, "f2"), "e": np.zeros(0, "f4")}, path, metadata={"format": "np"})
    found = read(path)
    write(copy, {name: found.tensors[name] for name in found.names}, found.metadata)
    assert copy.read_bytes() == path.read_bytes()


tensor = st.tuples(st.sampled_from(NAMES), st.lists(st.integers(0, 4), max_size=3).map(tuple))
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(names, tensor, max_size=6))
def test_round_trip(tmp_path_factory, described):
    tensors = {name: random_of(dtype, shape) for name, (dtype, shape) in described.items()}
    path = tmp_path_factory.mktemp("st") / "x.safetensors"
    write(path, tensors)
    back = read(path)
    assert {name: array.tobytes() for name, array in back.tensors.items()} == {
        name: array.tobytes() for name, array in tensors.items()}


def test_written_data_is_aligned_and_readable(tmp_path):
    path = tmp_path / "x.safetensors"
    tensors = {"flag": np.array([True]), "w": np.ones(3, "f4"), "h": np.ones(1, "f2"), "d": np.ones(1)}
    write(path, tensors)
    header = json.loads(path.read_bytes()[8:].split(b"}}")[0] + b"}}")
    for name, array in tensors.items():
        assert header[name]["data_offsets"][0] % array.itemsize == 0
    assert {name: array.tolist() for name, array in load_file(path).items()} == {
        name: array.tolist() for name, array in tensors.items()}


def test_layers_and_parameters(tmp_path):
    path = tmp_path / "x.safetensors"
    write(path, {"conv.weight": np.ones((8, 3, 3, 3), "f4"), "conv.bias": np.ones(8, "f4"),
                 "bn.weight": np.ones(8, "f4"), "bn.running_mean": np.ones(8, "f4"),
                 "bn.running_var": np.ones(8, "f4"), "bn.num_batches_tracked": np.array(3),
                 "fc.weight": np.ones((5, 8), "f2"), "up.weight": np.ones((8, 4, 2, 2), "f4"),
                 "up.bias": np.ones(4, "f4"), "codes.weight": np.ones((5, 8), "i4"),
                 "pos": np.ones((4, 4), "f4")})
    found = read(path)
    assert {(layer.name, layer.kind, layer.bias) for layer in found.layers} == {
        ("conv.weight", "conv", "conv.bias"), ("fc.weight", "linear", None), ("up.weight", "conv", None)}
    assert found.batchnorms == []
    assert found.parameters == 216 + 8 + 8 + 40 + 128 + 4 + 16


def test_equal_matrices_become_aliases(tmp_path):
    path = tmp_path / "x.safetensors"
    table = RNG.standard_normal((40, 16)).astype("f4")
    almost = table.copy()
    almost[-1, -1] += 1
    small = table[:2].copy()
    write(path, {"a.weight": table, "b.weight": table.copy(), "c.weight": almost,
                 "d.weight": table.view("i4"), "e.weight": table.reshape(16, 40),
                 "f.weight": small, "g.weight": small.copy(),
                 "norm1.weight": np.ones(512, "f4"), "norm2.weight": np.ones(512, "f4"),
                 "x.weight": np.zeros((32, 16), "f4"), "y.weight": np.zeros((32, 16), "f4"),
                 "v1": table.ravel(), "v2": table.ravel()})
    found = read(path)
    assert found.aliases == {"b.weight": "a.weight"}
    assert "b.weight" not in found.tensors
    assert "b.weight" in found.names
    assert "b.weight" not in [layer.name for layer in found.layers]


def test_state_dicts_of_arrays_are_like_files(tmp_path):
    table = RNG.standard_normal((40, 16)).astype("f4")
    arrays = {"conv.weight": np.ones((8, 3, 3, 3), "f4")[:, ::-1], "conv.bias": np.ones(8, ">f4"),
              "bn.running_var": np.ones(8, "f4"), "n": np.int64(3), "a.weight": table,
              "b.weight": table.copy(),
              "h": np.ones(3, ml_dtypes.bfloat16), "none": np.zeros((0, 3), "f4")}
    found = inventory_of_arrays(arrays, {"k": "v"})
    write(tmp_path / "x.safetensors", {name: np.asarray(array) for name, array in arrays.items()}, {"k": "v"})
    same = read(tmp_path / "x.safetensors")
    for what in ("aliases", "batchnorms", "parameters", "metadata", "exact", "tied"):
        assert getattr(found, what) == getattr(same, what), what
    assert sorted(layer.name for layer in found.layers) == sorted(layer.name for layer in same.layers)
    assert found.names == list(arrays), "in the order given"
    assert (found.aliases, found.tied) == ({"b.weight": "a.weight"}, False), "equal, not known to be tied"
    assert found.exact == {"bn.running_var"}
    for name, array in found.tensors.items():
        assert (array.dtype, array.shape) == (same.tensors[name].dtype, np.shape(arrays[name]))
        assert array.tobytes() == same.tensors[name].tobytes()
        assert not array.flags.writeable and array.flags.c_contiguous
    assert table.flags.writeable, "the arrays that were given are left alone"


def test_state_dicts_of_tensors():
    torch = pytest.importorskip("torch")
    found = inventory_of_arrays({"w": torch.ones(3, 2).T, "b": torch.ones(2).bfloat16(),
                                 "a": np.ones(2, "f4"), "s": torch.tensor(2),
                                 "p": torch.nn.Parameter(torch.ones(4))})
    assert {name: (array.dtype.name, array.shape) for name, array in found.tensors.items()} == {
        "w": ("float32", (2, 3)), "b": ("bfloat16", (2,)), "a": ("float32", (2,)), "s": ("int64", ()),
        "p": ("float32", (4,))}


def test_arrays_need_no_torch():
    code = ("import sys, numpy as np\nfrom tersor.adapters.safetensors import inventory_of_arrays\n"
            "inventory_of_arrays({'w': np.ones((2, 2), 'f4')})\nassert 'torch' not in sys.modules")
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(("given", "message"), [
    ({"w": [1.0]}, "w is a list"), ({"state_dict": {}}, "state_dict is a dict.*checkpoint"),
    ({3: np.ones(2)}, "not 3"), ({"w": np.ones(2, "c16")}, "^w: element type complex128"),
    ({"w": np.array(["x"])}, "^w: ")])
def test_what_is_no_state_dict(given, message):
    with pytest.raises(ModelError, match=message):
        inventory_of_arrays(given)


@pytest.mark.parametrize("data", [
    b"", b"12345678", b"\x08" + bytes(7) + b"notjson!", bytes(100), b"\xff" * 8 + b"{}",
    b"PK\x03\x04" + bytes(50),
    b"\x37" + bytes(7) + b'{"w":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}} x'])
def test_broken_files(tmp_path, data):
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(ModelError, match="not a valid"):
        read(path)


def test_errors_name_the_tensor(tmp_path):
    path = tmp_path / "x.safetensors"
    header = b'{"odd":{"dtype":"F8_E8M0","shape":[1],"data_offsets":[0,1]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0")
    with pytest.raises(ModelError, match=r"'odd'.*F8_E8M0"):
        read(path)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "absent.safetensors")
    with pytest.raises(ModelError, match="complex128"):
        write(path, {"w": np.ones(1, np.complex128)})
    with pytest.raises(ModelError, match="__metadata__"):
        write(path, {"__metadata__": np.ones(1)})
    with pytest.raises(ModelError, match="Unicode"):
        write(path, {"\ud800": np.ones(1)})
    with pytest.raises(FileExistsError):
        write(path, {"w": np.ones(1)}, overwrite=False)
    assert os.listdir(tmp_path) == ["x.safetensors"]


def test_strided_and_big_endian_arrays_are_written_right(tmp_path):
    path = tmp_path / "x.safetensors"
    values = np.arange(12, dtype=">f8").reshape(3, 4).T[::-1]
    write(path, {"w": values, "b": np.ones(2, ml_dtypes.bfloat16)})
    assert read(path).tensors["w"].tolist() == values.tolist()
