"""A module of networks in an empty folder, as users of the command line have one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest


def installed(name: str, source: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Write `source` as the module `name` to `folder`, go there, and return what it defines."""
    monkeypatch.chdir(folder)
    monkeypatch.delenv("TERSOR_DEBUG", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, name, raising=False)
    Path(f"{name}.py").write_text(source)
    space: dict[str, Any] = {}
    exec(source, space)
    return space
