"""What each command of `tersor` does, given its parsed arguments: a thin layer over the Python functions.

Only `compress` imports torch, and only after the cheap mistakes (no such file, output exists) are found.
"""

from __future__ import annotations

import argparse
import errno
import os
import time
from collections.abc import Callable
from typing import Any

from .adapters import safetensors as safetensors_adapter
from .config import CodebookConfig, Config, KernelConfig, LayerConfig, TransformConfig
from .decoder import TersorFile, load, tool_name
from .errors import ConfigError
from .show import Outcome, Reporter, bits, inspection, plural, smaller

SUFFIXES = (".safetensors", ".tersor")


def compress(options: argparse.Namespace, reporter: Reporter) -> Outcome:
    """A .safetensors file to a .tersor file."""
    start = time.perf_counter()
    config = encoder_config(options)
    sources = [options.model] + ([options.stats] if options.stats else [])
    output = output_path(options.output, options.model, ".safetensors", ".tersor")
    check_output(output, sources, options.force)
    inventory = safetensors_adapter.read(options.model)
    with reporter.busy(f"compressing {plural(len(inventory.names), 'tensor')}"):
        from .encoder import compress as run  # imports torch
        from .statistics import Statistics
        stats = Statistics.load(options.stats) if options.stats else None
        packed = run(inventory, stats, bits=options.bits, size=options.size, config=config,
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


def restore(options: argparse.Namespace, reporter: Reporter) -> Outcome:
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


def inspect(options: argparse.Namespace, reporter: Reporter) -> Outcome:
    """What the manifest says; reads only the front of the file."""
    with load(options.file) as file:
        report = {"file": options.file, **contents(file)}
    text = "" if options.json else inspection(report, options.verbose)
    summary = (f"{options.file}: {report['bytes']:,} bytes, {bits(report['bits_per_weight'])}, "
               f"{smaller(report['raw_bytes'], report['bytes'])} than its tensors")
    return Outcome(summary, report, text)


def verify(options: argparse.Namespace, reporter: Reporter) -> Outcome:
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


COMMANDS: dict[str, Callable[[argparse.Namespace, Reporter], Outcome]] = {
    "compress": compress, "restore": restore, "inspect": inspect, "verify": verify}


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


def encoder_config(options: argparse.Namespace) -> Config:
    """What the arguments of `compress` say of the encoder. Raises `ConfigError`, also for what would do nothing."""
    layers: dict[str, LayerConfig] = {}
    for pattern, layer in options.layer:
        layers.setdefault(pattern, layer)
    chosen = {"method": options.method, "coder": options.coder, "levels": options.levels,
              "scope": "layer" if options.per_layer else None}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    tools: tuple[str, ...] | None = options.tool
    used = {*Config(tools=tools, effort=options.effort).chosen_tools, *(layer.tool for layer in layers.values())}
    if chosen and "codebook" not in used:
        flag = "--per-layer" if "scope" in chosen else f"--{next(iter(chosen))}"
        raise ConfigError(f"{flag} is for the codebook tool: give --tool codebook or --layer REGEX=codebook as well")
    for flag, value, tool in (("--transforms", options.transforms, "transform"),
                              ("--kernels", options.kernels, "kernels"),
                              ("--kernel-bits", options.kernel_bits, "kernels")):
        if value is not None and tool not in used:
            raise ConfigError(f"{flag} is for the {tool} tool: give --tool {tool} or --layer REGEX={tool} as well")
    if options.levels is not None and options.method == "uniform":
        raise ConfigError("--levels is for --method ecsq and kmeans; with uniform the number of values follows from "
                          "the target")
    bits = KernelConfig.value_bits if options.kernel_bits is None else options.kernel_bits
    return Config(tools=tools, mode=options.mode, effort=options.effort, keep_exact=options.keep_exact,
                  layers=layers, codebook=CodebookConfig(**chosen), transform=TransformConfig(options.transforms),
                  kernels=KernelConfig(size=options.kernels, value_bits=bits))


def output_path(given: str | None, source: str, suffix: str, other: str) -> str:
    """The file to write: as given, else the source's name with the other suffix.

    >>> output_path(None, "nets/a.v2.tersor", ".tersor", ".safetensors")
    'nets/a.v2.safetensors'
    """
    return given if given is not None else source.removesuffix(suffix) + other


def check_output(output: str, sources: list[str], force: bool) -> None:
    """Find out before a long computation what would keep its result from being written."""
    if not os.path.lexists(output):
        folder = os.path.dirname(output) or "."
        if not os.path.isdir(folder):
            raise FileNotFoundError(errno.ENOENT, "there is no such folder to write to", folder)
    elif os.path.isdir(output):
        raise IsADirectoryError(errno.EISDIR, "is a folder; -o names a file", output)
    elif any(os.path.exists(source) and os.path.exists(output) and os.path.samefile(source, output)
             for source in sources):
        raise ConfigError(f"{output} is an input; sources are kept, so -o must name another file")
    elif not force:
        raise FileExistsError(errno.EEXIST, "exists already; -f overwrites it, -o names another", output)
