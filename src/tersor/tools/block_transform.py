"""One layer as blocks of coefficients and of basis vectors, for fixed-length coding as published. NumPy only.

W = S T: T the coefficients, S the basis, both in float64 until depths are chosen. A block is some of the input
channels of T (of the rows of T in the paper's sense: what one basis vector multiplies), one frequency of the taps, or
some basis vectors. Every block acts linearly on W, so `Blocks.delta` gives what an error of one block does to the
weights, at the block's cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ..config import Config, TransformConfig, split_transform
from ..synthesis.scalar import unview, view
from ..synthesis.transform import BlockCode, Cuts, Dct, Maps, TransformCode, apply_maps, dct_matrix, extents
from ..synthesis.transform_blocks import MAX_BLOCKS, Box
from . import transforms
from .block_depths import Table, quantise
from .covariances import gradient_covariance, weight_covariance
from .metric import Matrix
from .target import LayerTarget, from_matrix
from .transform import fits

DEFAULT = ("elt",)
COEFFICIENTS = "coefficients"
_DCTS = {"dct1": Dct.I, "dct2": Dct.II}


@dataclass(frozen=True)
class Part:
    """One matrix of a layer, float64 as `cuts` see it.

    "rows", "channels" or "taps": a basis [k, n, 1], a row for each vector; or COEFFICIENTS [rows', channels', taps'].
    """

    name: str
    values: Matrix
    cuts: Cuts

    def boxes(self) -> list[Box]:
        """Where each block is."""
        return self.cuts.boxes(self._shape)

    def code(self, depths: npt.NDArray[np.int64], steps: npt.NDArray[np.int64]) -> BlockCode:
        """Quantised with these depths and grid indexes of steps, [blocks] each."""
        q = np.zeros(self.values.shape, np.int32)
        for box, depth, step in zip(self.boxes(), depths.tolist(), steps.tolist(), strict=True):
            q[box] = quantise(self.values[box], depth, step)
        return BlockCode(q.reshape(self._shape), depths, np.where(depths > 0, steps, 0), self.cuts)

    @property
    def _shape(self) -> tuple[int, int]:
        rows, channels, taps = self.values.shape
        return rows, channels * taps


@dataclass(frozen=True)
class Blocks:
    """A layer in the transform domain. `parts`: stored bases in the order of the file, then the coefficients.

    `shape`: of the weight tensor. `dct`: the fixed transform of the taps, if any. `joint`, `swapped`: as in
    `TransformCode`. `label`: the name of the transform.
    """

    name: str
    label: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...]
    dct: Dct | None = None
    joint: bool = False
    swapped: bool = False

    def delta(self, part: Part, box: Box, error: Matrix) -> Matrix:
        """What an error of the elements in one block (float64, the block's shape) does to the weight tensor."""
        of = extents(self.shape, self.swapped)
        maps, coefficients = self._maps(), self._coefficients()
        if part.name == COEFFICIENTS:
            rows, channels, taps = box
            kernel = maps.kernel()
            everywhere = slice(None)
            place = (rows if maps.rows is None else everywhere, channels if maps.channels is None else everywhere,
                     taps if kernel is None and not self.joint else everywhere)
            maps = Maps(None if maps.rows is None else maps.rows[rows],
                        None if maps.channels is None else maps.channels[channels],
                        () if kernel is None else (kernel[taps],), self.joint)
            whole = np.zeros((of.rows, of.channels, of.taps))
            whole[place] = apply_maps(np.ascontiguousarray(error), maps).reshape(whole[place].shape)
        else:
            vectors, error = box[0], error[:, :, 0]
            if part.name == "rows":
                coefficients, maps = coefficients[vectors], replace(maps, rows=error)
            elif part.name == "channels":
                coefficients, maps = coefficients[:, vectors], replace(maps, channels=error)
            else:
                coefficients, maps = coefficients[:, :, vectors], replace(maps, taps=(error,))
            whole = apply_maps(np.ascontiguousarray(coefficients), maps)
        return unview(whole.reshape(of.rows, -1), self.shape, self.swapped)

    def tensor(self) -> Matrix:
        """S T in float64: the weight tensor but for rounding."""
        return unview(apply_maps(self._coefficients(), self._maps()), self.shape, self.swapped)

    def code(self, tables: Sequence[Table], depths: npt.NDArray[np.int64]) -> TransformCode:
        """Quantised; tables and depths of the blocks of all parts, one after the other."""
        codes: dict[str, BlockCode] = {}
        first = 0
        for part in self.parts:
            blocks = part.cuts.blocks
            chosen = depths[first : first + blocks]
            steps = np.array([table.step_index[depth] for table, depth in
                              zip(tables[first : first + blocks], chosen.tolist(), strict=True)], np.int64)
            codes[part.name] = part.code(chosen, steps)
            first += blocks
        return TransformCode(codes[COEFFICIENTS], codes.get("rows"), codes.get("channels"),
                             self.dct if self.dct is not None else codes.get("taps"), self.joint, self.swapped)

    def _maps(self) -> Maps:
        stored = {part.name: part.values[:, :, 0] for part in self.parts if part.name != COEFFICIENTS}
        taps: tuple[Matrix, ...] = ()
        if self.dct is not None:
            taps = tuple(dct_matrix(self.dct, extent) for extent in self.shape[2:])
        elif "taps" in stored:
            taps = (stored["taps"],)
        return Maps(stored.get("rows"), stored.get("channels"), taps, self.joint)

    def _coefficients(self) -> Matrix:
        """[rows', channels', taps']."""
        return self.parts[-1].values


def transform_layer(target: LayerTarget, config: Config) -> Blocks:
    """The layer under the first transform of `config.transform.transforms` that fits it, else as it is.

    Learned bases are those of the paper: from C_w and C_g as they are, S's columns of length 1, in falling order.
    """
    options = config.transform
    name = next((name for name in options.transforms or DEFAULT if fits(target, name, options)), "identity")
    channels, taps = split_transform(name)
    kind, _, axis = channels.partition("-")
    of = extents(target.shape, target.swapped)
    tensor = from_matrix(target.W, target.layer, target.shape)
    values = np.asarray(view(tensor, target.swapped), np.float64).reshape(of.rows, of.channels, of.taps)
    bases: dict[str, Matrix] = {}
    if channels:
        analysis, basis = _learned(target, kind, axis or "inputs")
        bases["rows" if axis == "outputs" else "channels"] = basis
        if axis == "outputs":
            values = np.einsum("kr,rct->kct", analysis, values, optimize=True)
        elif axis == "joint":
            values = (values.reshape(of.rows, -1) @ analysis.T)[:, :, None]
        else:
            values = np.einsum("kc,rct->rkt", analysis, values, optimize=True)
    if taps in _DCTS:
        values = values @ transforms.dct(taps, target.shape[2:]).analysis.T
    elif taps:
        analysis, bases["taps"] = _learned(target, taps.partition("-")[0], "taps")
        values = values @ analysis.T
    parts = [Part(part, basis[:, :, None], Cuts(rows=min(options.blocks, len(basis)))) for part, basis in bases.items()]
    parts.append(Part(COEFFICIENTS, np.ascontiguousarray(values), _cuts(target, values, name, options)))
    return Blocks(target.name, name, target.shape, tuple(parts), _DCTS.get(taps), axis == "joint", target.swapped)


def _cuts(target: LayerTarget, values: Matrix, name: str, options: TransformConfig) -> Cuts:
    """Blocks of coefficients float64 [rows', channels', taps']: along what a transform has sorted by importance.

    `options.blocks` of channels (of rows, under a transform of the outputs or with groups); under a transform of the
    taps, one for each frequency, up to twice `options.blocks`; under one of both, all combinations.
    """
    channels, taps = split_transform(name)
    rows, inputs, frequencies = values.shape
    along_taps = max(min(frequencies, 2 * options.blocks), 1) if taps else 1
    along = min(options.blocks, max(MAX_BLOCKS // along_taps, 1)) if channels or not taps else 1
    if channels.endswith("-outputs") or target.groups > 1 or inputs < 2:
        return Cuts(min(along, rows), 1, along_taps, max(frequencies, 1))
    return Cuts(1, min(along, inputs), along_taps, max(frequencies, 1))


def _learned(target: LayerTarget, kind: str, axis: str) -> tuple[Matrix, Matrix]:
    """T [k, n] and the basis S^T [k, n]; k is n, or the rank that the weights can have at most."""
    weights, gradients = weight_covariance(target, axis), gradient_covariance(target, axis)
    found = transforms.klt(weights) if kind == "klt" else transforms.elt(weights, gradients)
    found = found.ordered(weights, gradients).normalised()
    outputs, inputs, taps = extents(target.shape, target.swapped).most(axis == "joint")
    rank = {"outputs": outputs, "taps": taps}.get(axis, inputs)
    return np.ascontiguousarray(found.analysis[:rank]), np.ascontiguousarray(found.basis[:rank])
