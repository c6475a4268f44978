"""Some rows of a large layer, in place of all, where tools are only compared.

Rows share the metric of the inputs and see each other through G alone, so that rivals compete on some rows as they do
on all: the same rows for each, which makes their difference far more exact than either cost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from .target import LayerTarget

ENOUGH = 1 << 17
"""About so many weights tell which of two tools is better to a few tenths of a per cent."""


def sampled(target: LayerTarget) -> tuple[LayerTarget, float]:
    """Evenly spread rows of at least ENOUGH weights, and how many times as many weights the layer has; the layer itself
    and 1 where it is not much larger, or rows are not rows of the file."""
    every = target.count // ENOUGH
    if every < 2 or target.groups > 1 or target.layer.kind == "conv_transposed":
        return target, 1.0
    kept = np.arange(every // 2, target.W.shape[1], every)
    w = np.ascontiguousarray(target.W[:, kept])
    g = target.G[:, kept] if target.G.ndim == 2 else target.G[:, kept[:, None], kept]
    axis = 1 if target.swapped else 0
    shape = (*target.shape[:axis], len(kept), *target.shape[axis + 1 :])
    known: Mapping[str, Any] = {"column_factors": target.column_factors}
    return replace(target, shape=shape, W=w, G=g).with_factors(known), target.count / w.size
