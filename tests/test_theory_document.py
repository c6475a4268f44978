"""docs/theory.md names functions; they must be there, with documentation of their own."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

TEXT = (Path(__file__).parent.parent / "docs" / "theory.md").read_text(encoding="utf-8")
NAMES = sorted(set(re.findall(r"`(tersor\.[\w.]+)`", TEXT)))


@pytest.mark.parametrize("name", NAMES)
def test_functions_that_are_named_exist(name: str) -> None:
    parts = name.split(".")
    cut = next(i for i, part in enumerate(parts) if part.startswith("_") or part[0].isupper() or i == len(parts) - 1)
    found: object = importlib.import_module(".".join(parts[:cut]))
    for part in parts[cut:]:
        found = getattr(found, part)
    assert callable(found) and found.__doc__


def test_every_row_names_a_function() -> None:
    lines = [line for line in TEXT.splitlines() if line.startswith("|")]
    rows = [line for line in lines if not re.match(r"\|(---| what| formula)", line)]
    assert len(rows) > 25 and all(re.search(r"`tersor\.[\w.]+` \|$", row) for row in rows)
