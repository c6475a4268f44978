"""ONNX models: what their initializers are, calibration from the file alone, and the same file back."""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")

from encoder_models import build, decibels, inputs, outputs  # noqa: E402
from exact_files import exact, there_and_back  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402
from torch import nn  # noqa: E402

import tersor  # noqa: E402
import tersor.onnx  # noqa: E402
from tersor.adapters.onnx import file as onnx_file  # noqa: E402
from tersor.adapters.onnx.wire import tensor_spans  # noqa: E402
from tersor.cli import main  # noqa: E402
from tersor.errors import ConfigError, ModelError, TersorError  # noqa: E402
from tersor.runtime.onnx_graph import compressed_model  # noqa: E402

RNG = np.random.default_rng(5)


def export(model: nn.Module, x: torch.Tensor, path: Path, training: bool = False) -> Path:
    """The older exporter, which needs no other package. `training` keeps BatchNorms apart."""
    mode = torch.onnx.TrainingMode.PRESERVE if training else torch.onnx.TrainingMode.EVAL
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (x[:2],), path, dynamo=False, opset_version=17, input_names=["x"], training=mode,
                          do_constant_folding=not training, dynamic_axes={"x": {0: "n"}})
    return path


def made(nodes, weights, path: Path, shape=("n", 6), opset: int = 17, **options) -> Path:
    """A model with one input x and one output y."""
    tensors = [value if hasattr(value, "dims") else numpy_helper.from_array(value, name)
               for name, value in weights.items()]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "m"])], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    onnx.save(model, path, **options)
    return path


def random(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype("f4")


def run(path: object, x: torch.Tensor) -> torch.Tensor:
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


@pytest.mark.parametrize("name", ["residual", "mlp", "conv2d, grouped, depthwise", "conv1d, dilated", "conv3d",
                                  "transposed", "words"])
def test_the_network_is_the_graph(name, tmp_path):
    model, x = build(name), inputs(name)
    opened = there_and_back(export(model, x, tmp_path / "a.onnx"), tmp_path)
    assert opened.format == "onnx" and opened.notes == []
    assert decibels(outputs(model, x), outputs(opened.module, x)) > 100
    wanted = {layer.kind for layer in tersor.open_model(tmp_path / "a.onnx").inventory.layers}
    assert wanted <= {"linear", "conv", "conv_transposed", "embedding"}


def test_batchnorms_are_found_and_errors_are_followed(tmp_path):
    model, x = build("residual"), inputs("residual", 16)
    opened = tersor.open_model(export(model, x, tmp_path / "a.onnx", training=True))
    assert len(opened.inventory.batchnorms) == 5 and not opened.inventory.exact
    assert opened.inventory.parameters == sum(p.numel() for p in model.parameters())
    ours, theirs = tersor.calibrate(opened.module, x), tersor.calibrate(model, x)
    assert len(ours.graph.absorb) == 5 and ours.graph.residual.keys() == theirs.graph.residual.keys()
    more = []
    for bits in np.linspace(4.5, 8.5, 17):  # a network of 2,930 weights is lucky or not by up to 5 dB
        small = tersor.compress(model, theirs, bits=float(bits), effort=1)
        packed = tersor.compress(opened, ours, size=small.size + deflated(opened), effort=1)
        assert packed.size <= small.size + deflated(opened)
        assert all("smaller than asked" in note for note in packed.notes)
        more.append(packed.snr - small.snr)
    assert np.mean(more) > -2.5, more


def deflated(opened: tersor.OpenedModel) -> int:
    from tersor.synthesis import raw
    return len(raw.encode([np.frombuffer(opened.inventory.source, np.uint8)]))


def test_a_lossy_model_is_the_same_graph(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x = inputs("residual")
    path = export(build("residual"), x, tmp_path / "a.onnx")
    model = onnx.load(path)
    model.doc_string, model.producer_name = "ünïcode", "me"
    model.metadata_props.add(key="labels", value="cat,dog")
    onnx.save(model, path)
    assert main(["compress", "a.onnx", "--bits", "14", "--effort", "2"]) == 0
    assert main(["restore", "a.tersor", "-o", "back.onnx"]) == 0
    back = onnx.load("back.onnx")
    onnx.checker.check_model(back)
    ours = {tensor.name: numpy_helper.to_array(tensor) for tensor in back.graph.initializer}
    theirs = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert list(ours) == list(theirs)
    assert any(not np.array_equal(ours[name], theirs[name]) for name in ours)
    for one in (model, back):
        for tensor in one.graph.initializer:
            tensor.ClearField("raw_data")
    assert model == back
    figures = tersor.onnx.difference("a.onnx", "a.tersor", [x.numpy()], np.zeros(24, np.int64))
    assert 0 < figures.max_error < 0.5 and figures.figures.snr > 25 and figures.figures.top1 is not None
    assert torch.equal(run("back.onnx", x), torch.from_numpy(
        tersor.onnx.session("a.tersor").run(None, {"x": x.numpy()})[0]))


LINEAR = {"gemm": ([helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1)], (8, 6)),
          "gemm, turned": ([helper.make_node("Gemm", ["x", "w", "b"], ["y"])], (6, 8)),
          "matmul": ([helper.make_node("MatMul", ["x", "w"], ["z"]), helper.make_node("Add", ["b", "z"], ["y"])],
                     (6, 8)),
          "transposed": ([helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]),
                          helper.make_node("MatMul", ["x", "t"], ["z"]), helper.make_node("Add", ["z", "b"], ["y"])],
                         (8, 6))}


@pytest.mark.parametrize("kind", LINEAR)
def test_layouts_of_linear_layers(kind, tmp_path):
    nodes, shape = LINEAR[kind]
    path = made(nodes, {"w": random(*shape), "b": random(8)}, tmp_path / "a.onnx")
    opened = there_and_back(path, tmp_path)
    (layer,) = opened.inventory.layers
    assert (layer.name, layer.kind, layer.bias) == ("w", "linear", "b")
    assert opened.inventory.tensors["w"].shape == (8, 6)
    x = torch.randn(5, 6)
    assert torch.allclose(outputs(opened.module, x).float(), run(path, x), atol=1e-5)
    stats = tersor.calibrate(opened.module, torch.randn(64, 6))
    assert set(stats.layers) == {"w"} and "b" in stats.vector_sensitivity
    assert tersor.compress(opened, stats, bits=50).snr > 10


def test_gemm_with_factors_and_weights_used_twice(tmp_path):
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["h"], alpha=0.5, beta=2.0),
             helper.make_node("MatMul", ["h", "w"], ["z"]), helper.make_node("Gemm", ["z", "w"], ["y"], transB=1)]
    path = made(nodes, {"w": random(6, 6), "b": random(1, 6)}, tmp_path / "a.onnx")
    opened = there_and_back(path, tmp_path)
    x = torch.randn(5, 6)
    assert torch.allclose(outputs(opened.module, x).float(), run(path, x), atol=1e-4)


def test_constants_small_tensors_and_odd_names(tmp_path):
    value = numpy_helper.from_array(random(20, 6), "inner")
    nodes = [helper.make_node("Constant", [], ["/c"], value=value),
             helper.make_node("Gemm", ["x", "/c"], ["h"], transB=1),
             helper.make_node("MatMul", ["h", "a..b"], ["z"]), helper.make_node("Mul", ["z", "half"], ["s"]),
             helper.make_node("MatMul", ["s", "training"], ["t"]), helper.make_node("Add", ["t", "mask"], ["u"]),
             helper.make_node("Softmax", ["u"], ["y"])]
    weights = {"a..b": random(20, 20), "half": np.float32(0.5), "training": random(20, 20), "mask": random(1, 1, 9, 20)}
    path = made(nodes, weights, tmp_path / "a.onnx", shape=(9, 6))
    opened = there_and_back(path, tmp_path)
    assert len(opened.inventory.layers) == 3 and opened.inventory.exact == {"mask"}
    x = torch.randn(9, 6)
    y = torch.softmax(outputs(opened.module, x).float(), -1)  # the network stops at the logits
    assert torch.allclose(y, run(path, x), atol=1e-5)


@pytest.mark.parametrize("size", ["small", "large"])
def test_external_data(size, tmp_path):
    weights = {"w": random(40, 6), "v": random(40, 8)} if size == "large" else {"w": random(4, 6), "v": random(4, 8)}
    nodes = [helper.make_node("Gemm", ["x", "w"], ["h"], transB=1), helper.make_node("MatMul", ["h", "v"], ["y"])]
    path = made(nodes, weights, tmp_path / "a.onnx", save_as_external_data=True, size_threshold=0, location="a.data")
    opened = there_and_back(path, tmp_path)
    assert (tmp_path / "back/a.data").read_bytes() == (tmp_path / "a.data").read_bytes()
    assert opened.bytes == path.stat().st_size + (tmp_path / "a.data").stat().st_size
    x = torch.randn(5, 6)
    packed = tersor.compress(opened, bits=60 if size == "small" else 16)
    result = tersor.onnx.session(packed.data).run(None, {"x": x.numpy()})[0]
    assert np.allclose(result, run(path, x), atol=0.1) and not np.array_equal(result, run(path, x))
    with pytest.raises(FileExistsError, match=r"a\.data"):  # the original's data are not overwritten unasked
        tersor.restore_file(packed.data, tmp_path / "b.onnx", overwrite=False)


def external(location: str, offset: str = "0", length: str = "96", name: str = "w") -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[4, 6], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=value)
    return tensor


@pytest.mark.parametrize("location, offset, length, reason", [
    ("../secret", "0", "96", "leads out"), ("../../etc/passwd", "0", "96", "leads out"),
    ("link", "0", "96", "leads out"),
    ("/etc/passwd", "0", "96", "leads out"), ("", "0", "96", "leads out"), ("gone", "0", "96", "not beside the model"),
    ("ok", "8", "96", "has not 96 bytes at 8"), ("ok", "0", "95", "has not 95"), ("ok", "-1", "96", "bytes"),
    ("ok", "x", "96", "no number"), ("ok", "9" * 30, "96", "bytes")])
@pytest.mark.skipif(os.name == "nt", reason="needs links")
def test_external_data_that_are_elsewhere(location, offset, length, reason, tmp_path):
    (tmp_path / "m").mkdir()
    for name in ("secret", "m/ok"):
        (tmp_path / name).write_bytes(bytes(96))
    (tmp_path / "m/link").symlink_to(tmp_path / "secret")
    path = made([helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)], {"w": external(location, offset, length)},
                tmp_path / "m/a.onnx")
    with pytest.raises(ModelError, match=reason):
        tersor.open_model(path)


def test_weights_that_share_their_bytes_or_are_no_plain_bytes(tmp_path):
    (tmp_path / "d").write_bytes(random(4, 6).tobytes())
    nodes = [helper.make_node("Gemm", ["x", "w"], ["h"], transB=1), helper.make_node("MatMul", ["h", "v"], ["y"])]
    path = made(nodes, {"w": external("d"), "v": external("d", name="v")}, tmp_path / "a.onnx")
    halves = TensorProto(name="w", data_type=TensorProto.FLOAT16, dims=[2], int32_data=[15360, 16384])
    other = made([helper.make_node("Cast", ["w"], ["c"], to=1), helper.make_node("MatMul", ["x", "v"], ["z"]),
                  helper.make_node("Mul", ["z", "c"], ["y"])],
                 {"w": halves, "v": helper.make_tensor("v", TensorProto.FLOAT16, (6, 2), [1.0] * 12)},
                 tmp_path / "b.onnx")
    opened = tersor.open_model(path)
    assert "one file with raw data" in opened.notes[0]
    tersor.restore_file(exact(opened), tmp_path / "back.onnx")
    x = torch.randn(3, 6)
    assert torch.equal(run(tmp_path / "back.onnx", x), run(path, x))
    assert tersor.open_model(other).inventory.tensors["v"].dtype == np.float16


def test_small_typed_data_are_plain_bytes_too(tmp_path):
    weight = helper.make_tensor("w", TensorProto.FLOAT, (8, 6), random(8, 6).ravel().tolist())
    assert len(weight.float_data) == 48
    there_and_back(made([helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)], {"w": weight}, tmp_path / "a.onnx"),
                   tmp_path)


def test_truncated_and_damaged_models(tmp_path):
    data = export(build("mlp"), inputs("mlp"), tmp_path / "a.onnx").read_bytes()
    broken = 0
    for length in [*range(0, len(data), 101), len(data) - 1]:
        (tmp_path / "b.onnx").write_bytes(data[:length])
        try:
            tersor.open_model(tmp_path / "b.onnx")
        except ModelError:
            broken += 1
    assert broken == len(range(0, len(data), 101)) + 1
    rng = np.random.default_rng(0)
    for _ in range(60):
        other = bytearray(data)
        for place in rng.integers(0, len(data), 3):
            other[place] = rng.integers(256)
        (tmp_path / "b.onnx").write_bytes(other)
        with contextlib.suppress(TersorError):  # and nothing else
            tersor.open_model(tmp_path / "b.onnx")
    with pytest.raises(ModelError, match="truncated"):
        tensor_spans(b"\x3a\xff\xff\xff\x7f")


@pytest.mark.parametrize("change, reason", [
    (lambda t: t.dims.__setitem__(0, 9), "its shape"), (lambda t: t.dims.__setitem__(0, -8), "negative"),
    (lambda t: t.dims.__setitem__(0, 2**60), "its shape")])
def test_initializers_that_lie(change, reason, tmp_path):
    tensor = numpy_helper.from_array(random(8, 6), "w")
    change(tensor)
    path = made([helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)], {"w": tensor}, tmp_path / "a.onnx")
    with pytest.raises(ModelError, match=reason):
        tersor.open_model(path)


def test_operators_that_are_not_known(tmp_path):
    nodes = [helper.make_node("Gemm", ["x", "w"], ["h"], transB=1),
             helper.make_node("Hann", ["h"], ["y"], domain="mine")]
    path = made(nodes, {"w": random(40, 6)}, tmp_path / "a.onnx")
    opened = there_and_back(path, tmp_path)
    assert opened.module is None and "cannot differentiate Hann" in opened.notes[0]
    assert tersor.compress(opened, bits=20).size * 8 <= 20 * 240  # data-free
    network = onnx_file.read(path)[0]
    with pytest.raises(ModelError, match="Hann"):
        network(torch.randn(2, 6))


def test_the_wrong_number_of_inputs(tmp_path):
    opened = tersor.open_model(export(build("mlp"), inputs("mlp"), tmp_path / "a.onnx"))
    with pytest.raises(ModelError, match=r"has 1 inputs \(x\), 2 given"):
        opened.module(torch.randn(2, 20), torch.randn(2, 20))


COMPRESSED = {"codebook": {"tools": ("codebook",)}, "scalar": {"tools": ("scalar",), "effort": 2},
              "trellis": {"tools": ("scalar",), "effort": 6}, "kernels": {"tools": ("kernels", "scalar"), "effort": 2}}


@pytest.mark.parametrize("opset", [17, 21])
@pytest.mark.parametrize("kind", COMPRESSED)
def test_compressed_weights_in_onnx(kind, opset, tmp_path):
    nodes = [helper.make_node("Conv", ["x", "k", "c"], ["h"], pads=[1, 1, 1, 1]),
             helper.make_node("ConvTranspose", ["h", "u"], ["s"], group=2), helper.make_node("Flatten", ["s"], ["f"]),
             helper.make_node("MatMul", ["f", "w"], ["y"])]
    weights = {"k": random(16, 3, 3, 3) * np.exp(random(16, 1, 1, 1)), "c": random(16), "u": random(16, 12, 2, 2),
               "w": random(24 * 25, 16)}
    path = made(nodes, weights, tmp_path / "a.onnx", shape=("n", 3, 4, 4), opset=opset)
    opened = there_and_back(path, tmp_path)
    packed = tersor.compress(opened, bits=4, **COMPRESSED[kind])
    with packed.load() as file:
        data = compressed_model(file)
    (tmp_path / "c.onnx").write_bytes(data)
    onnx.checker.check_model(str(tmp_path / "c.onnx"))
    x = torch.randn(4, 3, 4, 4)
    dense = torch.from_numpy(tersor.onnx.session(packed.data).run(None, {"x": x.numpy()})[0])
    assert torch.allclose(run(tmp_path / "c.onnx", x), dense, atol=1e-4, rtol=1e-5)
    small = tersor.onnx.session(packed.data, compressed=True).run(None, {"x": x.numpy()})[0]
    assert torch.allclose(torch.from_numpy(small), dense, atol=1e-4, rtol=1e-5)
    if kind != "kernels":  # whose weights are on no grid
        assert len(data) < 0.45 * path.stat().st_size
        kinds = {node.op_type for node in onnx.load_from_string(data).graph.node}
        assert {"DequantizeLinear", "Gather", "Mul"} & kinds


def test_four_bits(tmp_path):
    from tersor.runtime import onnx_graph
    from tersor.synthesis.scalar import ScalarCode
    code = ScalarCode(RNG.integers(-8, 8, (5, 7)).astype(np.int32), -64, RNG.integers(-3, 4, 5))
    small = onnx_graph._of_scalar(code, (5, 7), 21)
    assert small.bits == 4 and onnx_graph._of_scalar(code, (5, 7), 20).bits == 8
    weight = code.matrix()
    path = made([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": np.ascontiguousarray(weight.T)},
                tmp_path / "a.onnx", shape=("n", 7), opset=21)
    model = onnx.load(path)
    onnx_graph._replace(onnx, model, "w", small.turned())
    onnx.checker.check_model(model)
    x = torch.randn(3, 7)
    assert torch.equal(run(model.SerializeToString(), x), run(path, x))
    assert model.graph.initializer[0].data_type == TensorProto.INT4


def test_compressed_weights_of_other_models(tmp_path):
    packed = tersor.compress(build("mlp"), bits=20)
    with packed.load() as file, pytest.raises(ConfigError, match="and not from an"):
        compressed_model(file)
    with pytest.raises(ConfigError, match="nothing to run"):
        tersor.onnx.session(packed.data)
    old = made([helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)], {"w": random(40, 6)}, tmp_path / "a.onnx",
               opset=11)
    with tersor.compress(old, bits=20).load() as file, pytest.raises(ConfigError, match="operator set 11"):
        compressed_model(file)


def test_on_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    x = inputs("residual", 32)
    export(build("residual"), x, Path("a.onnx"))
    np.save("x.npy", x.numpy())
    assert main(["compress", "a.onnx", "--bits", "9", "--data", "x.npy", "--effort", "1"]) == 0
    assert main(["restore", "a.tersor", "-o", "small.onnx", "--runtime", "compressed"]) == 0
    assert Path("small.onnx").stat().st_size < Path("a.onnx").stat().st_size
    assert torch.allclose(run("small.onnx", x), torch.from_numpy(
        tersor.onnx.session("a.tersor").run(None, {"x": x.numpy()})[0]), atol=1e-4)


def test_without_the_packages(tmp_path, monkeypatch):
    import sys
    path = export(build("mlp"), inputs("mlp"), tmp_path / "a.onnx")
    data = exact(tersor.open_model(path))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r"pip install 'tersor\[onnx\]'"):
        tersor.onnx.session(data)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ConfigError, match=r"pip install 'tersor\[onnx\]'"):
        tersor.open_model(path)
    assert tersor.restore_file(data, tmp_path / "b.onnx") == path.stat().st_size  # needs neither


@pytest.mark.parametrize("opset", [13, 18, onnx.defs.onnx_opset_version()])
def test_operator_sets(opset, tmp_path):
    """13 has axes as attributes, 18 and later as inputs."""
    axes = {"axes": [2, 3]} if opset < 18 else {}
    reduced = ["r"] if opset < 18 else ["r", "axes"]
    nodes = [helper.make_node("Conv", ["x", "k"], ["h"]), helper.make_node("BatchNormalization", ["h", *"sbmv"], ["n"]),
             helper.make_node("Relu", ["n"], ["r"]), helper.make_node("ReduceMean", reduced, ["p"], keepdims=0, **axes),
             helper.make_node("Gemm", ["p", "w"], ["g"], transB=1), helper.make_node("Identity", ["g"], ["y"])]
    weights = {"k": random(8, 3, 3, 3), "w": random(5, 8), **{name: np.abs(random(8)) for name in "sbmv"}}
    if not axes:
        weights["axes"] = np.array([2, 3])
    path = made(nodes, weights, tmp_path / "a.onnx", shape=("n", 3, 6, 6), opset=opset)
    opened = there_and_back(path, tmp_path)
    x = torch.randn(4, 3, 6, 6)
    expected = run(path, x) if opset < 20 else ReferenceEvaluator(onnx.load(path)).run(None, {"x": x.numpy()})[0]
    assert np.allclose(outputs(opened.module, x).numpy(), expected, atol=1e-4)  # ONNX Runtime lags behind the newest
    assert [bn.names for bn in opened.inventory.batchnorms] == [("s", "b", "m", "v")]
    stats = tersor.calibrate(opened.module, torch.randn(16, 3, 6, 6))
    assert stats.graph.absorb == {"k": "s"} and set(stats.layers) == {"k", "w"}


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE])
def test_element_types(dtype, tmp_path):
    kind = helper.tensor_dtype_to_np_dtype(dtype)
    weights = {name: numpy_helper.from_array(random(*shape).astype(kind), name)
               for name, shape in {"k": (8, 3, 3, 3), "b": (8,), "w": (72, 9)}.items()}
    nodes = [helper.make_node("Cast", ["x"], ["c"], to=dtype), helper.make_node("Conv", ["c", "k", "b"], ["h"]),
             helper.make_node("Flatten", ["h"], ["f"]), helper.make_node("MatMul", ["f", "w"], ["y"])]
    path = made(nodes, weights, tmp_path / "a.onnx", shape=("n", 3, 5, 5), opset=22)
    opened = there_and_back(path, tmp_path)
    assert {array.dtype for array in opened.inventory.tensors.values()} == {np.dtype(kind)}
    assert {layer.name for layer in opened.inventory.layers} == {"k", "w"}
    stats = tersor.calibrate(opened.module, torch.randn(16, 3, 5, 5))
    packed = tersor.compress(opened, stats, bits=14, effort=2)
    tersor.restore_file(packed.data, tmp_path / "b.onnx")
    back = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(tmp_path / "b.onnx").graph.initializer}
    with packed.load() as file:
        assert np.array_equal(back["w"], file["w"].T) and back["w"].dtype == np.dtype(kind)


def test_comparing_on_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    x = inputs("residual", 32)
    model = build("residual")
    export(nn.Sequential(model, nn.Softmax(-1)).eval(), x, Path("a.onnx"))
    truth = outputs(model, x).argmax(1)
    np.savez("x.npz", images=x.numpy(), labels=truth.numpy())
    assert main(["compress", "a.onnx", "--bits", "12", "--effort", "2"]) == 0
    capsys.readouterr()
    assert main(["compare", "a.onnx", "a.tersor", "--data", "x.npz", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["runtime"] == "ONNX Runtime" and report["count"] == 32 and report["top1_reference"] == 1.0
    assert 0 < report["max_error"] < 1 and report["snr"] > 20  # of logits, though the graph gives probabilities
    assert 0 <= report["kl"] < 0.01 and report["agreement"] == report["top1"]


def test_comparing_other_models(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("my_net.py").write_text("from encoder_models import build\ndef net(): return build('residual')\n")
    np.save("x.npy", inputs("residual").numpy())
    assert main(["compress", "my_net:net", "--bits", "12", "--effort", "2", "-o", "a.tersor"]) == 0
    assert main(["compare", "my_net:net", "a.tersor", "--data", "x.npy"]) == 0
    assert "on 24 inputs in PyTorch: largest logit error" in capsys.readouterr().err
    torch.save(build("residual").state_dict(), "a.pt")
    assert main(["compare", "a.pt", "a.tersor", "--data", "x.npy"]) == 2
    assert "needs a network that can be run" in capsys.readouterr().err
