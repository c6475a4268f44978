"""`tersor inspect`: what the manifest of a file says; layer by layer with -v; how far from the limit with --limits."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ..anatomy import anatomy
from ..decoder import TersorFile, load, tool_name
from ..errors import ConfigError
from ..show import Outcome, Reporter, bits, inspection, layer_table, limit_table, smaller
from . import models

if TYPE_CHECKING:
    from ..tools.ruler import Limit

HELP = "show what is inside"
DESCRIPTION = ("Show tensors, bytes, versions and metadata of a .tersor file. Decodes nothing, but for -v, which shows "
               "how each weight is coded.")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """FILE.tersor, and what --limits needs."""
    parser.add_argument("file", metavar="FILE.tersor")
    parser.add_argument("--limits", action="store_true", help="bits/weight of each layer beside the least that any "
                        "code needs for the same error (reverse water-filling); needs --model and --stats")
    parser.add_argument("--model", metavar="MODEL", help="what was compressed, as for tersor compress; with a network "
                        "that can be run, errors count as the encoder counts them")
    parser.add_argument("--weights", metavar="FILE", help="load these into the network that package.module:factory "
                        "builds")
    parser.add_argument("--stats", metavar="FILE", help="the statistics that it was compressed with")


def run(options: argparse.Namespace, reporter: Reporter) -> Outcome:
    """What the manifest says, from the front of the file; and what was asked for beyond it."""
    if options.limits != bool(options.model and options.stats) or (options.weights and not options.model):
        raise ConfigError("--limits compares a file with its model, by the statistics that it was made with: give "
                          "--limits, --model and --stats together")
    with load(options.file) as file:
        report = {"file": options.file, **contents(file)}
    texts = [inspection(report, options.verbose)] if options.verbose or not options.limits else []
    if options.verbose:
        report["layers"] = [part.report() for part in anatomy(options.file)]
        texts.append(layer_table(report["layers"]))
    if options.limits:
        report["limits"] = [row.report() for row in measured_limits(options, reporter)]
        texts.append(limit_table(report["limits"]))
    summary = (f"{options.file}: {report['bytes']:,} bytes, {bits(report['bits_per_weight'])}, "
               f"{smaller(report['raw_bytes'], report['bytes'])} than its tensors")
    return Outcome(summary, report, "\n\n".join(texts))


def measured_limits(options: argparse.Namespace, reporter: Reporter) -> list[Limit]:
    """Every coded weight, and all together at the end."""
    opened = models.open_options(options)
    from ..gap import rate_limits  # imports torch
    from ..statistics import Statistics
    from ..tools.ruler import overall
    if opened.module is None:
        reporter.note("errors count from the original weights: there is no network to run, so what a layer makes up "
                      "for those before it looks like an error")
    with reporter.busy("measuring"):
        rows = rate_limits(options.file, opened.model, Statistics.load(options.stats))
    return [*rows, overall(rows)]


def contents(file: TersorFile) -> dict[str, Any]:
    """Everything that is known of a file without decoding it, as plain data."""
    manifest = file.manifest
    by_tool: dict[str, int] = {}
    rest = {record.section: record for record in manifest.tensors if record.name not in file}  # at most one
    for number, section in enumerate(manifest.sections):
        kind = "rest of the source file" if number in rest else tool_name(section.tool)
        by_tool[kind] = by_tool.get(kind, 0) + section.length
    tensors = [{
        "name": record.name, "dtype": record.dtype, "shape": list(record.shape), "bytes": record.nbytes,
        "tool": None if record.section is None else tool_name(manifest.sections[record.section].tool),
        "section": record.section,
        "alias_of": None if record.alias_of is None else manifest.tensors[record.alias_of].name,
    } for record in manifest.tensors if record.name in file]
    raw = sum(record.nbytes for record in manifest.tensors if record.alias_of is None and record.name in file)
    return {
        "bytes": file.size, "header_bytes": file.size - manifest.payload_bytes, "bytes_by_tool": by_tool,
        "parameters": manifest.parameters, "bits_per_weight": file.bits_per_weight,
        "raw_bytes": raw, "ratio": raw / file.size,
        "container_version": manifest.container_version, "tools_version": manifest.tools_version,
        "library_version": ".".join(map(str, manifest.library_version)),
        "source_format": file.source_format, "metadata": file.metadata, "tied": file.tied, "tensors": tensors,
        "sections": [{"tool": tool_name(section.tool), "offset": section.offset, "bytes": section.length,
                      "crc32": f"{section.crc32:08x}", "tensors": len(members)}
                     for section, members in zip(manifest.sections, manifest.members, strict=True)],
    }
