"""Reconstruction of rounding, block by block, without labels and under the rate.

AdaRound (Nagel et al., "Up or down? Adaptive rounding for post-training quantization", ICML 2020) rounds each weight up
or down so that a layer's output stays; BRECQ (Li et al., ICLR 2021) does so for blocks, by how much the network's
output feels an error of theirs. Here the integers are those of a file: a block is trained under the code length of its
integers, whose price is steered so that it takes as many bits as before.

It is for files of a cheap encoder, or of one without data. On files of the default effort, whose feedback has done more
already, a few hundred samples are learnt by heart instead, and others fare worse: docs/finetuned.md.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ..packed import Packed
from . import losses
from .blocks import Block, find_blocks, input_of, output_of
from .loop import REFRESH, cosine
from .matrices import Matrix
from .pricing import Pricing
from .recovery import FEWEST, part_of, shifted
from .trainable import Trainable

STEPS, BATCH = 200, 64
LATENT_RATE, LEAN, SMALL_RATE = 1e-3, 0.45, 5e-4
"""Learning rates, and how near to the edges of their steps integers begin."""
INPUTS, JUDGES = 1024, 256
"""Images are shifted and mirrored until there are so many to train on and to judge by."""
CACHE = 1 << 31
"""Bytes that inputs, outputs and slopes of a block may take; there are fewer samples where they would take more."""
COHERENT = 0.5
"""Share of the loss in which errors of a block's elements add up; in the rest each stands for itself."""
WEIGHTS = ("scalar", "transform", "kernels", "codebook")
"""Tools of the weights that make a block."""


def reconstruct(packed: Packed, model: nn.Module, samples: Tensor | dict[str, Tensor], *, steps: int = STEPS,
                latents: float = LATENT_RATE, seed: int = 0, autocast: torch.dtype | None = None,
                progress: Callable[[str], None] | None = None) -> Packed:
    """Train the blocks of a packed model one after another, in the order in which they run, each to give what it gives
    in `model`, from what it gets in the packed one; never a larger file, never one that judges worse.

    * `packed`: from `tersor.compress`. `model`: the network that was compressed, with its original weights; it must
      return logits and is not changed.
    * `samples`: inputs [N, ...], or a dict of them for a model that is called with keywords (`Statistics.samples`). A
      fifth of them is kept to judge by: a block keeps what it has learnt, and the file is given back, only if it is
      better on these.
    * `steps`: batches of 64 per block. `latents`: learning rate of integers, in steps; 0: only BatchNorms, biases and
      codebooks are trained.
    * `autocast`: dtype of the forward pass of blocks. `seed`: of the batches; two runs on a CPU give the same bytes.
    * `progress`: called with a line of text after every block.

    Returns `packed` itself, with a note, where nothing better was found or there are fewer than 40 samples. Raises
    `ModelError` (another model), `ConfigError` (no logits).
    """
    count = losses.count_of(samples)
    if count < FEWEST:
        return packed
    run = _Run(packed, model, samples, seed, steps, LEAN if latents > 0.0 else 0.0, autocast)
    before = run.divergence()
    for number, block in enumerate(run.blocks):
        line = run.reconstruct(block, latents, torch.Generator().manual_seed(1_000_003 * seed + number))
        if progress is not None:
            progress(f"{' + '.join(block.modules)}: {line}")
    better = run.trainable.repack(packed.size)
    while better.size > packed.size and run.kept:  # by bytes of BatchNorms or codebooks, which no price holds
        _put_back(run.kept.pop())
        better = run.trainable.repack(packed.size)
    after = run.divergence()
    if better.size > packed.size or not after < before:
        note = f"reconstruction of {len(run.blocks)} blocks found nothing better on the samples that were kept"
        return replace(packed, notes=[*packed.notes, note])
    note = (f"{len(run.blocks)} blocks reconstructed: KL on samples that were kept {before:.4f} to {after:.4f}, "
            f"{packed.size:,} to {better.size:,} bytes")
    return replace(better, price=packed.price, notes=[*packed.notes, note], decisions=packed.decisions)


_State: TypeAlias = list[tuple[Tensor, Tensor]]
"""What training changes, each beside a copy."""


@dataclass
class _Cached:
    """Of one block and some samples: what it gets, what it shall give, and slopes of `output_of`; [N, ...] each."""

    inputs: Tensor
    targets: Tensor
    slopes: Tensor

    def part(self, which: Tensor | slice) -> _Cached:
        return _Cached(self.inputs[which], self.targets[which], self.slopes[which])

    def loss(self, outputs: Tensor) -> Tensor:
        """The divergence at the network's output, to second order, that errors of the block alone would make."""
        error = outputs.float() - self.targets
        together = torch.einsum("nd,nkd->nk", error.flatten(1), self.slopes.flatten(2)).square().mean(1).sum()
        alone = (error.square() * self.slopes.square().mean(1)).sum()
        return 0.5 * (COHERENT * together + (1.0 - COHERENT) * alone) / len(error)


class _Run:
    """The network of the file, the uncompressed one, and the samples."""

    def __init__(self, packed: Packed, model: nn.Module, samples: Any, seed: int, steps: int, lean: float,
                 autocast: torch.dtype | None) -> None:
        self.steps, self.autocast = steps, autocast
        self.teacher = copy.deepcopy(model).eval().requires_grad_(False)
        self.trainable = Trainable(packed, model, lean=lean).eval()
        kept = losses.count_of(samples) // 5
        generator = torch.Generator().manual_seed(seed)
        self.judges = list(_batches(part_of(samples, slice(0, kept)), JUDGES, generator))
        self.samples = list(_batches(part_of(samples, slice(kept, None)), INPUTS, generator))
        coded = [name for section in self.trainable.contents.sections if section.tool in WEIGHTS
                 for name in section.names]
        self.blocks = find_blocks(self.teacher, part_of(samples, slice(0, 2)), coded)
        self.uses = self.trainable.uses()
        self.names = list(self.trainable.weights())
        self.kept: list[_State] = []  # of blocks that have changed, what they were

    def reconstruct(self, block: Block, latents: float, generator: torch.Generator) -> str:
        """Train one block; it is put back where that has not helped on the judges. A line on what has come of it."""
        groups, matrices = self._groups(block, latents), self._matrices(block)
        if not groups:
            return "nothing to train"
        judges, samples = (self._cached(block, batches, generator) for batches in (self.judges, self.samples))
        start, bits = self._state(groups, matrices), self._bits(matrices)
        first = self._judged(block, judges)
        pricing = self._train(block, samples, groups, matrices, first, generator)
        last, now = self._judged(block, judges), self._bits(matrices)
        kept = last + pricing.price * now < first + pricing.price * bits
        if kept:
            self.kept.append(start)
        else:
            _put_back(start)
        return f"loss {first:.3g} to {last:.3g}, {bits:,.0f} to {now:,.0f} bits{'' if kept else ', not kept'}"

    def _train(self, block: Block, samples: _Cached, groups: list[dict[str, Any]], matrices: list[Matrix],
               loss: float, generator: torch.Generator) -> Pricing:
        bits = max(self._bits(matrices), 1.0)
        pricing = Pricing(round(bits), round(bits), None if matrices else 0.0)  # in bits, not bytes
        pricing.measured(pricing.start, bits)
        pricing.begin(loss, sum(matrix.latents.numel() for matrix in matrices))
        optimizer = torch.optim.Adam(groups)
        schedule = cosine(optimizer, self.steps)
        for step in range(self.steps):
            if step % REFRESH == 0:
                self._settle(matrices)
                pricing.steer(self._bits(matrices), step / self.steps)
            chosen = samples.part(torch.randint(len(samples.inputs), (BATCH,), generator=generator))
            with torch.enable_grad():
                value = chosen.loss(self._outputs(block, chosen.inputs))
                if not bool(torch.isfinite(value)):  # rates that are far too high; judges will tell
                    return pricing
                for matrix in matrices:
                    value = value + pricing.price * matrix.rate(self.trainable.lengths)
                optimizer.zero_grad()
                value.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        self._settle(matrices)
        return pricing

    def _groups(self, block: Block, latents: float) -> list[dict[str, Any]]:
        """Of parameters on which nothing outside the block depends."""
        found = []
        for group in self.trainable.groups(latents=latents, small=SMALL_RATE):
            own = [parameter for parameter in group["params"] if self._is_within(parameter, block)]
            if own and group["lr"] > 0.0:
                found.append({**group, "params": own})
        return found

    def _matrices(self, block: Block) -> list[Matrix]:
        return [matrix for matrix in self.trainable.matrices() if matrix.is_coded
                and self._is_within(matrix.latents, block)]

    def _is_within(self, parameter: nn.Parameter, block: Block) -> bool:
        names = self.uses.get(parameter, set())
        return bool(names) and all(block.holds(name) for name in names)

    @staticmethod
    def _state(groups: list[dict[str, Any]], matrices: list[Matrix]) -> _State:
        held = [parameter for group in groups for parameter in group["params"]]
        held += [buffer for matrix in matrices for buffer in (matrix.path, matrix.offset)]
        return [(tensor, tensor.detach().clone()) for tensor in held]

    @staticmethod
    def _settle(matrices: list[Matrix]) -> None:
        for matrix in matrices:
            matrix.settle()

    @torch.no_grad()
    def _bits(self, matrices: list[Matrix]) -> float:
        """Of the block's integers, by the code lengths of the whole file as it was."""
        return sum(float(self.trainable.lengths.of(*matrix.classify()).sum()) for matrix in matrices)

    @torch.no_grad()
    def _cached(self, block: Block, batches: list[Any], generator: torch.Generator) -> _Cached:
        """Inputs are those of the network as compressed so far, outputs those of the uncompressed one."""
        weights, model = self.trainable.weights(), self.trainable.model
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        room = CACHE
        for batch in batches:
            args, kwargs = ((), batch) if isinstance(batch, dict) else ((batch,), {})

            def run(args: tuple[Any, ...] = args, kwargs: dict[str, Any] = kwargs) -> None:
                torch.func.functional_call(model, weights, args, kwargs)

            found.append((input_of(block, model, run), *output_of(block, self.teacher, batch, generator)))
            room -= sum(tensor.nbytes for tensor in found[-1])
            if room <= 0:
                break
        return _Cached(*(torch.cat(tensors) for tensors in zip(*found, strict=True)))

    def _outputs(self, block: Block, inputs: Tensor) -> Tensor:
        weights = self.trainable.weights([name for name in self.names if block.holds(name)])
        with losses.autocast(self.autocast, inputs):
            for module in block.modules:
                own = {name.removeprefix(f"{module}."): tensor for name, tensor in weights.items()
                       if name.startswith(f"{module}.")}
                inputs = torch.func.functional_call(self.trainable.model.get_submodule(module), own, (inputs,))
        return inputs

    @torch.no_grad()
    def _judged(self, block: Block, judges: _Cached) -> float:
        """Mean loss of a block on all of them."""
        count = len(judges.inputs)
        parts = [judges.part(slice(start, start + BATCH)) for start in range(0, count, BATCH)]
        return sum(float(part.loss(self._outputs(block, part.inputs))) * len(part.inputs) for part in parts) / count

    @torch.no_grad()
    def divergence(self) -> float:
        """KL of the file's network from the uncompressed one on the judges."""
        total, count = 0.0, 0
        for batch in self.judges:
            outputs, answers = losses.call(self.trainable, batch), losses.call(self.teacher, batch)
            number = losses.count_of(batch)
            total, count = total + number * float(losses.distillation(outputs, answers)), count + number
        return total / count


@torch.no_grad()
def _put_back(state: _State) -> None:
    for tensor, before in state:
        tensor.copy_(before)


def _batches(samples: Any, wanted: int, generator: torch.Generator) -> Iterator[Any]:
    """All samples, and of images shifted ones until there are `wanted`."""
    count = losses.count_of(samples)
    for start in range(0, count, BATCH):
        yield part_of(samples, slice(start, start + BATCH))
    if isinstance(samples, Tensor) and samples.is_floating_point() and samples.ndim == 4:
        for start in range(count, wanted, BATCH):
            chosen = torch.randint(count, (min(BATCH, wanted - start),), generator=generator)
            yield shifted(samples[chosen], generator)
