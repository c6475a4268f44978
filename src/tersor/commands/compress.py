"""`tersor compress`: a model to a .tersor file; with data, it is calibrated on the way."""

from __future__ import annotations

import argparse
import json
import os
import time
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..show import Outcome, Reporter, bits, smaller
from . import arguments, data_options, models
from .encoder_options import add_encoder_options, encoder_config
from .outputs import check_output

if TYPE_CHECKING:
    from ..adapters.formats import OpenedModel
    from ..config import Config
    from ..packed import Packed
    from ..statistics import Statistics

HELP = "a model to a .tersor file"
DESCRIPTION = ("Compress a model. With --data the network is calibrated first, which makes it far better in the same "
               "bytes.")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """MODEL, the target, data, the encoder's options."""
    models.add_model(parser)
    arguments.add_output(parser)
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--bits", type=arguments.positive, metavar="B",
                        help="bits/weight: 8 * bytes of the file / parameters of the model")
    target.add_argument("--size", type=arguments.size, metavar="BYTES",
                        help="bytes of the file: 70000, 70kB, 1.5MB, 2MiB")
    target.add_argument("--snr", type=arguments.decibels, metavar="DB",
                        help="signal-to-noise ratio at the network's output, on the calibration inputs")
    target.add_argument("--max-drop", type=arguments.positive, metavar="POINTS",
                        help="the smallest file that loses at most so many points of accuracy on --eval-data")
    target.add_argument("--like", type=arguments.existing, metavar="FILE.tersor", help="as many bytes as this file has")
    parser.add_argument("--drop-end", choices=("worst", "mean"), default="worst",
                        help="what of the drop must be within --max-drop: the worst end of its 95%% confidence "
                             "interval, or its mean (default: %(default)s)")
    parser.add_argument("--decisions", metavar="FILE.json",
                        help="write how each layer is coded, and what the other ways would have cost")
    parser.add_argument("--dry-run", action="store_true", help="say what the file would come to, without the search")
    arguments.add_state(parser)
    arguments.add_threads(parser, "for encoding; the file does not depend on it (default: all cores, or as many as the "
                                  "environment's OMP_NUM_THREADS says)")
    data_options.add_measured(parser)
    add_encoder_options(parser)


def run(options: argparse.Namespace, reporter: Reporter) -> Outcome:
    """A model to a .tersor file."""
    start = time.perf_counter()
    config = encoder_config(options)
    if options.max_drop is None:  # or else --data may be what accuracy is measured on
        data_options.check_measured(options)
    output = options.output or models.stem_of(options) + ".tersor"
    sources = models.files_of(options) + ([options.stats] if options.stats else [])
    if not options.dry_run:
        check_output(output, sources, options.force)
    opened = models.open_options(options)
    for note in opened.notes:
        reporter.note(note)
    stats = statistics(opened, options, reporter)
    if options.dry_run:
        return _foretold(opened, stats, options, config)
    with reporter.busy(f"compressing {os.path.basename(options.model)}"):
        packed = _compressed(opened, stats, options, config, reporter)
        packed.save(output, overwrite=options.force)
    for note in packed.notes:
        reporter.note(note)
    report = packed.report()
    reporter.detail(f"codes of weights {report['payload_bytes']:,} bytes, steps and other tensors "
                    f"{report['side_bytes']:,}, header and manifest {report['header_bytes']:,}; "
                    f"lambda {packed.price:.3g}")
    if options.decisions:
        with open(options.decisions, "w", encoding="utf-8") as file:
            json.dump({"file": output, "lambda": packed.price, "weights": packed.decisions}, file, indent=1)
    for line in decision_lines(packed.decisions, packed.size):
        reporter.detail(line)
    before, seconds = opened.bytes or raw_bytes(opened), time.perf_counter() - start
    measured = f", {packed.snr:.1f} dB" if packed.snr is not None else ""
    summary = (f"{options.model} -> {output}: {before:,} -> {packed.size:,} bytes, "
               f"{smaller(before, packed.size)}, {bits(packed.bits_per_weight)}{measured}, {seconds:.1f} s")
    return Outcome(summary, {"input": options.model, "output": output, "input_bytes": before,
                             "seconds": round(seconds, 3), **report})


def statistics(opened: OpenedModel, options: argparse.Namespace, reporter: Reporter) -> Statistics | None:
    """Of --stats or --data; None for neither."""
    if options.stats:
        from ..statistics import Statistics
        return Statistics.load(options.stats)
    if options.data:
        network = models.network_of(opened, "--data")
        with reporter.busy("calibrating"):
            return data_options.measure(network, options, reporter)
    return None


def raw_bytes(opened: OpenedModel) -> int:
    """Bytes of the model's tensors."""
    return sum(array.nbytes for array in opened.inventory.tensors.values())


def _compressed(opened: OpenedModel, stats: Statistics | None, options: argparse.Namespace, config: Config,
                reporter: Reporter) -> Packed:
    from ..encoder import compress  # imports torch
    if options.max_drop is None and (options.eval_data or options.labels):
        raise ConfigError("--eval-data and --labels are for --max-drop, and for tersor sweep")
    if options.snr is not None:
        models.network_of(opened, "--snr (a signal-to-noise ratio is measured at the output)")
        if stats is None:
            raise ConfigError("--snr is measured on calibration inputs: give --data, or --stats")
    size = os.stat(options.like).st_size if options.like else options.size
    extra: dict[str, Any] = {}
    if options.max_drop is not None:
        from ..evaluate import hits
        models.network_of(opened, "--max-drop")
        data = data_options.evaluation(options, reporter, wanted=True)
        assert data is not None
        data_options.find_bad(data, reporter)
        extra = {"max_drop": options.max_drop, "drop_end": options.drop_end,
                 "evaluate": lambda candidate: hits(candidate, data)}
    return compress(opened.model, stats, bits=options.bits, size=size, snr=options.snr, config=config,
                    progress=reporter.progress, state=data_options.state_folder(options, "encoding"),
                    threads=options.threads, **extra)


def _foretold(opened: OpenedModel, stats: Statistics | None, options: argparse.Namespace, config: Config) -> Outcome:
    """--dry-run."""
    from ..encoder import footprint
    from ..predict import predict
    if options.max_drop is not None:
        raise ConfigError("--dry-run foretells bytes and signal-to-noise ratios, no accuracies: not with --max-drop")
    size = os.stat(options.like).st_size if options.like else options.size
    found = predict(opened.model, stats, bits=options.bits, size=size, snr=options.snr, config=config)
    need = footprint(opened.model, stats, bits=found.bits_per_weight, config=config, threads=options.threads)
    return Outcome(f"{options.model}: {found}; about {need.memory / 1e9:.1f} GB of memory (foretold, nothing written)",
                   {"input": options.model, "dry_run": True, "total_bytes": found.bytes, "memory_bytes": need.memory,
                    "bits_per_weight": found.bits_per_weight, "snr_db": found.snr})


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
