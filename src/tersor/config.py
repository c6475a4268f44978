"""Options of the encoder, as frozen dataclasses: an unknown name, a value out of range is a `ConfigError`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Literal

from .errors import ConfigError

TOOLS = ("scalar", "transform", "kernels", "codebook", "raw")
"""Coding tools that weights can be given to, named after the files in `tersor.tools`, `tersor.synthesis`."""
RIVALS = ("scalar", "transform", "kernels")
"""Tools that propose a code layer by layer; of several, each layer gets the one of least J = D + lambda R."""
FEEDBACK_EFFORT, ROWS_EFFORT, STATIC_TRELLIS_EFFORT, WALK_EFFORT = 2, 3, 4, 5
TRELLIS_EFFORT, TRANSFORM_EFFORT, KERNEL_EFFORT, MEASURED_EFFORT = 6, 7, 9, 9
"""What each effort brings in; see `Config.effort`. benchmarks/effort.py measures that each step is worth its time."""
QUICK_TRANSFORMS = ("dct1", "klt-taps")
MORE_TRANSFORMS = ("dct1", "dct2", "klt-taps", "elt-taps")
ALL_TRANSFORMS = ("identity", "elt", "elt-outputs", "dct1", "dct2", "klt-taps", "elt-taps", "elt+dct1")

CHANNEL_TRANSFORMS = tuple(f"{kind}{axis}" for axis in ("", "-outputs", "-joint") for kind in ("klt", "elt"))
TAP_TRANSFORMS = ("dct1", "dct2", "klt-taps", "elt-taps")

MODES = ("small", "fast", "auto")
MIN_EFFORT, DEFAULT_EFFORT, MAX_EFFORT = 1, 7, 9


@dataclass(frozen=True)
class LayerConfig:
    """What a user says about single layers.

    tool: "raw" keeps the layer bit-exact. weight: factor on the layer's distortion: 4 gives it about one bit
    per weight more than its sensitivity asks for.
    """

    tool: Literal["scalar", "transform", "kernels", "codebook", "raw"] | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.tool is not None and self.tool not in TOOLS:
            raise ConfigError(f"tool={self.tool!r} is not one of {', '.join(TOOLS)}")
        if not 0.0 < self.weight < float("inf"):
            raise ConfigError(f"weight={self.weight} must be positive and finite")


@dataclass(frozen=True)
class CodebookConfig:
    """How the codebook tool makes and codes shared values (Choi, El-Khamy, Lee, ICLR 2017).

    * `method`: "ecsq" (iterative entropy-constrained), "uniform" (one step, means of the bins), "kmeans".
    * `weighted`: sensitivities as weights (Hessian-weighted k-means and so on); False: all weights alike.
    * `scope`: "all" layers share one codebook, or each "layer" has its own.
    * `levels`: most centres that "ecsq" and "kmeans" may use.
    * `coder`: of the indexes: "arithmetic" (adaptive contexts), "huffman", "fixed" length, "fast" (rANS).
    * `zero`: one centre is exactly 0 (keeps pruned weights pruned).
    """

    method: Literal["ecsq", "uniform", "kmeans"] = "ecsq"
    weighted: bool = True
    scope: Literal["all", "layer"] = "all"
    levels: int = 256
    coder: Literal["arithmetic", "huffman", "fixed", "fast"] = "arithmetic"
    zero: bool = True

    def __post_init__(self) -> None:
        for name, allowed in (("method", ("ecsq", "uniform", "kmeans")), ("scope", ("all", "layer")),
                              ("coder", ("arithmetic", "huffman", "fixed", "fast"))):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name}={getattr(self, name)!r} is not one of {', '.join(allowed)}")
        if not isinstance(self.levels, int) or not 1 <= self.levels <= 1 << 16:
            raise ConfigError(f"levels={self.levels!r} must be an integer from 1 to 65536")


@dataclass(frozen=True)
class TransformConfig:
    """How the transform tool works (Young, Wang, Taubman, Girod, "Transform quantization for CNN compression").

    * `transforms`: what it may choose from, layer by layer, by J = D + lambda R (None: a selection): "identity"; over
      input channels "klt",
      "elt"; over output channels "klt-outputs", "elt-outputs"; over input channels and taps together "klt-joint",
      "elt-joint"; over taps "dct1", "dct2" (fixed, not stored), "klt-taps", "elt-taps"; and one of the channels with
      one of the taps, as "elt+dct2". Layers that a transform does not fit (groups, one tap) leave it out.
    * `coder`: "entropy" (adaptive or rANS, by `Config.mode`), or "fixed": fixed-length codes, a bit-depth for each of
      `blocks` blocks of coefficients and of basis vectors, chosen on the network's output, as published (without an
      nn.Module, by the layers' quadratic metric). Transforms of taps have a depth for each frequency, up to twice
      `blocks`; combinations for each pair.
    * `largest`: a basis has at most so many vectors (its eigenvectors take n^3 operations, its storage n^2 numbers).
    """

    transforms: tuple[str, ...] | None = None
    coder: Literal["entropy", "fixed"] = "entropy"
    blocks: int = 8
    largest: int = 2048

    def __post_init__(self) -> None:
        if isinstance(self.transforms, str) or self.transforms == ():
            raise ConfigError(f"transforms={self.transforms!r} must be a tuple of names")
        for name in self.transforms or ():
            split_transform(name)
        if self.coder not in ("entropy", "fixed"):
            raise ConfigError(f"coder={self.coder!r} is not one of entropy, fixed")
        if not isinstance(self.blocks, int) or not 1 <= self.blocks <= 255:
            raise ConfigError(f"blocks={self.blocks!r} must be an integer from 1 to 255")
        if not isinstance(self.largest, int) or self.largest < 1:
            raise ConfigError(f"largest={self.largest!r} must be a positive integer")


def split_transform(name: str) -> tuple[str, str]:
    """(transform of channels, transform of taps) that a name stands for, "" for none.

    >>> split_transform("elt+dct2"), split_transform("dct1"), split_transform("identity")
    (('elt', 'dct2'), ('', 'dct1'), ('', ''))
    """
    parts = [] if name == "identity" else name.split("+")
    channels = [part for part in parts if part in CHANNEL_TRANSFORMS]
    taps = [part for part in parts if part in TAP_TRANSFORMS]
    joint = bool(channels) and channels[0].endswith("-joint")
    if len(channels) + len(taps) != len(parts) or len(channels) > 1 or len(taps) > 1 or (joint and taps):
        raise ConfigError(f"transform {name!r} is not \"identity\", one of {', '.join(CHANNEL_TRANSFORMS)}, one of "
                          f"{', '.join(TAP_TRANSFORMS)}, or one of the first (not joint) + one of the second")
    return (channels[0] if channels else ""), (taps[0] if taps else "")


@dataclass(frozen=True)
class KernelConfig:
    """How the kernel tool works.

    * `size`: kernels in a codebook: None for the size that rate-distortion prefers in each layer, an integer, or a
      mapping from regular expression (on the whole weight name) to integer; layers that none fits get None.
    * `value_bits`: codebook values have at most so many bits (6 in the paper), or None for what J prefers.
    * `coder`: "fixed" length of indexes, gains and values, as in the paper; "entropy" (adaptive contexts, or rANS in
      the fast mode).
    * `gains`, `signs`: whether a kernel is an integer gain, or a sign, times one of the codebook; None for what J
      prefers. With gains, signs come along.
    * `vector`: inputs that form a "kernel" in linear layers and 1 x 1 convolutions; None leaves them to the scalar
      tool.
    * `metric`: "block" (the taps' whole block of A, with error feedback) or its "diagonal".
    * `scope`: one codebook for each "layer", or one for "all" layers of equal kernel size.
    """

    size: int | Mapping[str, int] | None = None
    value_bits: int | None = 6
    coder: Literal["entropy", "fixed"] = "entropy"
    gains: bool | None = None
    signs: bool | None = None
    vector: int | None = None
    metric: Literal["block", "diagonal"] = "block"
    scope: Literal["layer", "all"] = "layer"

    def __post_init__(self) -> None:
        sizes = list(self.size.values()) if isinstance(self.size, Mapping) else [self.size]
        for size in sizes:
            if size is not None and not (isinstance(size, int) and 1 <= size <= 1 << 16):
                raise ConfigError(f"size={size!r} must be an integer from 1 to 65536")
        for pattern in self.size if isinstance(self.size, Mapping) else ():
            try:
                re.compile(pattern)
            except re.error as error:
                raise ConfigError(f"size[{pattern!r}] is no regular expression: {error}") from None
        if self.value_bits is not None and not (isinstance(self.value_bits, int) and 2 <= self.value_bits <= 16):
            raise ConfigError(f"value_bits={self.value_bits!r} must be an integer from 2 to 16")
        if self.vector is not None and not (isinstance(self.vector, int) and self.vector >= 1):
            raise ConfigError(f"vector={self.vector!r} must be a positive integer")
        for name, allowed in (("coder", ("entropy", "fixed")), ("metric", ("block", "diagonal")),
                              ("scope", ("layer", "all"))):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name}={getattr(self, name)!r} is not one of {', '.join(allowed)}")

    def size_of(self, name: str) -> int | None:
        """The size that was asked for the layer called `name`."""
        if isinstance(self.size, Mapping):
            return next((size for pattern, size in self.size.items() if re.fullmatch(pattern, name)), None)
        return self.size


@dataclass(frozen=True)
class Config:
    """How to encode.

    * `tools`: coding tools for weights: some of "scalar", "transform", "kernels", between which each layer's
      J = D + lambda R decides; or ("codebook",) or ("raw",). None: by `effort`. Single layers differ by `layers`.
    * `mode`: "small" (adaptive contexts, smallest file), "fast" (static rANS, decodes several hundred
      million weights a second), or "auto": small if that decodes within `decode_budget` seconds on one core by the
      rates of `tersor.modes`, else fast.
    * `effort`: 1 to 9, time for bytes (docs/effort.md). 1: each weight for itself. 2: error feedback from column to
      column of a weight, on the statistics as measured; 3: from row to row as well; 4: and a trellis where it pays.
      From 5 on, where the statistics kept samples, a second walk through the network in the order of the data: every
      layer makes up for the errors of those before it; 5 without a trellis, 6 with. 7 (the default): some transforms
      of the taps, too; 8: all of them; 9: all transforms, kernels, and
      `measured`.
    * `trellis`: whether dependent quantization may be used; None: by `effort`. False where the file is to be trained
      (`tersor.finetune`): single integers of a trellis cannot move without those after them.
    * `measured`: whether what each layer's errors do is also measured at the network's output, where there is a second
      walk (`tersor.trust`). Layers then weigh by that, if such a file turns out to be better; None: by `effort`.
    * `keep_exact`: BatchNorm and every other tensor that is no weight matrix stays bit-exact.
    * `digest`: the SHA-256 of all decoded tensors is put into the file (about 60 bytes); `verify` compares it.
    * `layers`: regular expression (matched against the whole weight name) -> LayerConfig; the first match
      counts.
    * `codebook`, `transform`, `kernels`: how these tools work, where they are used.
    """

    tools: tuple[str, ...] | None = None
    mode: str = "small"
    decode_budget: float | None = None
    effort: int = DEFAULT_EFFORT
    trellis: bool | None = None
    measured: bool | None = None
    keep_exact: bool = False
    digest: bool = False
    layers: Mapping[str, LayerConfig] = field(default_factory=dict)
    codebook: CodebookConfig = field(default_factory=CodebookConfig)
    transform: TransformConfig = field(default_factory=TransformConfig)
    kernels: KernelConfig = field(default_factory=KernelConfig)

    def __post_init__(self) -> None:
        if isinstance(self.tools, str) or self.tools == () or any(tool not in TOOLS for tool in self.tools or ()):
            raise ConfigError(f"tools={self.tools!r} must be a tuple of some of {', '.join(TOOLS)}")
        if self.tools is not None and "codebook" in self.tools and len(set(self.tools) - {"raw"}) > 1:
            raise ConfigError("the codebook tool looks at all its layers together, so it has no rivals: give "
                              "tools=('codebook',), and the tool of single layers by "
                              "layers={regex: LayerConfig(tool=...)}")
        for name, kind in (("codebook", CodebookConfig), ("transform", TransformConfig), ("kernels", KernelConfig)):
            if not isinstance(getattr(self, name), kind):
                raise ConfigError(f"{name} must be a {kind.__name__}, not {type(getattr(self, name)).__name__}")
        if self.mode not in MODES:
            raise ConfigError(f"mode={self.mode!r} is not one of {', '.join(MODES)}")
        if (self.mode == "auto") != (self.decode_budget is not None):
            raise ConfigError("mode='auto' and decode_budget=, the seconds that decoding may take, need each other")
        if self.decode_budget is not None and not 0.0 < self.decode_budget < float("inf"):
            raise ConfigError(f"decode_budget={self.decode_budget!r} must be a positive number of seconds")
        if not isinstance(self.effort, int) or not MIN_EFFORT <= self.effort <= MAX_EFFORT:
            raise ConfigError(f"effort={self.effort!r} must be an integer from {MIN_EFFORT} to {MAX_EFFORT}")
        for name in ("trellis", "measured"):
            if getattr(self, name) not in (None, False, True):
                raise ConfigError(f"{name}={getattr(self, name)!r} must be True, False or None")
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
        return LayerConfig()

    @property
    def chosen_tools(self) -> tuple[str, ...]:
        """`tools`, or what the effort allows: a transformed weight takes three times as long to decode, so quick files
        have some at the highest effort alone."""
        if self.tools is not None:
            return self.tools
        wanted = {"scalar": 0, "transform": KERNEL_EFFORT if self.mode == "fast" else TRANSFORM_EFFORT,
                  "kernels": KERNEL_EFFORT}
        return tuple(tool for tool in RIVALS if self.effort >= wanted[tool])

    @property
    def tried_transforms(self) -> tuple[str, ...]:
        """`transform.transforms`, or a selection: a small one where the effort alone has brought in the tool."""
        if self.transform.transforms is not None:
            return self.transform.transforms
        if self.tools is not None or self.effort >= KERNEL_EFFORT:
            return ALL_TRANSFORMS
        return MORE_TRANSFORMS if self.effort > TRANSFORM_EFFORT else QUICK_TRANSFORMS

    def tool(self, name: str) -> str:
        """The coding tool of the weight called `name`; the first of its rivals."""
        default = next((tool for tool in self.chosen_tools if tool != "raw"), "raw")
        return self.layer(name).tool or default

    def rivals(self, name: str) -> tuple[str, ...]:
        """The tools that propose a code for the weight called `name`."""
        own = self.layer(name).tool
        return (own,) if own is not None else tuple(tool for tool in RIVALS if tool in self.chosen_tools)

    def check_patterns(self, names: Iterable[str]) -> None:
        """Raise `ConfigError` for a pattern in `layers` that fits none of the weights `names`: a typing error."""
        known = list(names)
        for pattern in self.layers:
            if not any(re.fullmatch(pattern, name) for name in known):
                raise ConfigError(f"layers[{pattern!r}] fits no weight of this model; its weights are "
                                  f"{', '.join(known[:8])}{' ...' if len(known) > 8 else ''}")

    @property
    def feedback(self) -> bool:
        """Whether later weights of a row make up for the errors of earlier ones."""
        return self.effort >= FEEDBACK_EFFORT

    @property
    def two_sided(self) -> bool:
        """Whether later rows do so too."""
        return self.effort >= ROWS_EFFORT

    @property
    def tries_trellis(self) -> bool:
        """Whether trellis-coded quantization is tried."""
        if self.trellis is not None:
            return self.trellis
        return self.effort == STATIC_TRELLIS_EFFORT or self.effort >= TRELLIS_EFFORT

    @property
    def measures(self) -> bool:
        """Whether layers' distortions are measured at the output, too."""
        return self.effort >= MEASURED_EFFORT if self.measured is None else self.measured

    @property
    def corrected(self) -> bool:
        """Whether there is a second walk, in the order of the data."""
        return self.effort >= WALK_EFFORT


def make_config(base: Config | None, options: Mapping[str, object]) -> Config:
    """`base` (or the default) with some options replaced. Raises `ConfigError` for a name that is none."""
    known = {item.name for item in fields(Config)}
    unknown = sorted(set(options) - known)
    if unknown:
        raise ConfigError(f"unknown option {unknown[0]!r}; there are {', '.join(sorted(known))}")
    current = {name: getattr(base or Config(), name) for name in known}
    return Config(**(current | dict(options)))
