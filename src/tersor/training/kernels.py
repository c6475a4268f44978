"""Codebooks of kernels in training: entries and gains by gradient, rounded as a file holds them.

The 6-bit entries of "Kernel quantization" (Yu, Shi, Huang, Yu, 2022) are what the forward pass uses. The gradient of an
entry is the sum over the kernels that take it, each times its gain and step. Indexes stay, or are chosen anew now and
then (`KernelBooks.reassign`).
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import replace
from math import prod

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import ConfigError, ModelError
from ..synthesis.kernel_code import MAX_GAIN, KernelCode, channels_of
from .rounding import rounded_within

VALUE_BITS = 6
"""Entries stay within so many bits, or what they have already, if that is more."""


class _Member(nn.Module):
    """One weight: its codebook's number, how its kernels are laid out, and what its gradient was of late."""

    index: Tensor
    gain: Tensor | None
    step: Tensor
    slope: Tensor
    square: Tensor

    def __init__(self, code: KernelCode, shape: tuple[int, ...], book: int, device: torch.device) -> None:
        super().__init__()
        self.code, self.shape, self.book = code, shape, book
        self.register_buffer("index", torch.from_numpy(np.array(code.index, dtype=np.int64)).to(device))
        gain = None if code.gain is None else torch.from_numpy(np.array(code.gain, dtype=np.float32)).to(device)
        self.register_buffer("gain", gain)
        self.register_buffer("step", torch.from_numpy(code.row_steps().astype(np.float32)).to(device))
        kernels = (*code.index.shape, code.taps)
        self.register_buffer("slope", torch.zeros(kernels, device=device))
        self.register_buffer("square", torch.zeros(kernels, device=device))
        self.register_buffer("seen", torch.zeros((), device=device))

    def watch(self, kernels: Tensor) -> None:
        """Collect the gradient with respect to the kernels, for `KernelBooks.reassign`."""
        def collect(gradient: Tensor) -> None:
            self.slope += gradient
            self.square += gradient**2
            self.get_buffer("seen").add_(1)

        if kernels.requires_grad:
            kernels.register_hook(collect)  # type: ignore[no-untyped-call]

    def tensor(self, kernels: Tensor) -> Tensor:
        """Kernels [rows, channels, t] -> the weight, differentiable."""
        rows = kernels.flatten(1)[:, : prod(self.shape) // len(self.index)]
        if self.code.swapped:
            return rows.reshape(self.shape[1], self.shape[0], *self.shape[2:]).transpose(0, 1)
        return rows.reshape(self.shape)


class KernelBooks(nn.Module):
    """Weights that are put together from trained codebooks of kernels.

    * `names`, `codes`, `weights`: of the weights, one each. Codes with equal codebooks train one together.
    * `values`: parameters [k, t], one per codebook, in units of its root mean square (so that one learning rate fits
      all). `gains`: parameters, one per weight that has any, likewise; those that are 0 stay 0, others keep their sign
      and do not become 0.

    Raises `ModelError` naming a weight that does not fit.
    """

    def __init__(self, names: Sequence[str], codes: Sequence[KernelCode], weights: Sequence[Tensor]) -> None:
        super().__init__()
        self.names = tuple(names)
        self.values = nn.ParameterList()
        self.gains = nn.ParameterDict()
        self.members = nn.ModuleList()
        self._units: list[float] = []
        self._reach: list[int] = []
        self._dtypes = [weight.dtype for weight in weights]
        books: list[KernelCode] = []
        for place, (name, code, weight) in enumerate(zip(names, codes, weights, strict=True)):
            if code.index.shape != channels_of(tuple(weight.shape), code.swapped, code.taps):
                raise ModelError(f"{name}: kernel indexes of shape {code.index.shape} do not fit a weight of shape "
                                 f"{tuple(weight.shape)}")
            book = next((b for b, other in enumerate(books) if other.same_codebook(code)), len(books))
            if book == len(books):
                books.append(code)
                self._add_book(code, weight.device)
            member = _Member(code, tuple(weight.shape), book, weight.device)
            if member.gain is not None:
                self.gains[str(place)] = nn.Parameter(member.gain.abs() / _size(member.gain))
            self.members.append(member)

    def _add_book(self, code: KernelCode, device: torch.device) -> None:
        needed = max(int(code.values.max()), -int(code.values.min()) - 1, 0).bit_length() + 1
        values = torch.from_numpy(np.array(code.values, dtype=np.float32)).to(device)
        self._units.append(_size(values))
        self._reach.append(1 << (max(VALUE_BITS, needed) - 1))
        self.values.append(nn.Parameter(values / self._units[-1]))

    def _integers(self, book: int) -> Tensor:
        """The entries as integers (floating type), differentiable with respect to the parameter."""
        reach = torch.tensor(float(self._reach[book]), device=self.values[book].device)
        return rounded_within(self.values[book] * self._units[book], -reach, reach - 1)

    def _gain(self, place: int) -> Tensor | None:
        """Gains as integers (floating type), differentiable."""
        gain = self._member(place).gain
        if gain is None:
            return None
        own = self.gains[str(place)]
        low, high = torch.ones((), device=own.device), torch.full((), float(MAX_GAIN), device=own.device)
        return gain.sign() * rounded_within(own * _size(gain), low, high)

    def _member(self, place: int) -> _Member:
        member = self.members[place]
        assert isinstance(member, _Member)
        return member

    def tensors(self, only: Container[str] | None = None) -> dict[str, Tensor]:
        """The weights as a decoder restores them (up to the order of float32 products), by name; differentiable."""
        entries = [self._integers(b) for b in range(len(self.values))]
        out = {}
        for place, (name, dtype) in enumerate(zip(self.names, self._dtypes, strict=True)):
            if only is not None and name not in only:
                continue
            member = self._member(place)
            kernels = entries[member.book][member.index] * member.step[:, None, None]
            gain = self._gain(place)
            if gain is not None:
                kernels = kernels * gain[..., None]
            member.watch(kernels)
            out[name] = member.tensor(kernels).to(dtype)
        return out

    @torch.no_grad()
    def reassign(self, rate: float) -> int:
        """Choose indexes anew and forget the gradients that were seen; how many kernels have changed.

        Every weight would like to move against its mean gradient g since the last call, by `rate` * |g| / sqrt(mean
        g^2) (a step of Adam without its past); each kernel takes the entry that comes nearest to where its weights
        would go, weighted by sqrt(mean g^2). Gains stay. An entry without kernels stays as it is.
        """
        if not rate > 0.0:
            raise ConfigError(f"rate={rate} must be positive")
        changed = 0
        for place in range(len(self.members)):
            member = self._member(place)
            seen = float(member.get_buffer("seen"))
            if seen == 0:
                continue
            entries = self._integers(member.book)
            slope, scale = member.slope / seen, (member.square / seen).sqrt()
            move = rate * slope / scale.clamp(min=1e-30)
            factor = member.step[:, None].expand(member.index.shape)
            gain = self._gain(place)
            factor = factor if gain is None else factor * gain
            for row in range(len(member.index)):  # row by row: [channels, k] distances
                wanted = entries[member.index[row]] * factor[row, :, None] - move[row]
                weight = scale[row] + 1e-12
                cost = (factor[row, :, None] ** 2) * (weight @ entries.T**2) \
                    - 2.0 * factor[row, :, None] * ((weight * wanted) @ entries.T)
                best = torch.where(factor[row] == 0, member.index[row], cost.argmin(dim=1))
                changed += int((best != member.index[row]).sum())
                member.index[row] = best
            for buffer in (member.slope, member.square, member.get_buffer("seen")):
                buffer.zero_()
        return changed

    @torch.no_grad()
    def codes(self) -> list[KernelCode]:
        """The codes as they are now; those that shared a codebook share its array."""
        values = [self._integers(b).cpu().numpy().astype(np.int32) for b in range(len(self.values))]
        out = []
        for place in range(len(self.names)):
            member, gain = self._member(place), self._gain(place)
            out.append(replace(member.code, values=values[member.book],
                               index=member.index.cpu().numpy().astype(np.int32),
                               gain=None if gain is None else gain.cpu().numpy().astype(np.int32)))
        return out


def _size(values: Tensor) -> float:
    """Root mean square; 1 where all are zero."""
    return float(values.double().square().mean().sqrt()) or 1.0
