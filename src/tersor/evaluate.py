"""How far a restored network is from the one it came from: top-1, agreement, KL and SNR, with error bars.

    reference = evaluate.logits(model, batches)
    result = evaluate.compare(reference, evaluate.logits(restored, batches), labels)
    print(result.kl, result.top1_change, "+-", result.top1_change_error)

Accuracy is a coarse ruler: on 1,000 images its standard error is nearly a point. KL to the reference ranks
codecs far more finely, and the *paired* difference of two accuracies on the same images has a smaller
error than either accuracy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .errors import ConfigError


@dataclass(frozen=True)
class Comparison:
    """Figures over `count` samples. Shares are 0..1; everything with labels is None if there were none.

    Non-finite logits are not hidden: `kl` and `snr` are then nan.
    """

    count: int
    kl: float
    """Mean KL(reference || other) in nats, of the softmax distributions."""
    kl_error: float
    """Standard error of `kl`."""
    snr: float
    """Energy of the reference logits over the energy of their error, in dB; inf when nothing changed."""
    agreement: float
    """Share of samples with the same first choice."""
    top1_reference: float | None = None
    top1: float | None = None
    top1_change: float | None = None
    """`top1 - top1_reference`: negative is a loss."""
    top1_change_error: float | None = None
    """Standard error of `top1_change`, from the per-sample differences (paired)."""

    def as_dict(self) -> dict[str, float | int | None]:
        """Field name -> number, for JSON."""
        return asdict(self)


def compare(reference: Tensor, other: Tensor, labels: Tensor | None = None) -> Comparison:
    """Compare logits [..., classes] (any float dtype) with those of the reference network, sample by sample.

    `labels`: integers [...], the right class of each sample. Computed in float64.
    Raises `ConfigError` when shapes do not match or nothing is there to compare.
    """
    if reference.shape != other.shape or reference.ndim < 2 or reference.numel() == 0:
        raise ConfigError(
            f"logits of both networks must have one shape [..., classes] and not be empty: the reference has "
            f"{list(reference.shape)}, the other {list(other.shape)}"
        )
    y = reference.detach().to("cpu", torch.float64).flatten(0, -2)  # [N, classes]
    z = other.detach().to("cpu", torch.float64).flatten(0, -2)  # [N, classes]
    log_p, log_q = y.log_softmax(1), z.log_softmax(1)
    kl, kl_error = _mean_and_error((log_p.exp() * (log_p - log_q)).sum(1))
    choice, choice_reference = z.argmax(1), y.argmax(1)
    result = Comparison(
        count=len(y),
        kl=max(kl, 0.0) if math.isfinite(kl) else kl,  # rounding can leave -1e-17
        kl_error=kl_error,
        snr=_decibel(float(y.square().sum()), float((y - z).square().sum())),
        agreement=float((choice == choice_reference).double().mean()),
    )
    if labels is None:
        return result
    if labels.shape != reference.shape[:-1]:
        raise ConfigError(
            f"labels have shape {list(labels.shape)}, logits {list(reference.shape)}: one label "
            f"per sample is needed, {list(reference.shape[:-1])}"
        )
    truth = labels.detach().to("cpu").flatten()
    right, right_reference = (choice == truth).double(), (choice_reference == truth).double()
    change, error = _mean_and_error(right - right_reference)
    return Comparison(
        result.count,
        result.kl,
        result.kl_error,
        result.snr,
        result.agreement,
        top1_reference=float(right_reference.mean()),
        top1=float(right.mean()),
        top1_change=change,
        top1_change_error=error,
    )


@dataclass(frozen=True)
class Drop:
    """How much worse the second of two networks does on the same `count` samples, in points (0.5 = half a per cent).

    `mean` is positive for a loss; `low` to `high` is the 95% confidence interval of the paired difference.
    """

    count: int
    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"drop {self.mean:+.2f} points, 95% interval {self.low:+.2f} to {self.high:+.2f}, {self.count:,} samples"

    def as_dict(self) -> dict[str, float | int]:
        """Field name -> number, for JSON."""
        return asdict(self)


def paired_drop(before: Tensor, after: Tensor) -> Drop:
    """The loss from scores `before` to scores `after` [N], both 0..1 per sample (1 where right).

    The interval is that of Agresti and Min, "Simple improved confidence intervals for comparing matched proportions",
    Statistics in Medicine 24 (2005): half a sample is added for each of right-right, right-wrong, wrong-right and
    wrong-wrong. It does not shrink to nothing where no sample changed, as the plain one would.

    >>> print(paired_drop(torch.ones(1000), torch.ones(1000)))
    drop +0.00 points, 95% interval -0.20 to +0.20, 1,000 samples

    Raises `ConfigError` for scores of different shapes, none, or such that are not within 0..1.
    """
    if before.shape != after.shape or before.ndim != 1 or len(before) == 0:
        raise ConfigError(f"scores must be one number per sample [N] of both networks, not {list(before.shape)} and "
                          f"{list(after.shape)}")
    before, after = before.double(), after.double()
    if not bool(((before >= 0) & (before <= 1) & (after >= 0) & (after <= 1)).all()):
        raise ConfigError("scores must be within 0..1, 1 where the network is right")
    lost = before - after
    count = len(lost) + 2
    mean = float(lost.sum()) / count
    square = (float(lost.square().sum()) + 1.0) / count
    half = 1.96 * math.sqrt(max(square - mean * mean, 0.0) / count)
    return Drop(len(lost), 100 * float(lost.mean()), 100 * (mean - half), 100 * (mean + half))


def hits(model: nn.Module, batches: Iterable[Any], *, output: Callable[[Any], Tensor] | None = None) -> Tensor:
    """1 where the first choice of `model` is the label, else 0: float32 [N]. Batches are (inputs, labels)."""
    found = []
    for batch in batches:
        if not isinstance(batch, tuple | list) or len(batch) < 2:
            raise ConfigError("accuracy needs labels: batches of (inputs, labels)")
        labels = torch.as_tensor(batch[1])
        choice = logits(model, [batch], output=output).argmax(-1)
        if labels.shape != choice.shape:
            raise ConfigError(f"labels of shape {list(labels.shape)} for outputs of {list(choice.shape)} samples: one "
                              f"class index each is wanted")
        found.append((choice == labels).float())
    if not found:
        raise ConfigError("there are no batches to evaluate: an iterator that was used up before?")
    return torch.cat(found).flatten()


def logits(
    model: nn.Module, batches: Iterable[Any], *, output: Callable[[Any], Tensor] | None = None
) -> Tensor:
    """Run `model` in eval mode over `batches` and return its outputs on the CPU, stacked: float32 [N, ...].

    A batch is an input tensor, or a tuple or list of which the first item is the input; it is moved to the
    device of the model's parameters. `output` picks the tensor out of what the model returns, for models that
    return more than one tensor. Training flags are as before afterwards. Raises `ConfigError` for no batches.
    """
    first = next(model.parameters(), None)
    device = first.device if first is not None else torch.device("cpu")
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            parts = [_forward(model, batch, device, output) for batch in batches]
    finally:
        for module in training:
            module.training = True
    if not parts:
        raise ConfigError("there are no batches to evaluate: an iterator that was used up before?")
    return torch.cat(parts)


def _forward(
    model: nn.Module, batch: Any, device: torch.device, output: Callable[[Any], Tensor] | None
) -> Tensor:
    """One batch through the model, as float32 on the CPU."""
    inputs = batch[0] if isinstance(batch, tuple | list) else batch
    answer = model(inputs.to(device))
    chosen = output(answer) if output is not None else answer
    if not isinstance(chosen, Tensor):
        raise ConfigError(
            f"the model returns a {type(chosen).__name__}, not a tensor: give output=..., a function "
            f"that picks the logits out of it"
        )
    return chosen.float().cpu()


def _mean_and_error(values: Tensor) -> tuple[float, float]:
    """Mean and its standard error (nan for a single sample) of float64 [N]."""
    error = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return float(values.mean()), error


def _decibel(signal: float, noise: float) -> float:
    """10 log10(signal / noise), with inf for no noise and -inf for no signal."""
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal != 0 else -math.inf
