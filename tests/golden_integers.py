"""The integers of golden files, hashed: `python tests/golden_integers.py` adds what golden-integers.json has not yet.

Tensors (golden/*.json) may agree by chance of rounding where integers do not; these say what the entropy coders must
give.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tersor.sections import Contents

FOLDER = Path(__file__).parent / "golden"
KEPT = Path(__file__).parent / "golden-integers.json"


def parts(code: Any) -> Iterator[np.ndarray]:
    """All integers of a code, in the order of its fields: int64, scalars as arrays without axes."""
    if is_dataclass(code):
        for field in fields(code):
            yield from parts(getattr(code, field.name))
    elif isinstance(code, (list, tuple)):
        for member in code:
            yield from parts(member)
    elif isinstance(code, np.ndarray) and np.issubdtype(code.dtype, np.integer):
        yield code.astype(np.int64)
    elif isinstance(code, (bool, int, np.integer)):
        yield np.array(code, np.int64)


def sections(path: Path) -> list[str]:
    """For each section its tool and the SHA-256 of its integers with their shapes."""
    out = []
    for section in Contents.of(path).sections:
        digest = hashlib.sha256()
        for array in parts(section.codes):
            digest.update(np.array([array.ndim, *array.shape], "<i8").tobytes() + array.astype("<i8").tobytes())
        out.append(f"{section.tool} {digest.hexdigest()}")
    return out


def main() -> None:
    """Keep what is kept."""
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    for path in sorted(FOLDER.glob("*.tersor")):
        kept.setdefault(path.stem, sections(path))
    KEPT.write_text(json.dumps(dict(sorted(kept.items())), indent=1) + "\n")


if __name__ == "__main__":
    main()
