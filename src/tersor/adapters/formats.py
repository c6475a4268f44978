"""Any model, by its path or name, as something that `tersor.calibrate` and `tersor.compress` accept.

    opened = open_model("squeezenet.onnx")            # or a .pt, a folder, package.module:factory, timm:resnet18 ...
    stats = tersor.calibrate(opened.module, batches)  # where the format has a network to run
    tersor.compress(opened.model, stats, bits=2.0).save("squeezenet.tersor")
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import nn

from ..errors import ModelError
from . import exported, hub_folder, imported, safetensors, state_dict
from .inventory import Inventory
from .module import inventory_of_module
from .onnx import file as onnx_file

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".onnx", ".pt2")
"""Of files that can be opened."""
_IMPORT_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_LIBRARIES: dict[str, Callable[[str], nn.Module]] = {"timm": imported.from_timm,
                                                     "transformers": imported.from_transformers}


@dataclass(frozen=True)
class OpenedModel:
    """A model from outside.

    * `spec`: what was asked for. `format`: "safetensors", "pytorch", "folder", "onnx", "pt2" or "module" (made by
      Python code): what `tersor.restore_file` gives back; of "module" it is a .safetensors file.
    * `inventory`: its tensors. `module`: the network, to calibrate and to evaluate; None where the format has no more
      than weights. `bytes`: of the file or files, 0 for "module".
    * `notes`: what its user should know.
    """

    spec: str
    format: str
    inventory: Inventory
    module: nn.Module | None
    bytes: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def model(self) -> nn.Module | Inventory:
        """What `tersor.compress` takes: the network where there is one."""
        return self.inventory if self.module is None else self.module


def open_model(spec: str | os.PathLike[str]) -> OpenedModel:
    """Find out what a path or name is, and open it.

    * A file: .safetensors; .pt, .pth, .bin, .ckpt (a state dict, read with weights_only); .onnx; .pt2 (torch.export).
    * A folder with weights, as the Hugging Face hub has them.
    * `package.module:factory`, `timm:NAME`, `transformers:NAME`.

    Never runs code of a file. Raises ModelError where it is none of these, damaged or unsafe (with what to do),
    ConfigError for a package that is missing, OSError where a file cannot be read.
    """
    text = os.fspath(spec)
    if os.path.isdir(text):
        inventory, notes = hub_folder.read(text)
        return OpenedModel(text, inventory.format, inventory, None, _folder_bytes(text), notes)
    name = text.partition(":")
    if name[0] in _LIBRARIES and name[1] and not os.path.exists(text):
        return _of_module(text, _LIBRARIES[name[0]](name[2]))
    if _IMPORT_PATH.fullmatch(text) and not os.path.exists(text):
        return _of_module(text, imported.from_path(text))
    return _of_file(text)


def _of_file(path: str) -> OpenedModel:
    suffix = os.path.splitext(path)[1].lower()
    if not os.path.exists(path) and suffix not in SUFFIXES:
        raise ModelError(f"{path!r} is no file and no folder, and not package.module:factory, timm:NAME or "
                         f"transformers:NAME")
    size = os.path.getsize(path)
    if suffix == ".safetensors":
        return OpenedModel(path, safetensors.FORMAT, safetensors.read(path), None, size)
    if suffix == ".onnx":
        network, notes = onnx_file.read(path)
        inventory = inventory_of_module(network)
        return OpenedModel(path, onnx_file.FORMAT, inventory, network if network.can_run else None,
                           size + network.external_bytes, notes)
    if suffix == ".pt2" or (suffix in SUFFIXES and exported.is_program(path)):
        program, notes = exported.read(path)
        return OpenedModel(path, exported.FORMAT, inventory_of_module(program), program, size, notes)
    if suffix in SUFFIXES:
        inventory, notes = state_dict.read(path)
        return OpenedModel(path, state_dict.FORMAT, inventory, None, size, notes)
    if suffix == ".tersor":
        raise ModelError(f"{path} is compressed already; tersor restore gives the model back")
    raise ModelError(f"{path}: tersor does not know files of this kind; it opens {', '.join(SUFFIXES)}, folders, and "
                     f"package.module:factory")


def _of_module(spec: str, module: nn.Module) -> OpenedModel:
    return OpenedModel(spec, "module", inventory_of_module(module), module)


def _folder_bytes(folder: str) -> int:
    """Of its weights and JSON files, not of its subfolders."""
    return sum(os.path.getsize(os.path.join(folder, name)) for name in os.listdir(folder)
               if name.endswith((".safetensors", ".bin", ".json")) and os.path.isfile(os.path.join(folder, name)))
