"""Diagonals of curvature, one number per weight: the h of sum h (w - c)^2 in codebook quantization.

Three kinds, interchangeable (Choi, El-Khamy, Lee, ICLR 2017, use the first and the last):

* `hessian_diagonal`: of a loss, by second-order back-propagation with random signs (Hutchinson).
* `gauss_newton_diagonal`: of the squared error of the logits, or of the cross-entropy; never negative. Of the
  logits it does not vanish on a trained network's own training images, as what comes from a loss does.
* `adam_second_moment`: the square root of Adam's second moments, which training leaves behind for nothing.

All give dict[name, float32 array of the parameter's shape], names as in `model.named_parameters()`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from .adapters.calls import names_by_id, undisturbed
from .adapters.inventory import Inventory, WeightLayer
from .adapters.module import inventory_of_module
from .calibration.batches import Batch, read_batches
from .calibration.uses import DenseUse, Recorder
from .errors import StatisticsError
from .statistics import Floats
from .tools.target import from_matrix

__all__ = ["adam_second_moment", "gauss_newton_diagonal", "hessian_diagonal", "usable"]

Pair = tuple[DenseUse, Tensor]
Loss = Callable[[Any, Any], Tensor]
BUDGET = 256 << 20
"""Bytes of per-image weight gradients at a time."""


def hessian_diagonal(model: nn.Module, batches: Iterable[Any], loss: Loss, samples: int = 1, *,
                     seed: int = 0) -> dict[str, Floats]:
    """Diagonal of the Hessian of the mean loss, E over random signs z of z * (H z) (Hutchinson, 1990; Bekas,
    Kokiopoulou, Saad, 2007): unbiased, with the off-diagonal elements of a row as noise.

    * `batches`: (input, target) pairs; `loss(output, target)`: a scalar, the mean over the batch.
    * `samples`: random vectors per batch; each costs about three gradients.

    The model is run in eval mode and left as it was. Elements may be negative: see `usable`.
    Raises `StatisticsError` without images, or naming the parameter whose diagonal is not finite.
    """
    if samples < 1:
        raise StatisticsError(f"samples={samples}: at least 1 random vector is needed")
    generator = torch.Generator().manual_seed(seed)
    with _measuring(model):
        parameters = _parameters(model)
        sums = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in parameters.items()}
        device = next((p.device for p in parameters.values()), torch.device("cpu"))
        images = 0
        for x, target in batches:
            x, target = x.detach().to(device), target.to(device)
            value = loss(model(x), target)
            grads = torch.autograd.grad(value, list(parameters.values()), create_graph=True,
                                        allow_unused=True)
            # Only what depends on a parameter again has a second derivative.
            used = {name: g for name, g in zip(parameters, grads, strict=True)
                    if g is not None and g.requires_grad}
            for number in range(samples if used else 0):
                signs = {name: _signs(g, generator) for name, g in used.items()}
                products = torch.autograd.grad(
                    list(used.values()), [parameters[name] for name in used], list(signs.values()),
                    retain_graph=number + 1 < samples, allow_unused=True)
                for (name, sign), product in zip(signs.items(), products, strict=True):
                    if product is not None:
                        sums[name] += (sign * product.detach()).double() * (len(x) / samples)
            images += len(x)
    return _result(sums, images)


def gauss_newton_diagonal(model: nn.Module, batches: Iterable[Any] | Tensor, *, vectors: int | None = None,
                          of: Literal["logits", "cross_entropy"] = "logits",
                          output: Callable[[Any], Tensor] | None = None, seed: int = 0) -> dict[str, Floats]:
    """Diagonal of E over images of J^T B J, J = dy/dw per image, from exact per-image gradients of the
    weights and biases of linear layers and convolutions.

    * `of`: "logits": B = I, the curvature of |y_hat - y|^2 / 2 at each output; "cross_entropy": B = diag(p) -
      p p^T, p = softmax(y): the Fisher matrix of the loss.
    * `vectors`: None for the exact sum over all logits, one backward pass each; or so many random vectors v
      with E v v^T = B per batch (signs, or one-hot draws from p less p): unbiased, cheaper for many logits.
    * `batches`, `output`: as in `tersor.calibrate`.

    Weights that the forward does not reach get 0; embeddings and other parameters are left out.
    Raises `StatisticsError`, naming the layer where there is one.
    """
    if vectors is not None and vectors < 1:
        raise StatisticsError(f"vectors={vectors}: at least 1, or None for the exact diagonal")
    generator = torch.Generator().manual_seed(seed)
    inventory = inventory_of_module(model)
    images = 0
    with _measuring(model):
        parameters = _parameters(model)
        recorder = Recorder(inventory, names_by_id(model, inventory))
        sums: dict[str, Tensor] = {}
        for batch in read_batches(batches, model):
            _add_batch(sums, model, recorder, batch, output, lambda y: _factors(y, of, vectors, generator))
            images += batch.images
    layers = {layer.name: layer for layer in inventory.layers
              if layer.name not in recorder.odd and layer.kind != "embedding"}
    return _by_tensor(sums, layers, inventory, parameters, images)


def adam_second_moment(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Floats]:
    """sqrt(v) of Adam, v corrected for its start at 0, for every parameter of `model` that requires a
    gradient and has had one. The paper's substitute for the Hessian: training leaves it behind for nothing.

    State is looked up by the identity of the parameters, so that their order does not matter.
    Raises `StatisticsError` when the optimizer holds none of the model's parameters or no second moments.
    """
    owned = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    found: dict[str, Floats] = {}
    for name, parameter in model.named_parameters():
        state = optimizer.state.get(parameter, {})
        if not parameter.requires_grad or not state:
            continue
        if "exp_avg_sq" not in state:
            raise StatisticsError(f"{name}: {type(optimizer).__name__} keeps no second moments (exp_avg_sq); "
                                  f"train with Adam, AdamW or NAdam")
        beta = float(owned[id(parameter)].get("betas", (0.0, 0.0))[1])
        steps = float(state.get("step", 0))
        correction = 1.0 - beta**steps if steps > 0 else 1.0
        found[name] = (state["exp_avg_sq"].detach().double() / correction).sqrt().float().cpu().numpy()
    if not found:
        raise StatisticsError("the optimizer has no state for any of this model's parameters: it belongs to "
                              "another model (or a copy of this one), or has made no step yet")
    return found


def usable(diagonal: Mapping[str, Floats], floor: float = 1e-3) -> dict[str, Floats]:
    """Finite and positive: elements below `floor` times the mean of all positive ones (of all tensors), and
    those that are not finite, are raised to that; if none is positive, all become 1.

    Clustering needs h >= 0, and a weight of h = 0 could end up anywhere.
    """
    positive = {name: np.maximum(np.nan_to_num(d, nan=0.0, posinf=0.0), 0.0) for name, d in diagonal.items()}
    total = sum(float(d.sum(dtype=np.float64)) for d in positive.values())
    count = sum(int((d > 0).sum()) for d in positive.values())
    least = floor * total / count if count else 1.0
    return {name: np.maximum(d, least).astype(np.float32) for name, d in positive.items()}


def _add_batch(sums: dict[str, Tensor], model: nn.Module, recorder: Recorder, batch: Batch,
               output: Callable[[Any], Tensor] | None, factors: Callable[[Tensor], Iterator[Tensor]]) -> None:
    """Add sum over images and vectors v of (d(v.y)/dw)^2 to `sums`, weights as [groups, m, n] matrices."""
    with recorder.batch(batch.images) as recorded:
        result = model(*batch.call[0], **batch.call[1])
    y = output(result) if output is not None else result
    if not isinstance(y, Tensor) or y.ndim < 2 or y.shape[0] != batch.images:
        raise StatisticsError(f"the model's output is no tensor [images = {batch.images}, logits]; choose "
                              f"one by output=lambda result: ...")
    uses = [use for use in recorded if isinstance(use, DenseUse) and not use.as_embedding]
    odd = next((use.name for use in uses if use.images != batch.images), None)
    if odd is not None:
        raise StatisticsError(f"{odd}: its input has not the batch's {batch.images} images as first axis, so "
                              f"gradients cannot be told apart by image; give batches of one image")
    y = y.flatten(1)
    for vector in factors(y.detach()) if uses else ():
        grads = torch.autograd.grad(y, [use.edge for use in uses], vector, retain_graph=True,
                                    allow_unused=True)
        together: dict[str, list[Pair]] = {}
        biases: dict[str, Tensor] = {}
        for use, grad in zip(uses, grads, strict=True):
            use.check()
            if grad is not None:
                together.setdefault(use.name, []).append((use, grad.detach()))
                if use.bias is not None:
                    biases[use.bias] = biases.get(use.bias, 0) + use.bias_gradient(grad.detach())
        squares = {name: _squares(pairs, batch.images) for name, pairs in together.items()}
        squares |= {name: bias.double().square().sum(0) for name, bias in biases.items()}
        for name, square in squares.items():
            sums[name] = sums[name] + square if name in sums else square


def _squares(pairs: list[Pair], images: int) -> Tensor:
    """Sum over images of the squared gradient of one weight, float64 [groups, m, n]; the gradients of all
    its uses add up before they are squared."""
    first, grad = pairs[0]
    n, m, positions = first.dimensions(grad)
    per_image = 8 * first.groups * (n * m + positions * (n + m))
    chunk = max(1, BUDGET // max(1, per_image))
    total = torch.zeros((), dtype=torch.float64, device=grad.device)
    for start in range(0, images, chunk):
        part = slice(start, min(images, start + chunk))
        sides = [use.sides(grad, part, slice(0, use.row_count(grad))) for use, grad in pairs]
        if positions == 1 and len(sides) == 1:  # (g u)^2 = g^2 u^2: no gradient per image needs to exist
            u, z = (side[..., 0].double().square() for side in sides[0])
            total = total + z @ u.transpose(1, 2)
            continue
        # [groups, images, m, n]
        gradients = [z.transpose(1, 2) @ u.permute(0, 2, 3, 1) for u, z in sides]
        gradient = gradients[0] if len(gradients) == 1 else torch.stack(gradients).sum(0)
        total = total + gradient.double().square().sum(1)
    return total


def _factors(y: Tensor, of: str, vectors: int | None, generator: torch.Generator) -> Iterator[Tensor]:
    """Vectors v [images, logits] with sum (or mean over `vectors`) of v v^T = B for each image."""
    p = torch.softmax(y, 1)
    if of not in ("logits", "cross_entropy"):
        raise StatisticsError(f"of={of!r}: 'logits' or 'cross_entropy'")
    for k in range(y.shape[1] if vectors is None else vectors):
        if vectors is None:
            hot = torch.zeros_like(y)
            hot[:, k] = 1.0
            # sum_k p_k (e_k - p)(e_k - p)^T = diag(p) - p p^T
            yield hot if of == "logits" else (hot - p) * p[:, k:k + 1].sqrt()
        elif of == "logits":
            yield _signs(y, generator) / vectors**0.5
        else:
            drawn = torch.multinomial(p.float().cpu(), 1, generator=generator).to(y.device)
            yield (torch.zeros_like(y).scatter_(1, drawn, 1.0) - p) / vectors**0.5


def _by_tensor(sums: Mapping[str, Tensor], layers: Mapping[str, WeightLayer], inventory: Inventory,
               parameters: Mapping[str, nn.Parameter], images: int) -> dict[str, Floats]:
    """Matrices -> tensors of the parameters' shapes; biases as they are; zeros where nothing arrived."""
    tensors = {}
    for name, parameter in parameters.items():
        if name in layers and name in sums:
            matrix: npt.NDArray[np.generic] = sums[name].cpu().numpy()
            tensor = from_matrix(matrix, layers[name], inventory.tensors[name].shape)
            tensors[name] = torch.from_numpy(np.ascontiguousarray(tensor))
        elif name in sums and sums[name].shape == parameter.shape:
            tensors[name] = sums[name]
        elif name in layers:
            tensors[name] = torch.zeros(parameter.shape, dtype=torch.float64)
    return _result(tensors, images)


def _result(sums: Mapping[str, Tensor], images: int) -> dict[str, Floats]:
    """Means over images."""
    if images == 0:
        raise StatisticsError("there are no images: `batches` is empty or an iterator that is used up")
    for name, total in sums.items():
        if not bool(torch.isfinite(total).all()):
            raise StatisticsError(f"{name}: its diagonal holds NaN or infinity; look at weights and images")
    return {name: (total / images).float().cpu().numpy() for name, total in sums.items()}


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    """Random +-1, the same on every device."""
    drawn = torch.randint(0, 2, like.shape, generator=generator) * 2 - 1
    return drawn.to(like.device, like.dtype)


def _parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.is_floating_point()}


@contextmanager
def _measuring(model: nn.Module) -> Iterator[None]:
    """Eval mode with gradients for every floating parameter; afterwards all is as it was."""
    with torch.inference_mode(False), torch.enable_grad(), undisturbed(model):
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.requires_grad_(True)
        yield
