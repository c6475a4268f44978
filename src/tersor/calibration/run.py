"""One calibration: forward, random signs back, sums; and who is to blame when numbers are not finite."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from ..adapters.calls import names_by_id, tensors_in
from ..adapters.inventory import Graph, Inventory
from ..errors import StatisticsError
from ..parallel import ALONE, Team
from ..statistics import Statistics
from .accumulators import BatchNormAccumulator, LayerAccumulator, Moments, Options, VectorAccumulator
from .batches import Batch
from .exact import Sum
from .uses import BatchNormUse, DenseUse, LookupUse, Recorder, Use

SINGLE_IMAGES = 64
"""Images of which the gradients of all other parameters are taken, one backward pass each."""

Pair = tuple[Use, Tensor]


class Run:
    """The state of one calibration: of this process' batches until `join`, then of those of all."""

    def __init__(self, model: nn.Module, inventory: Inventory, options: Options, vectors: int,
                 output: Callable[[Any], Tensor] | None, team: Team = ALONE) -> None:
        self.model, self.inventory, self.options = model, inventory, options
        self.vectors, self.output, self.team = vectors, output, team
        self.recorder = Recorder(inventory, names_by_id(model, inventory))
        self.generator = torch.Generator().manual_seed(options.seed)
        self.graph = Graph(reason="not traced")
        self.images = 0  # of all processes
        self.single_images = 0
        self.layers: dict[str, LayerAccumulator] = {}
        self.batchnorms: dict[str, BatchNormAccumulator] = {}
        self.biases: dict[str, VectorAccumulator] = {}
        self.others: dict[str, VectorAccumulator] | None = None  # not known yet
        self.reached: set[str] = set()
        self.parameters = {name: p for name, p in model.named_parameters()
                           if name in inventory.tensors and p.is_floating_point() and p.numel() > 0}

    def begin(self, probe: Batch) -> None:
        """Learn from a few images, the same on all processes, what is to be summed and in which units; then forget
        the sums. (A model that only takes whole batches does without: its sums depend on their order, a little.)"""
        try:
            with torch.enable_grad():
                uses, y = self._forward(probe)
                self._backward(probe, uses, y, self._drawn(len(y), y.shape[1:]), 0)
        except Exception:
            self.layers, self.batchnorms, self.biases, self.others = {}, {}, {}, None
        for _, total in self.sums():
            total.begin()
        for layer in self.layers.values():
            for moments in layer.moments.values():
                moments.positions = 0
        for bn in self.batchnorms.values():
            bn.count = 0
        self.single_images, self.reached = 0, set()
        self.generator.manual_seed(self.options.seed)

    def add(self, batch: Batch | None) -> int:
        """One batch of each process, None where there are none left: forward, `vectors` backward passes, sums.

        Returns the number of the batch's first image, counted over the batches of ranks 0, 1 ... in turn.
        """
        if batch is None:
            return self._places(None)[1]
        with torch.enable_grad():
            uses, y = self._forward(batch)
            signs, first = self._places(y)
            self._backward(batch, uses, y, signs, first)
        return first

    def _places(self, y: Tensor | None) -> tuple[Tensor, int]:
        """The signs of this process' outputs and the number of its first image. Those of the other processes are
        drawn as well, so that signs belong to images, however these are shared out."""
        own, first = torch.zeros(0), self.images
        shapes = self.team.gather(None if y is None else tuple(y.shape))
        for rank, shape in enumerate(shape or (0,) for shape in shapes):
            if rank == self.team.rank:
                first = self.images
            if y is not None:  # who has no batches left needs no more signs
                drawn = self._drawn(shape[0], shape[1:])
                own = drawn if rank == self.team.rank else own
            self.images += shape[0]
        return own, first

    def _forward(self, batch: Batch) -> tuple[list[Use], Tensor]:
        """The uses of weights in one batch, and the output."""
        with self.recorder.batch(batch.images) as uses:
            result = self.model(*batch.call[0], **batch.call[1])
        y = self._output(result, batch.images)
        if not bool(torch.isfinite(y).all()):
            raise StatisticsError(self._blame(uses, "the model's output"))
        return uses, y

    def _backward(self, batch: Batch, uses: list[Use], y: Tensor, signs: Tensor, first: int) -> None:
        """Add one batch of this process; first: the number of its first image."""
        signs = signs.to(y.device, y.dtype)
        for v in range(self.vectors):
            grads = self._gradients(y, uses, signs[v], keep=v + 1 < self.vectors)
            for pairs in _by_target(zip(uses, grads, strict=True)):
                self._accumulate(pairs, v, first)
            self._add_biases(list(zip(uses, grads, strict=True)))
        del y
        everything: list[tuple[str, LayerAccumulator | BatchNormAccumulator]] = [
            *self.layers.items(), *self.batchnorms.items()]
        for name, sums in everything:
            if not sums.finite():
                raise StatisticsError(self._blame(uses, f"{name}: its input or its gradient"))
        uses.clear()
        self._single_images(batch, signs, first)

    def sums(self) -> Iterator[tuple[str, Sum]]:
        """All sums, by a name that is the same on every process."""
        for name, layer in self.layers.items():
            for key, moments in layer.moments.items():
                yield from ((f"layer/{name}/{key}/{part}", total) for part, total in moments.sums())
        for name, bn in self.batchnorms.items():
            yield from ((f"batchnorm/{name}/{row}", total) for row, total in enumerate(bn.rows))
        yield from ((f"bias/{name}", vector.sums) for name, vector in self.biases.items())
        yield from ((f"other/{name}", vector.sums) for name, vector in (self.others or {}).items())

    def join(self) -> None:
        """Add up the sums of all processes: afterwards all have the same."""
        if self.team.is_alone:
            return
        for found in self.team.gather(self._described()):
            self._make_room(found)
        for _, total in sorted(self.sums(), key=lambda item: item[0]):
            self.team.add(total.value)
        counts = self.team.gather(([moments.positions for _, moments in self._all_moments()],
                                   [bn.count for _, bn in sorted(self.batchnorms.items())], self.single_images))
        for (_, moments), column in zip(self._all_moments(), zip(*(c[0] for c in counts), strict=True), strict=True):
            moments.positions = sum(column)
        for (_, bn), column in zip(sorted(self.batchnorms.items()), zip(*(c[1] for c in counts), strict=True),
                                   strict=True):
            bn.count = sum(column)
        self.single_images = sum(c[2] for c in counts)

    def saved(self) -> dict[str, Any]:
        """All that `restore` needs, as plain data with arrays."""
        described = self._described()
        return {"described": described | {"reached": sorted(self.reached), "odd": sorted(self.recorder.odd)},
                "sums": {name: total.value.cpu().numpy() for name, total in self.sums()},
                "units": {name: total.unit for name, total in self.sums()},
                "positions": [moments.positions for _, moments in self._all_moments()],
                "counts": [bn.count for _, bn in sorted(self.batchnorms.items())],
                "images": self.images, "single_images": self.single_images,
                "generator": self.generator.get_state().numpy()}

    def restore(self, found: Mapping[str, Any]) -> None:
        """Go on from what `saved` gave; the images of the batches that are done still have to be passed over."""
        described = found["described"]
        self._make_room(described | {"reached": set(described["reached"]), "odd": set(described["odd"])})
        for name, total in self.sums():
            if total.value.shape != found["sums"][name].shape or found["sums"][name].dtype != np.float64:
                raise ValueError(f"the sum {name} has another shape or type")
            total.value.copy_(torch.from_numpy(found["sums"][name].copy()))
            total.unit = float(found["units"][name])
        for (_, moments), positions in zip(self._all_moments(), found["positions"], strict=True):
            moments.positions = int(positions)
        for (_, bn), count in zip(sorted(self.batchnorms.items()), found["counts"], strict=True):
            bn.count = int(count)
        self.single_images = int(found["single_images"])
        self.generator.set_state(torch.from_numpy(found["generator"].copy()))

    def skip(self, batch: Batch | None) -> int:
        """Pass over one batch of each process that is in the sums already; the number of its first image."""
        images: list[int] = self.team.gather(0 if batch is None else batch.images)
        first = self.images + sum(images[: self.team.rank])
        self.images += sum(images)
        return first

    def _all_moments(self) -> list[tuple[tuple[str, str], Moments]]:
        return sorted(((name, key), moments) for name, layer in self.layers.items()
                      for key, moments in layer.moments.items())

    def _described(self) -> dict[str, Any]:
        """What this process has sums of."""
        return {"moments": [(name, key, moments.size) for (name, key), moments in self._all_moments()],
                "batchnorms": sorted(self.batchnorms), "biases": sorted(self.biases),
                "others": sorted(self.others or {}), "reached": self.reached, "odd": self.recorder.odd}

    def _make_room(self, found: Mapping[str, Any]) -> None:
        """Sums for what another process has met (data may choose the way through a model)."""
        device = next(iter(self.parameters.values())).device if self.parameters else torch.device("cpu")
        for name, key, (groups, n, m, diagonal) in found["moments"]:
            layer = self.layers.setdefault(name, LayerAccumulator(name, self.options))
            if key not in layer.moments:
                layer.moments[key] = Moments.zeros(groups, n, m, device, diagonal)
        centres = {bn.prefix: bn.running_mean for bn in self.inventory.batchnorms}
        buffers = dict(self.model.named_buffers())
        for prefix in found["batchnorms"]:
            self.batchnorms.setdefault(prefix, BatchNormAccumulator(buffers[centres[prefix]].detach().clone()))
        self.others = {} if self.others is None else self.others
        for name in (*found["biases"], *found["others"]):
            home = self.biases if name in found["biases"] else self.others
            home.setdefault(name, VectorAccumulator(Sum.zeros(self.parameters[name].shape, device)))
        self.reached |= found["reached"]
        self.recorder.odd |= found["odd"]

    def statistics(self, found: dict[str, str], samples: Tensor | dict[str, Tensor] | None) -> Statistics:
        """The sums as means over images and vectors; `found` are the digests of the model."""
        images, vectors = self.images, self.vectors
        layers = {name: sums for name, sums in self.layers.items() if name not in self.recorder.odd}
        measured = {*layers, *self.biases}
        others = {name: sums for name, sums in (self.others or {}).items() if name not in measured}
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

    def _drawn(self, images: int, shape: Sequence[int]) -> Tensor:
        """Random +-1 [vectors, images, *shape], drawn image by image: the same however images are batched."""
        drawn = [torch.randint(0, 2, (self.vectors, *shape), generator=self.generator) for _ in range(images)]
        return torch.stack(drawn, 1) * 2 - 1 if drawn else torch.zeros(self.vectors, 0, *shape)

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

    def _accumulate(self, pairs: list[Pair], vector: int, first: int) -> None:
        """All uses of one weight or BatchNorm that have the same number of images."""
        use = pairs[0][0]
        name = use.name
        if isinstance(use, BatchNormUse):
            sums = self.batchnorms.setdefault(name, BatchNormAccumulator(use.centre.detach().clone()))
            sums.add([cast(BatchNormUse, u) for u, _ in pairs], [g for _, g in pairs], vector)
            return
        layer = self.layers.setdefault(name, LayerAccumulator(name, self.options))
        if isinstance(use, DenseUse):
            layer.add_dense([cast(DenseUse, u) for u, _ in pairs], [g for _, g in pairs], vector, first)
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
                self.biases[name] = VectorAccumulator(Sum.zeros(self.parameters[name].shape, value.device))
            self.biases[name].add(value)

    def _single_images(self, batch: Batch, signs: Tensor, first: int) -> None:
        """Gradients of all parameters that no use stands for, image by image, of the first images only."""
        if self.others is None:
            norms = {name for bn in self.inventory.batchnorms for name in bn.names
                     if bn.prefix in self.batchnorms}
            covered = ({*self.layers} - self.recorder.odd) | {*self.biases} | norms
            self.others = {name: VectorAccumulator(Sum.zeros(p.shape, p.device))
                           for name, p in self.parameters.items() if name not in covered}
        wanted = [self.parameters[name] for name in self.others]
        for i in range(min(batch.images, SINGLE_IMAGES - first) if wanted else 0):
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
            if not bool(torch.isfinite(sums.sums.value).all()):
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
