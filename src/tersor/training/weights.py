"""A weight of the tools scalar and transform, put together from trained matrices: W = R^T C (B x K)."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ..errors import ModelError
from ..synthesis.scalar import ScalarCode
from ..synthesis.transform import BlockCode, TransformCode
from .matrices import LEAN, Matrix

WeightCode: TypeAlias = TransformCode | ScalarCode


class CodedWeight(nn.Module):
    """One weight [shape] of coefficients and bases, both rounded when they are used; maps without integers are fixed.

    "Transform quantization for CNN compression" (Young, Wang, Taubman, Girod, TPAMI 2021), section 5. Raises
    `ModelError` where the code does not fit the weight.
    """

    kernel: Tensor | None  # of a DCT, scales included

    def __init__(self, name: str, code: WeightCode, weight: Tensor) -> None:
        super().__init__()
        self.code, self.shape, self.dtype = code, tuple(weight.shape), weight.dtype
        whole = code if isinstance(code, TransformCode) else TransformCode(code, swapped=code.swapped)
        try:
            sizes = whole.matrix_shapes(self.shape)
            if any(found.q.shape != (size.rows, size.columns)
                   for found, size in zip((*whole.bases(), whole.coefficients), sizes, strict=True)):
                raise ValueError(f"coefficients of shape {whole.coefficients.q.shape}")
        except ValueError as error:
            raise ModelError(f"{name}: the code does not fit a weight of shape {self.shape}: {error}") from error
        self.whole, self.extents = whole, whole.coefficient_extents(self.shape)
        stored = iter(zip(whole.bases(), sizes, strict=False))

        def matrix(basis: Any) -> Matrix | None:
            return Matrix(basis, next(stored)[1].taps, weight) if isinstance(basis, ScalarCode | BlockCode) else None

        self.rows, self.channels, self.taps = (matrix(basis) for basis in (whole.rows, whole.channels, whole.taps))
        self.coefficients = Matrix(whole.coefficients, sizes[-1].taps, weight)
        fixed = None if self.taps is not None else whole.maps(self.shape).kernel()
        self.register_buffer("kernel", None if fixed is None else torch.from_numpy(fixed).to(weight.device),
                             persistent=False)

    def forward(self) -> Tensor:
        """The weight as a decoder restores it, up to the order of sums; differentiable."""
        found: Tensor = self.coefficients().reshape(self.extents)
        kernel = self.kernel if self.taps is None else self.taps().double()
        if kernel is not None:
            found = found.double() @ kernel
        if self.channels is not None:
            basis = self.channels().double()
            found = found[:, :, 0].double() @ basis if self.whole.joint else \
                torch.einsum("akt,kc->act", found.double(), basis)
        if self.rows is not None:
            found = self.rows().double().T @ found.double().flatten(1)
        found = found.to(self.dtype)
        if not self.whole.swapped:
            return found.reshape(self.shape)
        return found.reshape(self.shape[1], self.shape[0], *self.shape[2:]).transpose(0, 1)

    @torch.no_grad()
    def lean(self, weight: Tensor, reach: float = LEAN) -> None:
        """Let the coefficients begin as near as their steps allow to a weight [shape], the one that was quantised.

        A BatchNorm may have taken up the scale of a row (of the weights, not of coefficients): each row is scaled to
        fit. A row that is not like the quantised one (another network's, or all zero) stays.
        """
        own = self()
        if self.whole.swapped:
            own, weight = own.transpose(0, 1), weight.transpose(0, 1)
        now, before = own.flatten(1).double(), weight.to(own).flatten(1).double()
        product, square = (now * before).sum(1), (now * now).sum(1)
        alike = product > 0.5 * (square * (before * before).sum(1)).sqrt()
        scale = torch.where(alike, square / product.clamp(min=1e-300), 0.0)
        wanted = torch.where(alike[:, None], before * scale[:, None], now)
        taps = prod(self.shape[2:])
        self.coefficients.lean(self._analysed(wanted.reshape(len(now), -1, max(taps, 1))), reach)

    def _analysed(self, weight: Tensor) -> Tensor:
        """Coefficients [rows', columns'] float64 whose synthesis is nearest to a weight [rows, channels, taps]."""
        found = weight
        if self.rows is not None:
            found = (torch.linalg.pinv(self.rows().double().T) @ found.flatten(1)).reshape(-1, *found.shape[1:])
        if self.channels is not None:
            inverse = torch.linalg.pinv(self.channels().double())
            if self.whole.joint:
                joint: Tensor = found.flatten(1) @ inverse
                return joint
            found = torch.einsum("act,ck->akt", found, inverse).contiguous()
        kernel = self.kernel if self.taps is None else self.taps().double()
        if kernel is not None:
            found = found @ torch.linalg.pinv(kernel)
        flat: Tensor = found.flatten(1)
        return flat

    def coded(self) -> WeightCode:
        """The code as it is now."""
        now = {part: matrix.coded() for part in ("coefficients", "rows", "channels", "taps")
               if (matrix := getattr(self, part)) is not None}
        if isinstance(self.code, TransformCode):
            return replace(self.code, **now)
        found = now["coefficients"]
        assert isinstance(found, ScalarCode)
        return found
