"""What the transform tool stores of one tensor, and the tensor that it stands for.

    W[r, c, t] = sum over r', c', t' of R[r', r] * B[c', c] * K[t', t] * C[r', c', t']

and K may be scaled by frequency. docs/format-transform.md, "Restoring a tensor".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ..bitstream import context
from ..errors import FormatError
from . import grid
from .rounding import to_dtype
from .scalar import ScalarCode, unview, view_shape
from .transform_heads import Code
from .transform_maps import MAX_DCT, Dct, Maps, Matrix, apply_maps, dct_matrix

TAP_UNIT = grid.RESOLUTION // 4
"""Grid points of one unit of `tap_scale`: a quarter of an octave."""
MAX_TAP_SCALE = 256


@dataclass(frozen=True)
class Extents:
    """A weight tensor as rows x channels x taps: `kernel` are the extents of the kernel axes, if any.

    taps is 1 where there are no kernel axes; a kernel axis of 0 counts as 0 channels of 1 tap.
    """

    rows: int
    channels: int
    taps: int
    kernel: tuple[int, ...]

    @property
    def width(self) -> int:
        """The last kernel axis; 1 where there is none."""
        return max(self.kernel[-1], 1) if self.kernel else 1

    @property
    def has_dct(self) -> bool:
        """Whether all kernel axes are of 1 to 32 taps, so that a DCT exists."""
        return all(1 <= extent <= MAX_DCT for extent in self.kernel)

    def most(self, joint: bool) -> tuple[int, int, int]:
        """The largest ranks of bases over rows, over channels (or channels and taps, where joint), over taps.

        More vectors than the weights span are of no use; so a basis never has more numbers than the weights.
        """
        m, n, t = self.rows, self.channels, self.taps
        return min(m, n * t), min(n * t, m) if joint else min(n, m * t), min(t, m * n)

    def matrices(self, ranks: Sequence[int | None], joint: bool) -> list[context.Shape]:
        """Of the stored bases and the coefficients, in the order of the file.

        ranks: of the bases over rows, channels (and taps, where joint), taps; None where none is stored.
        """
        rows, channels, taps = ranks
        shapes = []
        if rows is not None:
            shapes.append(context.Shape(rows, self.rows, kind=context.BASIS))
        if channels is not None and joint:
            shapes.append(context.Shape(channels, self.channels * self.taps, self.taps, self.width,
                                        kind=context.BASIS))
        elif channels is not None:
            shapes.append(context.Shape(channels, self.channels, kind=context.BASIS))
        if taps is not None:
            shapes.append(context.Shape(taps, self.taps, self.taps, self.width, kind=context.BASIS))
        inside = 1 if joint else self.taps if taps is None else taps
        width = self.width if taps is None and not joint else max(inside, 1)
        columns = (self.channels if channels is None else channels) * inside
        return [*shapes, context.Shape(self.rows if rows is None else rows, columns, max(inside, 1), width)]


def extents(shape: tuple[int, ...], swapped: bool) -> Extents:
    """Of a tensor of at least one axis; `swapped` as in tool 1: rows are those of axis 1.

    >>> extents((64, 16, 3, 3), False)
    Extents(rows=64, channels=16, taps=9, kernel=(3, 3))
    """
    view = view_shape(shape, swapped)
    return Extents(view.rows, view.columns // view.taps, view.taps, shape[2:])


@dataclass(frozen=True)
class TransformCode:
    """The integers of one tensor: coefficients and bases, all ScalarCode, or all BlockCode.

    * `coefficients`: of [rows', channels' * taps'], or of [rows', k] where `joint`.
    * `rows`: R, of [rows', rows]. `channels`: B, of [channels', channels], or where `joint` of
      [k, channels * taps], tap fastest. `taps`: K, of [taps', taps], or a DCT over each kernel axis, each of
      1 to 32 taps. A row of these is a basis vector. None: the identity.
    * `swapped`: rows are those of axis 1 of the tensor, channels those of axis 0. (That of the ScalarCodes is
      not used.)
    * `tap_scale`: int64 [taps] or None for zeros, with a DCT only: coefficients of frequency t count 2^(e[t] / 4)
      times; |e| <= 256.

    Ranks are bounded by `Extents.most`. Coefficients, not bases, may have a trellis.
    """

    coefficients: Code
    rows: Code | None = None
    channels: Code | None = None
    taps: Code | Dct | None = None
    joint: bool = False
    swapped: bool = False
    tap_scale: npt.NDArray[np.int64] | None = None

    def bases(self) -> list[Code]:
        """The stored bases, in the order of the file: rows, channels, taps."""
        return [basis for basis in (self.rows, self.channels, self.taps) if isinstance(basis, Code)]

    def matrix_shapes(self, shape: tuple[int, ...]) -> list[context.Shape]:
        """Of the stored bases and the coefficients, in the order of the file, for a tensor of this shape.

        Raises ValueError for maps that cannot be.
        """
        if len(shape) < (2 if self.swapped else 1):
            raise ValueError(f"a tensor of shape {shape} cannot be transformed{' swapped' * self.swapped}")
        of = extents(shape, self.swapped)
        if self.joint and (self.channels is None or self.taps is not None):
            raise ValueError("a joint basis stands in `channels`, and instead of `taps`")
        if isinstance(self.taps, Dct) and not of.has_dct:
            raise ValueError(f"a DCT needs kernel axes of 1 to {MAX_DCT} taps, not {of.kernel}")
        if self.tap_scale is not None:
            exponents = np.asarray(self.tap_scale)
            if not isinstance(self.taps, Dct) or 0 in shape or exponents.shape != (of.taps,):
                raise ValueError(f"tap_scale of shape {exponents.shape}: only a DCT of a tensor with elements has "
                                 f"one, with a number for each of its {of.taps} frequencies")
            if int(np.abs(exponents).max()) > MAX_TAP_SCALE:
                raise ValueError(f"tap_scale is beyond +-{MAX_TAP_SCALE}")
        ranks = [len(basis.q) if isinstance(basis, Code) else None
                 for basis in (self.rows, self.channels, self.taps)]
        for rank, most in zip(ranks, of.most(self.joint), strict=True):
            if rank is not None and rank > most:
                raise ValueError(f"a basis has {rank} vectors, the weights span {most} at most")
        return of.matrices(ranks, self.joint)

    def maps(self, shape: tuple[int, ...]) -> Maps:
        """The linear maps for a tensor of this shape, float64."""
        def stored(basis: Code | None) -> Matrix | None:
            return None if basis is None else basis.matrix().astype(np.float64)

        taps: tuple[Matrix, ...] = ()
        scale = None if self.tap_scale is None else grid.value(np.asarray(self.tap_scale) * TAP_UNIT)
        if isinstance(self.taps, Dct):
            taps = tuple(dct_matrix(self.taps, extent) for extent in shape[2:])
        elif self.taps is not None:
            taps = (self.taps.matrix().astype(np.float64),)
        return Maps(stored(self.rows), stored(self.channels), taps, self.joint, scale)

    def coefficient_extents(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """rows', channels', taps' for a tensor of this shape; rows', k, 1 where `joint`."""
        of = extents(shape, self.swapped)
        return (of.rows if self.rows is None else len(self.rows.q),
                of.channels if self.channels is None else len(self.channels.q),
                1 if self.joint else len(self.taps.q) if isinstance(self.taps, Code) else of.taps)

    def weights(self, shape: tuple[int, ...], threads: int = 1) -> Matrix:
        """float64 [rows, channels * taps]: the weights of a tensor of this shape before the last rounding.

        Raises FormatError for a basis or coefficients with an element that is not finite.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            maps, values = self.maps(shape), self.coefficients.matrix()
        if not all(np.isfinite(x).all() for x in (values, maps.rows, maps.channels, *maps.taps) if x is not None):
            raise FormatError("a transform has an element that is not finite: the file is corrupt")
        return apply_maps(values.reshape(self.coefficient_extents(shape)).astype(np.float64), maps, threads)

    def tensor(self, shape: tuple[int, ...], dtype: str = "F32", threads: int = 1) -> npt.NDArray[np.generic]:
        """Exactly the tensor that a decoder restores. Raises FormatError where it cannot be (not finite)."""
        weights = self.weights(shape, threads)
        return unview(to_dtype(weights, dtype, "a transformed weight"), shape, self.swapped)

    def compact(self, shape: tuple[int, ...]) -> TransformCode:
        """The same tensor, bit for bit, without the basis vectors whose coefficients are all zero.

        BlockCodes stay as they are: a block of depth 0 costs nothing. With a trellis only rows are left out: the
        levels of a row depend on all of its columns.
        """
        coefficients = self.coefficients
        if not isinstance(coefficients, ScalarCode):
            return self
        q = coefficients.q.reshape(self.coefficient_extents(shape))
        live = [np.flatnonzero(q.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
        rows, channels, taps = self.rows, self.channels, self.taps
        if isinstance(rows, ScalarCode):
            q, rows, coefficients = q[live[0]], _rows_of(rows, live[0]), _rows_of(coefficients, live[0])
        if isinstance(channels, ScalarCode) and not coefficients.trellis:
            q, channels = q[:, live[1]], _rows_of(channels, live[1])
        if isinstance(taps, ScalarCode) and not coefficients.trellis:
            q, taps = q[:, :, live[2]], _rows_of(taps, live[2])
        flat = np.ascontiguousarray(q).reshape(q.shape[0], q.shape[1] * q.shape[2])
        return replace(self, coefficients=replace(coefficients, q=flat), rows=rows, channels=channels, taps=taps)


def _rows_of(code: ScalarCode, live: npt.NDArray[np.intp]) -> ScalarCode:
    return replace(code, q=code.q[live], row_index=None if code.row_index is None else code.row_index[live])
