"""Inputs for distillation on CIFAR-10, and a teacher's answers to them: no labels are needed.

What is learned is a function, not a set of images: views are crops and mirror images of lossless training
images and of JPEG copies, half of them blended with a second one in any proportion, and the student sees exactly
what the teacher answered to (Beyer et al., "Knowledge distillation: a good teacher is patient and consistent",
2022).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from image_data import normalised
from torch import Tensor, nn

MARGIN = 4
"""Pixels: black ones around an image before a crop, as when the networks were trained."""
CHUNK = 512


def ready(images: Tensor) -> Tensor:
    """uint8 [N, 3, 32, 32] -> float32, as the networks want it, channels last in memory."""
    return normalised(images).contiguous(memory_format=torch.channels_last)


def without_copies(images: Tensor, of: Tensor) -> Tensor:
    """Those of the images uint8 [N, 3, 32, 32] that are no copies, good or bad, of any in `of`."""
    if not len(images) or not len(of):
        return images

    def small(batch: Tensor) -> Tensor:
        return F.avg_pool2d(batch.float(), 4).flatten(1)

    known = small(of)
    nearest = torch.cat([torch.cdist(small(part), known).amin(1) for part in images.split(CHUNK)])
    return images[nearest > 6.0 * known.shape[1] ** 0.5]  # r.m.s. difference of 4x4 means, in grey levels


def crops(images: Tensor, generator: torch.Generator) -> Tensor:
    """uint8 [N, 3, 32, 32], each shifted by up to 4 pixels, mirrored or not."""
    count = len(images)
    padded = F.pad(images, (MARGIN,) * 4)
    shift = torch.randint(0, 2 * MARGIN + 1, (2, count, 1), generator=generator)
    rows, columns = shift + torch.arange(32)
    mirrored = torch.rand(count, 1, generator=generator) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    every = torch.arange(count)[:, None, None, None]
    return padded[every, torch.arange(3)[None, :, None, None], rows[:, None, :, None], columns[:, None, None, :]]


def mixed(sources: Sequence[Tensor], count: int, generator: torch.Generator) -> Iterator[Tensor]:
    """`count` views as batches uint8 [<= 512, 3, 32, 32]. Sources (uint8, [N, 3, 32, 32]) are equally likely; half
    of the views are blends of two images."""
    sources = [source for source in sources if len(source)]
    sizes = torch.tensor([len(source) for source in sources])
    together, first = torch.cat(list(sources)), sizes.cumsum(0) - sizes

    def some(number: int) -> Tensor:
        source = torch.randint(len(sources), (number,), generator=generator)
        place = (torch.rand(number, generator=generator, dtype=torch.float64) * sizes[source]).long()
        return crops(together[first[source] + place], generator).float()

    for start in range(0, count, CHUNK):
        number = min(CHUNK, count - start)
        one, other = some(number), some(number)
        share = torch.rand(number, 1, 1, 1, generator=generator)
        share[torch.rand(number, generator=generator) < 0.5] = 1.0
        yield (one * share + other * (1 - share)).round().to(torch.uint8)


@torch.no_grad()
def answers(teachers: Sequence[nn.Module], views: Tensor) -> Tensor:
    """Mean of the teachers' logits, float32 [N, classes], to uint8 [N, 3, 32, 32]."""
    found = []
    for part in views.split(CHUNK):
        x = ready(part)
        with torch.autocast("cpu", torch.bfloat16):
            found.append(sum((teacher(x).float() for teacher in teachers), torch.zeros(())) / len(teachers))
    return torch.cat(found)


@dataclass(frozen=True)
class Views:
    """Inputs uint8 [N, 3, 32, 32] and what the teacher says to them, float32 [N, classes]."""

    images: Tensor
    answers: Tensor

    @classmethod
    def of(cls, images: Tensor, teachers: Sequence[nn.Module]) -> Views:
        return cls(images, answers(teachers, images))

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Inputs as the network wants them, and answers, of `size` random views."""
        chosen = torch.randint(len(self.images), (size,), generator=generator)
        return ready(self.images[chosen]), self.answers[chosen]


def divergence(output: Tensor, target: Tensor) -> Tensor:
    """KL(target || output) of logits [N, classes], mean over N."""
    p, q = F.log_softmax(target.float(), 1), F.log_softmax(output.float(), 1)
    return F.kl_div(q, p, reduction="batchmean", log_target=True)
