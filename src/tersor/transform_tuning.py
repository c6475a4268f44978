"""Training weights in the form that a file holds: W = S C, both rounded to their steps.

    network = TransformedNetwork(model, codes_of("model.tersor"))      # tersor.repack
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9, weight_decay=1e-4)
    ...                                                                # any training loop: network(x) is model(x)
    network.codes()                                                    # valid codes at every step

or, as one call, `finetune_transforms(model, codes, batches, loss)`; `tersor.repack.repack` then makes the file.

"Transform quantization for CNN compression" (Young, Wang, Taubman, Girod, TPAMI 2021), section 5: the forward pass uses
bases S and coefficients C as they are quantised, at fixed steps (and depths), the gradient passes through the rounding
of both (straight-through estimator, Bengio, Leonard, Courville, arXiv 1308.3432). Where the integers are entropy-coded
a price per bit keeps the file from growing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from .adapters.module import to_torch
from .errors import ConfigError, ModelError
from .finetune import Batches, MakeOptimizer, RoundedWithin, put_weights, run_epochs
from .synthesis.scalar import MAX_REACH, SHIFT_UNIT, ScalarCode
from .synthesis.transform import BlockCode, TransformCode

Code: TypeAlias = TransformCode | ScalarCode

REFRESH = 10
"""Steps of training between two fits of the code lengths to the integers."""


class _Matrix(nn.Module):
    """The integers of a basis or of coefficients: a parameter float [rows, columns] that is rounded when it is used."""

    step: Tensor  # [rows, 1], of blocks [rows, columns]; 0 where a block has no bits
    low: Tensor
    high: Tensor

    def __init__(self, code: ScalarCode | BlockCode, taps: int, in_steps: bool, like: Tensor) -> None:
        super().__init__()
        self.code, self.taps, self.in_steps = code, taps, in_steps
        if isinstance(code, ScalarCode):
            step = code.row_steps()[:, None]
            low, high = np.full_like(step, -np.inf), np.full_like(step, np.inf)
        else:
            step = replace(code, q=np.ones(code.q.shape, np.int32)).matrix()
            low, high = np.zeros_like(step), np.zeros_like(step)
            lows, highs = code.cuts.view(low), code.cuts.view(high)
            for box, depth in zip(code.boxes(), code.depths.tolist(), strict=True):
                lows[box], highs[box] = -(1 << depth >> 1), max((1 << depth >> 1) - 1, 0)
        for name, value in (("step", step), ("low", low), ("high", high)):
            self.register_buffer(name, torch.from_numpy(np.array(value)).to(like), persistent=False)
        q = torch.from_numpy(code.q.astype(np.float64)).to(like)
        self.values = nn.Parameter(q if in_steps else q * self.step)
        self.slope = torch.zeros_like(q)

    def scaled(self) -> Tensor:
        """The parameter in steps."""
        if self.in_steps:
            return self.values
        return self.values * torch.where(self.step > 0, 1.0 / self.step, 0.0)

    def integers(self) -> Tensor:
        """[rows, columns], of floating type; differentiable, straight through the rounding."""
        rounded: Tensor = RoundedWithin.apply(self.scaled(), self.low, self.high)  # type: ignore[no-untyped-call]
        return rounded

    def forward(self) -> Tensor:
        """The elements as a decoder has them, levels times steps."""
        q = self.integers()
        if isinstance(self.code, ScalarCode) and any(self.code.shift):
            size = q.detach().abs()
            shift = torch.where(size > 1, self.code.shift[1], self.code.shift[0]) / SHIFT_UNIT
            q = q - torch.where(size > MAX_REACH, 0.0, q.detach().sign() * shift)
        return q * self.step

    def coded(self) -> ScalarCode | BlockCode:
        """The code as it is now."""
        return replace(self.code, q=self.integers().detach().cpu().numpy().astype(np.int32))

    @torch.no_grad()
    def refresh(self) -> float:
        """Fit code lengths to the integers; returns the bits of all of them."""
        q = self.integers().abs().view(self.code.q.shape[0], -1, self.taps)
        if isinstance(self.code, BlockCode) or not q.numel():
            return 0.0
        ratio = _geometric(_expected(q))
        slope = -torch.log2(ratio)
        self.slope = slope.expand_as(q).reshape(self.code.q.shape)
        return float((q * slope - torch.log2((1 - ratio) / (1 + ratio))).sum())

    def rate(self) -> Tensor:
        """Bits, as far as they depend on the parameter: small at 0, a code length per step beyond."""
        size = self.scaled().abs()
        bits: Tensor = (size * self.slope * (2 * size.detach()).clamp(max=1)).sum()
        return bits


def _expected(q: Tensor) -> Tensor:
    """|q| [rows, channels, taps] -> expected |q| of each, from the means of its row and its channel."""
    mean = q.mean() + 1e-6
    row, column = q.mean((1, 2), keepdim=True), q.mean((0, 2), keepdim=True)
    row = row + 0.5 * mean / (q.shape[1] * q.shape[2]) ** 0.5
    column = column + 0.5 * mean / (q.shape[0] * q.shape[2]) ** 0.5
    expected: Tensor = (row * column / mean).clamp(min=1e-4)
    return expected


def _geometric(mean: Tensor) -> Tensor:
    """theta of p(q) ~ theta^|q| whose mean |q| is given: mean = 2 theta / (1 - theta^2)."""
    return mean / (torch.sqrt(1 + mean**2) + 1)


class _Weight(nn.Module):
    """One weight as its matrices and fixed maps."""

    kernel: Tensor | None  # of a DCT, scales included

    def __init__(self, name: str, code: Code, weight: nn.Parameter, in_steps: bool) -> None:
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
        if isinstance(whole.coefficients, ScalarCode) and whole.coefficients.trellis:
            raise ConfigError(f"{name}: its integers form a trellis, in which each changes the meaning of all that "
                              f"follow: they cannot be trained; compress with effort 5 or less")
        self.whole, self.extents = whole, whole.coefficient_extents(self.shape)
        stored = iter(zip(whole.bases(), sizes, strict=False))

        def matrix(basis: Any) -> _Matrix | None:
            return _Matrix(basis, next(stored)[1].taps, in_steps, weight) \
                if isinstance(basis, ScalarCode | BlockCode) else None

        self.rows, self.channels, self.taps = (matrix(basis) for basis in (whole.rows, whole.channels, whole.taps))
        self.coefficients = _Matrix(whole.coefficients, sizes[-1].taps, in_steps, weight)
        fixed = None if self.taps is not None else whole.maps(self.shape).kernel()
        self.register_buffer("kernel", None if fixed is None else torch.from_numpy(fixed).to(weight.device),
                             persistent=False)

    def matrices(self) -> list[_Matrix]:
        """All that is trained."""
        return [x for x in (self.coefficients, self.rows, self.channels, self.taps) if x is not None]

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

    def coded(self) -> Code:
        """The code as it is now."""
        now = {part: matrix.coded() for part in ("coefficients", "rows", "channels", "taps")
               if (matrix := getattr(self, part)) is not None}
        if isinstance(self.code, TransformCode):
            return replace(self.code, **now)
        found = now["coefficients"]
        assert isinstance(found, ScalarCode)
        return found


class TransformedNetwork(nn.Module):
    """A model whose weights are quantised coefficients times quantised bases.

    * `model`: the network; its quantised weights are neither read nor changed until `write_back`, all its other
      parameters (biases, BatchNorm's scale and shift) are used and trained as they are.
    * `codes`: weight name -> code. Its steps (and depths, of `BlockCode`s, to whose range integers are clipped) stay.
      Training begins at its integers.
    * `in_steps`: parameters are in units of their steps rather than of their elements (as in the paper); then one
      learning rate of Adam suits all layers.
    * `freeze_batchnorm`: BatchNorms use their running statistics while the rest is trained, and do not change them. A
      .tersor file holds a BatchNorm as y = a z + b: statistics, re-fitted to the quantised weights by the encoder,
      and affine parameters are one. Frozen, what is trained is this very function; statistics of batches would
      undo the re-fitting in the first step, and add noise that the file cannot hold.

    Called like the model. Raises `ModelError` naming a weight that the model lacks or that a code does not fit,
    `ConfigError` for a code with a trellis.
    """

    def __init__(self, model: nn.Module, codes: Mapping[str, Code], *, in_steps: bool = False,
                 freeze_batchnorm: bool = True) -> None:
        super().__init__()
        self.model, self.freeze_batchnorm = model, freeze_batchnorm
        known = dict(model.named_parameters())
        self._place: dict[str, _Weight] = {}
        for name, code in codes.items():
            if name not in known:
                raise ModelError(f"{name}: the model has no parameter of this name to put together from coefficients")
            self._place[name] = _Weight(name, code, known[name], in_steps)
        self.parts = nn.ModuleList(self._place.values())
        self.train(model.training)
        self.refresh()

    def train(self, mode: bool = True) -> TransformedNetwork:
        """As of any module, but for frozen BatchNorms."""
        super().train(mode)
        if self.freeze_batchnorm:
            for module in self.model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """The matrices and the model's parameters, without the weights that are put together."""
        start = f"{prefix}.model." if prefix else "model."
        for name, parameter in super().named_parameters(prefix, recurse, remove_duplicate):
            if not (name.startswith(start) and name.removeprefix(start) in self._place):
                yield name, parameter

    def weights(self) -> dict[str, Tensor]:
        """The weights as a decoder restores them (up to the order of sums), by name; differentiable."""
        return {name: weight() for name, weight in self._place.items()}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return torch.func.functional_call(self.model, self.weights(), args, kwargs)

    def codes(self) -> dict[str, Code]:
        """The integers as they are now, by name."""
        return {name: weight.coded() for name, weight in self._place.items()}

    def refresh(self) -> float:
        """Fit code lengths to the integers as they are now; returns the bits of all that are entropy-coded.

        The code is that of a two-sided geometric distribution, whose mean magnitude is predicted from those of the row
        and of the channel: about what the adaptive entropy coder finds by itself.
        """
        return sum(matrix.refresh() for weight in self._place.values() for matrix in weight.matrices())

    def rate(self) -> Tensor:
        """Bits of the entropy-coded integers, as far as they depend on the parameters; differentiable scalar."""
        parts = [matrix.rate() for weight in self._place.values() for matrix in weight.matrices()]
        return torch.stack(parts).sum() if parts else torch.zeros(())

    def write_back(self) -> nn.Module:
        """Copy the restored weights into the model, as a decoder gives them; returns the model."""
        out = {}
        for name, code in self.codes().items():
            shape = self._place[name].shape
            out[name] = to_torch(np.array(code.tensor(shape))).to(self.model.get_parameter(name).dtype)
        return put_weights(self.model, out)


def finetune_transforms(
    model: nn.Module,
    codes: Mapping[str, Code],
    batches: Batches,
    loss: Callable[[Any, Any], Tensor],
    optimizer: MakeOptimizer | None = None,
    epochs: int = 3,
    *,
    price: float = 0.0,
    in_steps: bool = False,
    freeze_batchnorm: bool = True,
    seed: int = 0,
    scheduler: Callable[[torch.optim.Optimizer], Any] | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> dict[str, Code]:
    """Train integers of weights and bases, and the model's other parameters.

    * `model`: as restored from the file that `codes` come from; its weights then hold what a decoder restores.
    * `codes`, `in_steps`, `freeze_batchnorm`: see `TransformedNetwork`.
    * `optimizer`: None for the paper's: SGD with learning rate 1e-4, momentum 0.9, weight decay 1e-4; no more than
      three epochs.
    * `price`: what the loss pays for a bit of the file, >= 0; without one the file may grow. A file of so many bits at
      which halving its size doubles the loss is worth about loss / bits.
    * all else as in `finetune.finetune_shared`.

    Returns the codes by name. Raises `ModelError` and `ConfigError` as `TransformedNetwork` and `finetune_shared` do.
    """
    if not price >= 0.0:
        raise ConfigError(f"price={price} must be 0 or positive")
    flags = {module: module.training for module in model.modules()}
    network = TransformedNetwork(model, codes, in_steps=in_steps, freeze_batchnorm=freeze_batchnorm)
    steps = 0

    def priced(outputs: Any, targets: Any) -> Tensor:
        nonlocal steps
        if price == 0.0:
            return loss(outputs, targets)
        if steps % REFRESH == 0:
            network.refresh()
        steps += 1
        return loss(outputs, targets) + price * network.rate()

    def papers(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=1e-4, momentum=0.9, weight_decay=1e-4)

    try:
        run_epochs(network, batches, priced, optimizer or papers, epochs, seed=seed, scheduler=scheduler,
                   progress=progress)
    finally:
        for module, flag in flags.items():
            module.training = flag
    network.write_back()
    return network.codes()
