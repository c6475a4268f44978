"""The command `tersor`: arguments in, exit code out. What the commands do is in `tersor.commands`.

    tersor compress model.safetensors --bits 3       -> model.tersor
    tersor restore model.tersor -o back.safetensors
    tersor inspect model.tersor                         what is inside; decodes nothing
    tersor verify model.tersor                          every checksum, every tensor

Exit codes: 0 ok, 1 failure, 2 wrong usage, 3 corrupt or unsupported file, 4 target out of reach; 130 after
Ctrl-C and 141 when the reader of a pipe has gone, as shells count them. Errors are one line on stderr; with
TERSOR_DEBUG=1 in the environment they are Python tracebacks.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import os
import re
import sys
from collections.abc import Sequence
from typing import NoReturn, TextIO, get_args, get_type_hints

from . import __version__
from .config import (
    DEFAULT_EFFORT,
    MAX_EFFORT,
    MIN_EFFORT,
    MODES,
    RIVALS,
    TOOLS,
    CodebookConfig,
    KernelConfig,
    LayerConfig,
)
from .errors import ConfigError, FormatError, TargetError, TersorError
from .show import Reporter, printable

OK, FAILURE, USAGE, BAD_FILE, OUT_OF_REACH, INTERRUPTED, BROKEN_PIPE = 0, 1, 2, 3, 4, 130, 141

_UNITS = {"": 1, "b": 1, "k": 10**3, "kb": 10**3, "m": 10**6, "mb": 10**6, "g": 10**9, "gb": 10**9,
          "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; `argv` without the program's name, `sys.argv` if None. Returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal cannot show is no reason to fail
            stream.reconfigure(errors="backslashreplace")
    reporter = Reporter()
    try:
        try:
            options = build_parser().parse_args(argv)
            reporter = Reporter(options.quiet, options.verbose, options.json)
            from . import commands  # after the arguments are known to be right
            reporter.finish(commands.COMMANDS[options.command](options, reporter))
        finally:
            _flush(sys.stdout)
    except Exception as error:
        if os.environ.get("TERSOR_DEBUG", "0") not in ("", "0"):
            raise
        return _fail(error, reporter)
    except KeyboardInterrupt:
        reporter.error("interrupted", "KeyboardInterrupt", INTERRUPTED)
        return INTERRUPTED
    return OK


def exit_code(error: BaseException) -> int:
    """The exit code that stands for an exception.

    >>> exit_code(FormatError("truncated")), exit_code(ConfigError("levels=0")), exit_code(OSError("disk full"))
    (3, 2, 1)
    """
    if isinstance(error, ConfigError):
        return USAGE
    if isinstance(error, FormatError):
        return BAD_FILE
    if isinstance(error, TargetError):
        return OUT_OF_REACH
    return BROKEN_PIPE if isinstance(error, BrokenPipeError) else FAILURE


def _fail(error: Exception, reporter: Reporter) -> int:
    code = exit_code(error)
    if code == BROKEN_PIPE:
        _abandon(sys.stdout)
        _abandon(sys.stderr)
    else:
        with contextlib.suppress(OSError):  # the place for messages may be what failed
            reporter.error(describe(error), type(error).__name__, code)
    return code


def describe(error: Exception) -> str:
    """One sentence for a user about any exception."""
    if isinstance(error, TersorError):
        return str(error)
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename is not None else ""
        return f"{place}{error.strerror or error}"
    if isinstance(error, ModuleNotFoundError) and error.name == "torch":
        return "compressing needs PyTorch, which is not installed: pip install 'tersor[torch]'"
    if isinstance(error, MemoryError):
        return f"there is not enough memory ({error or 'no details'})"
    return (f"this should not happen, please report it: {type(error).__name__}: {error} "
            f"(TERSOR_DEBUG=1 shows where)")


def build_parser() -> argparse.ArgumentParser:
    """All arguments of all commands."""
    shared = _Parser(add_help=False)
    loudness = shared.add_mutually_exclusive_group()
    loudness.add_argument("-q", "--quiet", action="store_true", help="print errors and results only")
    loudness.add_argument("-v", "--verbose", action="store_true", help="print more")
    shared.add_argument("--json", action="store_true", help="print the result as JSON on stdout")
    output = _Parser(add_help=False)
    output.add_argument("-o", "--output", metavar="FILE",
                        help="file to write (default: the same name with the other suffix)")
    output.add_argument("-f", "--force", action="store_true", help="overwrite the output if it exists")
    threads = _Parser(add_help=False)
    threads.add_argument("-j", "--threads", type=_threads, metavar="N",
                         help="for decoding (default: all cores)")

    parser = _Parser(prog="tersor",
                     description="Trained neural networks as small files that keep their accuracy.")
    parser.add_argument("--version", action="version", version=f"tersor {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    compress = commands.add_parser("compress", parents=[shared, output],
                                   help="a .safetensors file to a .tersor file",
                                   description="Compress a .safetensors file.")
    _add_compress(compress)
    restore = commands.add_parser("restore", parents=[shared, output, threads],
                                  help="a .tersor file back to a .safetensors file",
                                  description="Restore a .safetensors file from a .tersor file.")
    restore.add_argument("file", metavar="FILE.tersor")
    inspect = commands.add_parser("inspect", parents=[shared],
                                  help="show what is inside, without decoding it",
                                  description="Show tensors, bytes, versions and metadata of a .tersor file.")
    inspect.add_argument("file", metavar="FILE.tersor")
    verify = commands.add_parser("verify", parents=[shared, threads], help="check every byte",
                                 description="Check every checksum of a .tersor file, and that every tensor "
                                             "decodes.")
    verify.add_argument("file", metavar="FILE.tersor")
    return parser


def _add_compress(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL.safetensors")
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--bits", type=_positive, metavar="B",
                        help="bits/weight: 8 * bytes of the file / parameters of the model")
    target.add_argument("--size", type=_size, metavar="BYTES",
                        help="bytes of the file: 70000, 70kB, 1.5MB, 2MiB")
    target.add_argument("--snr", type=_no_snr, metavar="DB", help="(from Python only)")
    parser.add_argument("--stats", metavar="FILE", help="statistics of this very model, as saved by "
                        "tersor.calibrate(...).save(FILE); without, compression is data-free")
    parser.add_argument("--mode", choices=MODES, default="small",
                        help="small: the smallest file; fast: quickest to decode (default: %(default)s)")
    parser.add_argument("--effort", type=int, choices=range(MIN_EFFORT, MAX_EFFORT + 1), metavar="N",
                        default=DEFAULT_EFFORT,
                        help=f"{MIN_EFFORT} to {MAX_EFFORT}: time for bytes (default: %(default)s)")
    parser.add_argument("--keep-exact", action="store_true",
                        help="keep every tensor that is no weight matrix bit for bit")
    parser.add_argument("--layer", type=_layer, action="append", default=[], metavar="REGEX=WHAT",
                        help="for weights whose whole name matches: raw keeps them bit for bit; scalar, transform, "
                             "kernels, codebook: the tool for them; weight:4 multiplies what their errors count by 4. "
                             "The first match counts; may be given several times")
    parser.add_argument("--tool", type=_tools, metavar="TOOL[,TOOL...]",
                        help=f"for weights: some of {', '.join(RIVALS)}, of which each layer gets the one that costs "
                             "least; or codebook (default: by --effort, scalar up to 6)")
    parser.add_argument("--transforms", type=_names, metavar="NAME[,NAME...]",
                        help="that the transform tool may choose from: identity, elt, klt, dct1, dct2, elt-taps, "
                             "klt-taps, elt+dct2 ...")
    parser.add_argument("--kernels", type=int, metavar="N",
                        help="size of each layer's codebook of kernels (default: what rate and distortion prefer)")
    parser.add_argument("--kernel-bits", type=int, metavar="B",
                        help=f"of the values of kernels (default: {KernelConfig.value_bits})")
    codebook = parser.add_argument_group("the codebook tool", "for --tool codebook or --layer REGEX=codebook")
    codebook.add_argument("--method", choices=get_args(get_type_hints(CodebookConfig)["method"]),
                          help="how values are found: iterative entropy-constrained quantization, one step for all, "
                               f"or k-means (default: {CodebookConfig.method})")
    codebook.add_argument("--coder", choices=get_args(get_type_hints(CodebookConfig)["coder"]),
                          help=f"of the indexes (default: {CodebookConfig.coder}); --mode is for the scalar tool")
    codebook.add_argument("--levels", type=int, metavar="N",
                          help=f"most values of a codebook, for ecsq and kmeans (default: {CodebookConfig.levels})")
    codebook.add_argument("--per-layer", action="store_true", help="a codebook for each layer, not one for all")


class _Parser(argparse.ArgumentParser):
    """Usage errors in one line, like all others."""

    def error(self, message: str) -> NoReturn:
        print(f"tersor: error: {printable(message)} (see {self.prog} --help)", file=sys.stderr)
        sys.exit(USAGE)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return value


def _threads(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of threads")
    return int(text)


def _size(text: str) -> int:
    """
    >>> _size("70kB"), _size("1.5 MiB")
    (70000, 1572864)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower(), re.ASCII)
    if match is None or match[2] not in _UNITS or int(float(match[1]) * _UNITS[match[2]]) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write bytes, or kB, MB, GB, KiB, MiB, GiB")
    return int(float(match[1]) * _UNITS[match[2]])


def _no_snr(text: str) -> NoReturn:
    wanted = text if re.fullmatch("[0-9.]+", text) else "30"
    raise argparse.ArgumentTypeError("a signal-to-noise ratio is measured by running the network, and a "
                                     ".safetensors file holds only its weights; from Python: "
                                     f"tersor.compress(model, stats, snr={wanted})")


def _layer(text: str) -> tuple[str, LayerConfig]:
    """
    >>> _layer("fc.*=weight:4")
    ('fc.*', LayerConfig(tool=None, weight=4.0))
    """
    pattern, equals, what = text.rpartition("=")
    name, colon, value = what.partition(":")
    try:
        re.compile(pattern)
        if equals and what in TOOLS:
            return pattern, LayerConfig(tool=what)  # type: ignore[arg-type]
        if equals and name == "weight" and colon:
            return pattern, LayerConfig(weight=_positive(value))
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{pattern!r} is no regular expression: {error}") from None
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    raise argparse.ArgumentTypeError(f"{text!r} is not REGEX=weight:NUMBER or REGEX=TOOL, with one of the tools "
                                     f"{', '.join(TOOLS)}")


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


def _tools(text: str) -> tuple[str, ...]:
    """
    >>> _tools("scalar,transform")
    ('scalar', 'transform')
    """
    tools = _names(text)
    if any(tool not in TOOLS or tool == "raw" for tool in tools):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of {', '.join(RIVALS)}, nor codebook")
    return tools


def _flush(stream: TextIO | None) -> None:
    """What is still buffered must fail here, where it can be told, and not when the interpreter ends."""
    if stream is not None:
        try:
            stream.flush()
        except OSError:
            _abandon(stream)
            raise


def _abandon(stream: TextIO | None) -> None:
    """Send what is left for a stream that cannot be written to nowhere."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        assert stream is not None
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


if __name__ == "__main__":
    sys.exit(main())
