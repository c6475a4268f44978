"""How to encode: the options of `tersor.Config` as arguments of the command line."""

from __future__ import annotations

import argparse
from typing import get_args, get_type_hints

from ..config import (
    DEFAULT_EFFORT,
    MAX_EFFORT,
    MEASURED_EFFORT,
    MIN_EFFORT,
    MODES,
    RIVALS,
    CodebookConfig,
    Config,
    KernelConfig,
    LayerConfig,
    TransformConfig,
)
from ..errors import ConfigError
from . import arguments


def add_encoder_options(parser: argparse.ArgumentParser) -> None:
    """Mode, effort, tools and their options; for `encoder_config`."""
    parser.add_argument("--mode", choices=MODES,
                        help="small: the smallest file; fast: quickest to decode; auto: by --decode-budget (default: "
                             "small, and auto with --decode-budget)")
    parser.add_argument("--decode-budget", type=arguments.positive, metavar="SECONDS",
                        help="small if that decodes within this time on one core, else fast")
    parser.add_argument("--effort", type=int, choices=range(MIN_EFFORT, MAX_EFFORT + 1), metavar="N",
                        default=DEFAULT_EFFORT,
                        help=f"{MIN_EFFORT} to {MAX_EFFORT}: time for bytes (default: %(default)s)")
    parser.add_argument("--no-trellis", action="store_true",
                        help="no dependent quantization at any effort: for files that are to be trained")
    parser.add_argument("--measured", action="store_true", default=None,
                        help="measure at the network's output what the errors of each layer do, and weigh layers by "
                             f"that where it makes a better file (from effort {MEASURED_EFFORT} on; needs --data)")
    parser.add_argument("--keep-exact", action="store_true",
                        help="keep every tensor that is no weight matrix bit for bit")
    parser.add_argument("--digest", action="store_true",
                        help="put the SHA-256 of all restored tensors into the file; tersor verify compares it")
    parser.add_argument("--layer", type=arguments.layer, action="append", default=[], metavar="REGEX=WHAT",
                        help="for weights whose whole name matches: raw keeps them bit for bit; scalar, transform, "
                             "kernels, codebook: the tool for them; weight:4 multiplies what their errors count by 4. "
                             "The first match counts; may be given several times")
    parser.add_argument("--tool", type=arguments.tools, metavar="TOOL[,TOOL...]",
                        help=f"for weights: some of {', '.join(RIVALS)}, of which each layer gets the one that costs "
                             "least; or codebook (default: by --effort, scalar up to 6)")
    parser.add_argument("--transforms", type=arguments.names, metavar="NAME[,NAME...]",
                        help="that the transform tool may choose from: identity, elt, klt, dct1, dct2, elt-taps, "
                             "klt-taps, elt+dct2 ...")
    parser.add_argument("--transform-coder", choices=get_args(get_type_hints(TransformConfig)["coder"]),
                        help="of the transform tool: fixed has a bit depth for each block of a layer, as in the paper, "
                             f"and needs --tool transform (default: {TransformConfig.coder})")
    parser.add_argument("--kernels", type=int, metavar="N",
                        help="size of each layer's codebook of kernels (default: what rate and distortion prefer)")
    parser.add_argument("--kernel-bits", type=int, metavar="B",
                        help=f"of the values of kernels (default: {KernelConfig.value_bits})")
    codebook = parser.add_argument_group("the codebook tool", "for --tool codebook or --layer REGEX=codebook")
    codebook.add_argument("--method", choices=get_args(get_type_hints(CodebookConfig)["method"]),
                          help="how values are found: iterative entropy-constrained quantization, one step for all, "
                               f"or k-means (default: {CodebookConfig.method})")
    codebook.add_argument("--coder", choices=get_args(get_type_hints(CodebookConfig)["coder"]),
                          help=f"of the indexes (default: {CodebookConfig.coder}); --mode is for the scalar tool")
    codebook.add_argument("--levels", type=int, metavar="N",
                          help=f"most values of a codebook, for ecsq and kmeans (default: {CodebookConfig.levels})")
    codebook.add_argument("--per-layer", action="store_true", help="a codebook for each layer, not one for all")


def encoder_config(options: argparse.Namespace) -> Config:
    """What the arguments say of the encoder. Raises `ConfigError`, also for what would do nothing."""
    layers: dict[str, LayerConfig] = {}
    for pattern, wanted in options.layer:
        layers.setdefault(pattern, wanted)
    chosen = {"method": options.method, "coder": options.coder, "levels": options.levels,
              "scope": "layer" if options.per_layer else None}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    used = {*Config(tools=options.tool, effort=options.effort).chosen_tools, *(each.tool for each in layers.values())}
    if chosen and "codebook" not in used:
        flag = "--per-layer" if "scope" in chosen else f"--{next(iter(chosen))}"
        raise ConfigError(f"{flag} is for the codebook tool: give --tool codebook or --layer REGEX=codebook as well")
    for flag, value, tool in (("--transforms", options.transforms, "transform"),
                              ("--transform-coder", options.transform_coder, "transform"),
                              ("--kernels", options.kernels, "kernels"),
                              ("--kernel-bits", options.kernel_bits, "kernels")):
        if value is not None and tool not in used:
            raise ConfigError(f"{flag} is for the {tool} tool: give --tool {tool} or --layer REGEX={tool} as well")
    if options.levels is not None and options.method == "uniform":
        raise ConfigError("--levels is for --method ecsq and kmeans; with uniform the number of values follows from "
                          "the target")
    transform = TransformConfig(options.transforms, coder=options.transform_coder or TransformConfig.coder)
    bits = KernelConfig.value_bits if options.kernel_bits is None else options.kernel_bits
    mode = options.mode or ("small" if options.decode_budget is None else "auto")
    return Config(tools=options.tool, mode=mode, decode_budget=options.decode_budget, effort=options.effort,
                  trellis=False if options.no_trellis else None, measured=options.measured,
                  keep_exact=options.keep_exact, digest=options.digest, layers=layers,
                  codebook=CodebookConfig(**chosen), transform=transform,
                  kernels=KernelConfig(size=options.kernels, value_bits=bits))
