"""Files that keep every tensor bit for bit, and models that must come back as they were."""

from __future__ import annotations

from pathlib import Path

import tersor
from tersor.config import Config, LayerConfig
from tersor.encoding import Encoding
from tersor.plan import Plan
from tersor.writer import write


def exact(opened: tersor.OpenedModel) -> bytes:
    """A .tersor file of all tensors by the raw tool."""
    matrices = any(array.ndim >= 2 for array in opened.inventory.tensors.values())
    config = Config(keep_exact=True, layers={".*": LayerConfig(tool="raw")} if matrices else {})
    return write(Encoding(Plan(opened.inventory, None, config), 1.0)).data


def there_and_back(path: Path, folder: Path) -> tersor.OpenedModel:
    """Compressed without loss and restored, a file must be what it was."""
    opened = tersor.open_model(path)
    back = folder / "back" / path.name
    back.parent.mkdir(exist_ok=True)
    tersor.restore_file(exact(opened), back)
    assert back.read_bytes() == path.read_bytes()
    return opened
