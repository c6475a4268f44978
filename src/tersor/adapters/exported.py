"""Programs of torch.export (.pt2) -> a network that can be calibrated, with all but its weights kept as it is.

The archive may hold pickles and texts that torch evaluates; both are looked through before torch sees the file.
"""

from __future__ import annotations

import ast
import io
import json
import math
import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ..bitstream.source import PathLike
from ..errors import ModelError
from .archive import Record, content, records
from .exported_graph import ExportedNetwork
from .module import inventory_of_module
from .skeleton import Checksum, Skeleton, cut
from .state_dict import check_weights_only, dense_axes

FORMAT = "pt2"
_MODEL = re.compile(r"models/(.+)\.json")
_NAME = re.compile(r"(?!.*__)[A-Za-z_]\w*")
_HARMLESS = (ast.Expression, ast.Call, ast.keyword, ast.Name, ast.Load, ast.Constant, ast.BinOp, ast.UnaryOp,
             ast.Compare, ast.BoolOp, ast.operator, ast.unaryop, ast.cmpop, ast.boolop)
"""What expressions over sizes consist of: Mul(Integer(9), Symbol('s77', positive=True)). No attributes, no indexing."""


def is_program(path: PathLike) -> bool:
    """Whether a file is an archive of torch.export."""
    try:
        with zipfile.ZipFile(os.fspath(path)) as archive:
            names = {name.partition("/")[2] or name for name in archive.namelist()}
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):
        return False
    return bool({"archive_format", "serialized_exported_program.json"} & names)


def read(path: PathLike) -> tuple[ExportedNetwork, list[str]]:
    """The program as a network, and notes.

    Raises ModelError for a file that is damaged, holds pickled objects or code, several programs, or is of a torch
    before 2.8 (load and save it again with this one); OSError.
    """
    label = os.fspath(path)
    with open(label, "rb") as file:
        data = file.read()
    found = records(data, label)
    config = _checked(data, found, label)
    try:
        program = torch.export.load(io.BytesIO(data))
        module = program.module(check_guards=False)
    except Exception as error:  # whatever torch raises
        line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ModelError(f"{label} is not a program that this version of torch can load: {line[:200]}") from error
    tensors = {name: tensor.detach() for name, tensor in program.state_dict.items()}
    parameters = {name for name, tensor in program.state_dict.items() if isinstance(tensor, torch.nn.Parameter)}
    network = ExportedNetwork(module, tensors, parameters)
    skeleton = _skeleton(data, found, config, network, tensors, label)
    inventory = inventory_of_module(network)
    kept = skeleton.filled({name: inventory.tensors[inventory.aliases.get(name, name)] for name in inventory.names})
    if kept[""] != data:
        raise ModelError(f"{label} cannot be put together again; please report this file")
    network.source_format, network.source = FORMAT, skeleton.to_bytes(inventory.names)
    return network, []


def _checked(data: bytes, found: Mapping[str, Record], label: str) -> dict[str, Any]:
    """The description of the weights, after a look at everything in the archive that could run code."""
    models = [match[1] for name in found if (match := _MODEL.fullmatch(name))]
    if len(models) != 1 or any("aotinductor" in name for name in found):
        why = "is of a torch before 2.8: torch.export.load and torch.export.save it with this one" \
            if "serialized_exported_program.json" in found else f"holds {len(models)} programs, or compiled code"
        raise ModelError(f"{label} {why}; tersor takes archives with one program")
    name = models[0]
    try:
        weights = json.loads(content(data, found, f"data/weights/{name}_weights_config.json", label))["config"]
        constants = json.loads(content(data, found, f"data/constants/{name}_constants_config.json", label))["config"]
        described = json.loads(content(data, found, f"models/{name}.json", label))
        for kind, entries in (("weight", weights), ("constant", constants)):
            for key, entry in entries.items():
                if entry.get("use_pickle") or (kind == "constant" and not entry["path_name"].startswith("tensor_")):
                    raise ModelError(f"{label} is refused: its {kind} {key!r} is a pickled object, which can run code")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{label} is not a whole archive: {error}") from None
    for text in _expressions(described):
        if not _is_arithmetic(text):
            raise ModelError(f"{label} is refused: {text[:80]!r} is no expression over sizes, and torch would run it")
    if f"data/sample_inputs/{name}.pt" in found:
        check_weights_only(content(data, found, f"data/sample_inputs/{name}.pt", label), label)
    assert isinstance(weights, dict)
    return weights


def _is_arithmetic(text: str) -> bool:
    """Whether a text that torch evaluates does no more than arithmetic with symbols.

    >>> _is_arithmetic("Mul(Integer(2), Symbol('s0', integer=True))"), _is_arithmetic("S('open(1)')")
    (True, False)
    """
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    texts = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes)]
    texts += [node.id for node in nodes if isinstance(node, ast.Name)]
    calls = [node.func for node in nodes if isinstance(node, ast.Call)]
    return (all(isinstance(node, _HARMLESS) for node in nodes)
            and all(isinstance(item, str) and _NAME.fullmatch(item) for item in texts)
            and all(isinstance(call, ast.Name) and call.id[0].isupper() for call in calls))


def _expressions(value: Any) -> Iterator[str]:
    """All texts that stand for expressions."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            yield from (text for key, text in item.items() if key == "expr_str" and isinstance(text, str))
            pending += item.values()
        elif isinstance(item, list):
            pending += item


def _skeleton(data: bytes, found: Mapping[str, Record], config: Mapping[str, Any], network: ExportedNetwork,
              tensors: Mapping[str, Tensor], label: str) -> Skeleton:
    spans: dict[int, tuple[int, int, str, tuple[int, ...] | None]] = {}
    touched: list[Checksum] = []
    for name, tensor in tensors.items():
        if tensor.numel() == 0:
            continue
        record = found.get(f"data/weights/{config[name]['path_name']}")
        axes = dense_axes(tensor)
        if record is None or axes is None or record.length < tensor.nbytes:
            raise ModelError(f"{label}: weight {name!r} is not there, or a view that is not dense; clone() it before "
                             f"the export")
        start = record.start + int(tensor.storage_offset()) * tensor.element_size()
        straight = axes == tuple(range(tensor.ndim))
        spans.setdefault(start, (start, math.prod(tensor.shape) * tensor.element_size(), network.held[name],
                                 None if straight else axes))
        if record.checksum not in touched:
            touched.append(record.checksum)
    return Skeleton(FORMAT, [cut("", data, list(spans.values()), touched)])
