"""The commands of `tersor`, each a module: `HELP`, `DESCRIPTION`, `add_arguments(parser)`, `run(options, reporter)`.

They are a thin layer over the Python functions. None imports torch with itself: those that encode do when they run,
and only after the cheap mistakes (no such file, output exists) are found.
"""

from __future__ import annotations

import argparse
from typing import Protocol

from ..show import Outcome, Reporter
from . import calibrate, compare, compress, finetune, inspect, report, restore, sweep, verify


class Command(Protocol):
    """What the command line wants of a module of this package."""

    HELP: str
    DESCRIPTION: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's own arguments; those of all commands (-q, -v, --json) are there."""

    def run(self, options: argparse.Namespace, reporter: Reporter) -> Outcome:
        """Do it. Raises `TersorError` and `OSError` for `tersor.cli` to tell."""


COMMANDS: dict[str, Command] = {"compress": compress, "restore": restore, "inspect": inspect, "verify": verify,
                                "calibrate": calibrate, "compare": compare, "finetune": finetune, "sweep": sweep,
                                "report": report}
