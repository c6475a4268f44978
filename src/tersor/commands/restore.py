"""`tersor restore`: a .tersor file back to a .safetensors file."""

from __future__ import annotations

import argparse
import time

from ..adapters import safetensors as safetensors_adapter
from ..decoder import load
from ..show import Outcome, Reporter, plural
from . import arguments
from .outputs import check_output, output_path

HELP = "a .tersor file back to a .safetensors file"
DESCRIPTION = "Restore a .safetensors file from a .tersor file."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """FILE.tersor, where to write, threads."""
    arguments.add_output(parser)
    arguments.add_threads(parser)
    parser.add_argument("file", metavar="FILE.tersor")


def run(options: argparse.Namespace, reporter: Reporter) -> Outcome:
    """A .tersor file back to a .safetensors file."""
    start = time.perf_counter()
    output = output_path(options.output, options.file, ".tersor", ".safetensors")
    check_output(output, [options.file], options.force)
    with load(options.file, threads=options.threads) as file, \
            reporter.busy(f"restoring {plural(len(file), 'tensor')}"):
        tensors = file.read_all()
        size = safetensors_adapter.write(output, tensors, file.metadata, overwrite=options.force)
    seconds = time.perf_counter() - start
    summary = (f"{options.file} -> {output}: {plural(len(tensors), 'tensor')}, "
               f"{file.size:,} -> {size:,} bytes, {seconds:.1f} s")
    return Outcome(summary, {"input": options.file, "output": output, "input_bytes": file.size,
                             "output_bytes": size, "tensors": len(tensors), "seconds": round(seconds, 3)})
