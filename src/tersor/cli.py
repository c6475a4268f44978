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
import os
import sys
from collections.abc import Sequence
from typing import NoReturn, TextIO

from . import __version__
from .commands import COMMANDS
from .commands.arguments import add_loudness
from .errors import ConfigError, FormatError, TargetError, TersorError
from .show import Reporter, printable

OK, FAILURE, USAGE, BAD_FILE, OUT_OF_REACH, INTERRUPTED, BROKEN_PIPE = 0, 1, 2, 3, 4, 130, 141



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
            reporter.finish(COMMANDS[options.command].run(options, reporter))
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
    parser = _Parser(prog="tersor",
                     description="Trained neural networks as small files that keep their accuracy.")
    parser.add_argument("--version", action="version", version=f"tersor {__version__}")
    places = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        place = places.add_parser(name, help=command.HELP, description=command.DESCRIPTION)
        add_loudness(place)
        command.add_arguments(place)
    return parser


class _Parser(argparse.ArgumentParser):
    """Usage errors in one line, like all others."""

    def error(self, message: str) -> NoReturn:
        print(f"tersor: error: {printable(message)} (see {self.prog} --help)", file=sys.stderr)
        sys.exit(USAGE)


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
