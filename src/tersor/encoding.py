"""One encoding of a model at one lambda: the integers of every tensor, chosen layer by layer.

`Encoding` holds what both walks of the encoder share: what to do with a layer, a BatchNorm, a bias, given
the statistics at hand. `tersor.walk` visits the layers in any order, with the statistics as calibration
measured them; `tersor.lockstep` in the order of the data, each corrected for the errors before it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .adapters.inventory import Array
from .bitstream.dtypes import name_of
from .choice import Decision
from .plan import Plan, affine_of
from .synthesis.batchnorm import BatchNormCode
from .synthesis.codebook import CodebookCode
from .synthesis.kernels import KernelCode
from .synthesis.rounding import to_dtype
from .synthesis.scalar import ScalarCode
from .synthesis.transform import TransformCode
from .synthesis.vector import VectorCode
from .tools import affine, scalar
from .tools.metric import Matrix
from .tools.shared import encode_together
from .tools.target import (
    LayerTarget,
    to_matrix,
)


class Journal(Protocol):
    """Keeps layers that are finished, for an encoding that is begun again; see `tersor.journal`."""

    def recall(self, encoding: Encoding, name: str, generator: Any = None) -> bool:
        """Put a layer into `encoding` as it was; False if it is not known."""

    def note(self, encoding: Encoding, name: str, generator: Any = None) -> None:
        """Keep a layer."""


@dataclass
class Encoding:
    """The integers of a model at lambda = `price`; filled in by a walk."""

    plan: Plan
    price: float
    scalars: dict[str, ScalarCode] = field(default_factory=dict)
    transforms: dict[str, TransformCode] = field(default_factory=dict)
    kernels: dict[str, KernelCode] = field(default_factory=dict)
    batchnorms: dict[str, BatchNormCode] = field(default_factory=dict)
    vectors: dict[str, VectorCode] = field(default_factory=dict)
    codebooks: dict[tuple[str, ...], CodebookCode] = field(default_factory=dict)
    shared: dict[str, Array] = field(default_factory=dict)  # restored tensors of the codebook tool
    fitted: set[str] = field(default_factory=set)  # layers that a walk has visited
    sections: dict[tuple[str, ...], tuple[bytes, int]] = field(default_factory=dict)  # see `tersor.writer.Stream`
    journal: Journal | None = None
    decisions: dict[str, Decision] = field(default_factory=dict)  # of layers that several tools were tried for
    targets: Callable[[LayerTarget], None] | None = None  # told what each layer of the second walk was to be

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left for `complete`."""
        plan = self.plan
        coded = [name for names in self.sections for name in names]
        return all(len(done) == len(wanted) for done, wanted in (
            ((*coded, *self.scalars, *self.transforms, *self.kernels, *self.shared), plan.layers),
            (self.batchnorms, plan.batchnorms), (self.vectors, plan.vectors)))

    def encode_layer(self, target: LayerTarget) -> Array:
        """Quantise a layer (one of the codebook tool is so already); returns the tensor as it will be restored."""
        self.quantise_layer(target)
        return self.restored(target.name)

    def quantise_layer(self, target: LayerTarget) -> None:
        """The same without restoring."""
        self.fitted.add(target.name)
        if target.name in self.shared:
            return
        config = self.plan.config
        if config.rivals(target.name) == ("scalar",) and not config.tries_trellis:
            self.scalars[target.name], _ = scalar.encode(target, self.price,
                                                         scalar.ScalarOptions(feedback=config.feedback,
                                                                              two_sided=config.two_sided))
            return
        best, self.decisions[target.name] = self.plan.chooser.choose(target, self.price)
        self.put(target.name, best.code)

    def recall(self, name: str, generator: Any = None) -> bool:
        """Whether a layer was finished before an interruption; then it is in the encoding. generator: of the walk."""
        return self.journal is not None and name not in self.shared and self.journal.recall(self, name, generator)

    def note(self, name: str, generator: Any = None) -> None:
        """A layer is finished: keep it, where there is a journal."""
        if self.journal is not None and name not in self.shared:
            self.journal.note(self, name, generator)

    def code(self, name: str) -> ScalarCode | TransformCode | KernelCode:
        """The integers of a layer that is not of the codebook tool."""
        homes: tuple[dict[str, Any], ...] = (self.scalars, self.transforms, self.kernels)
        return next(home[name] for home in homes if name in home)  # type: ignore[no-any-return]

    def put(self, name: str, code: ScalarCode | TransformCode | KernelCode) -> None:
        """Take a layer's integers as they are."""
        home: dict[str, Any] = self.transforms if isinstance(code, TransformCode) else \
            self.kernels if isinstance(code, KernelCode) else self.scalars
        home[name] = code

    def encode_shared(self, bits: float) -> None:
        """Quantise the layers of the codebook tool to an entropy of `bits` bits/weight; their slope becomes `price`."""
        plan, config = self.plan, self.plan.config.codebook
        names = plan.shared
        if not names:
            return
        tensors = plan.inventory.tensors
        sensitivity = {name: h for name in names if (h := plan.elementwise(name)) is not None}
        groups = [tuple(names)] if config.scope == "all" else [(name,) for name in names]
        cost = weights = 0.0
        for group in groups:
            code, mean = encode_together(tensors, sensitivity, group, bits, config, plan.memory.setdefault(group, {}))
            self.put_shared(group, code)
            cost, weights = cost + mean * code.count, weights + code.count
        # A quantiser of D = h s^2 / 12 per weight has the slope -dD/dR = 2 ln 2 D.
        self.price = float(max(2.0 * np.log(2.0) * cost / weights, 1e-300))

    def put_shared(self, names: tuple[str, ...], code: CodebookCode) -> None:
        """Take a codebook and its indexes as they are; names in the order of the file."""
        self.codebooks[names] = code
        tensors = [self.plan.inventory.tensors[name] for name in names]
        restored = code.tensors([tensor.shape for tensor in tensors])
        for name, tensor, own in zip(names, restored, tensors, strict=True):
            self.shared[name] = to_dtype(tensor.astype(np.float64), name_of(own.dtype), name)

    def restored(self, name: str) -> Array:
        """A quantised weight tensor as a decoder gives it back."""
        if name in self.shared:
            return self.shared[name]
        array = self.plan.inventory.tensors[name]
        dtype = name_of(array.dtype)
        if name in self.transforms:
            return self.transforms[name].tensor(array.shape, dtype)
        if name in self.kernels:
            return to_dtype(self.kernels[name].tensor(array.shape), dtype, name)
        return to_dtype(self.scalars[name].tensor(array.shape).astype(np.float64), dtype, name)

    def encode_batchnorm(self, prefix: str, scale: Matrix, mean_in: Matrix,
                         mean_out: Matrix) -> tuple[Matrix, Matrix]:
        """Quantise y = a z + b: scales `scale` [C], and shifts that map the mean input `mean_in` to `mean_out`.

        So the rounding of the scale costs no mean error. Returns scale and shift [C] as restored.
        """
        bn = self.plan.batchnorms[prefix]
        statistics = self.plan.statistics
        measured = statistics.batchnorms.get(prefix) if statistics else None
        relative = shift_sensitivity = None
        if measured is not None:
            original, _ = affine_of(self.plan.inventory, bn)
            relative = measured.scale_sensitivity.astype(np.float64) * original**2
            shift_sensitivity = measured.shift_sensitivity.astype(np.float64)
        index, sign, resolution = affine.quantize_scale(scale, relative, self.price)
        known = BatchNormCode(index, sign, resolution, np.zeros(0, np.int64), 0, bn.eps).scale()
        code = affine.batchnorm_code((index, sign, resolution), mean_out - known * mean_in, shift_sensitivity,
                                     self.price, bn.eps)
        self.batchnorms[prefix] = code
        return code.scale(), code.shift()

    def encode_vector(self, name: str, values: npt.NDArray[Any]) -> Array:
        """Quantise a small tensor to `values` (which may be corrected ones); returns it as restored."""
        array = self.plan.inventory.tensors[name]
        sensitivity = self.plan.sensitivity(name)
        code = affine.quantize_vector(values, sensitivity, self.price)
        self.vectors[name] = code
        return to_dtype(code.values(), name_of(array.dtype), name)

    def complete(self) -> Encoding:
        """Encode, as calibration measured it, everything that a walk has not visited."""
        plan = self.plan
        for name in plan.layers:
            if name not in self.fitted:
                self.encode_alone(name)
        for prefix, bn in plan.batchnorms.items():
            if prefix not in self.batchnorms:
                scale, shift = affine_of(plan.inventory, bn)
                mean = plan.inventory.tensors[bn.running_mean].astype(np.float64)
                self.encode_batchnorm(prefix, scale, mean, scale * mean + shift)
        for name in plan.vectors:
            if name not in self.vectors:
                self.encode_vector(name, plan.inventory.tensors[name])
        return self

    def encode_alone(self, name: str) -> None:
        """A layer, and what can make up for its errors in closed form: its BatchNorm or its bias."""
        plan = self.plan
        target = plan.target(name)
        measured = plan.statistics.layers.get(name) if plan.statistics else None
        if name not in self.fitted and not self.recall(name):
            self.quantise_layer(target)
            plan.remember(target)
            self.note(name)
        if measured is None:
            return
        restored = self.restored(name)
        after = np.asarray(to_matrix(restored, target.layer), dtype=np.float64)
        before_mean, after_mean = (output_means(w, measured.mean) for w in (target.W, after))
        bias = plan.layers[name].bias
        own = plan.inventory.tensors[bias].astype(np.float64) if bias is not None else 0.0
        prefix = plan.absorb.get(name)
        if target.layer.kind not in ("conv", "linear"):
            if prefix is not None:
                self._absorb_blindly(name, prefix, target)
        elif prefix is not None:
            scale, shift = affine_of(plan.inventory, plan.batchnorms[prefix])
            refitted = scale * rescale(*(output_energies(w, target.A) for w in (target.W, after)))
            self.encode_batchnorm(prefix, refitted, after_mean, scale * (before_mean + own) + shift)
            if bias in plan.vectors:
                self.encode_vector(bias, np.zeros_like(own))
        elif bias in plan.vectors:
            self.encode_vector(bias, own + before_mean - after_mean)

    def _absorb_blindly(self, name: str, prefix: str, target: LayerTarget) -> None:
        """A transposed convolution without a second walk: its BatchNorm takes up the steps, no more."""
        plan = self.plan
        scale, shift = affine_of(plan.inventory, plan.batchnorms[prefix])
        absorbed = np.ones_like(scale)
        if name not in self.shared:
            absorbed = target.by_channel(scalar.choose_steps(target, self.price).absorbed)
        bias = plan.layers[name].bias
        own = plan.inventory.tensors[bias].astype(np.float64) if bias is not None else 0.0
        self.encode_batchnorm(prefix, scale * absorbed, np.zeros_like(scale), shift + scale * own)
        if bias in plan.vectors:
            self.encode_vector(bias, np.zeros_like(own))


def rescale(before: Matrix, after: Matrix) -> Matrix:
    """Factor on a BatchNorm's scale that gives its output the variance it had (matching variances serves
    better than least squares), 0 where nothing is left of the input."""
    ratio = np.sqrt(np.divide(before, after, out=np.zeros_like(before), where=after > 0))
    return np.asarray(ratio)


def begin(plan: Plan, price: float, bits: float | None = None) -> Encoding:
    """An encoding at lambda = `price`, with the layers of the codebook tool done at `bits` bits/weight of entropy
    (all together, so before any walk); lambda of all else then follows from theirs."""
    encoding = Encoding(plan, price)
    if bits is not None:
        encoding.encode_shared(bits)
    return encoding


def output_means(w: Matrix, mean: npt.NDArray[np.floating]) -> Matrix:
    """Means of a layer's outputs [G * M]; w [G, M, N], mean of its inputs [G, N]."""
    return np.asarray(np.einsum("gmn,gn->gm", w, mean.astype(np.float64)).ravel())


def output_energies(w: Matrix, a: npt.NDArray[np.floating]) -> Matrix:
    """Mean squares of a layer's outputs, the diagonal of w A w^T [G * M]; w [G, M, N], A [G, N, N] or
    diagonal [G, N]."""
    return np.concatenate([np.einsum("mn,mn->m", own * part if part.ndim == 1 else own @ part, own)
                           for own, part in zip(w, a, strict=True)])
