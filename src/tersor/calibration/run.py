"""One calibration: forward, random signs back, sums; and who is to blame when numbers are not finite."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from ..adapters.calls import names_by_id, tensors_in
from ..adapters.inventory import Graph, Inventory
from ..errors import StatisticsError
from ..statistics import Statistics
from .accumulators import BatchNormAccumulator, LayerAccumulator, Options, VectorAccumulator
from .batches import Batch
from .uses import BatchNormUse, DenseUse, LookupUse, Recorder, Use

SINGLE_IMAGES = 64
"""Images of which the gradients of all other parameters are taken, one backward pass each."""

Pair = tuple[Use, Tensor]


class Run:
    """The state of one calibration."""

    def __init__(self, model: nn.Module, inventory: Inventory, options: Options, vectors: int,
                 output: Callable[[Any], Tensor] | None) -> None:
        self.model, self.inventory, self.options = model, inventory, options
        self.vectors, self.output = vectors, output
        self.recorder = Recorder(inventory, names_by_id(model, inventory))
        self.generator = torch.Generator().manual_seed(options.seed)
        self.graph = Graph(reason="not traced")
        self.images = 0
        self.single_images = 0
        self.layers: dict[str, LayerAccumulator] = {}
        self.batchnorms: dict[str, BatchNormAccumulator] = {}
        self.biases: dict[str, VectorAccumulator] = {}
        self.others: dict[str, VectorAccumulator] = {}
        self.reached: set[str] = set()
        self.parameters = {name: p for name, p in model.named_parameters()
                           if name in inventory.tensors and p.is_floating_point() and p.numel() > 0}

    def add(self, batch: Batch) -> None:
        """One batch: forward, `vectors` backward passes, and the sums."""
        with torch.enable_grad():
            with self.recorder.batch(batch.images) as uses:
                result = self.model(*batch.call[0], **batch.call[1])
            y = self._output(result, batch.images)
            if not bool(torch.isfinite(y).all()):
                raise StatisticsError(self._blame(uses, "the model's output"))
            signs = self._signs(y)
            for v in range(self.vectors):
                grads = self._gradients(y, uses, signs[v], keep=v + 1 < self.vectors)
                for pairs in _by_target(zip(uses, grads, strict=True)):
                    self._accumulate(pairs, v)
                self._add_biases(list(zip(uses, grads, strict=True)))
            del y, result
            everything: list[tuple[str, LayerAccumulator | BatchNormAccumulator]] = [
                *self.layers.items(), *self.batchnorms.items()]
            for name, sums in everything:
                if not sums.finite():
                    raise StatisticsError(self._blame(uses, f"{name}: its input or its gradient"))
            uses.clear()
            self._single_images(batch, signs)
        self.images += batch.images

    def statistics(self, found: dict[str, str], samples: Tensor | dict[str, Tensor] | None) -> Statistics:
        """The sums as means over images and vectors; `found` are the digests of the model."""
        images, vectors = self.images, self.vectors
        layers = {name: sums for name, sums in self.layers.items() if name not in self.recorder.odd}
        measured = {*layers, *self.biases}
        others = {name: sums for name, sums in self.others.items() if name not in measured}
        vector = {name: sums.result(images, vectors) for name, sums in self.biases.items()}
        vector |= {name: sums.result(self.single_images, vectors)
                   for name, sums in others.items() if name in self.reached}
        return Statistics(
            layers={name: sums.result(images, vectors) for name, sums in layers.items()},
            batchnorms={name: sums.result(images, vectors) for name, sums in self.batchnorms.items()},
            vector_sensitivity=vector, unused=[name for name in others if name not in self.reached],
            graph=self.graph, samples=samples, digests=found, images=images, vectors=vectors,
            seed=self.options.seed, weights=tuple(self.inventory.layers),
            affine=tuple(self.inventory.batchnorms))

    def _output(self, result: Any, images: int) -> Tensor:
        """The tensor to differentiate."""
        if self.output is not None:
            y = self.output(result)
        else:
            found = (tensor for tensor in tensors_in(result) if tensor.is_floating_point())
            y = next(found, result)
        if not isinstance(y, Tensor) or y.ndim == 0 or y.shape[0] != images or not y.is_floating_point():
            what = f"shape {tuple(y.shape)}, {y.dtype}" if isinstance(y, Tensor) else type(result).__name__
            raise StatisticsError(f"the model's output ({what}) is no floating tensor with one row for each "
                                  f"of the {images} images; choose one by output=lambda result: ...")
        return y

    def _signs(self, y: Tensor) -> Tensor:
        """Random +-1 [vectors, *y.shape], drawn image by image: the same however images are batched."""
        drawn = [torch.randint(0, 2, (self.vectors, *y.shape[1:]), generator=self.generator) for _ in y]
        return (torch.stack(drawn, 1) * 2 - 1).to(y.device, y.dtype)

    def _gradients(self, y: Tensor, uses: Sequence[Use], sign: Tensor, keep: bool) -> list[Tensor | None]:
        """d(v.y) / d(what came out) of each use; every weight must get one at least."""
        edges: list[GradientEdge] = [use.edge for use in uses]
        if not uses:
            return []
        if not y.requires_grad:
            raise StatisticsError(f"{uses[0].name}: no gradient reaches this layer: the output is detached")
        try:
            grads = torch.autograd.grad(y, edges, sign, retain_graph=keep, allow_unused=True)
        except RuntimeError as error:
            raise StatisticsError(f"the model cannot be differentiated: {error}") from error
        reached = {use.name for use, grad in zip(uses, grads, strict=True) if grad is not None}
        for use in uses:
            use.check()
            if use.name not in reached:
                raise StatisticsError(
                    f"{use.name}: no gradient reaches this layer, though it runs: it is detached on the way "
                    f"or feeds an output that is not measured; then give an output= that joins all outputs")
        return [None if grad is None else grad.detach() for grad in grads]

    def _accumulate(self, pairs: list[Pair], vector: int) -> None:
        """All uses of one weight or BatchNorm that have the same number of images."""
        use = pairs[0][0]
        name = use.name
        if isinstance(use, BatchNormUse):
            sums = self.batchnorms.setdefault(name, BatchNormAccumulator(use.centre.detach().clone()))
            sums.add([cast(BatchNormUse, u) for u, _ in pairs], [g for _, g in pairs], vector)
            return
        layer = self.layers.setdefault(name, LayerAccumulator(name, self.options))
        if isinstance(use, DenseUse):
            layer.add_dense([cast(DenseUse, u) for u, _ in pairs], [g for _, g in pairs], vector)
        else:
            words = self.parameters[name].shape[0]
            layer.add_lookup([cast(LookupUse, u) for u, _ in pairs], [g for _, g in pairs], words, vector)

    def _add_biases(self, pairs: Iterable[tuple[Use, Tensor | None]]) -> None:
        """Squared gradients of layers' biases; a bias used several times is summed before it is squared."""
        found: dict[tuple[str, int], Tensor] = {}
        for use, grad in pairs:
            if isinstance(use, DenseUse) and use.bias is not None and grad is not None:
                key, value = (use.bias, use.images), use.bias_gradient(grad)
                found[key] = found[key] + value if key in found else value
        for (name, _), value in found.items():
            if name not in self.biases:
                zeros = torch.zeros(self.parameters[name].shape, dtype=torch.float64, device=value.device)
                self.biases[name] = VectorAccumulator(zeros)
            self.biases[name].add(value)

    def _single_images(self, batch: Batch, signs: Tensor) -> None:
        """Gradients of all parameters that no use stands for, image by image, of the first images only."""
        if self.images == 0:
            norms = {name for bn in self.inventory.batchnorms for name in bn.names
                     if bn.prefix in self.batchnorms}
            covered = ({*self.layers} - self.recorder.odd) | {*self.biases} | norms
            self.others = {name: VectorAccumulator(torch.zeros_like(p, dtype=torch.float64).detach())
                           for name, p in self.parameters.items() if name not in covered}
        wanted = [self.parameters[name] for name in self.others]
        for i in range(min(batch.images, SINGLE_IMAGES - self.single_images) if wanted else 0):
            args, kwargs = batch.part(slice(i, i + 1)).call
            y = self._output(self.model(*args, **kwargs), 1)
            for v in range(self.vectors if y.requires_grad else 0):
                grads = torch.autograd.grad(y, wanted, signs[v, i:i + 1], allow_unused=True,
                                            retain_graph=v + 1 < self.vectors)
                for name, grad in zip(self.others, grads, strict=True):
                    if grad is not None:
                        self.reached.add(name)
                        self.others[name].add(grad[None])
            self.single_images += 1
        for name, sums in self.others.items():
            if not bool(torch.isfinite(sums.sums).all()):
                raise StatisticsError(f"{name}: its gradient is NaN or infinite")

    def _blame(self, uses: Sequence[Use], otherwise: str) -> str:
        """The first thing in the order of the forward that is not finite."""
        for use in uses:
            weight = self.parameters.get(use.name)
            if weight is not None and not bool(torch.isfinite(weight).all()):
                return f"{use.name}: the weight holds NaN or infinity; repair the model first"
            if use.x.is_floating_point() and not bool(torch.isfinite(use.x).all()):
                return (f"{use.name}: the input of this layer holds NaN or infinity (in the batch that "
                        f"begins with image {self.images}); look at the images and at the layers before it")
        return f"{otherwise} holds NaN or infinity (in the batch that begins with image {self.images})"


def _by_target(pairs: Iterable[tuple[Use, Tensor | None]]) -> Iterator[list[Pair]]:
    """Uses with gradients, together where they are of one weight, one direction and one number of images."""
    groups: dict[tuple[object, ...], list[Pair]] = {}
    for use, grad in pairs:
        if grad is not None:
            groups.setdefault((use.name, type(use), use.images), []).append((use, grad))
    yield from groups.values()
