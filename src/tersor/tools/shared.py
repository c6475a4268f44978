"""Shared values for many layers at once: the three methods of "Towards the limit of network quantization"
(Choi, El-Khamy, Lee, ICLR 2017) at a given entropy.

The paper quantises all layers together, with one codebook; `scope="layer"` gives each layer its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from ..config import CodebookConfig
from ..synthesis.codebook import CodebookCode
from .clusters import Clusters
from .ecsq import ecsq
from .kmeans import kmeans
from .uniform import step_for_entropy, uniform

Array = npt.NDArray[np.generic]


def cluster(w: npt.NDArray[np.floating], h: npt.NDArray[np.floating] | None, bits: float,
            config: CodebookConfig, memory: dict[int, Clusters] | None = None) -> Clusters:
    """Clusters of flat weights for a nominal `bits` per weight, by the configured method.

    * "uniform": the step at which the bins' entropy is `bits`.
    * "ecsq": lambda at which that step would be the best one, lambda = ln 2 h s^2 / 6 with the mean h; the entropy
      falls with it, and is lower than `bits` where not all weights matter alike.
    * "kmeans": the largest number of centres, up to `config.levels`, whose entropy (for the fixed-length coder:
      log2 of their number) does not exceed `bits`.

    `memory` keeps what k-means found for each k on these very weights.
    """
    memory = {} if memory is None else memory

    def centres(k: int) -> Clusters:
        if k not in memory:
            memory[k] = kmeans(w, h, k, zero=config.zero)
        return memory[k]

    if config.method != "kmeans":
        step = step_for_entropy(w, bits)
        even = uniform(w, h, step, zero=config.zero)
        if config.method == "uniform":
            return even
        price = np.log(2.0) / 6.0 * step**2 * (1.0 if h is None else float(h.mean()))
        # Even bins are near the optimum already; from k-means the entropy falls in jumps.
        first = even if even.values.size <= config.levels else centres(config.levels)
        return ecsq(w, h, config.levels, price, start=first, zero=config.zero and first.zero >= 0)
    fewest, most = 1, config.levels
    best = centres(1)
    while fewest < most:
        k = (fewest + most + 1) // 2
        found = centres(k)
        spent = float(np.ceil(np.log2(max(found.values.size, 1)))) if config.coder == "fixed" else found.entropy
        if spent <= bits:
            fewest, best = k, found
        else:
            most = k - 1
    return best


def encode_together(tensors: Mapping[str, Array], sensitivity: Mapping[str, npt.NDArray[np.floating]],
                    names: Sequence[str], bits: float, config: CodebookConfig,
                    memory: dict[int, Clusters] | None = None) -> tuple[CodebookCode, float]:
    """One codebook for the tensors called `names`, and its mean cost sum h (w - c)^2 / weights.

    sensitivity: name -> h >= 0 of the tensor's shape; a name that is missing counts the mean of the others. A
    weight of sensitivity 0 still counts a little, so that its cluster has a mean.
    """
    flats = [np.asarray(tensors[name], dtype=np.float64).ravel() for name in names]
    w = np.concatenate(flats)
    known = [np.asarray(sensitivity[name], dtype=np.float64).ravel() for name in names if name in sensitivity]
    typical = float(np.concatenate(known).mean()) if known else 1.0
    h = np.concatenate([np.asarray(sensitivity[name], dtype=np.float64).ravel() if name in sensitivity
                        else np.full(flat.size, typical) for name, flat in zip(names, flats, strict=True)])
    mean = float(h.mean())
    h = h + 1e-6 * mean if mean > 0 else np.ones_like(h)
    found = cluster(w, h if config.weighted else None, bits, config, memory)
    ends = np.cumsum([flat.size for flat in flats])[:-1]
    rows = [len(tensors[name]) for name in names]
    indexes = [part.reshape(row, -1) for part, row in zip(np.split(found.index, ends), rows, strict=True)]
    return CodebookCode.of(found.values, indexes), found.distortion(w, h) / w.size
