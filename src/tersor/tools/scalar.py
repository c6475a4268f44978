"""Entropy-constrained scalar quantization of one layer at a given lambda.

Steps follow the sensitivities, s = sqrt(6 lambda / (ln 2 h)) with h = g_i * mean_j d_j (docs/theory.md: the
slope -dD/dR of a uniform quantizer with an ideal entropy code, D = h s^2 / 12), rounding is
rate-distortion-optimised against code lengths, errors are fed back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..synthesis import grid
from ..synthesis import scalar as section
from ..synthesis.scalar import MAX_SHIFT, SHIFT_UNIT, ScalarCode
from . import feedback, trellis
from .candidate import Candidate, distortion
from .feedback import REACH, Rounding
from .metric import Matrix, Triangular
from .target import LayerTarget, to_matrix

ROW_BITS = 3.5
"""What a row's own step costs as side information, for the decision; the file is measured in the end."""
ROW_RESOLUTION = 2
"""Row steps in quarters of an octave."""
FLOOR = 1e-4
"""Smallest sensitivity of an output, as a share of the mean."""
FINEST, COARSEST = 2.0**-21, 4.0
"""Limits of steps as shares of the largest weight."""
COUNTED = 1 << 17
"""Weights of a large layer that are coded to learn what all would take."""
SAMPLE = 1 << 18
"""About so many weights of a layer tell the statistics of a trellis."""
SLAB = 1 << 20
"""About so many weights are looked at at a time where rows do not see each other."""
CLASSES = 4
"""Rows are sorted into so many classes of spread, each with its own code lengths."""


@dataclass(frozen=True)
class ScalarOptions:
    """rdo: share of lambda that rounding decisions pay for a bit (0: nearest). centroids: move the reconstruction
    points to the means of their members, in layers without feedback (their distortion can only fall; with
    feedback an error depends on the level that was assumed, and nothing was gained in measurements).
    two_sided: feedback from row to row as well. trellis: states of dependent quantization, 0 (none), 4 or 8; layers
    whose rows are not rows of the file (transposed convolutions) stay without. search: as rdo, with a trellis. seen:
    whether the file's entropy coder sees which quantizer is active (the small one does, the fast one does not)."""

    rdo: float = 0.45
    centroids: bool = True
    two_sided: bool = True
    feedback: bool = True
    trellis: int = 0
    search: float = 0.8
    seen: bool = True


@dataclass(frozen=True)
class Steps:
    """step: float64 [groups, m / groups] that quantisation uses; and how a file tells it: see ScalarCode.

    `absorbed`: float64, same shape: step of the quantiser over the step in the file, which the BatchNorm takes
    up; 1 elsewhere.
    """

    step: Matrix
    index: int
    rows: npt.NDArray[np.int64] | None
    absorbed: Matrix


def output_costs(target: LayerTarget, two_sided: bool = True) -> Matrix:
    """g float64 [groups, m / groups]: what a unit error of an output costs, floored."""
    costs = [factor.cost if two_sided else factor.diagonal for factor in target.row_factors]
    g = np.stack(costs)
    return np.maximum(g, FLOOR * max(float(g.mean()), 1e-300))


def choose_steps(target: LayerTarget, price: float, two_sided: bool = True, share: float = 1.0) -> Steps:
    """Steps of all rows at lambda = `price`, on the logarithmic grid where the file must tell them.

    share: factor on the ideal steps, trellis.SUB_STEP with a trellis.
    """
    g = output_costs(target, two_sided)
    d = np.stack([factor.cost for factor in target.column_factors]).mean(axis=1, keepdims=True)
    ideal = _sensible(share * np.sqrt(6.0 * price / (np.log(2.0) * g * d)), target)
    per_channel = target.by_channel(np.log2(ideal))
    if target.absorbed:
        step = target.from_channel(np.exp2(per_channel))
        index = int(np.clip(np.rint(np.log2(_typical(step)) * grid.RESOLUTION), -grid.MAX_INDEX, grid.MAX_INDEX))
        return Steps(step, index, None, step / float(grid.value(index)))
    return _told_steps(target, ideal, per_channel)


def _sensible(step: Matrix, target: LayerTarget) -> Matrix:
    """Steps between the float32 precision of a row's weights (of all, where rows share a step) and what makes
    them all zero, so that no lambda leads to integers or steps that a file cannot hold."""
    largest = target.peaks
    largest = np.where(largest > 0, largest, largest.max())
    if not target.absorbed or not largest.max() > 0:
        largest = np.full(largest.shape, largest.max() or 1.0)
    return np.asarray(np.clip(step, largest * FINEST, largest * COARSEST))


def _told_steps(target: LayerTarget, ideal: Matrix, per_channel: Matrix) -> Steps:
    """Steps that travel as side information: one for all, or one per row of the file where that pays."""
    # A common step wastes 1/2 log2 (arithmetic over geometric mean of the sensitivities) bits per weight.
    sensitivity = np.exp2(-2.0 * per_channel)
    gain = 0.5 * (np.log2(sensitivity.mean()) + 2.0 * per_channel.mean()) * target.count
    common = float(np.exp2(-0.5 * np.log2(sensitivity.mean())))
    base = int(grid.nearest(common))
    if gain <= ROW_BITS * per_channel.size or target.file_rows != per_channel.size:
        step = np.full(ideal.shape, float(grid.value(base)))
        return Steps(step, base, None, np.ones_like(step))
    unit = grid.RESOLUTION >> ROW_RESOLUTION
    rows = np.rint((per_channel * grid.RESOLUTION - base) / unit).astype(np.int64)
    step = target.from_channel(grid.value(base + rows * unit))
    return Steps(step, base, rows, np.ones_like(step))


def encode(target: LayerTarget, price: float, options: ScalarOptions) -> tuple[ScalarCode, Steps]:
    """The integers of a layer at lambda = `price`.

    Two looks: plain rounding gives the code lengths, then the real pass with feedback.
    """
    if options.trellis and target.layer.kind != "conv_transposed":
        return _encode_trellis(target, price, options)
    steps = choose_steps(target, price, options.two_sided)
    g = output_costs(target, options.two_sided)
    row_class, bits = code_lengths(list(target.W), list(steps.step))
    codes, fed_back = [], False
    for k in range(target.groups):
        rounding = Rounding(
            step=np.ascontiguousarray(steps.step[k]),
            price=options.rdo * price / (g[k] * steps.step[k] ** 2),
            bits=bits, row_class=row_class[k])
        columns, rows = _factors(target, k, options)
        codes.append(_integers(feedback.quantize, target.W[k], columns, rows, rounding))
        fed_back = fed_back or columns.upper is not None or rows.upper is not None
    shift = (0, 0)
    if options.centroids and not fed_back:
        costs = [(g[k] * steps.step[k] ** 2, target.column_factors[k].cost) for k in range(target.groups)]
        shift = _centroids(list(target.W), list(steps.step), codes, costs)
    q = target.to_file(np.stack(codes))
    return ScalarCode(q, steps.index, steps.rows, ROW_RESOLUTION, shift, target.swapped), steps


def propose(target: LayerTarget, price: float, options: ScalarOptions, mode: str) -> Candidate:
    """The scalar tool's offer for a layer at lambda = `price`.

    mode: "small" or "fast", the coder that the bits are counted with, for this layer alone; of a layer with more than
    COUNTED weights, for so many.
    """
    small = mode == "small"
    code, steps = encode(target, price, replace(options, seen=small))
    restored = np.asarray(to_matrix(code.tensor(target.shape), target.layer), dtype=np.float64)
    restored = restored * steps.absorbed[:, :, None]
    label = f"scalar, trellis of {code.trellis}" if code.trellis else "scalar"
    some, shape, times = first_rows(code, target.shape)
    bits = section.bits_of(some, shape, section.SMALL if small else section.FAST) * times
    return Candidate("scalar", code, restored, distortion(target, restored), bits, label)


def first_rows(code: ScalarCode, shape: tuple[int, ...]) -> tuple[ScalarCode, tuple[int, ...], float]:
    """The first rows of a large layer's code, COUNTED weights or a little more, their shape, and how many times as many
    weights the layer has."""
    rows, axis = -(-COUNTED // max(code.q.shape[1], 1)), 1 if code.swapped else 0
    if rows >= len(code.q):
        return code, shape, 1.0
    some = replace(code, q=code.q[:rows], row_index=None if code.row_index is None else code.row_index[:rows])
    return some, (*shape[:axis], rows, *shape[axis + 1 :]), len(code.q) / rows


def _encode_trellis(target: LayerTarget, price: float, options: ScalarOptions) -> tuple[ScalarCode, Steps]:
    """Two searches: one without feedback, of some rows, for the statistics; then the real one."""
    states, groups = options.trellis, range(target.groups)
    steps = choose_steps(target, price, options.two_sided, trellis.SUB_STEP)
    g = output_costs(target, options.two_sided)
    row_class, _ = code_lengths(list(target.W), list(steps.step))

    def rounding(k: int, counts: Matrix, every: int = 1) -> trellis.Rounding:
        step = np.ascontiguousarray(steps.step[k, ::every])
        return trellis.Rounding(step, options.search * price / (g[k, ::every] * step**2),
                                trellis.code_lengths(counts, options.seen), row_class[k][::every].copy(), states)

    counts = np.sum([trellis.count_nearest(target.W[k, part] / steps.step[k, part, None], row_class[k][part], CLASSES)
                     for k in groups for part in _slabs(target.W[k])], axis=0)
    every = 1 + target.count // SAMPLE
    alone = Triangular(None, g[0])  # only without feedback are some of the rows enough
    sample = [trellis.quantize(target.W[k, ::every], target.column_factors[k].without_feedback(), alone,
                               rounding(k, counts, every))[0] for k in groups]
    counts = np.sum([trellis.count(sample[k], states, row_class[k][::every], CLASSES) for k in groups], axis=0)
    codes = [_integers(trellis.quantize, target.W[k], *_factors(target, k, options), rounding(k, counts))
             for k in groups]
    q = target.to_file(np.stack(codes))
    return ScalarCode(q, steps.index, steps.rows, ROW_RESOLUTION, (0, 0), target.swapped, states), steps


def _factors(target: LayerTarget, group: int, options: ScalarOptions) -> tuple[Triangular, Triangular]:
    """Of A and of G, without what the options leave out."""
    columns, rows = target.column_factors[group], target.row_factors[group].factor
    if not options.feedback:
        return columns.without_feedback(), rows.without_feedback()
    return columns, rows if options.two_sided else rows.without_feedback()


def _slabs(matrix: Matrix) -> Iterator[slice]:
    """Ranges of rows of about SLAB weights: what is looked at at a time, so that large layers need little memory."""
    rows = max(1, SLAB // max(1, matrix.shape[1]))
    yield from (slice(first, first + rows) for first in range(0, len(matrix), rows))


def _integers(quantize: Callable[..., Any], w: Matrix, columns: Triangular, rows: Triangular,
              rounding: Any) -> npt.NDArray[np.int32]:
    """int32 [m, n]; without feedback in slabs."""
    if columns.upper is not None or rows.upper is not None:
        return np.asarray(quantize(w, columns, rows, rounding)[0])
    codes = np.empty(w.shape, dtype=np.int32)
    for part in _slabs(w):
        own = replace(rounding, step=rounding.step[part], price=rounding.price[part],
                      row_class=rounding.row_class[part])
        codes[part] = quantize(w[part], columns, Triangular(None, rows.cost[part]), own)[0]
    return codes


def code_lengths(values: list[Matrix], steps: list[Matrix] | None = None) -> tuple[list[npt.NDArray[np.int32]], Matrix]:
    """(classes of the rows per group, bits [CLASSES, 2 REACH + 1]) from values in units of `steps` [rows], or of 1.

    Rows are classed by their spread: the entropy coders adapt to rows, so a rare large value in a quiet row
    is dearer than in a loud one.
    """
    steps = [np.ones(len(v)) for v in values] if steps is None else steps
    spread = [np.concatenate([np.zeros(0), *(np.abs(v[part] / s[part, None]).mean(axis=1) for part in _slabs(v))])
              if v.size else np.zeros(len(v)) for v, s in zip(values, steps, strict=True)]
    joined = np.concatenate(spread) if spread else np.zeros(0)
    cuts = np.quantile(joined, np.arange(1, CLASSES) / CLASSES) if joined.size >= 4 * CLASSES else np.zeros(0)
    row_class = [np.searchsorted(cuts, s).astype(np.int32) for s in spread]
    width = 2 * REACH + 1
    counted = np.zeros(CLASSES * width, dtype=np.int64)
    for v, s, c in zip(values, steps, row_class, strict=True):
        for part in _slabs(v):
            place = np.clip(np.rint(v[part] / s[part, None]), -REACH, REACH)
            place += REACH + c[part, None] * width
            counted += np.bincount(place.ravel().astype(np.int64), minlength=len(counted))
    counts = counted.reshape(CLASSES, width).astype(np.float64)
    counts = counts + counts[:, ::-1] + 0.3  # signs cost a bit on average, whatever the sample says
    return row_class, -np.log2(counts / counts.sum(axis=1, keepdims=True))


def _centroids(values: list[Matrix], steps: list[Matrix], codes: list[npt.NDArray[np.int32]],
               costs: list[tuple[Matrix, Matrix]]) -> tuple[int, int]:
    """Mean distance, weighted by cost, of values (in steps) below their integers, for |q| = 1 and |q| > 1, in 1/64 of
    a step; 0 where the mean lies above. costs: per group, of rows and of columns."""
    weight, moment = np.zeros(2), np.zeros(2)
    for w, s, codes_of, (rows, columns) in zip(values, steps, codes, costs, strict=True):
        for part in _slabs(w):
            q = codes_of[part]
            magnitude = np.abs(q)
            below = magnitude - np.sign(q) * (w[part] / s[part, None])
            for i, member in enumerate((magnitude == 1, magnitude > 1)):
                weight[i] += rows[part] @ (member.astype(np.float64) @ columns)
                moment[i] += rows[part] @ ((member * below) @ columns)
    mean = np.divide(moment, weight, out=np.zeros(2), where=weight > 0)
    first, more = np.clip(np.rint(mean * SHIFT_UNIT), 0, MAX_SHIFT).astype(int).tolist()
    return first, more


def _typical(step: Matrix) -> float:
    """Geometric mean."""
    return float(np.exp(np.log(step).mean()))
