"""How far the quadratic model holds: what each layer's errors really do to the network's output.

The encoder decides by D = tr(E^T G E A) of each layer's errors E. Measured, it is |f - f_l|^2 of the compressed
network f and the same with the errors of layer l taken back, f_l: its weights are those that were to be described, and
its BatchNorm or bias what it would be for them. (Taking back the weights alone would also undo what was made up for
them, and count it as an error.) Where the two disagree, layers get bits that others need more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from .adapters.inventory import Array
from .encoding import Encoding, output_energies, output_means, rescale
from .plan import affine_map
from .stage import Stage, forward_restored, map_samples
from .tools.metric import Matrix
from .tools.target import LayerTarget, from_matrix, to_matrix

SAMPLES = 160
"""Calibration samples that are looked at."""
FARTHEST = 8.0
"""No layer is trusted more or less than so many times what others are."""


@dataclass(frozen=True)
class Original:
    """A layer before its quantisation: `weight` in its shape. gain: deviation of its outputs after quantisation over
    that before; mean_before, mean_after: of its outputs; all [channels]."""

    weight: Array
    gain: Matrix
    mean_before: Matrix
    mean_after: Matrix


class Originals(dict[str, Original]):
    """Collects the layers of a second walk while `encoding` goes through it."""

    def __init__(self, encoding: Encoding) -> None:
        super().__init__()
        self.encoding = encoding
        encoding.targets = self._add

    def _add(self, target: LayerTarget) -> None:
        statistics = self.encoding.plan.statistics
        measured = statistics.layers.get(target.name) if statistics is not None else None
        if measured is None or target.layer.kind not in ("conv", "linear"):
            return
        restored = self.encoding.restored(target.name)
        after = np.asarray(to_matrix(restored, target.layer), dtype=np.float64)
        means = [output_means(w, measured.mean) for w in (target.W, after)]
        # gain 0: a channel of which nothing is left, or was there
        gain = rescale(*(output_energies(w, target.A) for w in (after, target.W)))
        weight = np.asarray(from_matrix(target.W, target.layer, target.shape)).astype(restored.dtype)
        self[target.name] = Original(weight, np.where(gain > 0, gain, 1.0), *means)

    def taken_back(self, name: str, tensors: Mapping[str, Any]) -> dict[str, Array]:
        """Those of the compressed network's tensors that are others where a layer has no errors."""
        plan, layer = self.encoding.plan, self[name]
        changed = {name: layer.weight}
        prefix, bias = plan.absorb.get(name), plan.layers[name].bias
        if prefix is not None:
            bn = plan.batchnorms[prefix]
            scale, shift = affine_map(tensors, bn)
            wider = scale * layer.gain
            values = (wider, shift + scale * layer.mean_after - wider * layer.mean_before, np.zeros_like(scale),
                      np.full_like(scale, 1.0 - bn.eps))
            for key, value in zip(bn.names, values, strict=True):
                changed[key] = value.astype(tensors[key].dtype)
        elif bias is not None and bias in plan.vectors:
            own = np.asarray(tensors[bias], dtype=np.float64)
            changed[bias] = (own + layer.mean_after - layer.mean_before).astype(tensors[bias].dtype)
        return changed


def measured_ratios(originals: Originals, tensors: Mapping[str, Any], model: nn.Module,
                    stage: Stage) -> dict[str, float]:
    """Layer -> D at the output over D of the model, over the median of all; within FARTHEST.

    tensors: of the file that came of the encoding. Layers that no rivals were tried for have no D and are left out.
    Call it under `undisturbed`.
    """
    encoding = originals.encoding
    samples = map_samples(stage.samples, lambda t: t[:SAMPLES])
    whole = forward_restored(model, tensors, samples)
    found = {}
    for name in originals:
        decision = encoding.decisions.get(name)
        if decision is not None and decision.distortion > 0.0:
            y = forward_restored(model, {**tensors, **originals.taken_back(name, tensors)}, samples)
            real = float(((whole - y) ** 2).sum()) / max(1, len(y))
            if np.isfinite(real):
                found[name] = real * encoding.plan.weight(name) / decision.distortion
    middle = float(np.median([ratio for ratio in found.values() if ratio > 0.0] or [1.0]))
    return {name: float(np.clip(ratio / middle, 1.0 / FARTHEST, FARTHEST)) for name, ratio in found.items()}
