"""Models that Python code makes: `package.module:factory`, `timm:NAME`, `transformers:NAME` -> nn.Module."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from ..errors import ConfigError, ModelError


def from_path(spec: str) -> nn.Module:
    """What `package.module:factory` returns, called without arguments; the current folder is searched too.

    It may also name a module that is there already. Running a user's own code is the point: give only paths to code
    that you trust. Raises ModelError where there is no such thing, it fails, or it makes no nn.Module.
    """
    module_name, _, attribute = spec.partition(":")
    with _current_folder():
        try:
            found: Any = importlib.import_module(module_name)
            for part in attribute.split("."):
                found = getattr(found, part)
        except ModuleNotFoundError as error:
            raise ModelError(f"{spec}: there is no module {error.name!r}, neither here nor installed") from None
        except AttributeError:
            raise ModelError(f"{spec}: {module_name} has no {attribute!r}") from None
        except Exception as error:
            raise ModelError(f"{spec}: importing {module_name} fails: {type(error).__name__}: {error}") from error
        if not isinstance(found, nn.Module):
            found = _called(spec, found)
    if not isinstance(found, nn.Module):
        raise ModelError(f"{spec} gives a {type(found).__name__}, not a torch.nn.Module")
    return found


def from_timm(name: str) -> nn.Module:
    """`timm.create_model(name)` with pretrained weights. Raises ConfigError without timm, ModelError where it fails."""
    timm = _library("timm")
    return _made(f"timm:{name}", lambda: timm.create_model(name, pretrained=True))


def from_transformers(name: str) -> nn.Module:
    """`AutoModel.from_pretrained(name)`, a hub name or a local folder. Raises as `from_timm`."""
    transformers = _library("transformers")
    return _made(f"transformers:{name}", lambda: transformers.AutoModel.from_pretrained(name))


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f"{name}:NAME needs the package {name} ({error}): pip install 'tersor[{name}]'") from None


def _called(spec: str, factory: Callable[[], Any]) -> Any:
    if not callable(factory):
        return factory
    try:
        return factory()
    except Exception as error:
        raise ModelError(f"{spec}: called without arguments it fails: {type(error).__name__}: {error}") from error


def _made(spec: str, make: Callable[[], Any]) -> nn.Module:
    try:
        model = make()
    except Exception as error:  # each library has its own for unknown names and missing networks
        line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ModelError(f"{spec} cannot be made: {line}. Weights come from the local cache, or over the network where "
                         f"there is one; a model of your own is package.module:factory") from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"{spec} gives a {type(model).__name__}, not a torch.nn.Module")
    return model.eval()


@contextlib.contextmanager
def _current_folder() -> Iterator[None]:
    folder = os.getcwd()
    if folder in sys.path or "" in sys.path:
        yield
        return
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)
