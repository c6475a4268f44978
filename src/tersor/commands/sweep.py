"""`tersor sweep`: many rates from one calibration, measured beside baselines, to be gone on with after a stop."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..show import Outcome, Reporter, plural, table
from . import arguments, data_options, models
from .compress import statistics
from .encoder_options import add_encoder_options, encoder_config

if TYPE_CHECKING:
    from ..adapters.formats import OpenedModel
    from ..statistics import Statistics

HELP = "files at many rates, measured, beside baselines"
DESCRIPTION = ("Compress a model at several rates from one calibration, restore and measure each file, and int8 and "
               "round-to-nearest beside them. What is finished is kept: start it again to go on. `tersor report` draws "
               "it.")
STATS = "stats.safetensors"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """MODEL, the rates, the folder, data, the encoder's options."""
    models.add_model(parser)
    parser.add_argument("-o", "--output", metavar="FOLDER", required=True, help="for the files and sweep.json")
    parser.add_argument("--bits", type=arguments.positive, metavar="B", nargs="+", required=True, help="bits/weight")
    parser.add_argument("--no-baselines", action="store_true", help="leave out int8 and round-to-nearest")
    data_options.add_measured(parser)
    add_encoder_options(parser)


def run(options: argparse.Namespace, reporter: Reporter) -> Outcome:
    """Everything that is not finished yet."""
    start = time.perf_counter()
    config = encoder_config(options)
    data_options.check_measured(options)
    opened = models.open_options(options)
    folder = Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    data = data_options.evaluation(options, reporter)
    if data is not None:
        models.network_of(opened, "--eval-data")
        data_options.find_bad(data, reporter)
    stats = _statistics(opened, folder, options, reporter)
    notes = [] if data is None else [f"compared on {data.count - len(data.skipped):,} inputs of "
                                     f"{os.path.basename(os.path.normpath(options.eval_data))}"]
    from ..sweep import sweep
    with reporter.busy("sweeping"):
        document = sweep(opened.model, stats, options.bits, folder, batches=data, config=config,
                         name=os.path.basename(models.stem_of(options)), notes=notes,
                         peers=not options.no_baselines, progress=reporter.progress)
    reached = [point for point in document["points"] if "error" not in point]
    for point in document["points"]:
        if "error" in point:
            reporter.note(f"{point['asked_bits']:g} bits/weight: {point['error']}")
    seconds = time.perf_counter() - start
    summary = f"{options.model} -> {folder}: {plural(len(reached), 'file')}, {seconds:.1f} s"
    return Outcome(summary, document, "" if options.json else points_table(document))


def _statistics(opened: OpenedModel, folder: Path, options: argparse.Namespace,
                reporter: Reporter) -> Statistics | None:
    """Of --stats, of an earlier start of the same sweep, or measured now and kept in the folder."""
    kept = folder / STATS
    if options.data and kept.exists():
        from ..errors import StatisticsError
        from ..statistics import Statistics
        try:
            found = Statistics.load(kept)
            found.check(opened.inventory)
            reporter.detail(f"statistics of {plural(found.images, 'input')} from {kept}")
            return found
        except StatisticsError as error:
            raise ConfigError(f"{kept} is of another sweep: give another folder, or delete it ({error})") from error
    stats = statistics(opened, options, reporter)
    if stats is not None and options.data:
        stats.save(kept)
    return stats


def points_table(document: dict[str, Any]) -> str:
    """The points and baselines as text, largest first."""
    rows = []
    for point in [*document["points"], *document["baselines"]]:
        if "error" not in point:
            codec = point.get("codec", "tersor").replace(" per channel", "").replace(" per layer", "")
            rows.append((point["bytes"], [codec, f"{point['bytes']:,}",
                                          f"{point['bits_per_weight']:.3f}", *_figures(point)]))
    rows.sort(key=lambda row: -row[0])
    header = ["codec", "bytes", "bits/weight", "SNR dB", "KL", "top-1 change"]
    return table(header, [row for _, row in rows], right={1, 2, 3, 4, 5})


def _figures(point: dict[str, Any]) -> list[str]:
    measured = point["measured"] or {}
    snr = measured.get("snr", point.get("snr_db"))
    change, error = measured.get("top1_change"), measured.get("top1_change_error")
    return ["" if snr is None else f"{snr:.1f}", "" if measured.get("kl") is None else f"{measured['kl']:.4f}",
            "" if change is None or error is None else f"{100 * change:+.2f} ± {100 * error:.2f}"]
