"""Models on the Hugging Face hub with their weights as a .tersor file.

    class Net(nn.Module, tersor.hub.TersorHubMixin):
        def __init__(self, width: int = 16) -> None: ...

    net.save_pretrained("net", bits=2.0, stats=tersor.calibrate(net, batches))
    net = Net.from_pretrained("net")

Where huggingface_hub is installed, its own mixin is underneath: `push_to_hub`, model cards, and names of repositories
in place of folders work as they do there. Without it, folders on this machine.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from torch import nn

from .encoder import compress
from .errors import ConfigError, ModelError
from .packed import Packed
from .restored import restore

CONFIG, WEIGHTS = "config.json", "model.tersor"
_JSON = (str, int, float, bool, type(None), list, tuple, dict)


class LocalHubMixin:
    """What huggingface_hub's mixin does for a folder, for machines that lack it: arguments of `__init__` as
    config.json."""

    _hub_mixin_config: dict[str, Any] | None = None

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        made = super().__new__(cls)
        signature = inspect.signature(cls.__init__)
        given = signature.bind(made, *args, **kwargs)
        given.apply_defaults()
        config = dict(list(given.arguments.items())[1:])
        for name, parameter in signature.parameters.items():
            if parameter.kind is parameter.VAR_KEYWORD:
                config |= config.pop(name, {})
            elif parameter.kind is parameter.VAR_POSITIONAL:
                config.pop(name, None)
        made._hub_mixin_config = {name: value for name, value in config.items() if isinstance(value, _JSON)}
        return made

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> None:
        """Write the folder."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        self._save_pretrained(folder)
        text = json.dumps(self._hub_mixin_config or {}, indent=2, sort_keys=True)
        (folder / CONFIG).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **model_kwargs: Any) -> Self:
        """Read the folder; `model_kwargs` take the place of what config.json says."""
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            raise ModelError(f"{folder} is no folder; to fetch models by name, pip install huggingface_hub")
        config = folder / CONFIG
        try:
            known = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
            arguments = {**known, **model_kwargs}
        except (ValueError, TypeError) as error:
            raise ModelError(f"{config} is not a configuration: {error}") from None
        return cls._from_pretrained(model_id=str(folder), **arguments)

    if TYPE_CHECKING:  # of the class that inherits from this one
        def _save_pretrained(self, save_directory: Path) -> None: ...

        @classmethod
        def _from_pretrained(cls, *, model_id: str, **model_kwargs: Any) -> Self: ...


def _base() -> type:
    """huggingface_hub's mixin, or ours."""
    try:
        from huggingface_hub import ModelHubMixin
    except ImportError:
        return LocalHubMixin
    found: type = ModelHubMixin
    return found


class TersorHubMixin(_base()):  # type: ignore[misc]
    """Put it after nn.Module among the bases of a network whose arguments of `__init__` can be JSON.

    * `save_pretrained(folder, bits=2.0, stats=..., **options)`: config.json, and model.tersor by `tersor.compress` with
      these targets and options; `packed=` takes a file that is made already. Raises `ConfigError` without a target.
    * `Net.from_pretrained(folder)`: the network with the restored weights, in eval mode.
    """

    def save_pretrained(self, save_directory: str | Path, *, packed: Packed | None = None, stats: Any = None,
                        bits: float | None = None, size: int | None = None, snr: float | None = None,
                        options: dict[str, Any] | None = None, **hub: Any) -> Any:
        """Compress and write a folder; `options`: of `tersor.compress`, `hub`: of huggingface_hub (push_to_hub=...).

        Raises `ConfigError` where neither `packed` nor one of `bits`, `size`, `snr` is given, and what
        `tersor.compress` raises.
        """
        assert isinstance(self, nn.Module), "TersorHubMixin is for networks"
        if packed is None:
            packed = compress(self, stats, bits=bits, size=size, snr=snr, **(options or {}))
        elif (bits, size, snr) != (None, None, None) or options:
            raise ConfigError("packed= is a finished file: targets and options have no effect on it")
        self._packed = packed.data
        try:
            return super().save_pretrained(save_directory, **hub)
        finally:
            del self._packed

    def _save_pretrained(self, save_directory: Path) -> None:
        (save_directory / WEIGHTS).write_bytes(self._packed)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, revision: str | None = None, cache_dir: str | Path | None = None,
                         force_download: bool = False, local_files_only: bool = False,
                         token: str | bool | None = None, **model_kwargs: Any) -> Any:
        path = Path(model_id) / WEIGHTS
        if not Path(model_id).is_dir():
            from huggingface_hub import hf_hub_download
            path = Path(hf_hub_download(repo_id=model_id, filename=WEIGHTS, revision=revision, cache_dir=cache_dir,
                                        force_download=force_download, token=token,
                                        local_files_only=local_files_only))
        if not path.is_file():
            raise ModelError(f"{model_id} has no {WEIGHTS}: it was not written by tersor")
        return restore(path, into=cls(**model_kwargs)).eval()
