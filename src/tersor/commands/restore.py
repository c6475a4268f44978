"""`tersor restore`: a .tersor file back to the model file that it came from."""

from __future__ import annotations

import argparse
import os
import time

from ..adapters import restored
from ..decoder import TersorFile, load
from ..errors import ConfigError
from ..show import Outcome, Reporter, plural
from . import arguments
from .outputs import check_output, output_path

HELP = "a .tersor file back to the format that the model came in"
DESCRIPTION = ("Restore the model file that a .tersor file was made from: .safetensors, a PyTorch state dict, .onnx, "
               ".pt2 or a folder. -o NAME.safetensors gives the tensors alone, of any model.")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """FILE.tersor, where to write, threads, dense or compressed."""
    arguments.add_output(parser)
    arguments.add_threads(parser)
    parser.add_argument("--runtime", choices=("dense", "compressed"), default="dense",
                        help="compressed: an .onnx file whose weights stay small integers or indexes into tables, "
                             "which ONNX Runtime runs (default: %(default)s)")
    parser.add_argument("file", metavar="FILE.tersor")


def run(options: argparse.Namespace, reporter: Reporter) -> Outcome:
    """A .tersor file back to the model file that it came from."""
    start = time.perf_counter()
    with load(options.file, threads=options.threads) as file:
        output = output_path(options.output, options.file, ".tersor", restored.suffix_of(file))
        if not (restored.is_folder(file, output) and os.path.isdir(output) and options.force):
            check_output(output, [options.file], options.force)
        with reporter.busy(f"restoring {plural(len(file), 'tensor')}"):
            size = _write(file, output, options)
    seconds = time.perf_counter() - start
    summary = (f"{options.file} -> {output}: {plural(len(file), 'tensor')}, "
               f"{file.size:,} -> {size:,} bytes, {seconds:.1f} s")
    return Outcome(summary, {"input": options.file, "output": output, "format": restored.format_of(file),
                             "input_bytes": file.size, "output_bytes": size, "tensors": len(file),
                             "seconds": round(seconds, 3)})


def _write(file: TersorFile, output: str, options: argparse.Namespace) -> int:
    """Bytes written."""
    if options.runtime == "dense":
        return restored.write(file, output, overwrite=options.force)
    if restored.format_of(file) != "onnx":
        raise ConfigError("--runtime compressed writes .onnx files, and this model was not one. A PyTorch model "
                          "computes from the .tersor file itself: tersor.runtime.from_file(path, model), in Python")
    from ..bitstream.atomic import atomic_write
    from ..runtime.onnx_graph import compressed_model
    data = compressed_model(file)
    with atomic_write(output, overwrite=options.force) as out:
        out.write(data)
    return len(data)
