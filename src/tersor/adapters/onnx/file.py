"""ONNX files -> a network with everything else of the file kept beside its weights.

    network, notes = read("squeezenet.onnx")

Initializers and large constants of the main graph become tensors; the graph, its names, metadata and documentation
stay bytes, so that the model comes back as it was but for the weights, also its external data files.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ...bitstream.dtypes import FLOATS, NUMPY, from_bytes, name_of
from ...bitstream.source import PathLike
from ...errors import ConfigError, ModelError
from ..inventory import Array
from ..module import inventory_of_module
from ..skeleton import FileWithHoles, Skeleton, cut, safe_relative
from .network import OnnxNetwork
from .roles import Roles, find_roles
from .wire import Span, tensor_spans

FORMAT = "onnx"
DTYPES = {1: "F32", 2: "U8", 3: "I8", 4: "U16", 5: "I16", 6: "I32", 7: "I64", 9: "BOOL", 10: "F16", 11: "F64",
          12: "U32", 13: "U64", 14: "C64", 16: "BF16", 17: "F8_E4M3", 19: "F8_E5M2"}
"""TensorProto.DataType -> the name in .tersor files; others stay in the graph as they are."""
LEAST_BYTES = 256
"""Tensors of no known role are taken out of the graph from this size on."""
_EXTERNAL = 1


@dataclass
class _Tensor:
    """An initializer, or the value of a Constant node. `file`: "" for the model's own."""

    name: str
    array: Array
    file: str = ""
    span: Span | None = None


@dataclass
class _Files:
    """The model's bytes ("") and those of its external data, by location."""

    folder: str
    data: dict[str, bytes] = field(default_factory=dict)

    def external(self, location: str, name: str) -> bytes:
        """One data file. Raises ModelError for a path that leads out of the model's folder, or nowhere."""
        inside = os.path.realpath(self.folder)
        path = os.path.realpath(os.path.join(inside, location))
        if not safe_relative(location) or os.path.commonpath([inside, path]) != inside:
            raise ModelError(f"initializer {name!r}: its external data are in {location!r}, which leads out of the "
                             f"model's folder; refused")
        if location in self.data:
            return self.data[location]
        if not os.path.isfile(path):
            raise ModelError(f"initializer {name!r}: its data file {location!r} is not beside the model")
        with open(path, "rb") as file:
            self.data[location] = file.read()
        return self.data[location]


def library() -> Any:
    """The onnx package. Raises ConfigError that says how to install it."""
    try:
        import onnx
    except ImportError:
        raise ConfigError("ONNX models need the onnx package: pip install 'tersor[onnx]'") from None
    return onnx


def parse(data: bytes, label: str) -> Any:
    """The ModelProto. Raises ModelError where it is none."""
    from google.protobuf.message import DecodeError
    model = library().ModelProto()
    try:
        model.ParseFromString(data)
    except (DecodeError, RuntimeError) as error:
        raise ModelError(f"{label} is not a whole ONNX file: {error}") from None
    if not model.graph.node or not model.opset_import:
        raise ModelError(f"{label} is not an ONNX model: it has no graph or says no operator set")
    return model


def read(path: PathLike) -> tuple[OnnxNetwork, list[str]]:
    """The model as a network that can be calibrated and compressed, and notes.

    Raises ModelError for damaged or unsafe files, ConfigError without the onnx package, OSError.
    """
    label = os.fspath(path)
    with open(label, "rb") as file:
        files = _Files(os.path.dirname(os.path.abspath(label)), {"": file.read()})
    return from_files(files, label)


def from_files(files: _Files, label: str) -> tuple[OnnxNetwork, list[str]]:
    """`read`, of bytes in memory."""
    model = parse(files.data[""], label)
    try:
        return _network(model, files, label)
    except (IndexError, KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        # Messages that parse but make no sense: a node without inputs, an attribute of another type.
        raise ModelError(f"{label} is damaged: {type(error).__name__}: {error}") from error


def _network(model: Any, files: _Files, label: str) -> tuple[OnnxNetwork, list[str]]:
    tensors = {tensor.name: tensor for tensor in _tensors(model, files)}
    roles, nodes = _roles(model, tensors)
    notes = []
    chosen = _chosen(tensors, roles)
    skeleton = _skeleton(files, [tensors[name] for name in chosen], roles) if \
        all(tensors[name].span is not None for name in chosen) else None
    if skeleton is None:
        notes.append(f"{label} has weights that are not plain bytes, or that share them: it comes back as one file "
                     f"with raw data")
        files = _Files(files.folder, {"": canonical_bytes(model, tensors)})
        spans = tensor_spans(files.data[""])
        for tensor in tensors.values():
            tensor.file, tensor.span = "", spans[0].get(tensor.name, spans[1].get(tensor.name))
        skeleton = _skeleton(files, [tensors[name] for name in chosen], roles)
        if skeleton is None:
            raise ModelError(f"{label} cannot be taken apart and put together again; please report this file")
    inputs = [item.name for item in model.graph.input if item.name not in tensors]
    network = OnnxNetwork(nodes, {name: tensors[name].array for name in chosen},
                          {name: tensor.array for name, tensor in tensors.items() if name not in chosen},
                          inputs, [item.name for item in model.graph.output], roles)
    inventory = inventory_of_module(network)
    skeleton = _renamed(skeleton, network)
    kept = skeleton.filled({name: inventory.tensors[inventory.aliases.get(name, name)] for name in inventory.names})
    if kept != {path: files.data[path] for path in kept}:
        raise ModelError(f"{label} cannot be put together again; please report this file")
    network.external_bytes = sum(len(data) for path, data in files.data.items() if path)
    network.source_format, network.source = FORMAT, skeleton.to_bytes(inventory.names)
    if network.unsupported:
        notes.append(f"{label} cannot be calibrated: tersor cannot differentiate {', '.join(network.unsupported)}")
    return network, notes


def open_bytes(parts: Mapping[str, bytes]) -> tuple[Any, OnnxNetwork, dict[str, _Tensor]]:
    """Of a model in memory (path -> bytes): its message, the network, and its tensors by name."""
    files = _Files("", dict(parts))
    model = parse(files.data[""], "the restored model")
    network, _ = from_files(files, "the restored model")
    return model, network, {tensor.name: tensor for tensor in _tensors(model, files)}


def canonical_bytes(model: Any, tensors: Mapping[str, _Tensor]) -> bytes:
    """The model as one message in which all known tensors are raw data."""
    copy = library().ModelProto()
    copy.CopyFrom(model)
    for proto, name in _protos(copy):
        if name in tensors:
            for kind in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data",
                         "external_data", "data_location"):
                proto.ClearField(kind)
            array = tensors[name].array
            proto.raw_data = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).tobytes()
    try:
        return bytes(copy.SerializeToString())
    except Exception as error:  # protobuf's own types differ between its implementations
        raise ModelError(f"the model is too large for one file ({error}); keep its data outside, as raw data") from None


def _tensors(model: Any, files: _Files) -> Iterator[_Tensor]:
    """Initializers and values of Constant nodes of the main graph, of element types that tersor knows."""
    from onnx import numpy_helper
    inside = tensor_spans(files.data[""])
    spans = {**inside[1], **inside[0]}
    seen = set()
    for proto, name in _protos(model):
        kind = DTYPES.get(proto.data_type)
        if kind is None or not name or proto.HasField("segment"):
            continue
        if name in seen:
            raise ModelError(f"two initializers are called {name!r}")
        seen.add(name)
        shape = tuple(int(size) for size in proto.dims)
        if any(size < 0 for size in shape):
            raise ModelError(f"initializer {name!r} has a negative size")
        size = int(np.prod([float(extent) for extent in shape])) * NUMPY[kind].itemsize
        if proto.data_location == _EXTERNAL:
            described = {entry.key: entry.value for entry in proto.external_data}
            location = described.get("location", "")
            data = files.external(location, name)
            try:
                offset = int(described.get("offset", "0"))
                length = int(described.get("length", str(size)))
            except ValueError:
                raise ModelError(f"initializer {name!r}: offset or length of its external data is no number") from None
            if offset < 0 or length != size or offset + length > len(data):
                raise ModelError(f"initializer {name!r} has {size:,} bytes, but its data file {location!r} has not "
                                 f"{length:,} bytes at {offset:,}")
            yield _Tensor(name, from_bytes(data[offset : offset + size], kind, shape), location, (offset, size))
        elif name in spans and spans[name][1] == size and (proto.raw_data or kind in ("F32", "F64")):
            start = spans[name][0]
            yield _Tensor(name, from_bytes(files.data[""][start : start + size], kind, shape), "", spans[name])
        elif proto.HasField("raw_data") and len(proto.raw_data) != size:
            raise ModelError(f"initializer {name!r} has {len(proto.raw_data):,} bytes, its shape {list(shape)} needs "
                             f"{size:,}")
        else:
            try:
                array = np.asarray(numpy_helper.to_array(proto))
            except (ValueError, TypeError) as error:
                raise ModelError(f"initializer {name!r} is not readable: {error}") from None
            yield _Tensor(name, array.astype(NUMPY[kind], copy=False).reshape(shape))


def _protos(model: Any) -> Iterator[tuple[Any, str]]:
    """(TensorProto, name) of the main graph."""
    for proto in model.graph.initializer:
        yield proto, proto.name
    for node in model.graph.node:
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx") and len(node.output) == 1:
            for item in node.attribute:
                if item.name == "value":
                    yield item.t, node.output[0]


def _roles(model: Any, tensors: Mapping[str, _Tensor]) -> tuple[Roles, list[Any]]:
    """What the tensors are, and the nodes of the main graph with functions inlined and without large tensors."""
    copy = library().ModelProto()
    copy.CopyFrom(model)
    for proto, name in _protos(copy):
        if name in tensors and tensors[name].array.nbytes >= LEAST_BYTES:
            for kind in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "external_data",
                         "data_location"):
                proto.ClearField(kind)
    if copy.functions:
        from onnx import inliner
        copy = inliner.inline_local_functions(copy)
    # Constant nodes whose value is a tensor here are given like initializers.
    nodes = [node for node in copy.graph.node if not (node.op_type == "Constant" and node.output[0] in tensors)]
    shapes = {name: tuple(tensor.array.shape) for name, tensor in tensors.items()
              if name_of(tensor.array.dtype) in FLOATS}
    return find_roles(nodes, [item.name for item in copy.graph.output], shapes), nodes


def _chosen(tensors: Mapping[str, _Tensor], roles: Roles) -> list[str]:
    """Tensors that leave the graph, in its order."""
    known = set(roles.layers) | roles.vectors | {name for _, names, _ in roles.batchnorms for name in names}
    return [name for name, tensor in tensors.items()
            if tensor.array.size and (name in known or tensor.array.nbytes >= LEAST_BYTES)]


def _skeleton(files: _Files, tensors: list[_Tensor], roles: Roles) -> Skeleton | None:
    """All files with holes for the tensors; None where tensors share bytes."""
    parts: list[FileWithHoles] = []
    for path in ["", *sorted({tensor.file for tensor in tensors if tensor.file})]:
        spans = []
        for tensor in tensors:
            if tensor.file == path and tensor.span is not None:
                use = roles.layers.get(tensor.name)
                spans.append((*tensor.span, tensor.name, (1, 0) if use is not None and use.flipped else None))
        try:
            parts.append(cut(path, files.data[path], spans))
        except ModelError:
            return None
    return Skeleton(FORMAT, parts)


def _renamed(skeleton: Skeleton, network: OnnxNetwork) -> Skeleton:
    """With the names under which the network holds the tensors."""
    return Skeleton(skeleton.format, [
        replace(file, holes=[replace(hole, name=network.held[hole.name]) for hole in file.holes])
        for file in skeleton.files])
