"""Training what a file can hold: shared values whose indexes stay fixed, and weights that stay pruned.

    shared = SharedValues(model, codes)                 # weights are now values[index]
    optimizer = torch.optim.Adam(shared.parameters(), lr=1e-4)
    ...                                                 # any training loop: shared(x) is model(x)
    shared.codes()                                      # valid codebooks at every step

or, as one call, `finetune_shared(model, codes, batches, loss, optimizer, epochs=2)`.

Deep Compression (Han et al. 2016, section 3.3) and LNQ (Choi et al. 2017, section 3.1): the gradient of a
centre is the sum of the gradients of its members, dL/dc_j = sum over i in C_j of dL/dw_i.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from .errors import ConfigError, ModelError
from .synthesis.codebook import CodebookCode

Codes: TypeAlias = Sequence[tuple[Sequence[str], CodebookCode]]
"""(names of the weights, their codebook) per section of a file: `code.indexes[i]` belongs to `names[i]`."""
Batches: TypeAlias = Iterable[Any] | Callable[[int], Iterable[Any]]
"""(inputs, targets) pairs: what can be iterated once per epoch, or a function of the epoch's number."""
MakeOptimizer: TypeAlias = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


class _Lookup(torch.autograd.Function):
    """values[index]; backwards the sum over the members of each centre, accumulated in float64."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.centres = len(values)
        return values[index]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        (index,) = ctx.saved_tensors
        sums = torch.zeros(ctx.centres, dtype=torch.float64, device=gradient.device)
        sums.index_add_(0, index.flatten(), gradient.flatten().double())
        return sums.to(gradient.dtype), None


def look_up(values: Tensor, index: Tensor) -> Tensor:
    """values [k] (any float dtype) at index (int64, any shape), differentiable with respect to the values."""
    looked_up: Tensor = _Lookup.apply(values, index)  # type: ignore[no-untyped-call]
    return looked_up


class RoundedWithin(torch.autograd.Function):
    """Rounds to integers of a range; the gradient passes where the result is not clipped."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
        ctx.save_for_backward((x >= low - 0.5) & (x <= high + 0.5))
        return torch.minimum(torch.maximum(torch.round(x), low), high)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (inside,) = ctx.saved_tensors
        return gradients[0] * inside, None, None


class SharedValues(nn.Module):
    """A model whose quantised weights are looked up in trainable codebooks.

    * `model`: the network; its quantised weights are neither read nor changed until `write_back`, all its
      other parameters (biases, BatchNorm) are used and trained as they are.
    * `codes`: which weights, and their codebooks. `values` [k] of each are parameters; a centre that is
      exactly zero (`code.zero >= 0`) stays zero, and with it every pruned weight.

    Called like the model. `parameters()` gives the codebooks' values and the model's other parameters.
    Raises `ModelError` naming a weight that the model lacks, that has another number of elements, or that is
    named twice.
    """

    def __init__(self, model: nn.Module, codes: Codes) -> None:
        super().__init__()
        self.model = model
        self.values = nn.ParameterList()
        self._names = [tuple(names) for names, _ in codes]
        self._codes = [code for _, code in codes]
        self._where: dict[str, tuple[int, str]] = {}  # weight -> its codebook and the buffer with its index
        known = dict(model.named_parameters())
        for i, (names, code) in enumerate(codes):
            values = torch.from_numpy(np.array(code.values, dtype=np.float32))
            moving = torch.ones_like(values)
            if code.zero >= 0:
                moving[code.zero] = 0.0
            self.register_buffer(f"moving_{i}", moving)
            for name, index in zip(names, code.indexes, strict=True):
                self._add(i, name, known.get(name), index)
            self.values.append(nn.Parameter(values.to(known[names[0]].device) if names else values))

    def _add(self, codebook: int, name: str, weight: nn.Parameter | None, index: Any) -> None:
        if weight is None:
            raise ModelError(f"{name}: the model has no parameter of this name to look up in a codebook")
        if name in self._where:
            raise ModelError(f"{name}: two codebooks claim this weight")
        if weight.numel() != np.size(index):
            raise ModelError(f"{name}: {np.size(index)} indexes for {weight.numel()} weights")
        buffer = f"index_{len(self._where)}"
        shaped = torch.from_numpy(np.array(index, dtype=np.int64)).view(weight.shape)
        self.register_buffer(buffer, shaped.to(weight.device), persistent=False)
        self._where[name] = codebook, buffer

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """The codebooks' values and the model's parameters, without the weights that are looked up."""
        start = f"{prefix}.model." if prefix else "model."
        for name, parameter in super().named_parameters(prefix, recurse, remove_duplicate):
            if not (name.startswith(start) and name.removeprefix(start) in self._where):
                yield name, parameter

    def weights(self) -> dict[str, Tensor]:
        """The weights as they are looked up, by name; differentiable."""
        values = [v * self.get_buffer(f"moving_{i}") for i, v in enumerate(self.values)]
        return {
            name: look_up(values[i], self.get_buffer(buffer)) for name, (i, buffer) in self._where.items()
        }

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return torch.func.functional_call(self.model, self.weights(), args, kwargs)

    def codes(self) -> list[CodebookCode]:
        """The codebooks as they are now, in the order of `codes`; ascending again where centres have passed
        each other."""
        return [self._code(i) for i in range(len(self._codes))]

    def _code(self, i: int) -> CodebookCode:
        code = self._codes[i]
        values = (self.values[i] * self.get_buffer(f"moving_{i}")).detach().cpu().numpy().astype(np.float32)
        order = np.argsort(values, kind="stable")
        rank = np.empty(len(order), dtype=np.int32)
        rank[order] = np.arange(len(order), dtype=np.int32)
        zero = int(rank[code.zero]) if code.zero >= 0 else -1
        return replace(code, values=values[order], indexes=[rank[index] for index in code.indexes], zero=zero)

    def write_back(self) -> nn.Module:
        """Copy the looked-up weights into the model; returns the model."""
        return put_weights(self.model, self.weights())


@torch.no_grad()
def put_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """Copy values, by name and of the same shapes, over parameters of the model; returns the model."""
    for name, weight in weights.items():
        model.get_parameter(name).copy_(weight)
    return model


def finetune_shared(
    model: nn.Module,
    codes: Codes,
    batches: Batches,
    loss: Callable[[Any, Any], Tensor],
    optimizer: MakeOptimizer,
    epochs: int,
    *,
    seed: int = 0,
    scheduler: Callable[[torch.optim.Optimizer], Any] | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> list[CodebookCode]:
    """Train the values of codebooks and the model's other parameters; indexes stay.

    * `batches`: (inputs, targets) per step, see `Batches`. `loss(outputs, targets)`: a scalar.
    * `optimizer`: makes one from a list of parameters: `lambda p: torch.optim.Adam(p, lr=1e-4)`.
      `scheduler`: makes a learning-rate schedule from it; its `step()` is called after every batch.
    * `seed`: of torch's generator (dropout, shuffling by a DataLoader); the caller's generator is untouched.
      With deterministic batches, two runs on a CPU give the same bits.
    * `progress(epoch, mean loss)` after each epoch.

    The training flags of the model are used as they are (call `model.eval()` to keep BatchNorm's statistics).
    The model's weights then hold the looked-up values. Returns the codebooks, in the order of `codes`.
    Raises `ModelError` (see `SharedValues`), `ConfigError` where there are no batches or the loss is not
    finite.
    """
    shared = SharedValues(model, codes)
    run_epochs(shared, batches, loss, optimizer, epochs, seed=seed, scheduler=scheduler, progress=progress)
    shared.write_back()
    return shared.codes()


def run_epochs(
    module: nn.Module,
    batches: Batches,
    loss: Callable[[Any, Any], Tensor],
    optimizer: MakeOptimizer,
    epochs: int,
    *,
    seed: int = 0,
    scheduler: Callable[[torch.optim.Optimizer], Any] | None = None,
    progress: Callable[[int, float], None] | None = None,
    between: Callable[[int], None] | None = None,
) -> None:
    """The training loop of `finetune_shared` for any module; arguments and errors as there.

    between: called with the epoch's number after each epoch but the last.
    """
    if epochs < 1:
        raise ConfigError(f"epochs={epochs} must be at least 1")
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(seed)
        steps = optimizer(list(module.parameters()))
        schedule = scheduler(steps) if scheduler is not None else None
        for epoch in range(epochs):
            total, count = 0.0, 0
            for inputs, targets in batches(epoch) if callable(batches) else batches:
                value = loss(module(inputs), targets)
                if not bool(torch.isfinite(value)):
                    raise ConfigError(
                        f"epoch {epoch}, batch {count}: the loss is {value.item()}; use a lower learning rate"
                    )
                steps.zero_grad()
                value.backward()  # type: ignore[no-untyped-call]
                steps.step()
                if schedule is not None:
                    schedule.step()
                total, count = total + value.item(), count + 1
            if count == 0:
                raise ConfigError(
                    f"epoch {epoch} has no batches: give a list, a DataLoader or a function of the "
                    f"epoch, not an iterator that is used up"
                )
            if progress is not None:
                progress(epoch, total / count)
            if between is not None and epoch + 1 < epochs:
                between(epoch)


@contextmanager
def keep_masks(
    model: nn.Module, masks: Mapping[str, Any], optimizer: torch.optim.Optimizer
) -> Iterator[None]:
    """Within the block, `optimizer.step()` leaves pruned weights at exactly zero, whatever its momentum says.

    `masks`: parameter name -> bool array or tensor of its shape, True where a weight lives. The weights are
    set to zero at once. Raises `ModelError` naming a mask that fits no parameter.
    """
    known = dict(model.named_parameters())
    pairs: list[tuple[nn.Parameter, Tensor]] = []
    for name, mask in masks.items():
        live = torch.as_tensor(np.asarray(mask) if not isinstance(mask, Tensor) else mask, dtype=torch.bool)
        if name not in known or known[name].shape != live.shape:
            raise ModelError(f"{name}: a mask of shape {tuple(live.shape)} fits no parameter of the model")
        pairs.append((known[name], ~live.to(known[name].device)))

    def clear(*_: Any) -> None:
        with torch.no_grad():
            for weight, dead in pairs:
                weight.masked_fill_(dead, 0.0)

    def clear_gradients(*_: Any) -> None:
        for weight, dead in pairs:
            if weight.grad is not None:
                weight.grad.masked_fill_(dead, 0.0)

    clear()
    handles = [optimizer.register_step_pre_hook(clear_gradients), optimizer.register_step_post_hook(clear)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
