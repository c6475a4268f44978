"""The noun of all clustering tools: a codebook of values and which of them each weight takes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError

Floats = npt.NDArray[np.floating]
Doubles = npt.NDArray[np.float64]
Index = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Clusters:
    """Weights that share values.

    * `values`: float64 [k], ascending, every one in use.
    * `index`: int32 [n], weight i becomes values[index[i]].
    * `history`: the objective after every iteration, never rising: sum h (w - value)^2, and for ECSQ plus
      price * total bits.
    * `zero`: position of the centre that was asked to be exactly 0, or -1.
    """

    values: Doubles
    index: Index
    history: tuple[float, ...] = ()
    zero: int = -1

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """Members of each cluster, int64 [k]."""
        return np.bincount(self.index, minlength=self.values.size).astype(np.int64)

    @property
    def entropy(self) -> float:
        """Bits/weight of the index under its own frequencies: what an ideal entropy coder spends."""
        return entropy(self.counts)

    def restored(self) -> Doubles:
        """values[index], float64 [n]."""
        return self.values[self.index]

    def distortion(self, w: Floats, h: Floats | None = None) -> float:
        """sum h (w - value)^2; h = 1 if None."""
        error = np.square(np.asarray(w, dtype=np.float64) - self.restored())
        return float(error.sum() if h is None else error @ np.asarray(h, dtype=np.float64))


def entropy(counts: npt.NDArray[np.integer]) -> float:
    """-sum p log2 p of frequencies, bits/symbol; 0 for no symbols.

    >>> entropy(np.array([2, 1, 1, 0]))
    1.5
    """
    used = counts[counts > 0].astype(np.float64)
    return float(np.log2(used.sum()) - used @ np.log2(used) / used.sum()) + 0.0 if used.size else 0.0


def checked(w: Floats, h: Floats | None) -> tuple[Floats, Floats | None]:
    """Flat contiguous weights and their sensitivities, both float32 if both came so, else float64.

    Raises `ConfigError` when there are no weights, sizes differ, or a number is NaN, infinite or a
    sensitivity below 0 (of a Hessian's diagonal, take `tersor.diagonals.usable`).
    """
    narrow = w.dtype == np.float32 and (h is None or h.dtype == np.float32)
    dtype: npt.DTypeLike = np.float32 if narrow else np.float64
    flat: Floats = np.ascontiguousarray(w, dtype=dtype).reshape(-1)
    if flat.size == 0:
        raise ConfigError("there are no weights to cluster")
    if not np.isfinite(flat).all():
        raise ConfigError(f"{int((~np.isfinite(flat)).sum())} of {flat.size} weights are NaN or infinite")
    if h is None:
        return flat, None
    weight: Floats = np.ascontiguousarray(h, dtype=dtype).reshape(-1)
    if weight.size != flat.size:
        raise ConfigError(f"{flat.size} weights but {weight.size} sensitivities; there must be one for each")
    low, high = float(weight.min()), float(weight.max())
    if not (low >= 0.0 and np.isfinite(high)):
        raise ConfigError(f"sensitivities range from {low} to {high}; they must be finite and at least 0")
    return flat, weight


def weighted_means(w: Floats, h: Floats | None, index: Index, k: int) -> Doubles:
    """Centres c_j = sum h w / sum h over the members of j, float64 [k]; a cluster without sensitivity
    gets its plain mean, one without members 0."""
    counts = np.bincount(index, minlength=k)
    mass = counts.astype(np.float64) if h is None else np.bincount(index, weights=h, minlength=k)
    first = np.bincount(index, weights=w if h is None else np.multiply(w, h, dtype=np.float64), minlength=k)
    idle = (mass <= 0.0) & (counts > 0)
    if idle.any():
        among = idle[index]
        first[idle] = np.bincount(index[among], weights=w[among], minlength=k)[idle]
        mass[idle] = counts[idle]
    return np.asarray(np.divide(first, mass, out=np.zeros(k), where=mass > 0))


def position_of_zero(values: Doubles) -> int:
    """Where the centre 0 is, or -1."""
    found = np.flatnonzero(values == 0.0)
    return int(found[0]) if found.size else -1
