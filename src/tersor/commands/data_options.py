"""Which inputs to measure on: options, and what they come to."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..show import Reporter, plural
from . import arguments

if TYPE_CHECKING:
    from ..data.datasets import Dataset, FromFunction
    from ..statistics import Statistics

PRESETS = ("imagenet", "cifar", "none")


def add_data(parser: argparse.ArgumentParser, required: bool = False, purpose: str = "calibrate",
             images: int | None = 256) -> None:
    """--data and how to read it; `images`: how many are used by default, None for all."""
    data = parser.add_argument_group("data")
    data.add_argument("--data", metavar="DATA", required=required,
                      help=f"training inputs to {purpose} on: a folder of images, an .npz, .npy or .safetensors file "
                           "(float [N, channels, height, width] or uint8 [N, height, width, channels]), or "
                           "package.module:function that gives batches")
    data.add_argument("--images", type=arguments.count, metavar="N", default=images,
                      help=f"use so many, spread evenly (default: {images or 'all'})")
    data.add_argument("--preprocess", choices=PRESETS,
                      help="imagenet: shorter side 256, centre 224, the usual mean and deviation; cifar: 32 x 32; "
                           "none: pixels / 255 (default: imagenet for images, none for arrays)")
    data.add_argument("--mean", type=arguments.numbers, metavar="R,G,B",
                      help="of pixels / 255; one number: grey images")
    data.add_argument("--std", type=arguments.numbers, metavar="R,G,B", help="deviation of pixels / 255")
    data.add_argument("--input-size", type=arguments.count, metavar="N", help="side of the network's square inputs")
    data.add_argument("--max-bad", type=arguments.share, metavar="PERCENT", default=0.05,
                      help="share of inputs that may be unreadable or of another size, and are skipped (default: 5)")


def add_measured(parser: argparse.ArgumentParser) -> None:
    """--stats or --data, and what to compare on: all that commands ask for which encode."""
    parser.add_argument("--stats", metavar="FILE", help="statistics of this very model, as saved by tersor calibrate; "
                        "without --stats and --data, compression is data-free")
    add_data(parser)
    add_evaluation(parser)


def check_measured(options: argparse.Namespace) -> None:
    """Raise ConfigError where --stats and --data are both given."""
    if options.stats and options.data:
        raise ConfigError("--stats and --data: give the statistics, or the data to measure them on, not both")


def add_evaluation(parser: argparse.ArgumentParser) -> None:
    """--eval-data, --labels."""
    group = parser.add_argument_group("evaluation")
    group.add_argument("--eval-data", metavar="DATA", help="inputs to compare the networks on, read like --data, all "
                       "of them; not those that you calibrate on")
    group.add_argument("--labels", metavar="FILE", help="their classes: .csv of NAME,INDEX, or .txt or .npy in order "
                       "(default: class sub-folders, or labels in the file)")
    group.add_argument("--eval-images", type=arguments.count, metavar="N", help="use only so many of them")


def open_inputs(options: argparse.Namespace, source: str, images: int | None,
                labels: str | None = None) -> Dataset | FromFunction:
    """The inputs that `source` names, read as the options say."""
    from ..data import open_data, preprocess
    asked = (options.preprocess, options.mean, options.std, options.input_size)
    chosen = None
    if any(value is not None for value in asked):
        # Numbers alone change nothing else: they go with no preset for arrays, with that of ImageNet for images.
        preset = options.preprocess or ("none" if source.endswith((".npz", ".npy", ".safetensors")) else "imagenet")
        chosen = preprocess(preset, mean=options.mean, std=options.std, size=options.input_size)
    return open_data(source, chosen, labels=labels, images=images, most_skipped=options.max_bad)


def measure(model: Any, options: argparse.Namespace, reporter: Reporter, vectors: int = 1) -> Statistics:
    """`tersor.calibrate` on --data."""
    from ..sensitivity import calibrate
    data = open_inputs(options, options.data, options.images)
    for note in data.notes:
        reporter.note(note)
    total = f" of {data.count:,}" if data.count else ""
    stats = calibrate(model, data, progress=lambda done: reporter.progress(f"calibrating: {done:,}{total} inputs"),
                      vectors=vectors, state=state_folder(options, "calibration"))
    tell_skipped(data, reporter)
    reporter.detail(f"calibrated on {plural(stats.images, 'input')}")
    return stats


def state_folder(options: argparse.Namespace, part: str) -> str | None:
    """Where under --state one part of the work is kept; None without."""
    folder = getattr(options, "state", None)
    return None if folder is None else os.path.join(folder, part)


def tell_skipped(data: Dataset | FromFunction, reporter: Reporter) -> None:
    """Name what could not be used."""
    bad = list(data.skipped.items())
    for name, reason in bad[:10]:
        reporter.note(f"skipped {name}: {reason}")
    if len(bad) > 10:
        reporter.note(f"skipped {len(bad) - 10:,} more")


def evaluation(options: argparse.Namespace, reporter: Reporter, wanted: bool = False) -> Dataset | FromFunction | None:
    """What --eval-data and --labels name; `wanted`: labels are needed, and --data stands in where it has some."""
    source, images = options.eval_data, options.eval_images
    if source is None and wanted and options.data is not None:
        reporter.note("accuracy is measured on the inputs that were calibrated on, which flatters it; give --eval-data")
        source, images = options.data, options.images
    if source is None:
        if options.labels:
            raise ConfigError("--labels is for --eval-data")
        if wanted:
            raise ConfigError("a bound on the drop of accuracy needs labelled inputs: --eval-data, and --labels where "
                              "they have no class sub-folders")
        return None
    data = open_inputs(options, source, images, options.labels)
    if wanted and not data.has_labels:
        raise ConfigError(f"{source} has no labels: give --labels FILE, or images in class sub-folders")
    for note in data.notes if source != options.data else []:
        reporter.note(note)
    return data


def find_bad(data: Dataset | FromFunction, reporter: Reporter) -> None:
    """A first pass that finds the bad inputs and names them, so that every network sees the same."""
    for _ in data:
        pass
    tell_skipped(data, reporter)
