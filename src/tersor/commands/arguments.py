"""Arguments that several commands share, and types of arguments: text of a user in, a value or one clear line out."""

from __future__ import annotations

import argparse
import math
import os
import re

from ..config import RIVALS, TOOLS, LayerConfig
from ..errors import ConfigError

_UNITS = {"": 1, "b": 1, "k": 10**3, "kb": 10**3, "m": 10**6, "mb": 10**6, "g": 10**9, "gb": 10**9,
          "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}


def add_loudness(parser: argparse.ArgumentParser) -> None:
    """-q, -v, --json: of all commands."""
    loudness = parser.add_mutually_exclusive_group()
    loudness.add_argument("-q", "--quiet", action="store_true", help="print errors and results only")
    loudness.add_argument("-v", "--verbose", action="store_true", help="print more")
    parser.add_argument("--json", action="store_true", help="print the result as JSON on stdout")


def add_state(parser: argparse.ArgumentParser) -> None:
    """--state."""
    parser.add_argument("--state", metavar="FOLDER", help="keep what is finished in this folder; started again with "
                        "the same arguments after an interruption, the command goes on from there")


def add_output(parser: argparse.ArgumentParser, default: str = "the same name with the other suffix") -> None:
    """-o, -f: of commands that write a file."""
    parser.add_argument("-o", "--output", metavar="FILE", help=f"file to write (default: {default})")
    parser.add_argument("-f", "--force", action="store_true", help="overwrite the output if it exists")


def add_threads(parser: argparse.ArgumentParser, purpose: str = "for decoding (default: all cores)") -> None:
    """-j: of commands that decode."""
    parser.add_argument("-j", "--threads", type=threads, metavar="N", help=purpose)


def positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return value


def threads(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of threads")
    return int(text)


def size(text: str) -> int:
    """
    >>> size("70kB"), size("1.5 MiB")
    (70000, 1572864)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower(), re.ASCII)
    if match is None or match[2] not in _UNITS or int(float(match[1]) * _UNITS[match[2]]) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write bytes, or kB, MB, GB, KiB, MiB, GiB")
    return int(float(match[1]) * _UNITS[match[2]])


def decibels(text: str) -> float:
    """
    >>> decibels("20dB"), decibels("-3")
    (20.0, -3.0)
    """
    try:
        value = float(text.lower().removesuffix("db"))
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of decibels")
    return value


def layer(text: str) -> tuple[str, LayerConfig]:
    """
    >>> layer("fc.*=weight:4")
    ('fc.*', LayerConfig(tool=None, weight=4.0))
    """
    pattern, equals, what = text.rpartition("=")
    name, colon, value = what.partition(":")
    try:
        re.compile(pattern)
        if equals and what in TOOLS:
            return pattern, LayerConfig(tool=what)  # type: ignore[arg-type]
        if equals and name == "weight" and colon:
            return pattern, LayerConfig(weight=positive(value))
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{pattern!r} is no regular expression: {error}") from None
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    raise argparse.ArgumentTypeError(f"{text!r} is not REGEX=weight:NUMBER or REGEX=TOOL, with one of the tools "
                                     f"{', '.join(TOOLS)}")


def names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


def tools(text: str) -> tuple[str, ...]:
    """
    >>> tools("scalar,transform")
    ('scalar', 'transform')
    """
    tools = names(text)
    if any(tool not in TOOLS or tool == "raw" for tool in tools):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of {', '.join(RIVALS)}, nor codebook")
    return tools


def count(text: str) -> int:
    """
    >>> count("256")
    256
    """
    if not (text.isascii() and text.isdecimal()) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def numbers(text: str) -> tuple[float, ...]:
    """
    >>> numbers("0.5, 0.4,0.3")
    (0.5, 0.4, 0.3)
    """
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = (math.nan,)
    if not all(map(math.isfinite, values)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers such as 0.485,0.456,0.406")
    return values


def share(text: str) -> float:
    """A percentage as 0..1.

    >>> share("5"), share("2.5%")
    (0.05, 0.025)
    """
    try:
        value = float(text.removesuffix("%")) / 100
    except ValueError:
        value = math.nan
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a percentage from 0 to 100")
    return value


def existing(text: str) -> str:
    """A file that is there."""
    if not os.path.isfile(text):
        raise argparse.ArgumentTypeError(f"there is no file {text!r}")
    return text
