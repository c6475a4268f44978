"""One encoding of a model at one lambda: the integers of every tensor, chosen layer by layer.

`Encoding` holds what both walks of the encoder share: what to do with a layer, a BatchNorm, a bias, given
the statistics at hand. `static_walk` visits the layers in any order, with the statistics as calibration
measured them; `tersor.lockstep` in the order of the data, each corrected for the errors before it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from threading import Lock
from typing import Any, Protocol

import ml_dtypes
import numpy as np
import numpy.typing as npt

from .adapters.inventory import Array, BatchNormLayer, Inventory, WeightLayer
from .bitstream.dtypes import FLOATS, name_of
from .choice import Chooser, Decision
from .config import Config
from .modes import with_mode
from .parallel import ALONE, Team
from .statistics import Statistics
from .synthesis.batchnorm import BatchNormCode
from .synthesis.codebook import CodebookCode
from .synthesis.kernels import KernelCode
from .synthesis.rounding import to_dtype
from .synthesis.scalar import ScalarCode
from .synthesis.transform import TransformCode
from .synthesis.vector import VectorCode
from .threads import in_order
from .tools import affine, scalar
from .tools.clusters import Clusters
from .tools.metric import Matrix
from .tools.scalar import SLAB
from .tools.shared import encode_together
from .tools.target import (
    LayerTarget,
    elementwise_target,
    factor_bytes,
    from_matrix,
    mean_sensitivity,
    measured_target,
    to_matrix,
    unmeasured_target,
)

WAVE = 1 << 25
"""Weights that are shared out among processes at a time."""
FACTORS = 1 << 30
"""Bytes of triangular factors that are kept from one trial of the search to the next."""
SMALLEST_LAYER = 64
"""Weight tensors with fewer elements are coded like biases: a step each, no context to learn."""


@dataclass
class Plan:
    """Which tool each tensor gets, decided once from the model, the statistics and the configuration."""

    inventory: Inventory
    statistics: Statistics | None
    config: Config
    diagonals: dict[str, npt.NDArray[Any]] = field(default_factory=dict)  # given by the user
    layers: dict[str, WeightLayer] = field(default_factory=dict)
    batchnorms: dict[str, BatchNormLayer] = field(default_factory=dict)
    vectors: list[str] = field(default_factory=list)
    raw: list[str] = field(default_factory=list)
    absorb: dict[str, str] = field(default_factory=dict)
    shared: list[str] = field(default_factory=list)  # of the layers: those of the codebook tool
    memory: dict[tuple[str, ...], dict[int, Clusters]] = field(default_factory=dict)  # see `shared.cluster`
    factors: dict[str, dict[str, Any]] = field(default_factory=dict)  # see `remember`
    chooser: Chooser = field(init=False)
    notes: list[str] = field(init=False)  # for the user
    _lock: Any = field(default_factory=Lock, init=False)  # of `factors`

    def __post_init__(self) -> None:
        inventory = self.inventory
        weights = sum(inventory.tensors[layer.name].size for layer in inventory.layers)
        self.config, note = with_mode(self.config, weights)
        config, self.notes = self.config, [note] if note else []
        self.chooser = Chooser(config, lambda: [self.target(name) for name in self.layers
                                                if "kernels" in config.rivals(name)])
        config.check_patterns(name for name, array in inventory.tensors.items() if array.ndim >= 2)
        for layer in inventory.layers:
            array = inventory.tensors[layer.name]
            usable = _is_lossy(array) and layer.name not in inventory.exact and array.size >= SMALLEST_LAYER
            if usable and config.tool(layer.name) != "raw":
                self.layers[layer.name] = layer
        self.shared = [name for name in inventory.tensors if name in self.layers and config.tool(name) == "codebook"]
        if not config.keep_exact:
            for bn in inventory.batchnorms:
                # One that calibration has not seen at work may be another function than it looks.
                seen = self.statistics is None or bn.prefix in self.statistics.batchnorms
                lossy = all(_is_lossy(inventory.tensors[name]) and name not in inventory.exact for name in bn.names)
                if seen and lossy and _is_plain(inventory, bn):
                    self.batchnorms[bn.prefix] = bn
            self._keep_orderly()
        taken = {name for bn in self.batchnorms.values() for name in bn.names} | set(self.layers)
        normed = {name for bn in inventory.batchnorms for name in bn.names}
        for name, array in inventory.tensors.items():
            if name in taken:
                continue
            # A variance on a uniform grid could become zero: BatchNorms that are not plain stay as they are.
            small = _is_lossy(array) and name not in inventory.exact and not config.keep_exact \
                and name not in normed
            wanted_raw = config.tool(name) == "raw" if array.ndim >= 2 else False
            (self.vectors if small and not wanted_raw else self.raw).append(name)
        if self.statistics is not None:
            self.absorb = {name: prefix for name, prefix in self.statistics.graph.absorb.items()
                           if name in self.layers and prefix in self.batchnorms}

    def _keep_orderly(self) -> None:
        """Only BatchNorms whose four tensors come one after the other, in the order of their payload."""
        owner = {name: bn.prefix for bn in self.batchnorms.values() for name in bn.names}
        sequence = [name for name in self.inventory.tensors if name in owner]
        place = {name: i for i, name in enumerate(sequence)}
        for bn in list(self.batchnorms.values()):
            first = place[bn.weight]
            if sequence[first : first + 4] != list(bn.names):
                del self.batchnorms[bn.prefix]

    def bias_of(self, name: str) -> str | None:
        """The key of a layer's own bias, where it is quantised and can take up a mean error."""
        bias = self.layers[name].bias
        return bias if bias in self.vectors else None

    def is_centred(self, name: str) -> bool:
        """Whether a mean error of the layer's output is made up for."""
        return name in self.absorb or self.bias_of(name) is not None

    def target(self, name: str, corrected: bool = True) -> LayerTarget:
        """The layer with its metric as calibration measured it, or without one.

        corrected: mean errors (and scales) are made up for by a bias or BatchNorm where there is one.
        """
        layer, tensor = self.layers[name], self.inventory.tensors[name]
        weight = self.config.layer(name).weight
        measured = self.statistics.layers.get(name) if self.statistics else None
        if measured is None:
            sensitivity = self.sensitivity(name)
            if sensitivity is not None:  # used by something that is no known layer
                return elementwise_target(layer, tensor, sensitivity, weight)
            return unmeasured_target(layer, tensor, weight * self._typical)
        target = measured_target(layer, tensor, measured, corrected and self.is_centred(name),
                                 corrected and name in self.absorb, weight)
        return target.with_factors(self.factors.get(name, {})) if corrected else target

    def remember(self, target: LayerTarget) -> None:
        """Keep factors of a layer's `target` that do not depend on what is before it, up to FACTORS bytes in all:
        factorising takes n^3 operations, and every trial of the search needs them."""
        measured = self.statistics.layers.get(target.name) if self.statistics else None
        if measured is None or target.name in self.factors:
            return
        found = {key: value for key, value in target.factors.items()
                 if key == "row_factors" or measured.coherent is not None}
        with self._lock:
            taken = sum(factor_bytes(factors) for factors in self.factors.values())
            if found and taken + factor_bytes(found) <= FACTORS:
                self.factors[target.name] = found

    def elementwise(self, name: str) -> npt.NDArray[np.floating] | None:
        """h of a weight, in its shape: as given by the user, else the logit Gauss-Newton diagonal, G_ii A_jj."""
        if self.diagonals:
            return self.diagonals.get(name)
        measured = self.statistics.layers.get(name) if self.statistics else None
        if measured is None:
            return self.statistics.vector_sensitivity.get(name) if self.statistics else None
        target = self.target(name)
        a, g = ([np.diag(part) if part.ndim == 2 else part for part in side] for side in (target.A, target.G))
        h = np.stack([np.outer(rows, columns) for rows, columns in zip(g, a, strict=True)])
        return np.asarray(from_matrix(h, target.layer, target.shape), dtype=np.float64)

    def sensitivity(self, name: str) -> npt.NDArray[np.floating] | None:
        """What calibration says of a tensor's elements (or of their mean [1], for a small layer); None if nothing."""
        if self.statistics is None:
            return None
        measured = self.statistics.layers.get(name)
        if measured is not None:
            return np.full(1, mean_sensitivity(measured) * self.config.layer(name).weight)
        return self.statistics.vector_sensitivity.get(name)

    @cached_property
    def _typical(self) -> float:
        """What a relative error of 1 costs in the median measured layer; for layers that the output does not need."""
        measured = self.statistics.layers if self.statistics else {}
        costs = [mean_sensitivity(measured[name]) * float((self.inventory.tensors[name].astype(np.float64) ** 2).sum())
                 for name in self.layers if name in measured]
        return float(np.median(costs)) if costs else 1.0


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
        mean = measured.mean.astype(np.float64)
        before_mean, after_mean = (np.einsum("gmn,gn->gm", w, mean).ravel() for w in (target.W, after))
        bias = plan.layers[name].bias
        own = plan.inventory.tensors[bias].astype(np.float64) if bias is not None else 0.0
        prefix = plan.absorb.get(name)
        if target.layer.kind not in ("conv", "linear"):
            if prefix is not None:
                self._absorb_blindly(name, prefix, target)
        elif prefix is not None:
            variances = [np.stack([_output_energy(w[k], target.A[k]) for k in range(target.groups)]).ravel()
                         for w in (target.W, after)]
            scale, shift = affine_of(plan.inventory, plan.batchnorms[prefix])
            refitted = scale * rescale(variances[0], variances[1])
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


def affine_of(inventory: Inventory, bn: BatchNormLayer) -> tuple[Matrix, Matrix]:
    """(a, b) float64 [C] of y = a z + b that a BatchNorm computes in eval mode."""
    return affine_map(inventory.tensors, bn)


def affine_map(tensors: Mapping[str, Array], bn: BatchNormLayer) -> tuple[Matrix, Matrix]:
    """The same with the tensors of another state of the model."""
    weight, bias, mean, variance = (np.asarray(tensors[name], dtype=np.float64) for name in bn.names)
    scale = weight / np.sqrt(variance + bn.eps)
    return scale, bias - scale * mean


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


def static_walk(encoding: Encoding, finished: Callable[[str], None] | None = None, team: Team = ALONE) -> Encoding:
    """All layers, each for itself; `finished` is called with the name of each. team: processes among which they are
    shared out by cost; all end with all layers."""
    if not team.is_alone:
        _shared_walk(encoding, team)
    names = [name for name in encoding.plan.layers if name not in encoding.fitted]
    for name, _ in zip(names, in_order(encoding.encode_alone, names), strict=True):
        if finished is not None:
            finished(name)
    return encoding.complete()


@dataclass
class _Finished:
    """What one process sends of a layer to the others."""

    code: ScalarCode | TransformCode | KernelCode | None
    decision: Decision | None
    remembered: tuple[dict[str, Any], dict[str, Any]]
    batchnorms: dict[str, BatchNormCode]
    vectors: dict[str, VectorCode]


def _shared_walk(encoding: Encoding, team: Team) -> None:
    """`static_walk` on several processes, in waves, so that not all of a large model travels at once."""
    plan, journal = encoding.plan, encoding.journal
    waves: list[list[str]] = []
    filled = WAVE
    for name in plan.layers:
        if filled >= WAVE:
            waves.append([])
            filled = 0
        waves[-1].append(name)
        filled += plan.inventory.tensors[name].size
    for wave in waves:
        known = [name for name in wave if encoding.recall(name)]
        names = [name for name in wave if name not in known]
        encoding.journal = None  # processes are at different layers
        for name in known:
            encoding.encode_alone(name)

        def work(i: int, names: list[str] = names) -> _Finished:
            batchnorms, vectors = set(encoding.batchnorms), set(encoding.vectors)
            encoding.encode_alone(names[i])
            return _Finished(
                None if names[i] in encoding.shared else encoding.code(names[i]), encoding.decisions.get(names[i]),
                plan.chooser.memory(names[i]),
                {key: code for key, code in encoding.batchnorms.items() if key not in batchnorms},
                {key: code for key, code in encoding.vectors.items() if key not in vectors})

        results = team.share([_cost(plan, name) for name in names], work)
        encoding.journal = journal
        for name, found in zip(names, results, strict=True):
            if found.code is not None:
                encoding.put(name, found.code)
            if found.decision is not None:
                encoding.decisions[name] = found.decision
            plan.chooser.recall(*found.remembered)
            encoding.batchnorms |= found.batchnorms
            encoding.vectors |= found.vectors
            encoding.fitted.add(name)
            encoding.note(name)


def _cost(plan: Plan, name: str) -> float:
    """About the operations of a layer: factors, feedback, search and code."""
    measured = plan.statistics.layers.get(name) if plan.statistics else None
    size = float(plan.inventory.tensors[name].size)
    if measured is None:
        return 100.0 * size
    n, m = measured.A.shape[1], measured.G.shape[1]
    return float(size * (100.0 + (n + m) / 4) + (n**3 + m**3) * len(measured.A) / 6.0)


def _output_energy(w: Matrix, a: npt.NDArray[np.floating]) -> Matrix:
    """w A w^T's diagonal [m]; A [n, n] or diagonal [n]."""
    return np.asarray(np.einsum("mn,mn->m", w * a if a.ndim == 1 else w @ a, w))


def _is_lossy(array: Array) -> bool:
    """Whether a tensor may be quantised: floats, at least one, finite and with room to be rounded upwards."""
    if array.size == 0 or name_of(array.dtype) not in FLOATS:
        return False
    flat, most = array.reshape(-1), _largest(array) / 4
    return all(bool((np.abs(flat[first : first + SLAB].astype(np.float64)) <= most).all())
               for first in range(0, flat.size, SLAB))


def _largest(array: Array) -> float:
    """The largest number of the element type that the decoder's float32 holds too."""
    limits = ml_dtypes.finfo(array.dtype)  # type: ignore[no-untyped-call]
    return min(float(limits.max), float(np.finfo(np.float32).max))


def _is_plain(inventory: Inventory, bn: BatchNormLayer) -> bool:
    """Whether a BatchNorm is the affine map that its tool describes, in numbers that its element type holds."""
    variance = inventory.tensors[bn.running_var].astype(np.float64)
    if not 0.0 <= bn.eps < 1.0 or not (variance + bn.eps > 0.0).all() or variance.min() < 0.0:
        return False
    room = min(_largest(inventory.tensors[name]) for name in bn.names) / 64
    return all(bool((np.abs(part) <= room).all()) for part in affine_of(inventory, bn))

