"""Recovery without labels: a short distillation on the calibration samples, right after compressing.

What is learned is a function, not a set of images: the uncompressed network answers to any input, so a few hundred
samples are enough when the student sees blends, shifts and mirror images of them (Beyer et al., "Knowledge
distillation: a good teacher is patient and consistent", 2022). A fifth of the samples is kept to judge by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..packed import Packed
from ..stage import map_samples
from .loop import adam, finetune

STEPS, BATCH = 100, 64
FEWEST = 40
"""With fewer samples nothing is done."""
LATENT_RATE, LEAN, SMALL_RATE = 1e-3, 0.45, 1e-3
"""Learning rates for so few steps, and how near to the edges of their steps integers begin."""
SHIFT = 8
"""Images are shifted by up to a so-manieth of their extent."""


def recover(packed: Packed, model: nn.Module, samples: Tensor | dict[str, Tensor], *, steps: int = STEPS,
            latents: float = LATENT_RATE, seed: int = 0, autocast: torch.dtype | None = None,
            progress: Callable[[str], None] | None = None) -> Packed:
    """Train a packed model to give the answers of `model` to views of calibration samples; never a worse file.

    * `samples`: inputs [N, ...], or a dict of them for a model that is called with keywords (`Statistics.samples`).
    * `latents`: learning rate of integers, in steps; 0: only BatchNorms, biases and codebooks are trained.
    * all else as in `finetune`. The model must return logits.

    Returns `packed` itself where there are too few samples.
    """
    count = len(next(iter(samples.values())) if isinstance(samples, dict) else samples)
    if count < FEWEST:
        return packed
    kept = count // 5
    training, judges = part_of(samples, slice(kept, None)), part_of(samples, slice(0, kept))

    def epoch(number: int) -> Iterator[Any]:
        generator = torch.Generator().manual_seed(1000 * seed + number)
        for _ in range(steps):
            chosen = torch.randint(count - kept, (BATCH,), generator=generator)
            batch = part_of(training, chosen)
            yield batch if isinstance(batch, dict) else views(batch, generator)

    held_out = [part_of(judges, slice(start, start + BATCH)) for start in range(0, kept, BATCH)]

    return finetune(packed, model, epoch, steps=steps, held_out=held_out,
                    optimizer=adam(latents=latents, small=SMALL_RATE),
                    lean=LEAN if latents > 0.0 else 0.0, seed=seed,
                    every=max(1, steps // 4), autocast=autocast, progress=progress)


def views(batch: Tensor, generator: torch.Generator) -> Tensor:
    """Floating inputs [N, ...] blended in pairs, half of them; images [N, C, H, W] shifted and mirrored before."""
    if not batch.is_floating_point():
        return batch
    if batch.ndim == 4:
        batch = shifted(batch, generator)
    return blended(batch, generator)


def blended(batch: Tensor, generator: torch.Generator) -> Tensor:
    """Floating inputs [N, ...]: half of them blended with the one before."""
    share = torch.rand(len(batch), *[1] * (batch.ndim - 1), generator=generator).to(batch)
    share[torch.rand(len(batch), generator=generator) < 0.5] = 1.0
    return batch * share + batch.roll(1, 0) * (1.0 - share)


def shifted(images: Tensor, generator: torch.Generator, mirror: bool = True) -> Tensor:
    """Each by a number of pixels of its own, borders repeated; half of them mirrored."""
    count, _, height, width = images.shape
    reach = height // SHIFT, width // SHIFT
    padded = F.pad(images, (reach[1], reach[1], reach[0], reach[0]), mode="replicate")
    y = torch.randint(0, 2 * reach[0] + 1, (count, 1), generator=generator) + torch.arange(height)
    x = torch.randint(0, 2 * reach[1] + 1, (count, 1), generator=generator) + torch.arange(width)
    if mirror:
        x = torch.where(torch.rand(count, 1, generator=generator) < 0.5, x.flip(1), x)
    moved = padded.permute(0, 2, 3, 1)[torch.arange(count)[:, None, None], y[:, :, None], x[:, None, :]]
    return moved.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def part_of(samples: Any, which: slice | Tensor) -> Any:
    """Some of the samples: of a tensor, or of each in a dict."""
    return map_samples(samples, lambda tensor: tensor[which])
