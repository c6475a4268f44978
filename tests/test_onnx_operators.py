"""Every ONNX operator that tersor differentiates, beside ONNX Runtime."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402

from tersor.adapters.onnx.layers import LAYERS  # noqa: E402
from tersor.adapters.onnx.network import OnnxNetwork  # noqa: E402
from tersor.adapters.onnx.operators import OPERATORS  # noqa: E402
from tersor.adapters.onnx.roles import Roles  # noqa: E402

RNG = np.random.default_rng(3)
X = RNG.normal(size=(2, 4, 6, 5)).astype("f4")
M = RNG.normal(size=(3, 4)).astype("f4")
K = RNG.normal(size=(8, 2, 3, 2)).astype("f4")
C = RNG.normal(size=4).astype("f4")
P = np.abs(X) + 0.1


def i(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def f(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


UNARY = ["Abs", "Neg", "Exp", "Floor", "Ceil", "Round", "Sign", "Erf", "Sin", "Cos", "IsNaN", "Relu", "Sigmoid", "Tanh",
         "Softplus", "Softsign", "Mish", "HardSwish", "HardSigmoid", "Gelu", "LeakyRelu", "Elu", "Selu", "Identity",
         "Flatten", "Shape", "Size", "Transpose", "GlobalAveragePool", "GlobalMaxPool", "Dropout"]
BINARY = ["Add", "Sub", "Mul", "Div", "Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual", "Min", "Max", "Sum",
          "Mean", "PRelu"]
REDUCTIONS = ["Mean", "Sum", "Max", "Min", "L1", "L2", "SumSquare", "LogSumExp", "Prod"]
Case = tuple[str, list[Any], dict[str, Any]]
CASES: list[Case] = [(name, [X], {}) for name in UNARY]
CASES += [(name, [P], {}) for name in ("Log", "Sqrt", "Reciprocal")]
CASES += [(name, [X, C.reshape(4, 1, 1)], {}) for name in BINARY]
CASES += [("Div", [i(7, -7, 9), i(2, 2, -4)], {}), ("Pow", [P, f(1.5)], {}), ("Mod", [i(7, -7), i(3, 3)], {}),
          ("Mod", [X, f(0.7)], {"fmod": 1}), ("MatMul", [M, M.T.copy()], {}), ("Where", [X > 0, X, f(0.0)], {})]
CASES += [(name, [X > 0, X < 1], {}) for name in ("And", "Or", "Xor")] + [("Not", [X > 0], {})]
CASES += [(f"Reduce{name}", [P, i(1, 3)], {"keepdims": keep}) for name in REDUCTIONS for keep in (0, 1)]
CASES += [("ReduceMean", [X], {}), ("ReduceSum", [X], {"noop_with_empty_axes": 1}),
          ("ReduceProd", [X], {"keepdims": 0}), ("ArgMax", [X], {"axis": 2, "keepdims": 0}),
          ("ArgMin", [X], {"axis": 1})]
CASES += [("Softmax", [X], {"axis": 1}), ("LogSoftmax", [X], {}), ("Gelu", [X], {"approximate": "tanh"}),
          ("Clip", [X, f(-0.5).reshape(()), f(0.5).reshape(())], {}), ("Clip", [X], {}),
          ("Clip", [X, None, f(0.5).reshape(())], {}), ("Cast", [X], {"to": TensorProto.INT64}),
          ("CastLike", [X, i(1)], {}), ("CumSum", [X, i(1).reshape(())], {}), ("HardSigmoid", [X], {"alpha": 0.3}),
          ("Transpose", [X], {"perm": [0, 2, 3, 1]}), ("Reshape", [X, i(0, -1, 5)], {}), ("Flatten", [X], {"axis": -2}),
          ("Shape", [X], {"start": 1, "end": 3}), ("Concat", [X, X], {"axis": -1}), ("Tile", [M, i(2, 1)], {}),
          ("Split", [X, i(1, 3)], {"axis": 1}), ("Split", [X], {"axis": 3, "num_outputs": 2}),
          ("Slice", [X, i(1, -4), i(9, -1), i(1, 2), i(1, 2)], {}), ("Slice", [X, i(-1), i(-999), i(3), i(-2)], {}),
          ("Slice", [X, i(3), i(0), i(2), i(-1)], {}), ("Slice", [M, i(1, 1), i(3, 4)], {}),
          ("Squeeze", [X[:1, :, :1], i(0, 2)], {}), ("Squeeze", [X[:1]], {}), ("Unsqueeze", [M, i(0, -1)], {}),
          ("Expand", [C, i(2, 1, 4)], {}), ("Expand", [X, i(1)], {}), ("Range", [i(2)[0], i(9)[0], i(3)[0]], {}),
          ("Gather", [X, i(1, -1)], {"axis": 1}), ("Gather", [M, i(2).reshape(())], {}),
          ("GatherElements", [M, i(0, 1, 2, 0).reshape(1, 4)], {}), ("Trilu", [M], {"upper": 0}),
          ("Trilu", [M, i(1)[0]], {}), ("ConstantOfShape", [i(2, 3)], {}),
          ("ConstantOfShape", [i(2)], {"value": onnx.numpy_helper.from_array(i(7))}),
          ("DepthToSpace", [X], {"blocksize": 2}), ("DepthToSpace", [X], {"blocksize": 2, "mode": "CRD"}),
          ("SpaceToDepth", [X[:, :, :, :4]], {"blocksize": 2}), ("Einsum", [M, M], {"equation": "ij,kj->ik"})]
CASES += [("Pad", [X, i(0, 0, 1, 2, 0, 0, 0, 1)], {}), ("Pad", [X, i(0, 0, 1, 2, 0, 0, 0, 1), f(3.0)[0]], {}),
          ("Pad", [X, i(0, 0, 1, 2, 0, 0, 0, 1)], {"mode": "reflect"}), ("Pad", [X, i(1, 1), None, i(3)], {}),
          ("Pad", [X, i(0, 0, 1, 1, 0, 0, 1, 1)], {"mode": "edge"})]
CASES += [("Conv", [X, K, None], {"group": 2}), ("Conv", [X, K, f(*range(8))], {"group": 2, "strides": [2, 1]}),
          ("Conv", [X, K], {"group": 2, "pads": [1, 0, 2, 1], "dilations": [1, 2]}),
          ("Conv", [X, K], {"group": 2, "pads": [1, 1, 1, 1]}),
          ("Conv", [X, K], {"group": 2, "auto_pad": "SAME_UPPER"}),
          ("Conv", [X, K], {"group": 2, "auto_pad": "SAME_LOWER", "strides": [2, 2]}),
          ("Conv", [X, K], {"group": 2, "auto_pad": "VALID"}), ("Conv", [X[..., 0], K[:, :, :, 0].repeat(2, 1)], {}),
          ("Conv", [X[..., None], K[..., None].repeat(2, 1)], {}),
          ("ConvTranspose", [X, K[:4]], {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
          ("ConvTranspose", [X, K[:4]], {"group": 2, "strides": [2, 1], "output_padding": [1, 0]}),
          ("ConvTranspose", [X, K[:4]], {"strides": [2, 2], "pads": [1, 0, 0, 1]}),
          ("ConvTranspose", [X, K[:4]], {"strides": [2, 2], "output_shape": [12, 10]}),
          ("ConvTranspose", [X, K[:4]], {"strides": [2, 2], "auto_pad": "SAME_UPPER"})]
CASES += [("MaxPool", [X], {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 0]}),
          ("MaxPool", [X], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 0, 1, 1]}),
          ("MaxPool", [X], {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
          ("MaxPool", [X], {"kernel_shape": [2, 2], "dilations": [2, 1], "auto_pad": "VALID"}),
          ("AveragePool", [X], {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 1, 1, 1]}),
          ("AveragePool", [X], {"kernel_shape": [3, 2], "pads": [1, 0, 0, 0]}),
          ("AveragePool", [X], {"kernel_shape": [3, 2], "pads": [1, 0, 0, 0], "count_include_pad": 1})]
CASES += [("BatchNormalization", [X, C, C, C, np.abs(C)], {"epsilon": 1e-3}),
          ("LayerNormalization", [X, f(1, 2, 3, 4, 5), f(5, 4, 3, 2, 1)], {}),
          ("LayerNormalization", [X, X[0, 0]], {"axis": 2, "epsilon": 1e-3}),
          ("InstanceNormalization", [X, C, C], {}), ("LRN", [X], {"size": 3, "alpha": 0.1}),
          ("GroupNormalization", [X, C, C], {"num_groups": 2}),
          ("Gemm", [M, M, f(1, 2, 3)], {"transB": 1, "alpha": 0.5, "beta": 2.0}), ("Gemm", [M, M], {"transA": 1}),
          ("Resize", [X, None, f(1, 1, 2, 2)],
           {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}),
          ("Resize", [X, None, f(1, 1, 2, 3)], {}), ("Resize", [X, None, None, i(2, 4, 9, 7)], {"mode": "linear"}),
          ("Resize", [X, None, f(1, 1, 2, 2)], {"mode": "linear", "coordinate_transformation_mode": "align_corners"})]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]} {case[2]}")
def test_operator(case):
    kind, inputs, attributes = case
    names = ["" if value is None else f"x{n}" for n, value in enumerate(inputs)]
    outputs = ["y", "z"] if kind in ("Split", "Dropout") else ["y"]
    last = kind.endswith("Softmax")  # is not left out where it is not the last
    nodes = [helper.make_node(kind, names, ["z"] if last else outputs, **attributes)]
    nodes += [helper.make_node("Identity", ["z"], ["y"])] if last else []
    graph_inputs = [helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
                    for name, value in zip(names, inputs, strict=True) if name]
    graph = helper.make_graph(nodes, "g", graph_inputs, [helper.make_empty_tensor_value_info(name) for name in outputs])
    opset = helper.make_opsetid("", 21 if kind == "GroupNormalization" else 20)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=10)
    feeds = {name: np.asarray(value) for name, value in zip(names, inputs, strict=True) if name}
    try:
        session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        expected = session.run(None, feeds)
    except Exception as error:
        assert "NOT_IMPLEMENTED" in str(error), error
        expected = ReferenceEvaluator(model).run(None, feeds)
    network = OnnxNetwork(graph.node, {}, {}, list(feeds), outputs, Roles())
    with torch.no_grad():
        found = network(*(torch.from_numpy(np.array(value)) for value in feeds.values()))
    for one, other in zip(found if isinstance(found, tuple) else [found], expected, strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one.numpy(), other, rtol=2e-5, atol=2e-5)


def test_all_operators_are_tested():
    newer = {"RMSNormalization", "Swish"}  # than opset 20
    assert {*OPERATORS, *LAYERS} - {kind for kind, _, _ in CASES} == newer


def test_the_newest_ones():
    x = torch.from_numpy(X)
    norm = LAYERS["RMSNormalization"]({"epsilon": 1e-3}, [x, torch.ones(5)])
    torch.testing.assert_close(norm, x / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt())
    torch.testing.assert_close(OPERATORS["Swish"]({"alpha": 2.0}, [x]), x * torch.sigmoid(2 * x))


@pytest.mark.parametrize("inputs, attributes", [
    ([X, None, f(1, 1, 2, 2)], {"mode": "cubic"}), ([X, None, f(1, 1, 1.5, 2)], {}),
    ([X, None, f(2, 2)], {"axes": [2, 3]})])
def test_resizing_of_other_kinds_is_refused(inputs, attributes):
    with pytest.raises(NotImplementedError, match="Resize"):
        LAYERS["Resize"](attributes, [None if value is None else torch.from_numpy(value) for value in inputs])


def test_gradients_flow():
    x = torch.from_numpy(X).requires_grad_()
    y = LAYERS["Conv"]({"group": 2, "auto_pad": "SAME_UPPER"}, [x, torch.from_numpy(K)])
    OPERATORS["Gelu"]({}, [y]).sum().backward()
    assert x.grad is not None and math.isfinite(float(x.grad.sum())) and float(x.grad.abs().sum()) > 0
