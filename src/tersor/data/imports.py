"""Python objects by their import path, as in `package.module:function`."""

from __future__ import annotations

import importlib
import os
import re
import sys
from typing import Any

from ..errors import ConfigError

_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def is_import_path(text: str) -> bool:
    """
    >>> is_import_path("nets.resnet:resnet20"), is_import_path("C:/photos"), is_import_path("model.pt2")
    (True, False, False)
    """
    return _PATH.fullmatch(text) is not None


def load_object(path: str) -> Any:
    """What an import path names; modules of the working directory count. This runs the module's code.

    Raises `ConfigError` naming what could not be found, or what the import itself raised.
    """
    if not is_import_path(path):
        raise ConfigError(f"{path!r} is no import path; write package.module:name")
    module, _, names = path.partition(":")
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module)
    except Exception as error:
        raise ConfigError(f"importing {module} failed: {type(error).__name__}: {error}") from error
    for name in names.split("."):
        if not hasattr(found, name):
            raise ConfigError(f"{module} has no {names}")
        found = getattr(found, name)
    return found
