"""Training codebooks of kernels: entries (and gains) by gradient, rounded as a file holds them.

    tuned = KernelValues(model, codes)                  # weights are now gain * entry[index] * step
    optimizer = torch.optim.Adam(tuned.parameters(), lr=1e-4)
    ...                                                 # any training loop: tuned(x) is model(x)
    tuned.codes()                                       # valid KernelCodes at every step

or, as one call, `finetune_kernels(model, codes, batches, loss, optimizer, epochs=2)`.

The forward pass uses the rounded integers, the gradient passes through the rounding (straight-through estimator,
Bengio, Leonard, Courville, arXiv 1308.3432), so that the 6-bit entries of "Kernel quantization" (Yu, Shi, Huang,
Yu, 2022) are what is trained. The gradient of an entry is the sum over the kernels that take it, each times its
gain and step. Indexes stay, or are chosen anew between epochs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .errors import ConfigError, ModelError
from .finetune import Batches, MakeOptimizer, RoundedWithin, put_weights, run_epochs
from .synthesis.kernel_code import MAX_GAIN, KernelCode, channels_of


class _Member(nn.Module):
    """One weight: its codebook's number, how its kernels are laid out, and what its gradient was of late."""

    index: Tensor
    gain: Tensor | None
    step: Tensor
    slope: Tensor
    square: Tensor

    def __init__(self, code: KernelCode, shape: tuple[int, ...], book: int, unit: float, device: torch.device) -> None:
        super().__init__()
        self.code, self.shape, self.book = code, shape, book
        self.register_buffer("index", torch.from_numpy(np.array(code.index, dtype=np.int64)).to(device))
        gain = None if code.gain is None else torch.from_numpy(np.array(code.gain, dtype=np.float32)).to(device)
        self.register_buffer("gain", gain)
        # In units of the codebook's parameter, which is of the size of a weight: one learning rate fits all.
        self.register_buffer("step", torch.from_numpy(np.array(code.row_steps() / unit, dtype=np.float32)).to(device))
        # Likewise for gains: what a gain more adds to a weight, in the mean.
        self.gain_unit = max(float(np.sqrt(np.square(code.values, dtype=np.float64).mean())), 1e-6) * unit
        kernels = (*code.index.shape, code.taps)
        self.register_buffer("slope", torch.zeros(kernels, device=device), persistent=False)
        self.register_buffer("square", torch.zeros(kernels, device=device), persistent=False)
        self.seen = 0

    def watch(self, kernels: Tensor) -> None:
        """Collect the gradient with respect to the kernels, for `KernelValues.reassign`."""
        def collect(gradient: Tensor) -> None:
            self.slope += gradient
            self.square += gradient**2
            self.seen += 1

        if kernels.requires_grad:
            kernels.register_hook(collect)  # type: ignore[no-untyped-call]

    def tensor(self, kernels: Tensor) -> Tensor:
        """Kernels [rows, channels, t] -> the weight, differentiable."""
        rows = kernels.flatten(1)[:, : prod(self.shape) // len(self.index)]
        if self.code.swapped:
            return rows.reshape(self.shape[1], self.shape[0], *self.shape[2:]).transpose(0, 1)
        return rows.reshape(self.shape)


class KernelValues(nn.Module):
    """A model whose weights are put together from trainable codebooks of kernels.

    * `model`: the network; its quantised weights are neither read nor changed until `write_back`, all its other
      parameters (biases, BatchNorm) are used and trained as they are.
    * `codes`: weight name -> code. Codes with equal codebooks (`KernelCode.same_codebook`) train one together.
    * `value_bits`: entries stay within so many bits (or what they have already, if that is more).
    * `gains`: train gains as well, as integers; those that are 0 stay 0, others keep their sign and do not become 0.

    Called like the model. `parameters()`: `values`, one [k, t] per codebook in units of a weight, `gains` (times
    what one more adds to a weight) where asked for, and the model's other parameters. Raises `ModelError` naming a
    weight that the model lacks or that does not fit.
    """

    def __init__(self, model: nn.Module, codes: Mapping[str, KernelCode], *, value_bits: int = 6,
                 gains: bool = False) -> None:
        super().__init__()
        self.model = model
        self.values = nn.ParameterList()
        self.gains = nn.ParameterDict()
        self.members = nn.ModuleList()
        self._place: dict[str, int] = {}
        self._units: list[float] = []
        self._reach: list[int] = []
        known = dict(model.named_parameters())
        books: list[KernelCode] = []
        for name, code in codes.items():
            weight = known.get(name)
            if weight is None:
                raise ModelError(f"{name}: the model has no parameter of this name to put together from kernels")
            if code.index.shape != channels_of(tuple(weight.shape), code.swapped, code.taps):
                raise ModelError(f"{name}: kernel indexes of shape {code.index.shape} do not fit a weight of shape "
                                 f"{tuple(weight.shape)}")
            book = next((b for b, other in enumerate(books) if other.same_codebook(code)), len(books))
            if book == len(books):
                books.append(code)
                self._add_book(code, value_bits, weight.device)
            member = _Member(code, tuple(weight.shape), book, self._units[book], weight.device)
            if gains and member.gain is not None:
                self.gains[str(len(self.members))] = nn.Parameter(member.gain.abs() * member.gain_unit)
            self._place[name] = len(self.members)
            self.members.append(member)

    def _add_book(self, code: KernelCode, value_bits: int, device: torch.device) -> None:
        unit = float(np.median(code.row_steps())) if len(code.index) else 1.0
        needed = max(int(code.values.max()), -int(code.values.min()) - 1, 0).bit_length() + 1
        self._units.append(unit)
        self._reach.append(1 << (max(value_bits, needed) - 1))
        self.values.append(nn.Parameter(torch.from_numpy((code.values * unit).astype(np.float32)).to(device)))

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """The codebooks, gains, and the model's parameters, without the weights that are put together."""
        start = f"{prefix}.model." if prefix else "model."
        for name, parameter in super().named_parameters(prefix, recurse, remove_duplicate):
            if not (name.startswith(start) and name.removeprefix(start) in self._place):
                yield name, parameter

    def _integers(self, book: int) -> Tensor:
        """The entries as integers (floating type), differentiable with respect to the parameter."""
        units = self.values[book] / self._units[book]
        reach = torch.tensor(float(self._reach[book]), device=units.device)
        rounded: Tensor = RoundedWithin.apply(units, -reach, reach - 1)  # type: ignore[no-untyped-call]
        return rounded * self._units[book]

    def _gain(self, place: int) -> Tensor | None:
        """Gains as integers (floating type), differentiable where they are trained."""
        gain = self._member(place).gain
        if gain is None or str(place) not in self.gains:
            return gain
        size = self.gains[str(place)] / self._member(place).gain_unit
        low, high = torch.ones((), device=size.device), torch.full((), float(MAX_GAIN), device=size.device)
        rounded: Tensor = RoundedWithin.apply(size, low, high)  # type: ignore[no-untyped-call]
        return gain.sign() * rounded

    def _member(self, place: int) -> _Member:
        member = self.members[place]
        assert isinstance(member, _Member)
        return member

    def weights(self) -> dict[str, Tensor]:
        """The weights as a decoder restores them (up to the order of float32 products), by name; differentiable."""
        entries = [self._integers(b) for b in range(len(self.values))]
        out = {}
        for name, place in self._place.items():
            member = self._member(place)
            kernels = entries[member.book][member.index] * member.step[:, None, None]
            gain = self._gain(place)
            if gain is not None:
                kernels = kernels * gain[..., None]
            member.watch(kernels)
            out[name] = member.tensor(kernels)
        return out

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return torch.func.functional_call(self.model, self.weights(), args, kwargs)

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
            if member.seen == 0:
                continue
            entries = self._integers(member.book)
            slope, scale = member.slope / member.seen, (member.square / member.seen).sqrt()
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
            member.slope.zero_()
            member.square.zero_()
            member.seen = 0
        return changed

    @torch.no_grad()
    def codes(self) -> dict[str, KernelCode]:
        """The codes as they are now, by name; those that shared a codebook share its array."""
        values = [np.rint((self._integers(b) / self._units[b]).cpu().numpy()).astype(np.int32)
                  for b in range(len(self.values))]
        out = {}
        for name, place in self._place.items():
            member, gain = self._member(place), self._gain(place)
            out[name] = replace(member.code, values=values[member.book],
                                index=member.index.cpu().numpy().astype(np.int32),
                                gain=None if gain is None else gain.cpu().numpy().astype(np.int32))
        return out

    def write_back(self) -> nn.Module:
        """Copy the restored weights into the model, as a decoder gives them; returns the model."""
        known = dict(self.model.named_parameters())
        return put_weights(self.model, {
            name: torch.from_numpy(np.array(code.tensor(tuple(known[name].shape)))).to(known[name].dtype)
            for name, code in self.codes().items()})


def finetune_kernels(
    model: nn.Module,
    codes: Mapping[str, KernelCode],
    batches: Batches,
    loss: Callable[[Any, Any], Tensor],
    optimizer: MakeOptimizer,
    epochs: int,
    *,
    value_bits: int = 6,
    gains: bool = False,
    reassign: float | None = None,
    seed: int = 0,
    scheduler: Callable[[torch.optim.Optimizer], Any] | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> dict[str, KernelCode]:
    """Train codebooks of kernels and the model's other parameters.

    * `codes`, `value_bits`, `gains`: see `KernelValues`.
    * `reassign`: rate at which indexes are chosen anew after every epoch but the last (see `KernelValues.reassign`;
      about a learning rate times the batches of an epoch), or None for fixed indexes.
    * all else as in `finetune.finetune_shared`.

    The model's weights then hold what a decoder restores. Returns the codes by name. Raises `ModelError` and
    `ConfigError` as `finetune_shared` does.
    """
    tuned = KernelValues(model, codes, value_bits=value_bits, gains=gains)

    def between(_epoch: int) -> None:
        if reassign is not None:
            tuned.reassign(reassign)

    run_epochs(tuned, batches, loss, optimizer, epochs, seed=seed, scheduler=scheduler, progress=progress,
               between=between)
    tuned.write_back()
    return tuned.codes()
