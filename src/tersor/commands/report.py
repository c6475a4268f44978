"""`tersor report`: files and sweeps as one page to look at, and as PNG, CSV, Markdown."""

from __future__ import annotations

import argparse
import os

from ..show import Outcome, Reporter, plural
from .outputs import check_output

HELP = "a page of charts and tables from files and sweeps"
DESCRIPTION = ("Draw .tersor files, folders of tersor sweep, and what tersor compress --json has printed: rates and "
               "distortion, bytes, layers, codebooks. The page is one file that works offline.")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """PATH..., where to write."""
    parser.add_argument("paths", metavar="PATH", nargs="+", help="a .tersor file, a folder of tersor sweep, or a .json "
                        "file of tersor compress --json")
    parser.add_argument("-o", "--output", metavar="FILE.html", help="the page (default: report.html in the folder of a "
                        "sweep, else the name of the first path with .html)")
    parser.add_argument("--png", metavar="FILE.png", help="its charts as one picture as well")
    parser.add_argument("--csv", metavar="FILE.csv", help="its figures as well; the layers in FILE-layers.csv")
    parser.add_argument("--md", metavar="FILE.md", help="a section for a model card as well")
    parser.add_argument("-f", "--force", action="store_true", help="overwrite outputs that exist")


def run(options: argparse.Namespace, reporter: Reporter) -> Outcome:
    """Write what was asked for."""
    first = str(options.paths[0])
    html = options.output or (os.path.join(first, "report.html") if os.path.isdir(first)
                              else os.path.splitext(first)[0] + ".html")
    for output in filter(None, (html, options.png, options.csv, options.md)):
        check_output(output, options.paths, options.force)
    from ..report import write
    with reporter.busy("drawing"):
        written = write(options.paths, html, png=options.png, csv_file=options.csv, markdown=options.md,
                        overwrite=options.force)
    sizes = ", ".join(f"{path} {size:,} bytes" for path, size in written.files.items())
    return Outcome(f"{plural(len(options.paths), 'path')} -> {sizes}",
                   {"inputs": list(options.paths), "outputs": written.files})
