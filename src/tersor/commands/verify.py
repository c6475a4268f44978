"""`tersor verify`: every checksum, and that everything decodes."""

from __future__ import annotations

import argparse
import time

from ..decoder import load
from ..show import Outcome, Reporter, plural
from . import arguments

HELP = "check every byte"
DESCRIPTION = "Check every checksum of a .tersor file, and that every tensor decodes."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """FILE.tersor, threads."""
    arguments.add_threads(parser)
    parser.add_argument("file", metavar="FILE.tersor")


def run(options: argparse.Namespace, reporter: Reporter) -> Outcome:
    """Every checksum, and that every section decodes."""
    start = time.perf_counter()
    with load(options.file, threads=options.threads) as file, \
            reporter.busy(f"checking {plural(len(file), 'tensor')}"):
        file.verify()
    seconds, sections = time.perf_counter() - start, len(file.manifest.sections)
    summary = (f"{options.file}: ok, {plural(len(file), 'tensor')} in {plural(sections, 'section')}, "
               f"{file.size:,} bytes, {seconds:.1f} s")
    return Outcome(summary, {"file": options.file, "ok": True, "tensors": len(file), "sections": sections,
                             "bytes": file.size, "seconds": round(seconds, 3)})
