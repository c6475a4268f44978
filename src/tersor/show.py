"""What the command line prints: results on stdout, messages on stderr, nothing that a hostile file can abuse.

Names and metadata come from files of strangers: control characters (which could move the cursor, retitle the
terminal or reverse the text) are shown as escapes.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

LONGEST_VALUE = 200
"""Characters of a metadata value that are shown without -v."""


@dataclass(frozen=True)
class Outcome:
    """What a command came to: one line for people, the same and more as data, and text that was asked for."""

    summary: str
    report: dict[str, Any]
    text: str = ""


class Reporter:
    """All output of one command. Progress is shown on a terminal only, and gone afterwards."""

    def __init__(self, quiet: bool = False, verbose: bool = False, json_wanted: bool = False) -> None:
        self._quiet, self._verbose, self._json = quiet, verbose, json_wanted
        self._status: Any = None

    @contextlib.contextmanager
    def busy(self, what: str) -> Iterator[None]:
        """Shows on a terminal that something is going on."""
        if self._quiet or self._verbose or not sys.stderr.isatty():
            yield
            return
        from rich.console import Console
        from rich.text import Text
        try:
            with Console(stderr=True).status(Text(what)) as self._status:
                yield
        finally:
            self._status = None

    def progress(self, text: str) -> None:
        """The latest news of what is going on; with -v every one is kept."""
        if self._verbose:
            self._line(text)
        elif self._status is not None:
            from rich.text import Text
            self._status.update(Text(text))

    def note(self, text: str) -> None:
        """Something that the user should know about a command that succeeds."""
        if not self._quiet:
            self._line(f"note: {text}")

    def detail(self, text: str) -> None:
        """Something for those who want to know (-v)."""
        if self._verbose:
            self._line(text)

    def finish(self, outcome: Outcome) -> None:
        """Print what a command came to."""
        if self._json:
            print(json.dumps(_finite(outcome.report), indent=2))
        elif outcome.text:
            print(outcome.text)
        if not self._quiet:
            sys.stdout.flush()  # in this order also where both go to one place
            self._line(outcome.summary)

    def error(self, message: str, kind: str, code: int) -> None:
        """Print why a command failed; with --json also as data."""
        self._line(f"error: {message}")
        if self._json:
            details = {"kind": kind, "message": message, "exit_code": code}
            print(json.dumps({"error": details}, indent=2), flush=True)

    def _line(self, text: str) -> None:
        print(f"tersor: {printable(text)}", file=sys.stderr, flush=True)


def printable(text: str) -> str:
    r"""`text` with everything but letters, marks, digits, punctuation, symbols and plain spaces as escapes.

    >>> print(printable("conv\x1b[2J.weight\n"))
    conv\x1b[2J.weight\n
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def bits(value: float) -> str:
    """Bits/weight, of which a model without parameters has none."""
    return f"{value:.3f} bits/weight" if math.isfinite(value) else "no parameters"


def smaller(before: int, after: int) -> str:
    """
    >>> smaller(1000, 100), smaller(100, 150)
    ('10.0x smaller', '1.5x larger')
    """
    return f"{before / after:.1f}x smaller" if before >= after else f"{after / max(1, before):.1f}x larger"


def plural(count: int, what: str) -> str:
    """
    >>> plural(1, "tensor"), plural(1200, "tensor")
    ('1 tensor', '1,200 tensors')
    """
    return f"{count:,} {what}" + ("" if count == 1 else "s")


def inspection(report: dict[str, Any], verbose: bool) -> str:
    """The report of `tersor inspect` (`tersor.commands.inspect.contents`) as text."""
    parts = [_tensor_table(report, verbose), *([_section_table(report)] if verbose else []),
             _budget_table(report), _facts(report, verbose)]
    return "\n\n".join(parts)


def _tensor_table(report: dict[str, Any], verbose: bool) -> str:
    header = ["tensor", "dtype", "shape", *(["bytes"] if verbose else []), "tool", "section"]
    rows = []
    for tensor in report["tensors"]:
        home = [tensor["tool"], str(tensor["section"])]
        if tensor["alias_of"] is not None:
            home = ["tied to" if report["tied"] else "same as", printable(tensor["alias_of"])]
        size = [f"{tensor['bytes']:,}"] if verbose else []
        rows.append([printable(tensor["name"]), tensor["dtype"], shape_text(tensor["shape"]), *size, *home])
    return table(header, rows, right={3} if verbose else set())


def _section_table(report: dict[str, Any]) -> str:
    rows = [[str(i), part["tool"], f"{part['tensors']:,}", f"{part['offset']:,}", f"{part['bytes']:,}",
             part["crc32"]] for i, part in enumerate(report["sections"])]
    return table(["section", "tool", "tensors", "offset", "bytes", "CRC-32"], rows, right={2, 3, 4})


def _budget_table(report: dict[str, Any]) -> str:
    total = report["bytes"]
    budget = {"header and manifest": report["header_bytes"], **report["bytes_by_tool"], "file": total}
    rows = [[name, f"{size:,}", f"{size / total:.1%}"] for name, size in budget.items()]
    return table(["where the bytes are", "bytes", "share"], rows, right={1, 2})


def layer_table(layers: Sequence[dict[str, Any]]) -> str:
    """How each weight is coded (`tersor.anatomy`)."""
    rows = [[printable(layer["name"]), layer["tool"], layer["detail"], f"{layer['weights']:,}",
             f"{layer['bits_per_weight']:.2f}", _steps(*layer["steps"]), _percent(layer["zeros"])] for layer in layers]
    return table(["weight", "tool", "how", "weights", "bits/weight", "steps", "zeros"], rows, right={3, 4, 6})


def limit_table(limits: Sequence[dict[str, Any]]) -> str:
    """Bits per weight of each layer beside its limits (`tersor.rate_limits`), all together in the last row."""
    rows = [[printable(row["name"]), f"{row['weights']:,}", f"{row['bits']:.3f}", f"{row['distortion']:.3g}",
             f"{row['shannon']:.3f}", f"{row['gap']:+.3f}", f"{row['scalar']:.3f}", f"{row['scalar_gap']:+.3f}",
             "" if row["exact"] else "approximate"] for row in limits]
    header = ["weight", "weights", "bits/weight", "error", "limit", "gap", "scalar limit", "gap to it", ""]
    return table(header, rows, right=set(range(1, 8)))


def _steps(low: float, high: float) -> str:
    """
    >>> _steps(0.01, 0.01), _steps(0.01, 0.25)
    ('0.01', '0.01 .. 0.25')
    """
    return f"{low:.3g}" if low == high or math.isnan(low) else f"{low:.3g} .. {high:.3g}"


def _percent(share: float) -> str:
    return "" if math.isnan(share) else f"{share:.0%}"


def _facts(report: dict[str, Any], verbose: bool) -> str:
    facts = [["parameters", f"{report['parameters']:,}"],
             ["rate", bits(report["bits_per_weight"])],
             ["tensors in memory", f"{report['raw_bytes']:,} bytes, {report['ratio']:.1f} times the file"],
             ["versions", f"container {report['container_version']}, tools {report['tools_version']}, "
                          f"written by tersor {report['library_version']}"]]
    for key, value in report["metadata"].items():
        cut = verbose or len(value) <= LONGEST_VALUE
        shown = value if cut else f"{value[:LONGEST_VALUE]}... ({len(value):,} characters; -v shows all)"
        facts.append([f"metadata {printable(key)}", printable(shown)])
    return table(None, facts)


def table(header: Sequence[str] | None, rows: Sequence[Sequence[str]], right: set[int] | None = None) -> str:
    """Columns two spaces apart. A first column too wide for the terminal stands on a line of its own.

    Columns whose number is in `right` are aligned at their right ends.
    """
    lines = [*([header] if header else []), *rows]
    widths = [max((len(row[column]) for row in lines), default=0) for column in range(len(lines[0]))]
    if len(widths) - 1 not in (right or ()):
        widths[-1] = len(lines[0][-1])  # nothing stands behind it: no need to reserve room
    room = shutil.get_terminal_size().columns - sum(width + 2 for width in widths[1:])
    first = max((len(row[0]) for row in lines if len(row[0]) <= max(room, 24)), default=24)
    out = []
    for row in lines:
        if len(row[0]) > first:
            out.append(row[0])
        cells = [(row[0] if len(row[0]) <= first else "").ljust(first)]
        for column, (cell, width) in enumerate(zip(row[1:], widths[1:], strict=True), start=1):
            cells.append(cell.rjust(width) if column in (right or ()) else cell.ljust(width))
        out.append("  ".join(cells).rstrip())
    return "\n".join(out)


def shape_text(shape: Sequence[int]) -> str:
    """
    >>> shape_text([16, 3, 3, 3]), shape_text([])
    ('16x3x3x3', 'scalar')
    """
    return "x".join(map(str, shape)) if shape else "scalar"


def _finite(value: Any) -> Any:
    """JSON has no infinities and no NaN: null stands for them."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
