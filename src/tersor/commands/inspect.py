"""`tersor inspect`: what the manifest of a file says."""

from __future__ import annotations

import argparse
from typing import Any

from ..decoder import TersorFile, load, tool_name
from ..show import Outcome, Reporter, bits, inspection, smaller

HELP = "show what is inside, without decoding it"
DESCRIPTION = "Show tensors, bytes, versions and metadata of a .tersor file."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """FILE.tersor."""
    parser.add_argument("file", metavar="FILE.tersor")


def run(options: argparse.Namespace, reporter: Reporter) -> Outcome:
    """What the manifest says; reads only the front of the file."""
    with load(options.file) as file:
        report = {"file": options.file, **contents(file)}
    text = "" if options.json else inspection(report, options.verbose)
    summary = (f"{options.file}: {report['bytes']:,} bytes, {bits(report['bits_per_weight'])}, "
               f"{smaller(report['raw_bytes'], report['bytes'])} than its tensors")
    return Outcome(summary, report, text)


def contents(file: TersorFile) -> dict[str, Any]:
    """Everything that is known of a file without decoding it, as plain data."""
    manifest = file.manifest
    by_tool: dict[str, int] = {}
    for section in manifest.sections:
        by_tool[tool_name(section.tool)] = by_tool.get(tool_name(section.tool), 0) + section.length
    tensors = [{
        "name": record.name, "dtype": record.dtype, "shape": list(record.shape), "bytes": record.nbytes,
        "tool": None if record.section is None else tool_name(manifest.sections[record.section].tool),
        "section": record.section,
        "alias_of": None if record.alias_of is None else manifest.tensors[record.alias_of].name,
    } for record in manifest.tensors]
    raw = sum(record.nbytes for record in manifest.tensors if record.alias_of is None)
    return {
        "bytes": file.size, "header_bytes": file.size - manifest.payload_bytes, "bytes_by_tool": by_tool,
        "parameters": manifest.parameters, "bits_per_weight": file.bits_per_weight,
        "raw_bytes": raw, "ratio": raw / file.size,
        "container_version": manifest.container_version, "tools_version": manifest.tools_version,
        "library_version": ".".join(map(str, manifest.library_version)),
        "metadata": file.metadata, "tied": file.tied, "tensors": tensors,
        "sections": [{"tool": tool_name(section.tool), "offset": section.offset, "bytes": section.length,
                      "crc32": f"{section.crc32:08x}", "tensors": len(members)}
                     for section, members in zip(manifest.sections, manifest.members, strict=True)],
    }
