"""`tersor compress`: a .safetensors file to a .tersor file."""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

from ..adapters import safetensors as safetensors_adapter
from ..show import Outcome, Reporter, bits, plural, smaller
from . import arguments
from .encoder_options import add_encoder_options, encoder_config
from .outputs import check_output, output_path

HELP = "a .safetensors file to a .tersor file"
DESCRIPTION = "Compress a .safetensors file."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """MODEL, the target, the encoder's options."""
    arguments.add_output(parser)
    parser.add_argument("model", metavar="MODEL.safetensors")
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--bits", type=arguments.positive, metavar="B",
                        help="bits/weight: 8 * bytes of the file / parameters of the model")
    target.add_argument("--size", type=arguments.size, metavar="BYTES",
                        help="bytes of the file: 70000, 70kB, 1.5MB, 2MiB")
    target.add_argument("--snr", type=arguments.no_snr, metavar="DB", help="(from Python only)")
    parser.add_argument("--stats", metavar="FILE", help="statistics of this very model, as saved by "
                        "tersor.calibrate(...).save(FILE); without, compression is data-free")
    add_encoder_options(parser)


def run(options: argparse.Namespace, reporter: Reporter) -> Outcome:
    """A .safetensors file to a .tersor file."""
    start = time.perf_counter()
    config = encoder_config(options)
    sources = [options.model] + ([options.stats] if options.stats else [])
    output = output_path(options.output, options.model, ".safetensors", ".tersor")
    check_output(output, sources, options.force)
    inventory = safetensors_adapter.read(options.model)
    with reporter.busy(f"compressing {plural(len(inventory.names), 'tensor')}"):
        from ..encoder import compress  # imports torch
        from ..statistics import Statistics
        stats = Statistics.load(options.stats) if options.stats else None
        packed = compress(inventory, stats, bits=options.bits, size=options.size, config=config,
                          progress=reporter.progress)
        packed.save(output, overwrite=options.force)
    for note in packed.notes:
        reporter.note(note)
    report = packed.report()
    reporter.detail(f"codes of weights {report['payload_bytes']:,} bytes, steps and other tensors "
                    f"{report['side_bytes']:,}, header and manifest {report['header_bytes']:,}; "
                    f"lambda {packed.price:.3g}")
    for line in decision_lines(packed.decisions, packed.size):
        reporter.detail(line)
    before, seconds = os.path.getsize(options.model), time.perf_counter() - start
    summary = (f"{options.model} -> {output}: {before:,} -> {packed.size:,} bytes, "
               f"{smaller(before, packed.size)}, {bits(packed.bits_per_weight)}, {seconds:.1f} s")
    return Outcome(summary, {"input": options.model, "output": output, "input_bytes": before,
                             "seconds": round(seconds, 3), **report})


def decision_lines(decisions: dict[str, dict[str, Any]], size: int) -> list[str]:
    """How each layer is coded, what the next best way would have cost, and the share of bases and codebooks."""
    lines = []
    side = 0.0
    for name, decision in decisions.items():
        side += decision["side_bits"] * decision["weights"] / 8
        rivals = sorted(decision["losers"], key=lambda loser: loser[1])
        other = f"; next {rivals[0][0]}, cost x {rivals[0][1]:.3f}" if rivals else ""
        lines.append(f"{name}: {decision['label']}, {decision['bits']:.2f} bits/weight{other}")
    if side:
        lines.append(f"bases and codebooks: about {side:,.0f} bytes, {side / size:.1%} of the file")
    return lines
