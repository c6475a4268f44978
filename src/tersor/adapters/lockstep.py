"""A second pass that meets the numbered calls of a trace again, and has the residual operands in time.

    graph, recipes = trace_with_recipes(model, inventory, (x[:1],))
    with CallCounter(graph.last_use, x, recipes) as counter:
        model(x)                          # in a hook: counter.values.get(graph.residual[name])
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from .calls import tensors_in
from .inventory import INPUT


@dataclass(frozen=True)
class Step:
    """One recorded call. `slots` say which earlier result takes the place of each tensor in its arguments."""

    func: Callable[..., Any]
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    slots: tuple[int, ...]


@dataclass(frozen=True)
class Recipe:
    """How to make a residual operand without parameters from the output of call `base` (ResNet's shortcut
    that only slices and pads, say, which the model computes after the branch that it is added to)."""

    base: int
    steps: tuple[Step, ...]

    def make(self, value: Tensor) -> Tensor | None:
        """The operand, from the output of call `base`; None if the recipe only fits the traced batch size."""
        results = [value]
        try:
            for step in self.steps:
                operands = iter([results[slot] for slot in step.slots])
                args, kwargs = _replaced((list(step.args), dict(step.kwargs)), operands)
                results.append(step.func(*args, **kwargs))
        except RuntimeError:
            return None
        return results[-1] if results[-1].shape[:1] == value.shape[:1] else None


def _replaced(value: Any, operands: Iterator[Tensor]) -> Any:
    """The same nested arguments with their tensors replaced in order (the order of `tensors_in`)."""
    if isinstance(value, Tensor):
        return next(operands)
    if isinstance(value, Mapping):
        return {key: _replaced(item, operands) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)([_replaced(item, operands) for item in value])
    return value


class CallCounter(TorchFunctionMode):
    """Counts tensor-producing calls exactly as `trace` does, and keeps the outputs that are asked for.

    `wanted` maps the number of a call to the number of the last call that needs its output
    (`Graph.last_use`); in between, the output is in `values`. `INPUT` stands for `model_input`. With
    `recipes` (number of an operand -> how to make it) an operand is there as soon as its base is.

    Code that runs torch calls of its own meanwhile (hooks) does so under `with counter.paused():`.
    After the forward, `counter.calls == graph.calls`, else the model took another way.
    """

    def __init__(self, wanted: Mapping[int, int], model_input: Tensor | None = None,
                 recipes: Mapping[int, Recipe] | None = None) -> None:
        super().__init__()
        self.calls = 0
        self.wanted = dict(wanted)
        self.values: dict[int, Tensor] = {}
        self._paused = False
        self._recipes: dict[int, list[tuple[int, Recipe]]] = {}
        for number, recipe in (recipes or {}).items():
            self._recipes.setdefault(recipe.base, []).append((number, recipe))
        if model_input is not None:
            self._keep(INPUT, model_input)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Calls inside are not counted."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def __torch_function__(self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (),
                           kwargs: Mapping[str, Any] | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self._paused or next(tensors_in(result), None) is None:
            return result
        number = self.calls
        self.calls += 1
        if isinstance(result, Tensor):
            self._keep(number, result)
        for operand in [key for key in self.values if self.wanted[key] <= number]:
            del self.values[operand]
        return result

    def _keep(self, number: int, value: Tensor) -> None:
        """Hold what is wanted of call `number`, and what can be made of it."""
        if number in self.wanted and number not in self.values:
            self.values[number] = value
        with self.paused():
            for operand, recipe in self._recipes.get(number, []):
                made = recipe.make(value)
                if operand in self.wanted and made is not None:
                    self.values[operand] = made
