"""tersor: trained convolutional networks as the smallest files that keep their accuracy.

    stats = tersor.calibrate(model, batches)
    packed = tersor.compress(model, stats, bits=2.0)
    packed.save("model.tersor")
    model = tersor.restore("model.tersor", into=model)

Reading needs no torch: `tersor.load(path)` is a mapping of names to NumPy arrays.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .decoder import TersorFile, load
from .errors import TersorError
from .limits import Limits
from .streaming import stream

if TYPE_CHECKING:
    from .adapters.formats import OpenedModel, open_model
    from .adapters.restored import restore_file
    from .config import CodebookConfig, Config, KernelConfig, LayerConfig, TransformConfig
    from .encoder import compress, footprint
    from .gap import rate_limits
    from .packed import Packed
    from .restored import restore
    from .sensitivity import Statistics, calibrate
    from .training.loop import finetune
    from .training.trainable import Trainable

__version__ = "0.1.0"

__all__ = ["CodebookConfig", "Config", "KernelConfig", "LayerConfig", "Limits", "OpenedModel", "Packed", "Statistics",
           "TersorError", "TersorFile", "Trainable", "TransformConfig", "calibrate", "compress", "finetune",
           "footprint", "load", "open_model", "rate_limits", "restore", "restore_file", "stream"]

_LAZY = {"OpenedModel": "adapters.formats", "open_model": "adapters.formats", "restore_file": "adapters.restored",
         "CodebookConfig": "config", "Config": "config", "KernelConfig": "config", "LayerConfig": "config",
         "TransformConfig": "config", "Packed": "packed", "Trainable": "training.trainable",
         "finetune": "training.loop",
         "Statistics": "statistics", "calibrate": "sensitivity", "compress": "encoder", "restore": "restored",
         "footprint": "encoder",
         "rate_limits": "gap"}
"""Public name -> module; imported at first use: torch takes seconds, and reading files does not need it."""


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'tersor' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
