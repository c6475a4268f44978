"""The encoder's second walk: one forward pass in which the original and the compressed network run side by side.

The calibration inputs are stacked twice. The first half of every batch goes through the original weights, the second
through what a decoder will restore. When a layer is reached, its input u in the original network and u^ in
the partly compressed one are both there, so the layer is quantised *then*, towards the target that makes up for the
errors of all layers before it (docs/theory.md):

    H = E[u^ u^^T] (centred):   W_t = W + E[(W u - W u^ + (s - s^) / gamma) u^^T] (H + damping)^-1

with the shortcut s of a residual branch and the gain gamma of its BatchNorm. Its BatchNorm or bias follows in closed
form. One forward pass encodes the whole network, however deep. (GPTQ's and CERWU's sequential targets, in one pass.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .adapters.calls import LAYER_CALLS, argument, first_floating, names_by_id, undisturbed
from .adapters.lockstep import CallCounter, Recipe
from .adapters.module import to_torch
from .columns import PATCHES, Columns
from .encoding import Encoding, rescale
from .plan import affine_of
from .stage import Mismatch, Stage, map_samples
from .threads import in_order
from .tools.correction import Moments, correction
from .tools.target import LayerTarget

CHUNK = 4 << 20
"""Bytes of a layer's output that are computed at a time: near to the caches, and freed memory serves again, where whole
activations are new pages each time."""
LARGEST = 4608
"""Layers with more inputs keep their own targets: H would take longer than it saves."""


def lockstep_walk(encoding: Encoding, model: nn.Module, stage: Stage) -> Tensor | None:
    """Complete an encoding that `encoding.begin` made; returns the compressed network's outputs on the samples.

    The outputs are None where tensors were encoded that the walk does not follow (LayerNorm, layers inside fused
    attention): restore the file to know them.
    Raises `Mismatch` for a model whose batch axis is not the first or whose samples depend on each other: the
    caller then begins again and takes `static_walk`.
    """
    half = len(stage)
    with undisturbed(model), torch.no_grad():
        doubled = map_samples(stage.samples, lambda t: torch.cat([t, t]))
        first = next(iter(doubled.values())) if isinstance(doubled, dict) else doubled
        walk = _Lockstep(model, encoding, first, half, stage.recipes)
        try:
            with walk:
                output = model(**doubled) if isinstance(doubled, dict) else model(doubled)
        except RuntimeError as error:
            raise Mismatch(f"the network cannot be run on two networks' samples at once ({error})") from error
    y = first_floating(output)
    if y is None or len(y) != 2 * half or walk.calls != walk.graph.calls:
        raise Mismatch("the network took another way than when it was calibrated")
    y = y.double()
    close = 1e-3 * float(stage.checked.abs().max()) + 1e-6
    if not torch.allclose(stage.checked, y[: len(stage.checked)], rtol=1e-2, atol=close):
        raise Mismatch("the original network's outputs changed when run beside the compressed one")
    stage.outputs = y[:half]
    seen = encoding.is_complete
    encoding.complete()
    return y[half:] if seen else None


class _Lockstep(CallCounter):
    """Splits every call with a weight that is being encoded into its two halves, and encodes at first sight."""

    def __init__(self, model: nn.Module, encoding: Encoding, first: Tensor, half: int,
                 recipes: Mapping[int, Recipe]) -> None:
        plan = encoding.plan
        assert plan.statistics is not None
        self.graph = plan.statistics.graph
        super().__init__(self.graph.last_use, first, recipes)
        self.encoding, self.plan, self.half = encoding, plan, half
        self.statistics = plan.statistics
        self.names = names_by_id(model, plan.inventory)
        self.batchnorm_of = {bn.running_mean: prefix for prefix, bn in plan.batchnorms.items()}
        self.weights: dict[str, Tensor] = {}  # restored, by name
        self.affine: dict[str, tuple[Tensor, Tensor]] = {}  # restored a, b of a BatchNorm
        self.generator = torch.Generator().manual_seed(self.statistics.seed)

    def __torch_function__(self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (),
                           kwargs: Mapping[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        name = self.names.get(id(argument(args, kwargs, 1, "weight")), "") if func in LAYER_CALLS else ""
        if name in self.plan.layers and LAYER_CALLS[func] != "embedding":
            def call(*args: Any, **kwargs: Any) -> Any:
                return self._layer(name, func, args, kwargs)
        elif name in self.plan.layers:
            def call(*args: Any, **kwargs: Any) -> Any:
                return self._embedding(name, func, args, kwargs)
        elif func is F.batch_norm and argument(args, kwargs, 5, "training", False):
            raise Mismatch("a BatchNorm takes means and variances over the batch, so that samples depend on each other")
        elif func is F.batch_norm:
            prefix = self.batchnorm_of.get(self.names.get(id(argument(args, kwargs, 1, "running_mean")), ""))
            if prefix is None:
                return super().__torch_function__(func, types, args, kwargs)

            def call(*args: Any, **kwargs: Any) -> Any:
                return self._batchnorm(prefix, argument(args, kwargs, 0, "input"))
        else:
            return super().__torch_function__(func, types, args, kwargs)
        return super().__torch_function__(call, types, args, kwargs)

    # ---- layers --------------------------------------------------------------------------------------

    def _layer(self, name: str, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
        x = argument(args, kwargs, 0, "input")
        bias_name = self.names.get(id(argument(args, kwargs, 2, "bias")))
        if x.ndim < 2 or len(x) % (2 * self.half):
            raise Mismatch(f"{name}: its input of shape {tuple(x.shape)} does not have the samples first")
        middle = len(x) // 2
        options = {key: value for key, value in kwargs.items() if key not in ("input", "weight", "bias")}
        rest = list(args[3:])
        weight, bias = argument(args, kwargs, 1, "weight"), argument(args, kwargs, 2, "bias")

        def run(part: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
            return func(part, w, b, *rest, **options)  # type: ignore[no-any-return]

        z_both = _room(run(x[:1], weight, bias), len(x))
        z, z_hat = z_both[:middle], z_both[middle:]
        _by_images(lambda part: run(x[:middle][part], weight, bias), z)
        if name not in self.weights and self.encoding.recall(name, self.generator):
            self.weights[name] = self._to_torch(self.encoding.restored(name), weight)
        elif name not in self.weights:
            target = self._target(name, func, args, kwargs, x, z)
            self.weights[name] = self._to_torch(self.encoding.encode_layer(target), weight)
            if self.encoding.targets is not None:
                self.encoding.targets(target)
            self.plan.remember(target)
            self.encoding.note(name, self.generator)
        restored = self.weights[name]
        if bias is not None and bias_name in self.plan.vectors and bias_name not in self.encoding.vectors \
                and self.plan.layers[name].bias == bias_name:
            _by_images(lambda part: run(x[middle:][part], restored, None), z_hat)
            axis = 1 if LAYER_CALLS[func] != "linear" else z.ndim - 1
            wanted = (_mean(z, axis) - _mean(z_hat, axis)).numpy()
            # Before a BatchNorm a shift is no one's: the BatchNorm has it.
            wanted = np.zeros_like(wanted) if name in self.plan.absorb else wanted
            array = self.encoding.encode_vector(bias_name, wanted)
            z_hat += self._to_torch(array, bias).reshape([-1 if i == axis else 1 for i in range(z.ndim)])
            return z_both
        if bias_name is not None and bias_name in self.encoding.vectors:
            array = self.plan.inventory.tensors[bias_name]
            values = self.encoding.vectors[bias_name].values().astype(np.float32).astype(array.dtype)
            bias = self._to_torch(values, bias)
        _by_images(lambda part: run(x[middle:][part], restored, bias), z_hat)
        return z_both

    def _embedding(self, name: str, func: Callable[..., Any], args: Sequence[Any],
                   kwargs: Mapping[str, Any]) -> Tensor:
        """Rows of a table: nothing before them to make up for, but what follows sees their errors."""
        ids, weight = argument(args, kwargs, 0, "input"), argument(args, kwargs, 1, "weight")
        bag = func is F.embedding_bag
        if ids.ndim == 0 or len(ids) % (2 * self.half) or (bag and (
                argument(args, kwargs, 2, "offsets") is not None or kwargs.get("per_sample_weights") is not None)):
            raise Mismatch(f"{name}: its input of shape {tuple(ids.shape)} does not have the samples first")
        if name not in self.weights:
            if not self.encoding.recall(name, self.generator):
                self.encoding.encode_layer(self.plan.target(name))
                self.encoding.note(name, self.generator)
            self.weights[name] = self._to_torch(self.encoding.restored(name), weight)
        options = {key: value for key, value in kwargs.items() if key not in ("input", "weight")}
        parts = zip(ids.chunk(2), (weight, self.weights[name]), strict=True)
        return torch.cat([func(part, table, *args[2:], **options) for part, table in parts])

    def _target(self, name: str, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any],
                x: Tensor, z: Tensor) -> LayerTarget:
        """The layer's target, corrected where that can be measured."""
        target = self.plan.target(name)
        measured = self.statistics.layers.get(name)
        if measured is None or target.A.ndim == 2 or target.W.shape[2] > LARGEST \
                or target.layer.kind == "embedding" or name in self.encoding.shared:
            return target
        shortcut = self._shortcut(name, z)
        middle = len(x) // 2
        halves = [self._moments(target, func, args, kwargs, x, z, shortcut, part)
                  for part in (slice(0, (middle + 1) // 2), slice((middle + 1) // 2, middle)) if part.stop > part.start]
        w, a = target.W.copy(), target.A.copy()
        for k in range(target.groups):
            g = np.asarray(target.G[k])
            cost = np.maximum(np.diag(g) if g.ndim == 2 else g, 0.0)
            change, h = correction([part.group(k, self.plan.is_centred(name)) for part in halves], cost)
            w[k] += change
            if measured.coherent is None:
                a[k] = h * measured.positions
        if measured.coherent is None:
            return replace(target, W=w, A=a).with_factors({"row_factors": target.row_factors})
        return replace(target, W=w).with_factors(target.factors)

    def _shortcut(self, name: str, z: Tensor) -> Tensor | None:
        """(s - s^) / gamma [images, channels, ...] of the addition that follows, or None."""
        prefix = self.plan.absorb.get(name)
        number = self.graph.residual.get(prefix if prefix is not None else name)
        other = self.values.get(number) if number is not None else None
        if other is None or len(other) % 2 or other[: len(other) // 2].shape != z.shape or z.ndim < 3:
            return None
        difference = other[: len(z)] - other[len(z) :]
        if prefix is not None:
            scale, _ = affine_of(self.plan.inventory, self.plan.batchnorms[prefix])
            usable = np.abs(scale) > 1e-3 * np.abs(scale).max(initial=1e-30)
            inverse = np.where(usable, 1.0 / np.where(usable, scale, 1.0), 0.0)
            difference = difference * torch.from_numpy(inverse).to(z.dtype).reshape(1, -1, *[1] * (z.ndim - 2))
        return difference

    def _moments(self, target: LayerTarget, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any],
                 x: Tensor, z: Tensor, shortcut: Tensor | None, part: slice) -> Moments:
        """Of the images `part`."""
        groups, m, n = target.W.shape
        sums = Moments.zeros(groups, m, n)
        weight = torch.from_numpy(target.W.astype(np.float32))
        middle = len(x) // 2
        columns = Columns(target, func, args, kwargs, self.generator, middle)
        chunk = max(1, PATCHES // max(1, columns.bytes_per_image(x, z)))
        for start in range(part.start, part.stop, chunk):
            stop = min(start + chunk, part.stop)
            u, v, s = columns.of(x[start:stop], x[middle + start : middle + stop], z[start:stop],
                                 None if shortcut is None else shortcut[start:stop])
            # Half precision would overflow.
            sums.add(weight, u.float(), v.float(), None if s is None else s.float())
        return sums

    # ---- BatchNorm -------------------------------------------------------------------------------------

    def _batchnorm(self, prefix: str, x: Tensor) -> Tensor:
        if len(x) % (2 * self.half):
            raise Mismatch(f"{prefix}: its input of shape {tuple(x.shape)} does not have the samples first")
        middle = len(x) // 2
        scale, shift = affine_of(self.plan.inventory, self.plan.batchnorms[prefix])
        if prefix not in self.affine:
            over = [i for i in range(x.ndim) if i != 1]
            (variance, mean), (variance_hat, mean_hat) = (
                [moment.double().numpy() for moment in torch.var_mean(part, over, correction=0)]
                for part in (x[:middle], x[middle:]))
            ratio = rescale(variance, variance_hat)
            wanted = scale * mean + shift
            number = self.graph.residual.get(prefix)
            other = self.values.get(number) if number is not None else None
            if other is not None and other.shape == x.shape:
                wanted = wanted + (other[:middle] - other[middle:]).double().mean(over).numpy()
            # As a decoder restores it: rounded to float32.
            a, b = self.encoding.encode_batchnorm(prefix, scale * ratio, mean_hat, wanted)
            self.affine[prefix] = torch.from_numpy(a.astype(np.float32)), torch.from_numpy(b.astype(np.float32))
        shape = (1, -1, *[1] * (x.ndim - 2))

        both = _room(x[:1], len(x))
        pairs = (torch.from_numpy(scale), torch.from_numpy(shift)), self.affine[prefix]
        for half, out, pair in zip(x.chunk(2), both.chunk(2), pairs, strict=True):
            factor, term = (value.to(x.dtype).reshape(shape) for value in pair)
            _by_images(partial(_affine, half, factor, term), out)
        return both

    @staticmethod
    def _to_torch(array: Any, like: Tensor) -> Tensor:
        return to_torch(array).to(like.device, like.dtype)


def _room(one: Tensor, images: int) -> Tensor:
    """Memory for so many images like `one` [1, ...]."""
    return torch.empty((images, *one.shape[1:]), dtype=one.dtype, device=one.device)


def _cuts(like: Tensor) -> list[slice]:
    """Ranges of images of about CHUNK bytes: fixed, so that no result depends on the number of threads."""
    step = max(1, CHUNK // max(1, like[:1].numel() * like.element_size()))
    return [slice(first, first + step) for first in range(0, len(like), step)]


def _by_images(run: Callable[[slice], Tensor], out: Tensor) -> None:
    """out[part] = run(part) for all parts of the images."""
    def work(part: slice) -> None:
        with torch.no_grad():
            out[part] = run(part)

    for _ in in_order(work, _cuts(out)):
        pass


def _affine(x: Tensor, factor: Tensor, term: Tensor, part: slice) -> Tensor:
    return x[part] * factor + term


def _mean(z: Tensor, axis: int) -> Tensor:
    """float64 mean over all axes but one."""
    over = [i for i in range(z.ndim) if i != axis]
    sums = in_order(lambda part: z[part].sum(over, dtype=torch.float64), _cuts(z))
    total = torch.stack(list(sums)).sum(0)
    return total / max(1, z.numel() // max(1, z.shape[axis]))


