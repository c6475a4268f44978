"""ONNX Runtime sessions of .tersor files, and how far they are from the original.

    session = tersor.onnx.session("squeezenet.tersor")
    logits = session.run(None, {"x": images})[0]

For files that were made from an .onnx model. Weights and graph are given to ONNX Runtime in memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .adapters.restored import in_memory
from .bitstream.source import Readable
from .decoder import load
from .errors import ConfigError, ModelError
from .evaluate import Comparison, compare
from .limits import Limits


def session(file: Readable, *, compressed: bool = False, providers: Sequence[Any] | None = None, options: Any = None,
            limits: Limits | None = None) -> Any:
    """An onnxruntime.InferenceSession of a .tersor file (path, bytes or binary file).

    `compressed`: weights stay small integers and tables in the session's model, see `tersor.runtime.onnx_graph`; needs
    the onnx package. `providers`: of ONNX Runtime, the CPU's if None; `options`: an onnxruntime.SessionOptions.
    Raises ConfigError without onnxruntime, or where the file was not made from an ONNX model; FormatError for a bad
    file.
    """
    runtime = _runtime()
    with load(file, limits) as found:
        if found.source_format != "onnx":
            raise ConfigError(f"the file was made from a model of format {found.source_format or 'safetensors'}, and "
                              f"not from an .onnx file: ONNX Runtime has nothing to run")
        if compressed:
            from .runtime.onnx_graph import compressed_model
            parts = {"": compressed_model(found)}
        else:
            parts = in_memory(found)
    options = options or runtime.SessionOptions()
    outside = {path: data for path, data in parts.items() if path}
    if outside:
        options.add_external_initializers_from_files_in_memory(
            list(outside), list(outside.values()), [len(data) for data in outside.values()])
    return runtime.InferenceSession(parts[""], options, providers=list(providers or ["CPUExecutionProvider"]))


@dataclass(frozen=True)
class Difference:
    """`figures`: of the first output as logits, see `tersor.evaluate.Comparison`; `max_error`: largest difference of
    any logit."""

    figures: Comparison
    max_error: float


def difference(original: Any, restored: Any, batches: Iterable[Any], labels: Any = None) -> Difference:
    """Run two models in ONNX Runtime on the same inputs and compare their first outputs as logits (of probabilities:
    the logarithms).

    `original`, `restored`: an InferenceSession each, or what makes one (the path of an .onnx or a .tersor file).
    `batches`: inputs, NumPy arrays or tensors, for models with one input. `labels`: integers [N], for accuracies.
    Raises as `session`, and ModelError for models with several inputs.
    """
    import torch
    one, other = (item if hasattr(item, "run") else _session_of(item) for item in (original, restored))
    results: tuple[list[npt.NDArray[Any]], list[npt.NDArray[Any]]] = ([], [])
    for batch in batches:
        for model, outputs in zip((one, other), results, strict=True):
            outputs.append(_run(model, batch))
    y, z = (torch.from_numpy(_logits(np.concatenate(outputs).astype(np.float32))) for outputs in results)
    truth = None if labels is None else torch.as_tensor(np.asarray(labels))
    return Difference(compare(y, z, truth), float((y - z).abs().max()))


def _logits(outputs: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Logarithms of what is a distribution in every row; all else as it is."""
    if outputs.ndim < 2 or outputs.min(initial=0.0) < 0 or not np.allclose(outputs.sum(-1), 1.0, atol=1e-3):
        return outputs
    return np.asarray(np.log(np.maximum(outputs, np.finfo(outputs.dtype).tiny)))


def _session_of(path: str | os.PathLike[str]) -> Any:
    name = os.fspath(path)
    if name.endswith(".tersor"):
        return session(name)
    return _runtime().InferenceSession(name, providers=["CPUExecutionProvider"])


def _run(model: Any, batch: Any) -> npt.NDArray[Any]:
    inputs = model.get_inputs()
    if len(inputs) != 1:
        raise ModelError(f"the ONNX model has {len(inputs)} inputs; compare it in Python, with sessions of both")
    array = batch.detach().cpu().numpy() if hasattr(batch, "detach") else np.asarray(batch)
    return np.asarray(model.run(None, {inputs[0].name: array})[0])


def _runtime() -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise ConfigError("this needs ONNX Runtime: pip install 'tersor[onnx]'") from None
    return onnxruntime
