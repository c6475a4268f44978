"""A network's outputs with one other weight, again and again: what comes before that weight is not computed anew.

    replay = Replay(model, run)                     # run(callable) -> outputs, on always the same inputs
    with replay.layer("layer3.0.conv1.weight"):
        y_hat = replay.outputs(weight)

The results of all torch calls before the first one that reads the weight are kept from the first run and given
back. Where that does not reproduce the outputs bit for bit, the whole network runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .calls import tensors_in

MEMORY = 1 << 30
"""Bytes of results that are kept; later ones are computed anew."""


class Replay:
    """The outputs of a model with one other weight; the model is in eval mode and not touched (see `undisturbed`).

    run: calls what it is given (a model) on inputs, the same every time, and returns the outputs.
    `reference`: the outputs with the model's own weights. `evaluations`: how often it was run.
    """

    def __init__(self, model: nn.Module, run: Callable[[nn.Module], Tensor]) -> None:
        self._model, self._run = model, run
        self._own = dict((*model.named_parameters(remove_duplicate=False),
                          *model.named_buffers(remove_duplicate=False)))
        self._recorder = _Recorder({id(tensor) for tensor in self._own.values()})
        self._name, self._start, self.evaluations = "", 0, 0
        self.reference = self._evaluate({}, nullcontext())
        self._evaluate({}, self._recorder)

    @contextmanager
    def layer(self, name: str) -> Iterator[Tensor]:
        """Make ready for other values of the parameter `name`; gives its own."""
        own = self._own[name]
        first = self._recorder.first.get(id(own), 0)
        self._name, self._start = name, min(first, len(self._recorder.results))
        if self._start and not torch.equal(self.outputs(own), self.reference):
            self._start = 0
        yield own
        self._start = 0

    def outputs(self, weight: Tensor) -> Tensor:
        """The outputs with `weight` in place of the layer's own."""
        mode = _Player(self._recorder, self._start) if self._start else nullcontext()
        return self._evaluate({self._name: weight}, mode)

    def _evaluate(self, replaced: dict[str, Tensor], mode: Any) -> Tensor:
        model = self._model
        self.evaluations += 1

        class _Replaced(nn.Module):
            def forward(self, *args: Any, **kwargs: Any) -> Any:
                with mode:
                    return torch.func.functional_call(model, replaced, args, kwargs, tie_weights=True)

        with torch.no_grad():
            return self._run(_Replaced())


class _Recorder(TorchFunctionMode):
    """Keeps the results of calls, as long as memory allows, and knows at which call a tensor is read first."""

    def __init__(self, watched: set[int]) -> None:
        super().__init__()
        self.watched = watched
        self.results: list[Any] = []
        self.first: dict[int, int] = {}
        self.writes = False
        self._calls = self._bytes = 0
        self._open = True

    def __torch_function__(self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (),
                           kwargs: Mapping[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        inputs = list(tensors_in((args, kwargs)))
        versions = [tensor._version for tensor in inputs]
        result = func(*args, **kwargs)
        for tensor in inputs:
            if id(tensor) in self.watched:
                self.first.setdefault(id(tensor), self._calls)
        self.writes |= [tensor._version for tensor in inputs] != versions
        self._bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors_in(result))
        self._open &= self._bytes <= MEMORY and _is_plain(result)
        if self._open:
            self.results.append(_copied(result))
        self._calls += 1
        return result


class _Player(TorchFunctionMode):
    """Gives back the results of the first `start` calls."""

    def __init__(self, recorder: _Recorder, start: int) -> None:
        super().__init__()
        self.recorder, self.start, self.calls = recorder, start, 0

    def __torch_function__(self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (),
                           kwargs: Mapping[str, Any] | None = None) -> Any:
        if self.calls >= self.start:
            return func(*args, **(kwargs or {}))
        kept = self.recorder.results[self.calls]
        self.calls += 1
        return _copied(kept) if self.recorder.writes else kept


def _is_plain(value: Any) -> bool:
    """Whether giving this back stands for the call: no None of a call that only writes, no iterator."""
    if type(value) in (tuple, list):
        return all(_is_plain(item) for item in value)
    return isinstance(value, Tensor | torch.Size | torch.dtype | torch.device | int | float | str)


def _copied(value: Any) -> Any:
    """Tensors that writing in place cannot reach."""
    if isinstance(value, Tensor):
        return value.clone()
    if type(value) in (tuple, list):
        return type(value)(_copied(item) for item in value)
    return value
