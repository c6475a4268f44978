"""What calibration measured, as NumPy arrays that can be saved, loaded, and checked against a model."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .adapters import safetensors
from .adapters.inventory import BatchNormLayer, Graph, Inventory, WeightLayer
from .errors import ModelError, StatisticsError

if TYPE_CHECKING:
    import torch

Floats = npt.NDArray[np.float32]
_VERSION = 1
_COHERENT = ("second", "cross", "shift")


@dataclass(frozen=True)
class LayerStatistics:
    """Second moments of one weight, in the matrix view of its kind, m outputs and n inputs.

    * `A` float32 [groups, n, n]: (1 / images) sum over images and positions of u u^T, not centred, or its
      diagonal [groups, n] for embeddings and very wide layers.
    * `mean` float32 [groups, n]: mean of u over images and positions. A centred is A - positions mean mean^T.
    * `G` float32 [groups, m / groups, m / groups] or diagonal [groups, m / groups]: mean of g g^T over
      positions, scaled so that per group trace(G) trace(A) = E over images of sum_ij (d(v.y) / dw_ij)^2.
    * `positions`: mean number of positions per image (1 for a linear layer on vectors).
    * `images`: how many images were measured.
    * `coherent`: E over images of D^T D, or None where it was not affordable. See `Coherent`.
    """

    A: Floats
    mean: Floats
    G: Floats
    positions: float
    images: int
    coherent: Coherent | None = None


@dataclass(frozen=True)
class Coherent:
    """What an error of the weights costs when it acts at all positions of an image at once.

    A takes the positions of an image for independent. They are not: the same weight error adds up where inputs
    are smooth and cancels where they are not, so errors of the mean over the taps are dearer than A says, errors
    of fine patterns cheaper. With D = d(v.y) / dW = sum over positions of g u^T, the gradient of an image:

    * `second` float32 [groups, n, n]: E over images of D^T D. `cross` float32 [groups, n]: E of D^T s, and `shift`
      float32 [groups]: E of s^T s, with s = sum over positions of g, from which `centred` takes out the mean input.
    """

    second: Floats
    cross: Floats
    shift: Floats

    def centred(self, mean: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        """E of (D - s mean^T)^T (D - s mean^T), float64 [groups, n, n]: when the mean output costs nothing."""
        mean, cross = mean.astype(np.float64), self.cross.astype(np.float64)
        mixed = mean[:, :, None] * cross[:, None, :]
        square = self.shift.astype(np.float64)[:, None, None] * mean[:, :, None] * mean[:, None, :]
        return np.asarray(self.second.astype(np.float64) - mixed - mixed.transpose(0, 2, 1) + square)


@dataclass(frozen=True)
class BatchNormStatistics:
    """One BatchNorm, float32 [C] each: z is its input, y = a z + b its output, g = d(v.y) / dy.

    `mean`, `variance` of z over images and positions; `scale_sensitivity` = E over images of
    (sum_p g (z - mean))^2: what an error of a costs; `shift_sensitivity` = E of (sum_p g)^2: one of b.
    """

    mean: Floats
    variance: Floats
    scale_sensitivity: Floats
    shift_sensitivity: Floats


@dataclass(frozen=True)
class Statistics:
    """All that `calibrate` measured on a model.

    * `layers`: weight name -> LayerStatistics. `batchnorms`: prefix -> BatchNormStatistics.
    * `vector_sensitivity`: name -> float32, shape of the parameter: E over images of (d(v.y) / d theta)^2 for
      biases and for every other parameter that has neither of the two above.
    * `unused`: parameters that the forward does not depend on.
    * `graph`: see `tersor.adapters.trace`.
    * `samples`: the first calibration inputs, for a second pass through the network: one tensor
      [keep, ...] (or a dict of them for models called with keywords), in the dtype given; None if not kept.
    * `digests`: name -> SHA-256 of each floating tensor of the model that was measured.
    * `images`, `vectors`, `seed`: how it was measured.
    * `weights`, `affine`: the layers and BatchNorms that were found, so that the same model as a bare state dict,
      which does not say what its tensors are, is read rightly.
    """

    layers: dict[str, LayerStatistics]
    batchnorms: dict[str, BatchNormStatistics]
    vector_sensitivity: dict[str, Floats]
    unused: list[str]
    graph: Graph
    samples: torch.Tensor | dict[str, torch.Tensor] | None
    digests: dict[str, str]
    images: int
    vectors: int = 1
    seed: int = 0
    metadata: dict[str, str] = field(default_factory=dict)
    weights: tuple[WeightLayer, ...] = ()
    affine: tuple[BatchNormLayer, ...] = ()

    def explain(self, inventory: Inventory) -> Inventory:
        """The inventory with what calibration knows of its layers (kinds, groups, biases) and its BatchNorms."""
        known = {layer.name: layer for layer in self.weights}
        layers = [known.get(layer.name, layer) for layer in inventory.layers]
        batchnorms = inventory.batchnorms or [bn for bn in self.affine if inventory.tensors.keys() >= set(bn.names)]
        exact = inventory.exact - {name for bn in batchnorms for name in bn.names}
        return replace(inventory, layers=layers, batchnorms=list(batchnorms), exact=exact)

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hexadecimal) of the model: of all names and digests in order."""
        return self.fingerprint_of(self.digests)

    @staticmethod
    def fingerprint_of(digests: Mapping[str, str]) -> str:
        """The same from the digests of a model's tensors."""
        lines = [f"{name} {digest}\n" for name, digest in sorted(digests.items())]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def check(self, inventory: Inventory) -> None:
        """Raise `StatisticsError`, naming the first tensor that differs, unless measured on this model."""
        found = digests(inventory)
        different = [name for name in found if self.digests.get(name) != found[name]]
        different += [name for name in self.digests if name not in found]
        if different:
            name = different[0]
            what = ("is not in the model that was calibrated" if name not in self.digests else
                    "is missing from this model" if name not in found else "has other values, shape or dtype")
            raise StatisticsError(f"these statistics belong to another model: {name} {what} "
                                  f"({len(different)} of {len(found)} tensors differ); calibrate again")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a .safetensors file (atomically). Raises OSError as the system reports it."""
        arrays: dict[str, npt.NDArray[Any]] = {}
        for name, layer in self.layers.items():
            arrays |= {f"A/{name}": layer.A, f"mean/{name}": layer.mean, f"G/{name}": layer.G}
            if layer.coherent is not None:
                arrays |= {f"{key}/{name}": getattr(layer.coherent, key) for key in _COHERENT}
        for name, bn in self.batchnorms.items():
            arrays |= {f"batchnorm/{name}": np.stack([bn.mean, bn.variance, bn.scale_sensitivity,
                                                      bn.shift_sensitivity])}
        arrays |= {f"vector/{name}": array for name, array in self.vector_sensitivity.items()}
        samples = _pack_samples(self.samples)
        arrays |= {f"samples/{key}": bits for key, (bits, _) in samples.items()}
        described = {
            "version": _VERSION, "images": self.images, "vectors": self.vectors, "seed": self.seed,
            "unused": self.unused, "graph": asdict(self.graph), "digests": self.digests,
            "fingerprint": self.fingerprint, "metadata": self.metadata,
            "layers": {name: [layer.positions, layer.images] for name, layer in self.layers.items()},
            "batchnorms": list(self.batchnorms),
            "weights": [asdict(layer) for layer in self.weights],
            "affine": [asdict(bn) for bn in self.affine],
            "samples": {key: dtype for key, (_, dtype) in samples.items()},
            "samples_are": "dict" if isinstance(self.samples, dict) else "tensor",
        }
        arrays = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in arrays.items()}
        safetensors.write(path, arrays, {"tersor-statistics": json.dumps(described)})

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Statistics:
        """Read what `save` wrote. Raises `StatisticsError` if the file is something else or damaged.

        The matrices stay on disk until they are looked at, and take no memory for good.
        """
        try:
            arrays, metadata, _ = safetensors.mapped(path)
            described = json.loads(metadata["tersor-statistics"])
            if described["version"] != _VERSION:
                raise StatisticsError(f"{path}: statistics of version {described['version']}, this tersor "
                                      f"reads {_VERSION}; calibrate again")
            return _assemble(described, arrays)
        except (ModelError, KeyError, ValueError, TypeError, AttributeError) as error:
            raise StatisticsError(f"{path} is not a readable statistics file ({error}); it is what "
                                  f"Statistics.save writes") from error


def digests(inventory: Inventory) -> dict[str, str]:
    """SHA-256 over name, dtype, shape and bytes of each floating tensor (counters and masks may change)."""
    found = {}
    for name, array in inventory.tensors.items():
        if array.dtype.kind in "fcV":  # ml_dtypes are of kind V or f
            head = hashlib.sha256(json.dumps([name, array.dtype.name, list(array.shape)]).encode())
            head.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            found[name] = head.hexdigest()
    return found


def _assemble(described: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> Statistics:
    graph = described["graph"]
    graph["last_use"] = {int(key): value for key, value in graph["last_use"].items()}
    layers = {name: LayerStatistics(arrays[f"A/{name}"], arrays[f"mean/{name}"], arrays[f"G/{name}"],
                                    float(positions), int(images), _coherent(name, arrays))
              for name, (positions, images) in described["layers"].items()}
    return Statistics(
        layers=layers,
        batchnorms={name: BatchNormStatistics(*arrays[f"batchnorm/{name}"])
                    for name in described["batchnorms"]},
        vector_sensitivity={key.removeprefix("vector/"): array for key, array in arrays.items()
                            if key.startswith("vector/")},
        unused=described["unused"], graph=Graph(**graph), digests=described["digests"],
        samples=_unpack_samples(described, arrays), images=described["images"],
        vectors=described["vectors"], seed=described["seed"], metadata=described["metadata"],
        weights=tuple(WeightLayer(**layer) for layer in described.get("weights", ())),
        affine=tuple(BatchNormLayer(**bn) for bn in described.get("affine", ())))


def _coherent(name: str, arrays: Mapping[str, npt.NDArray[Any]]) -> Coherent | None:
    return Coherent(*(arrays[f"{key}/{name}"] for key in _COHERENT)) if f"second/{name}" in arrays else None


def _pack_samples(samples: Any) -> dict[str, tuple[npt.NDArray[Any], str]]:
    """key -> (array, torch dtype name); bfloat16 and float8 as plain integers of their bits."""
    if samples is None:
        return {}
    from .adapters.module import to_numpy
    packed = {}
    for key, tensor in (samples if isinstance(samples, dict) else {"input": samples}).items():
        array = to_numpy(tensor, f"sample {key}")
        if array.dtype.kind not in "biufc" or array.dtype.name.startswith(("bfloat", "float8")):
            array = array.view(f"u{array.dtype.itemsize}")
        packed[key] = array, str(tensor.dtype).removeprefix("torch.")
    return packed


def _unpack_samples(described: Mapping[str, Any],
                    arrays: Mapping[str, npt.NDArray[Any]]) -> torch.Tensor | dict[str, torch.Tensor] | None:
    if not described["samples"]:
        return None
    import torch
    samples = {}
    for key, name in described["samples"].items():
        tensor, dtype = torch.from_numpy(arrays[f"samples/{key}"].copy()), getattr(torch, name)
        samples[key] = tensor if tensor.dtype == dtype else tensor.view(dtype)
    return samples if described["samples_are"] == "dict" else samples["input"]
