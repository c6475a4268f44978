"""Models as the command line gets them: whatever `tersor.adapters.formats` opens, and weights for it."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError

if TYPE_CHECKING:
    from ..adapters.formats import OpenedModel

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".onnx", ".pt2")


def add_model(parser: argparse.ArgumentParser) -> None:
    """MODEL, --weights."""
    parser.add_argument("model", metavar="MODEL",
                        help="a .safetensors, .pt, .onnx or .pt2 file, a folder as the Hugging Face hub has them, "
                             "package.module:factory, timm:NAME or transformers:NAME")
    parser.add_argument("--weights", metavar="FILE", help="load these into the network that package.module:factory "
                        "builds")


def files_of(options: argparse.Namespace) -> list[str]:
    """The files that a model is read from, as far as they are there."""
    given = [options.model, options.weights] if options.weights else [options.model]
    return [path for path in given if os.path.exists(path)]


def open_options(options: argparse.Namespace) -> OpenedModel:
    """The model, opened. Raises `TersorError`, OSError."""
    if options.model.endswith(".safetensors") and not os.path.exists(options.model):
        raise FileNotFoundError(2, "No such file or directory", options.model)  # before torch is imported
    from ..adapters.formats import open_model
    opened = open_model(options.model)
    if not options.weights:
        return opened
    from ..adapters.weights import with_weights
    return with_weights(opened, options.weights)


def network_of(opened: OpenedModel, what: str) -> Any:
    """The network. Raises `ConfigError` that says what to do where there are only weights."""
    if opened.module is None:
        raise ConfigError(f"{what} needs a network that can be run, and {opened.spec} holds only weights: give "
                          f"package.module:factory for MODEL and the file as --weights, or an .onnx or .pt2 file")
    return opened.module


def stem_of(options: argparse.Namespace) -> str:
    """What results are called after: the file of weights, or the function that builds the network, without suffix.

    >>> stem_of(argparse.Namespace(model="nets.resnet:ResNet20", weights=None))
    'ResNet20'
    >>> stem_of(argparse.Namespace(model="nets.resnet:ResNet20", weights="trained/r20.v2.safetensors"))
    'trained/r20.v2'
    """
    if options.weights:
        name = str(options.weights)
    elif os.path.exists(options.model) or ":" not in options.model or options.model.endswith(SUFFIXES):
        name = str(options.model)
    else:
        name = options.model.rpartition(":")[2].replace("/", "-")
        return str(name).rpartition(".")[2] if "." in name else str(name)
    name = name.rstrip("/\\") or name
    return next((name.removesuffix(suffix) for suffix in SUFFIXES if name.endswith(suffix)), name)
