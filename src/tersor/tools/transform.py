"""Transform coding of one layer at a given lambda: W = S C, the basis S quantised and counted like all else.

Young, Wang, Taubman, Girod, "Transform quantization for CNN compression" (TPAMI 2021), with entropy-coded
coefficients. The order of work lets the coefficients make up for the basis:

1. T, S from the layer's covariances (`transforms`), basis vectors scaled so that an error of each coefficient
   costs the same once later ones have helped (reverse water-filling by one step for all);
2. the basis is quantised. Its error costs nothing by itself: coefficients are solved for anew, so what it
   loses is only some of the coding gain, and it may be coarse;
3. with S^ as it will be decoded, the best coefficients C = W A S^T (S A S^T)^-1 and their metric S A S^T go to
   the scalar quantiser with error feedback;
4. coefficients of which nothing is left cost nothing, neither do their basis vectors: both are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import prod

import numpy as np
import numpy.typing as npt

from ..adapters.inventory import WeightLayer
from ..config import Config, TransformConfig, split_transform
from ..synthesis import grid
from ..synthesis import transform as section
from ..synthesis.scalar import ScalarCode
from ..synthesis.transform import TransformCode
from ..synthesis.transform_code import MAX_TAP_SCALE, TAP_UNIT
from ..synthesis.transform_maps import Dct
from . import scalar, transforms
from .candidate import Candidate, distortion
from .column_map import ColumnMap, congruent, solve
from .covariances import axis_size, gradient_covariance, weight_covariance
from .metric import Matrix, Triangular, triangular
from .target import LayerTarget, to_matrix

BASIS_PRICES = (8.0, 32.0)
"""Lambda of the basis over that of the coefficients; the better by J is kept."""
KINDS = ("conv", "linear", "matrix")
"""Kinds of layers whose matrix has output channels as rows, input channels and taps as columns."""
TINY = 1e-9
"""Damping of metrics that were damped before they were transformed."""
_DCTS = {"dct1": Dct.I, "dct2": Dct.II}


def fits(target: LayerTarget, name: str, config: TransformConfig) -> bool:
    """Whether a layer has the axes of a transform, none longer than allowed."""
    channels, taps = split_transform(name)
    if not channels and not taps:
        return True
    if target.layer.kind not in KINDS or (target.groups > 1 and channels):
        return False
    if taps and not 1 < prod(target.shape[2:]) <= config.largest:
        return False
    if channels.endswith("-joint") and prod(target.shape[2:]) == 1:
        return False
    return not channels or 1 < axis_size(target, channels.partition("-")[2] or "inputs") <= config.largest


def propose(target: LayerTarget, price: float, name: str, config: Config, *, trellis: int = 0) -> Candidate:
    """The layer coded with the transform called `name` (`TransformConfig.transforms`) at lambda = `price`.

    trellis: states of the coefficients' dependent quantization: 0 (none), 4 or 8. The layer must have its axes
    (`fits`).
    """
    channels, taps = split_transform(name)
    basis = _float_basis(target, channels, taps)
    if not basis.stored:
        return _quantise(target, price, basis, name, config, trellis)
    offers = []
    for factor in BASIS_PRICES if basis.stored != ["taps"] else BASIS_PRICES[:1]:  # so small that it hardly matters
        rounded = _round_basis(target, basis, price * factor, config)
        offer = _quantise(target, price, rounded, name, config, trellis)
        live = _live(rounded, offer.code)
        if live is not None:
            shorter = _quantise(target, price, live, name, config, trellis)
            offer = min(offer, shorter, key=lambda candidate: candidate.cost(price))
        offers.append(offer)
    return min(offers, key=lambda candidate: candidate.cost(price))


@dataclass(frozen=True)
class _Basis:
    """S by its parts, and what a file keeps of them.

    parts: float64, a row for each basis vector: "rows" [k, outputs]; "columns" [k, inputs], or where `joint`
    [k, inputs * taps]; "taps" [k, taps]. codes: of the stored ones. dct: what "taps" is, where it is fixed,
    with its rows scaled by `exponents` int64 [taps], in quarters of an octave (`TransformCode.tap_scale`).
    """

    parts: Mapping[str, Matrix] = field(default_factory=dict)
    joint: bool = False
    dct: Dct | None = None
    exponents: npt.NDArray[np.int64] | None = None
    codes: Mapping[str, ScalarCode] = field(default_factory=dict)

    @property
    def stored(self) -> list[str]:
        """The parts that a file has to tell."""
        return [part for part in self.parts if part != "taps" or self.dct is None]

    @property
    def by_row(self) -> bool:
        """Whether it acts on taps alone: rows and channels keep to themselves."""
        return set(self.parts) <= {"taps"}

    def with_part(self, part: str, matrix: Matrix) -> _Basis:
        return replace(self, parts={**self.parts, part: matrix})

    def with_code(self, part: str, code: ScalarCode) -> _Basis:
        """A part as a decoder will have it."""
        return replace(self.with_part(part, code.matrix().astype(np.float64)), codes={**self.codes, part: code})

    def axis(self, part: str) -> str:
        """The axis of the weight along which a part acts."""
        return {"rows": "outputs", "columns": "joint" if self.joint else "inputs", "taps": "taps"}[part]

    def right(self, target: LayerTarget) -> ColumnMap | None:
        """All that acts on the columns of W; None for the identity."""
        columns, inner = self.parts.get("columns"), self.parts.get("taps")
        if columns is None and inner is None:
            return None
        return ColumnMap(columns, inner, 1 if self.joint else prod(target.shape[2:]))

    def shape(self, target: LayerTarget) -> tuple[int, ...]:
        """Of the coefficients, axes as the weight has them."""
        outputs = len(self.parts["rows"]) if "rows" in self.parts else target.shape[0]
        channels = len(self.parts["columns"]) if "columns" in self.parts else target.shape[1]
        kernel = () if self.joint else target.shape[2:]
        if "taps" in self.parts and len(self.parts["taps"]) < prod(kernel):  # few kernels do not span all taps
            kernel = (len(self.parts["taps"]),)
        return (outputs, channels, *kernel)


def _float_basis(target: LayerTarget, channels: str, taps: str) -> _Basis:
    """Unquantised, basis vectors in the scale in which one step is right for all coefficients."""
    basis = _Basis()
    if taps in _DCTS:
        basis = _Basis({"taps": transforms.dct(taps, target.shape[2:]).basis}, dct=_DCTS[taps])
    elif taps:
        basis = basis.with_part("taps", _learned(target, taps.partition("-")[0], "taps"))
    if channels:
        kind, _, axis = channels.partition("-")
        matrix = _learned(target, kind, axis or "inputs")
        basis = replace(basis.with_part("rows" if axis == "outputs" else "columns", matrix), joint=axis == "joint")
    for part in basis.stored:
        basis = basis.with_part(part, basis.parts[part] / np.sqrt(_costs(target, basis, part))[:, None])
    return basis if basis.dct is None else _scale_frequencies(target, basis)


def _scale_frequencies(target: LayerTarget, basis: _Basis) -> _Basis:
    """A DCT's vectors in the scale that stored ones get, 1 / sqrt(cost), to a quarter of an octave."""
    octaves = -0.5 * np.log2(_costs(target, basis, "taps"))
    exponents = np.rint(octaves * grid.RESOLUTION / TAP_UNIT).astype(np.int64).clip(-MAX_TAP_SCALE, MAX_TAP_SCALE)
    scaled = basis.parts["taps"] * grid.value(exponents * TAP_UNIT)[:, None]
    return replace(basis.with_part("taps", scaled), exponents=exponents if exponents.any() else None)


def _learned(target: LayerTarget, kind: str, axis: str) -> Matrix:
    weights, gradients = _covariances(target, axis)
    found = transforms.klt(weights) if kind == "klt" else transforms.elt(weights, gradients)
    outputs, inputs, taps = section.extents(target.shape, target.swapped).most(axis == "joint")
    spanned = {"outputs": outputs, "taps": taps}.get(axis, inputs)  # what lies beyond has no weights at all
    return np.ascontiguousarray(found.ordered(weights, gradients).normalised().basis[:spanned])


def _covariances(target: LayerTarget, axis: str) -> tuple[Matrix, Matrix]:
    """C_w with rows weighed by what their errors cost (their steps follow that), and C_g."""
    rows = None
    if axis != "outputs":
        rows = scalar.output_costs(target)
        rows = rows / rows.mean()
    return weight_covariance(target, axis, rows), gradient_covariance(target, axis)


def _costs(target: LayerTarget, basis: _Basis, part: str) -> Matrix:
    """[k]: what an error of the coefficients of each basis vector costs after feedback, over the geometric mean."""
    right = basis.right(target)
    if part == "rows":
        costs = [triangular(congruent(_damped(g, target.damping), basis.parts["rows"]), TINY).cost for g in target.G]
    elif right is not None and right.is_by_tap:
        costs = [right.costs(factor) for factor in target.column_factors]
    else:
        assert right is not None
        costs = [triangular(right.congruent(_damped(a, target.damping, right)), TINY).cost for a in target.A]
    logs = np.mean([np.log(cost) for cost in costs], axis=0)
    size = len(basis.parts[part])
    if part == "columns":
        logs = logs.reshape(size, -1).mean(axis=1)
    elif part == "taps":
        logs = logs.reshape(-1, size).mean(axis=0)
    return np.asarray(np.exp(logs - logs.mean()))


def _round_basis(target: LayerTarget, basis: _Basis, price: float, config: Config) -> _Basis:
    """The basis as a decoder will have it: quantised as a layer of its own at lambda = `price`.

    An error dS of the basis errs the weights by dS t: D = tr(P dS^T C_g dS), with P the covariance of the
    coefficients.
    """
    for part in basis.stored:
        matrix = basis.parts[part]
        weights, gradients = _covariances(target, basis.axis(part))
        analysis = np.linalg.pinv(matrix.T)
        spread = np.maximum(np.einsum("kn,kn->k", analysis @ weights, analysis), 0.0)
        layer = WeightLayer(target.name, "linear", 1, None)
        own = LayerTarget(layer, matrix.shape, matrix[None], gradients[None], spread[None])
        code, _ = scalar.encode(own, price, scalar.ScalarOptions(feedback=config.feedback, centroids=False))
        basis = basis.with_code(part, code)
    return basis


def _quantise(target: LayerTarget, price: float, basis: _Basis, name: str, config: Config,
              trellis: int) -> Candidate:
    """Coefficients for a basis as it is, with error feedback in their own metric."""
    right, left = basis.right(target), basis.parts.get("rows")
    w, a, g = target.W, target.A, target.G
    factors: list[Triangular] | None = None
    if right is not None and right.is_by_tap:
        w = np.stack([right.inverted(part) for part in w])
        factors = [right.factor(factor) for factor in target.column_factors]
    elif right is not None:
        metrics = [_damped(part, target.damping, right) for part in a]
        w = np.stack([right.solve(metric, part) for metric, part in zip(metrics, w, strict=True)])
        a = np.stack([right.congruent(metric) for metric in metrics])
    if left is not None:
        metrics = [_damped(part, target.damping) for part in g]
        w = np.stack([solve(metric, left, part.T).T for metric, part in zip(metrics, w, strict=True)])
        g = np.stack([congruent(metric, left) for metric in metrics])
    damping = target.damping if right is None else TINY
    inner = LayerTarget(target.layer, basis.shape(target), w, a, g, target.absorbed and left is None, damping)
    if factors is not None:
        inner = inner.with_factors({"column_factors": factors})
    small = config.mode == "small"
    options = scalar.ScalarOptions(feedback=config.feedback, centroids=False, trellis=trellis, seen=small)
    code, steps = scalar.encode(inner, price, options)
    restored = np.asarray(to_matrix(code.tensor(inner.shape), inner.layer), np.float64) * steps.absorbed[:, :, None]
    if right is not None:
        restored = np.stack([right.apply(part) for part in restored])
    if left is not None:
        restored = left.T @ restored
    codes = basis.codes
    whole = TransformCode(code, codes.get("rows"), codes.get("columns"),
                          basis.dct if basis.dct is not None else codes.get("taps"), basis.joint, target.swapped,
                          basis.exponents)
    mode = section.SMALL if small else section.FAST
    counted, shape, times = scalar.first_rows(code, target.shape) if basis.by_row else (code, target.shape, 1.0)
    bits, side = section.bits_of(replace(whole, coefficients=counted), shape, mode)
    bits = (bits - side) * times + side
    rank = "".join(f", {len(basis.parts[part])} of {basis.parts[part].shape[1]}" for part in basis.stored
                   if len(basis.parts[part]) < basis.parts[part].shape[1])
    label = f"{name}{rank}, trellis of {code.trellis}" if code.trellis else name + rank
    return Candidate("transform", whole, restored, distortion(target, restored), bits, label, side)


def _live(basis: _Basis, code: TransformCode) -> _Basis | None:
    """The basis without the vectors whose coefficients are all zero; None where there are none (or nothing else)."""
    assert isinstance(code.coefficients, ScalarCode)
    q, shorter = code.coefficients.q, basis
    for part in basis.stored:
        if part == "taps":
            continue
        kept = basis.codes[part]
        alive = np.asarray(q.any(axis=1) if part == "rows" else q.reshape(len(q), len(kept.q), -1).any(axis=(0, 2)))
        if 0 < alive.sum() < alive.size:
            rows = None if kept.row_index is None else kept.row_index[alive]
            shorter = shorter.with_code(part, replace(kept, q=np.ascontiguousarray(kept.q[alive]), row_index=rows))
    return shorter if shorter is not basis else None


def _damped(metric: npt.NDArray[np.floating], damping: float, right: ColumnMap | None = None) -> Matrix:
    """A metric as a full matrix with `damping` of its mean diagonal added, as `metric.triangular` does; a diagonal one
    as it is where `right` acts on taps alone, so that channels go on to know nothing of each other."""
    if metric.ndim == 1 and right is not None and right.channels is None:
        mean = float(metric.mean())
        return np.asarray(metric + (damping * mean if mean > 0 else 1.0), dtype=np.float64)
    full = np.diag(metric).astype(np.float64) if metric.ndim == 1 else metric.astype(np.float64)
    mean = float(np.trace(full)) / max(len(full), 1)
    return np.asarray((full + full.T) / 2 + np.eye(len(full)) * (damping * mean if mean > 0 else 1.0))
