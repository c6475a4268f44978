"""Options of the encoder, as frozen dataclasses: an unknown name, a value out of range is a `ConfigError`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Literal

from .errors import ConfigError

TOOLS = ("scalar", "raw")
"""Coding tools that weights can be given to, named after the files in `tersor.tools`, `tersor.synthesis`."""

MODES = ("small", "fast")
MIN_EFFORT, DEFAULT_EFFORT, MAX_EFFORT = 1, 5, 9


@dataclass(frozen=True)
class LayerConfig:
    """What a user says about single layers.

    tool: "raw" keeps the layer bit-exact. weight: factor on the layer's distortion: 4 gives it about one bit
    per weight more than its sensitivity asks for.
    """

    tool: Literal["scalar", "raw"] | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.tool is not None and self.tool not in TOOLS:
            raise ConfigError(f"tool={self.tool!r} is not one of {', '.join(TOOLS)}")
        if not 0.0 < self.weight < float("inf"):
            raise ConfigError(f"weight={self.weight} must be positive and finite")


@dataclass(frozen=True)
class Config:
    """How to encode.

    * `tools`: coding tools that may be used for weights.
    * `mode`: "small" (adaptive contexts, smallest file) or "fast" (static rANS, decodes at memory speed).
    * `effort`: 1 to 9. 1, 2: no error feedback. 3, 4: feedback on the statistics as measured. From 5 on (the
      default), where the statistics kept samples, a second walk through the network in the order of the
      data: every layer makes up for the errors of those before it.
    * `keep_exact`: BatchNorm and every other tensor that is no weight matrix stays bit-exact.
    * `layers`: regular expression (matched against the whole weight name) -> LayerConfig; the first match
      counts.
    """

    tools: tuple[str, ...] = ("scalar",)
    mode: str = "small"
    effort: int = DEFAULT_EFFORT
    keep_exact: bool = False
    layers: Mapping[str, LayerConfig] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.tools, str) or not self.tools or any(tool not in TOOLS for tool in self.tools):
            raise ConfigError(f"tools={self.tools!r} must be a tuple of some of {', '.join(TOOLS)}")
        if self.mode not in MODES:
            raise ConfigError(f"mode={self.mode!r} is not one of {', '.join(MODES)}")
        if not isinstance(self.effort, int) or not MIN_EFFORT <= self.effort <= MAX_EFFORT:
            raise ConfigError(f"effort={self.effort!r} must be an integer from {MIN_EFFORT} to {MAX_EFFORT}")
        for pattern, layer in self.layers.items():
            if not isinstance(layer, LayerConfig):
                raise ConfigError(f"layers[{pattern!r}] must be a LayerConfig, not {type(layer).__name__}")
            try:
                re.compile(pattern)
            except re.error as error:
                raise ConfigError(f"layers[{pattern!r}] is no regular expression: {error}") from None

    def layer(self, name: str) -> LayerConfig:
        """The configuration of the weight called `name`."""
        for pattern, layer in self.layers.items():
            if re.fullmatch(pattern, name):
                return layer
        return LayerConfig(tool="raw") if "scalar" not in self.tools else LayerConfig()

    @property
    def feedback(self) -> bool:
        return self.effort >= 3

    @property
    def corrected(self) -> bool:
        return self.effort >= 5


def make_config(base: Config | None, options: Mapping[str, object]) -> Config:
    """`base` (or the default) with some options replaced. Raises `ConfigError` for a name that is none."""
    known = {item.name for item in fields(Config)}
    unknown = sorted(set(options) - known)
    if unknown:
        raise ConfigError(f"unknown option {unknown[0]!r}; there are {', '.join(sorted(known))}")
    current = {name: getattr(base or Config(), name) for name in known}
    return Config(**(current | dict(options)))
