"""`tersor calibrate`: statistics of a network on training inputs, to be used at every rate."""

from __future__ import annotations

import argparse
import os
import time

from ..show import Outcome, Reporter, plural
from . import arguments, data_options, models
from .outputs import check_output

HELP = "statistics of a network on data, to compress it with"
DESCRIPTION = "Measure once what errors of the weights cost, for `tersor compress --stats` at any rate."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """MODEL, the data, where to write."""
    models.add_model(parser)
    arguments.add_output(parser)
    parser.add_argument("--vectors", type=arguments.count, metavar="N", default=1,
                        help="random sign vectors per input: more take longer and are less noisy (default: 1)")
    arguments.add_state(parser)
    data_options.add_data(parser, required=True)


def run(options: argparse.Namespace, reporter: Reporter) -> Outcome:
    """Calibrate and save."""
    start = time.perf_counter()
    output = options.output or models.stem_of(options) + "-stats.safetensors"
    check_output(output, models.files_of(options), options.force)
    network = models.network_of(models.open_options(options), "calibration")
    with reporter.busy("calibrating"):
        stats = data_options.measure(network, options, reporter, vectors=options.vectors)
        stats.save(output)
    size, seconds = os.path.getsize(output), time.perf_counter() - start
    summary = (f"{options.model} -> {output}: {plural(len(stats.layers), 'layer')} measured on "
               f"{plural(stats.images, 'input')}, {size:,} bytes, {seconds:.1f} s")
    return Outcome(summary, {"input": options.model, "output": output, "output_bytes": size,
                             "layers": len(stats.layers), "images": stats.images,
                             "fingerprint": stats.fingerprint, "seconds": round(seconds, 3)})
