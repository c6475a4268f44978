"""A network whose tensors are those of a file, as parameters that stay within what a file can hold.

    trainable = packed.trainable(model)                          # model: the network that was compressed
    optimizer = torch.optim.Adam(trainable.groups())
    for step, (x, y) in enumerate(batches):
        if step % 10 == 0:
            trainable.refresh()                                  # code lengths follow the integers
        loss = F.cross_entropy(trainable(x), y) + weight * trainable.rate()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    better = trainable.repack()
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Container, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ..adapters.module import load_into
from ..bitstream.source import Readable
from ..decoder import load
from ..errors import ModelError
from ..limits import Limits
from ..packed import Packed
from ..sections import Code, Contents, Section
from .kernels import KernelBooks
from .matrices import LEAN, Matrix
from .rates import CodeLengths
from .shared import SharedValues
from .small import AffineMaps, SmallTensors
from .weights import CodedWeight

LATENT_RATE = 5e-3
"""Adam's learning rate of integers, in steps."""
VALUE_RATE = 2e-3
"""Of codebooks, in root mean squares of their values."""
SMALL_RATE = 5e-4
"""Of BatchNorms and biases, in octaves and in root mean squares."""


@runtime_checkable
class Part(Protocol):
    """One section of the file in training."""

    def tensors(self, only: Container[str] | None = None) -> dict[str, Tensor]:
        """What a decoder restores, by name; differentiable. `only`: of these names, if they are of the section."""

    def codes(self) -> Sequence[Code]:
        """Of the section, as they are now."""


WIDEST, TRIALS = 0.2, 6
"""How far, in steps, integers may be from the nearest for the sake of a size, and trials to find how far they must."""


class CodedWeights(nn.Module):
    """The weights of a section of the tools scalar or transform."""

    def __init__(self, section: Section, weights: Sequence[Tensor]) -> None:
        super().__init__()
        self.names = section.names
        self.weights = nn.ModuleList(CodedWeight(name, code, weight)  # type: ignore[arg-type]
                                     for name, code, weight in zip(section.names, section.codes, weights, strict=True))

    def tensors(self, only: Container[str] | None = None) -> dict[str, Tensor]:
        return {name: weight() for name, weight in zip(self.names, self.weights, strict=True)
                if only is None or name in only}

    def codes(self) -> list[Code]:
        return [weight.coded() for weight in self.weights if isinstance(weight, CodedWeight)]


class Trainable(nn.Module):
    """A module that computes what the restored file computes, and whose parameters are the file's.

    * `file`: a `Packed`, or a .tersor file (path, bytes, binary file).
    * `model`: the network that was compressed, with its original weights (a copy is used): integers begin where in
      their step the weight was that they stand for. With other weights (of a fresh network) they begin in the middle.
    * `lean`: how far from the middle they may begin, in steps, 0 to 0.5.

    Integers of every tool, bases, codebooks, gains, BatchNorms, biases are parameters; indexes into codebooks, steps,
    depths and everything that is lossless stay. BatchNorms use what the file says of them (y = a z + b) while the rest
    is trained: statistics of batches would add noise that the file cannot hold.

    Called like the model. Raises `FormatError` for a bad file, `ModelError` where it is another model's.
    """

    def __init__(self, file: Packed | Readable, model: nn.Module, *, lean: float = LEAN,
                 limits: Limits | None = None) -> None:
        super().__init__()
        data = file.data if isinstance(file, Packed) else file
        self.price = file.price if isinstance(file, Packed) else float("nan")
        self.contents = Contents.of(data, limits)
        own = dict(model.named_parameters(remove_duplicate=False))
        self.model = copy.deepcopy(model)
        with load(data, limits) as opened:
            load_into(self.model, opened.read_all(), opened.aliases if opened.tied else None)
            self._aliases = dict(opened.aliases)
        self.model.requires_grad_(False)
        known = {**dict(self.model.named_buffers()), **dict(self.model.named_parameters(remove_duplicate=False))}
        missing = [name for section in self.contents.sections for name in section.names
                   if section.tool != "raw" and name not in known]
        if missing:
            raise ModelError(f"{missing[0]}: the model has no tensor of this name to train")
        self.parts = nn.ModuleList(  # raw: lossless tensors, and what an ONNX file has besides its tensors
            nn.Module() if section.tool == "raw" else _part(section, [known[name].detach() for name in section.names])
            for section in self.contents.sections)
        self.lengths = CodeLengths()
        with torch.no_grad():
            for part in self.parts:
                if isinstance(part, CodedWeights) and lean > 0.0:
                    for name, weight in zip(part.names, part.weights, strict=True):
                        if isinstance(weight, CodedWeight) and name in own:
                            weight.lean(own[name].detach(), lean)
        self.train(model.training)
        self.fit()

    def train(self, mode: bool = True) -> Trainable:
        """As of any module, but BatchNorms stay in eval mode."""
        super().train(mode)
        for module in self.model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def named_parameters(self, prefix: str = "", recurse: bool = True,
                         remove_duplicate: bool = True) -> Iterator[tuple[str, nn.Parameter]]:
        """Those of the file; the model's own are only where they are put."""
        start = f"{prefix}.model." if prefix else "model."
        for name, parameter in super().named_parameters(prefix, recurse, remove_duplicate):
            if not name.startswith(start):
                yield name, parameter

    def matrices(self) -> list[Matrix]:
        """All matrices of integers."""
        return [module for module in self.parts.modules() if isinstance(module, Matrix)]

    def groups(self, latents: float = LATENT_RATE, values: float = VALUE_RATE,
               small: float = SMALL_RATE) -> list[dict[str, Any]]:
        """Parameter groups for an optimizer, with learning rates that suit Adam: of integers (in steps), of codebooks
        and gains (in root mean squares), of BatchNorms and biases. Groups without parameters are left out."""
        found: dict[str, list[nn.Parameter]] = {"latents": [], "values": [], "small": []}
        for part in self.parts:
            kind = "latents" if isinstance(part, CodedWeights) else \
                "small" if isinstance(part, AffineMaps | SmallTensors) else "values"
            found[kind] += list(part.parameters())
        rates = {"latents": latents, "values": values, "small": small}
        return [{"params": found[kind], "lr": rates[kind], "name": kind} for kind in rates if found[kind]]

    def weights(self, only: Collection[str] | None = None) -> dict[str, Tensor]:
        """All trained tensors as a decoder restores them (up to the order of sums), by name; differentiable. `only`:
        those of these names."""
        out: dict[str, Tensor] = {}
        firsts = None if only is None else {self._aliases.get(name, name) for name in only}
        for part in self.parts:
            if isinstance(part, Part):
                out |= part.tensors(firsts)
        out |= {name: out[first] for name, first in self._aliases.items() if first in out}
        return out if only is None else {name: tensor for name, tensor in out.items() if name in only}

    def uses(self) -> dict[nn.Parameter, set[str]]:
        """The names of the tensors that depend on each parameter; without those on which none does."""
        found: dict[nn.Parameter, set[str]] = {}
        again: dict[str, set[str]] = {}
        for name, first in self._aliases.items():
            again.setdefault(first, set()).add(name)
        for part in self.parts:
            parameters = [parameter for parameter in part.parameters() if parameter.requires_grad]
            with torch.enable_grad():
                tensors = part.tensors() if isinstance(part, Part) else {}
            for name, tensor in tensors.items():
                if tensor.requires_grad:
                    slopes = torch.autograd.grad(tensor.sum(), parameters, retain_graph=True, allow_unused=True)
                    for parameter, slope in zip(parameters, slopes, strict=True):
                        if slope is not None:
                            found.setdefault(parameter, set()).update({name}, again.get(name, ()))
        return found

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return torch.func.functional_call(self.model, self.weights(), args, kwargs)

    def settle(self) -> None:
        """Search the paths of all trellises anew, for the latents as they are now."""
        for matrix in self.matrices():
            matrix.settle()

    @torch.no_grad()
    def refresh(self) -> float:
        """`settle` and `fit`: to be called every few steps of training."""
        self.settle()
        return self.fit()

    @torch.no_grad()
    def fit(self) -> float:
        """Fit the code lengths to the integers as they are; returns the bits of all that are entropy-coded."""
        return self.lengths.fit([matrix.classify() for matrix in self.matrices() if matrix.is_coded])

    def rate(self) -> Tensor:
        """Estimated bits of the entropy-coded integers of matrices; a scalar, differentiable. See `rates`."""
        parts = [matrix.rate(self.lengths) for matrix in self.matrices() if matrix.is_coded]
        return torch.stack(parts).sum() if parts else torch.zeros(())

    @torch.no_grad()
    def repack(self, limit: int | None = None) -> Packed:
        """The file of the network as it is now, with everything else as in the file that it came from.

        Trellises are settled, so that from then on the module computes what the file restores.

        limit: bytes that the file shall not exceed. Where it is a little larger, integers that are nearly the next
        smaller one become that, as many as need be, until `relax`; where that does not suffice it is larger.
        """
        packed = self._written(0.0)
        if limit is None or packed.size <= limit:
            return packed
        low, high, best = 0.0, WIDEST, self._written(WIDEST)
        if best.size > limit:
            return self._written(0.0)
        for _ in range(TRIALS):
            middle = (low + high) / 2.0
            packed = self._written(middle)
            low, high, best = (middle, high, best) if packed.size > limit else (low, middle, packed)
        return self._written(high) if packed is not best else best

    def relax(self) -> None:
        """Round to the nearest integers again after `repack` with a limit."""
        for matrix in self.matrices():
            matrix.dead = 0.0
        self.settle()

    def _written(self, dead: float) -> Packed:
        for matrix in self.matrices():
            matrix.dead = dead
        self.settle()
        codes = [part.codes() if isinstance(part, Part) else () for part in self.parts]
        data, weight_bytes = self.contents.counted(codes)
        return Packed(data, self.contents.manifest.parameters, self.price, None, weight_bytes)

    @torch.no_grad()
    def restored(self) -> nn.Module:
        """A plain copy of the model with the weights of `repack()`."""
        with load(self.repack().data) as opened:
            model = load_into(copy.deepcopy(self.model), opened.read_all(), opened.aliases if opened.tied else None)
        return model.requires_grad_(True)


def _part(section: Section, weights: Sequence[Tensor]) -> nn.Module:
    codes: Sequence[Any] = section.codes
    names = section.names
    if section.tool in ("scalar", "transform"):
        return CodedWeights(section, weights)
    if section.tool == "kernels":
        return KernelBooks(names, codes, weights)
    if section.tool == "codebook":
        return SharedValues(names, codes[0], weights)
    if section.tool == "batchnorm":
        return AffineMaps(list(zip(names[::4], names[1::4], strict=True)), codes, weights[::4])
    if section.tool == "vector":
        return SmallTensors(names, codes, weights)
    return nn.Module()
