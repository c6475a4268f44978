"""`tersor compare`: how far a restored network is from the one it came from, on data."""

from __future__ import annotations

import argparse
import time

from ..show import Outcome, Reporter
from . import arguments, data_options, models

HELP = "how far a file is from its model: largest logit error, KL, agreement"
DESCRIPTION = ("Run a model and its .tersor file on the same inputs: ONNX models in ONNX Runtime, all others in "
               "PyTorch. Give inputs that were not calibrated on, with --labels for accuracies.")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """MODEL, FILE.tersor, the data."""
    models.add_model(parser)
    parser.add_argument("file", metavar="FILE.tersor", type=arguments.existing)
    data_options.add_data(parser, required=True)
    parser.add_argument("--labels", metavar="FILE", help="classes: .csv of NAME,INDEX, or .txt or .npy in order "
                        "(default: class sub-folders, or labels in the file)")


def run(options: argparse.Namespace, reporter: Reporter) -> Outcome:
    """Both on all inputs."""
    start = time.perf_counter()
    opened = models.open_options(options)
    data = data_options.open_inputs(options, options.data, options.images, options.labels)
    if opened.format != "onnx":
        models.network_of(opened, "a comparison")
    with reporter.busy("comparing"):
        from ..difference import difference
        found = difference(opened, options.file, data)
        data_options.tell_skipped(data, reporter)
    figures, seconds = found.figures, time.perf_counter() - start
    accuracy = ""
    if figures.top1 is not None and figures.top1_change is not None and figures.top1_change_error is not None:
        accuracy = (f", top-1 {figures.top1:.2%} ({100 * figures.top1_change:+.2f} ± "
                    f"{100 * figures.top1_change_error:.2f} points)")
    runtime = "ONNX Runtime" if opened.format == "onnx" else "PyTorch"
    summary = (f"{options.file} against {options.model} on {figures.count:,} inputs in {runtime}: largest logit error "
               f"{found.max_error:.3g}, KL {figures.kl:.4g} ± {figures.kl_error:.2g}, agreement {figures.agreement:.2%}"
               f"{accuracy}")
    return Outcome(summary, {"model": options.model, "file": options.file, "runtime": runtime,
                             "max_error": found.max_error, **figures.as_dict(), "seconds": round(seconds, 3)})
