"""Streaming sums of one layer: A, the mean patch, G, and the per-image gradient norm that scales G."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..statistics import BatchNormStatistics, Coherent, Floats, LayerStatistics
from .exact import Sum
from .uses import BatchNormUse, DenseUse, LookupUse

MAX_FULL = 8192
"""Rows or columns per group above which only the diagonal of A or G is kept (512 MB in float64)."""

BLOCKS, SMALLEST_BLOCK = 8, 128
"""A symmetric product is computed in so many blocks of rows, of at least so many: 9/16 of the work."""


@dataclass
class Options:
    """`budget`: bytes of unfolded patches and weight gradients at a time; `max_positions`: positions per
    image and call that A and G are averaged over."""

    budget: int = 256 << 20
    max_positions: int = 1024
    seed: int = 0


@dataclass
class Moments:
    """Sums: u u^T [groups, n, n], u [groups, n], g g^T [groups, m, m], gradient norms [groups]; of weight
    gradients D and sums s of g over positions D^T D [groups, n, n] (None where A is diagonal), D^T s, s^T s."""

    A: Sum
    mean: Sum
    G: Sum
    norm: Sum
    second: Sum | None
    cross: Sum
    shift: Sum
    positions: int = 0

    @staticmethod
    def zeros(groups: int, n: int, m: int, device: torch.device, diagonal: bool = False) -> Moments:
        """Matrices where they are affordable, else diagonals (always where `diagonal`)."""
        def square(size: int, thin: bool) -> Sum:
            return Sum.zeros((groups, size) if thin or size > MAX_FULL else (groups, size, size), device)
        def numbers() -> Sum:
            return Sum.zeros((groups,), device)
        full = square(n, diagonal)
        return Moments(full, square(n, True), square(m, False), numbers(),
                       square(n, False) if full.value.ndim == 3 else None, square(n, True), numbers())

    @property
    def size(self) -> tuple[int, int, int, bool]:
        """The arguments of `zeros`, but for the device."""
        groups, n = self.mean.value.shape
        return groups, n, self.G.value.shape[1], self.second is None

    def sums(self) -> Iterator[tuple[str, Sum]]:
        """All of them, by name."""
        for name in ("A", "mean", "G", "norm", "second", "cross", "shift"):
            if getattr(self, name) is not None:
                yield name, getattr(self, name)

    def add(self, u: Tensor, z: Tensor, scale: float, inputs: bool) -> None:
        """Columns u [groups, n, images, P] (if `inputs`) and z [groups, m, images, P], times `scale`."""
        if inputs:
            self.A.add(_square(u, self.A.value.ndim == 2), scale)
            self.mean.add(u.sum((2, 3)), scale)
        self.G.add(_square(z, self.G.value.ndim == 2), scale)

    def add_gradients(self, total: Tensor, sums: Tensor) -> None:
        """Weight gradients D [groups, images, m, n] of images, and their s [groups, images, m]."""
        self.norm.add(total.square().sum((1, 2, 3)))
        if self.second is not None:
            flat = total.flatten(1, 2)
            self.second.add(_outer(flat.transpose(1, 2)))
            self.cross.add((flat.transpose(1, 2) @ sums.flatten(1, 2)[:, :, None])[:, :, 0])
            self.shift.add(sums.square().sum((1, 2)))

    def add_positions(self, u: Tensor, z: Tensor) -> None:
        """The same from all columns u, z of images [groups, n or m, images, P], without m x n matrices:
        D^T D = sum_pq (z_p.z_q) u_p u_q^T."""
        gram = z.permute(0, 2, 3, 1) @ z.permute(0, 2, 1, 3)  # [groups, images, P, P]
        columns = u.permute(0, 2, 1, 3)  # [groups, images, n, P]
        if self.second is None:
            self.norm.add((gram * (columns.transpose(2, 3) @ columns)).sum((1, 2, 3)))
            return
        weighed = columns @ gram
        self.norm.add((weighed * columns).sum((1, 2, 3)))
        self.second.add(weighed.transpose(1, 2).flatten(2) @ u.flatten(2).transpose(1, 2))
        self.cross.add(weighed.sum((1, 3)))
        self.shift.add(gram.sum((1, 2, 3)))


@dataclass
class LayerAccumulator:
    """All that is summed for one weight. `vector` numbers the random vectors; inputs are counted once.

    The gradient norm uses *all* positions and is exact per image. A and G use at most `max_positions`
    random positions per image and call, weighted back, so that they are unbiased.
    """

    name: str
    options: Options
    moments: dict[str, Moments] = field(default_factory=dict)

    def add_dense(self, uses: Sequence[DenseUse], grads: Sequence[Tensor], vector: int, image: int) -> None:
        """Calls of this weight in one batch, all with the same `images` and direction; their gradients. image: the
        number of the batch's first one."""
        groups, images = uses[0].groups, uses[0].images
        sizes = [use.dimensions(grad) for use, grad in zip(uses, grads, strict=True)]
        n, m, _ = sizes[0]
        words = uses[0].as_embedding
        sums = self._moments("transposed" if words else "natural", groups, n, m, grads[0].device, words)
        positions = max(p for _, _, p in sizes)
        gram = len(uses) == 1 and positions * (n + m) < n * m
        per_image = grads[0].element_size() * groups * (positions * (n + m)
                                                        + (2 * positions * positions if gram else n * m))
        chunk = max(1, min(images, self.options.budget // max(1, per_image)))
        slabs = math.ceil(per_image / self.options.budget) if chunk == 1 and not gram else 1
        for start in range(0, images, chunk):
            part = slice(start, min(images, start + chunk))
            total: Tensor | float = 0.0
            directions: Tensor | float = 0.0
            for index, (use, grad) in enumerate(zip(uses, grads, strict=True)):
                count = min(sizes[index][2], self.options.max_positions)
                sample = count < sizes[index][2]
                for rows in _slabs(use.row_count(grad), slabs):
                    u, z = use.sides(grad, part, rows)
                    if gram:
                        sums.add_positions(u, z)
                    else:
                        total = total + z.transpose(1, 2) @ u.permute(0, 2, 3, 1)  # [groups, images, m, n]
                        directions = directions + z.sum(3).transpose(1, 2)  # [groups, images, m]
                    if not sample:
                        sums.add(u, z, 1.0, vector == 0 or words)
                    del u, z
                if sample:
                    numbers = range(image + part.start, image + part.stop)
                    where = self._choose((index, vector), numbers, sizes[index][2], count)
                    u, z = use.sampled(grad, part, where.to(grad.device))
                    sums.add(u, z, sizes[index][2] / u.shape[3], vector == 0 or words)
            if isinstance(total, Tensor) and isinstance(directions, Tensor):
                sums.add_gradients(total, directions)
        if vector == 0:
            sums.positions += images * sum(p for _, _, p in sizes)

    def add_lookup(self, uses: Sequence[LookupUse], grads: Sequence[Tensor], words: int,
                   vector: int) -> None:
        """Embedding calls: A's diagonal counts words, the gradient norm sums each word's rows per image."""
        parts = [use.gradients(grad) for use, grad in zip(uses, grads, strict=True)]
        rows, read = torch.cat([part[1] for part in parts]), torch.cat([use.x for use in uses])
        sums = self._moments("natural", 1, words, rows.shape[1], rows.device, True)
        images = torch.cat([part[0] for part in parts])
        keys, inverse = torch.unique(images * words + read, return_inverse=True)
        total = torch.zeros(len(keys), rows.shape[1], dtype=rows.dtype, device=rows.device)
        sums.norm.add(total.index_add(0, inverse, rows).square().sum())
        sums.G.add(_square(rows.T[None], sums.G.value.ndim == 2))
        if vector == 0:
            weight = torch.cat([use.factor for use in uses]).double()
            none = torch.zeros(words, dtype=torch.float64, device=rows.device)
            sums.A.add(none.index_add(0, read, weight.square()))
            sums.mean.add(none.index_add(0, read, weight))
            sums.positions += len(read)

    def finite(self) -> bool:
        """Whether all sums are finite (a NaN in any input or gradient shows in these two)."""
        return all(bool(torch.isfinite(s.mean.value).all() & torch.isfinite(s.norm.value).all())
                   for s in self.moments.values())

    def result(self, images: int, vectors: int) -> LayerStatistics:
        """Means over images. An embedding that is also an output layer is the mixture of its two uses."""
        parts = [self.moments[key] for key in sorted(self.moments)]  # "natural" first
        norms = [part.norm.value / (images * vectors) for part in parts]
        norm = torch.stack(norms).sum(0)
        scale = _trace(parts[0].A.value) / images
        A, G = torch.zeros_like(parts[0].A.value), torch.zeros_like(parts[0].G.value)
        for part, own in zip(parts, norms, strict=True):
            share = torch.where(norm > 0, own / norm, 1 / len(parts))
            A += _scaled(part.A.value, share * scale * _inverse(_trace(part.A.value)))
            G += _scaled(part.G.value, share * norm * _inverse(scale * _trace(part.G.value)))
        # The "inputs" of an output layer seen as an embedding are gradients: they have no mean to take out.
        mean = parts[0].mean.value / max(1, parts[0].positions) * ("natural" in self.moments)
        second, coherent = parts[0].second, None
        if len(parts) == 1 and second is not None:
            numbers = (second, parts[0].cross, parts[0].shift)
            coherent = Coherent(*(_numpy(part.value / (images * vectors)) for part in numbers))
        return LayerStatistics(A=_numpy(A), mean=_numpy(mean), G=_numpy(G),
                               positions=parts[0].positions / images, images=images, coherent=coherent)

    def _moments(self, key: str, groups: int, n: int, m: int, device: torch.device,
                 diagonal: bool) -> Moments:
        if key not in self.moments:
            self.moments[key] = Moments.zeros(groups, n, m, device, diagonal)
        return self.moments[key]

    def _choose(self, call: tuple[int, int], images: Sequence[int], positions: int, count: int) -> Tensor:
        """Random positions [images, count], the same for an image however images are batched."""
        chosen, generator = [], torch.Generator()
        for image in images:
            generator.manual_seed(zlib.crc32(f"{self.options.seed}/{self.name}/{call}/{image}".encode()))
            chosen.append(torch.randperm(positions, generator=generator)[:count])
        return torch.stack(chosen)


@dataclass
class BatchNormAccumulator:
    """Sums for one BatchNorm, all [C] in float64, around its running mean so that nothing cancels."""

    centre: Tensor
    count: int = 0
    rows: list[Sum] = field(default_factory=list)  # z, z^2, (gz)^2, gz * g, g^2

    def __post_init__(self) -> None:
        self.rows = [Sum.zeros(self.centre.shape, self.centre.device) for _ in range(5)]

    def add(self, uses: Sequence[BatchNormUse], grads: Sequence[Tensor], vector: int) -> None:
        """All calls of this BatchNorm in one batch that have the same `images`."""
        parts = [use.sums(grad) for use, grad in zip(uses, grads, strict=True)]
        gz, g = (torch.stack([part[i].double() for part in parts]).sum(0) for i in (1, 2))
        for row, product in zip(self.rows[2:], (gz * gz, gz * g, g * g), strict=True):
            row.add(product.sum(0))
        for z, _, _ in parts if vector == 0 else []:
            self.rows[0].add(z.sum((0, 2)))
            self.rows[1].add(z.square().sum((0, 2)))
            self.count += z.shape[0] * z.shape[2]

    def finite(self) -> bool:
        """Whether all sums are finite."""
        return all(bool(torch.isfinite(row.value).all()) for row in self.rows)

    def result(self, images: int, vectors: int) -> BatchNormStatistics:
        """Means over positions, and over images and vectors."""
        z, square = (row.value / max(1, self.count) for row in self.rows[:2])
        gz2, cross, g2 = (row.value / (images * vectors) for row in self.rows[2:])
        # (sum_p g (z - mean))^2, expanded: the mean is only known now.
        scale = (gz2 - 2 * z * cross + z * z * g2).clamp(min=0)
        return BatchNormStatistics(
            mean=_numpy(self.centre.double() + z), variance=_numpy((square - z * z).clamp(min=0)),
            scale_sensitivity=_numpy(scale), shift_sensitivity=_numpy(g2))


@dataclass
class VectorAccumulator:
    """Sum over images of the squared gradient of one parameter, elementwise, float64."""

    sums: Sum

    def add(self, per_image: Tensor) -> None:
        """per_image [images, *shape of the parameter]."""
        self.sums.add(per_image.double().square().sum(0))

    def result(self, images: int, vectors: int) -> Floats:
        """Mean over `images` and `vectors`."""
        return _numpy(self.sums.value / (images * vectors))


def _square(columns: Tensor, diagonal: bool) -> Tensor:
    """[groups, n, ...] -> sum of outer products [groups, n, n], or its diagonal [groups, n]."""
    flat = columns.reshape(*columns.shape[:2], -1)
    return flat.square().sum(2).double() if diagonal else _outer(flat)


def _outer(rows: Tensor) -> Tensor:
    """R R^T of R [groups, n, count]: of large n the blocks below the diagonal, which are those above it as well."""
    n = rows.shape[1]
    if n <= 2 * SMALLEST_BLOCK:
        return rows @ rows.transpose(1, 2)
    found = rows.new_empty((len(rows), n, n))
    step = max(SMALLEST_BLOCK, -(-n // BLOCKS))
    for first in range(0, n, step):
        last = min(n, first + step)
        block = rows[:, first:last] @ rows[:, :last].transpose(1, 2)
        found[:, first:last, :last] = block
        found[:, :first, first:last] = block[:, :, :first].transpose(1, 2)
    return found


def _slabs(count: int, pieces: int) -> list[slice]:
    step = math.ceil(count / min(pieces, max(1, count)))
    return [slice(start, min(count, start + step)) for start in range(0, count, max(1, step))]


def _trace(matrix: Tensor) -> Tensor:
    return matrix.sum(1) if matrix.ndim == 2 else matrix.diagonal(dim1=1, dim2=2).sum(1)


def _inverse(values: Tensor) -> Tensor:
    """1 / values, and 0 for 0: a layer of dead inputs or outputs is worth nothing."""
    return torch.where(values > 0, 1 / values, 0.0)


def _scaled(matrix: Tensor, factor: Tensor) -> Tensor:
    return matrix * factor.reshape(-1, *[1] * (matrix.ndim - 1))


def _numpy(tensor: Tensor) -> Floats:
    return np.ascontiguousarray(tensor.float().cpu().numpy())
