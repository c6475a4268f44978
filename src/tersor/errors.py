"""Everything that can go wrong, as one small tree: `except tersor.TersorError` catches all of it.

The command line maps these classes to exit codes (see `tersor.cli`): `FormatError` and its
children are 3, `TargetError` is 4, `ConfigError` is 2, every other `TersorError` is 1.
"""

from __future__ import annotations


class TersorError(Exception):
    """Base of every error that tersor raises on purpose."""


class FormatError(TersorError):
    """The bytes are not a well-formed .tersor file (corrupt, truncated, or made up)."""


class ChecksumError(FormatError):
    """A stored CRC-32 does not match the bytes it covers."""


class UnsupportedError(FormatError):
    """The file needs a newer tersor: unknown container version, tools version or coding tool."""


class LimitError(FormatError):
    """The file asks for more memory or elements than `Limits` allows."""


class TargetError(TersorError):
    """The asked bits/weight, size or signal-to-noise ratio is out of reach; says what is reachable."""


class StatisticsError(TersorError):
    """Calibration statistics do not belong to this model, or could not be measured."""


class ModelError(TersorError):
    """A model or state dict cannot be read, or does not fit what is being restored into it."""


class DataError(TersorError):
    """Images, arrays or labels cannot be read, do not fit each other, or too many of them are bad."""


class ConfigError(TersorError, ValueError):
    """An option is unknown, out of range, or contradicts another."""


class KernelError(TersorError):
    """The native kernel is missing or does not fit this version of tersor."""


class WorkerError(TersorError):
    """A process of a distributed task has died, does not answer, or has failed; says which."""


class StateError(TersorError):
    """A saved state belongs to another task, or is damaged; work cannot go on from it."""
