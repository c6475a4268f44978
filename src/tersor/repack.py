"""From the integers of weights and a network back to a file.

    packed = tersor.compress(model, stats, bits=1.4, tools=("scalar", "transform"))
    model = tersor.restore(packed.data, into=model)                      # then changed: its biases, say
    again = repack(model, codes_of(packed.data), tersor.calibrate(model, samples), price=packed.price)

(`Trainable.repack` is for networks that were trained as what the file holds: it keeps all of the file's grids.)

`codes_of` (in `tersor.codes`) is the way from a file to its integers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from torch import nn

from .adapters.inventory import Inventory
from .adapters.module import inventory_of_module
from .codes import Code, codes_of, shared_codes_of
from .config import Config, LayerConfig
from .encoding import Encoding
from .errors import ConfigError, ModelError
from .packed import Packed
from .plan import Plan
from .statistics import Statistics
from .synthesis.codebook import CodebookCode
from .synthesis.kernel_code import KernelCode, channels_of
from .synthesis.transform import TransformCode
from .writer import write

__all__ = ["codes_of", "repack", "shared_codes_of"]

UNMEASURED_PRICE = 1.0
"""Lambda where nothing is known of sensitivities: BatchNorms and biases get about 8 bits a number."""


def repack(model: nn.Module, codes: Mapping[str, Code], statistics: Statistics | None = None, *,
           price: float | None = None, config: Config | None = None,
           shared: Sequence[tuple[Sequence[str], CodebookCode]] = ()) -> Packed:
    """A file with exactly these integers, and all else of the network as it is now.

    * `model`: the trained network; its coded weights are not looked at. BatchNorms and small tensors are rounded,
      and stay exact where `config.keep_exact`. Other large weights stay exact.
    * `codes`: weight name -> its integers, with steps, bases and codebooks of kernels.
    * `statistics`: `tersor.calibrate` of this network, as it is now: how fine BatchNorms and biases have to be, at
      lambda = `price` (that of the file before training, `Packed.price`). None: about 8 bits a number.
    * `config`: its `mode`, `keep_exact`, and coders (`kernels.coder`, `codebook.coder`) are used.
    * `shared`: (names, codebook) for weights that share values.

    Raises `ModelError` naming a weight that the model lacks, that cannot be coded so, that has two codes, or that a
    code does not fit, `StatisticsError` (of another model), `ConfigError` (statistics without a price).
    """
    inventory = inventory_of_module(model)
    if statistics is not None:
        if price is None or not 0.0 < price < math.inf:
            raise ConfigError(f"price={price}: with statistics give the lambda of the file before training, the price "
                              f"of what tersor.compress returned (a file does not tell it)")
        statistics.check(inventory)
    in_books = [name for names, _ in shared for name in names]
    coded = [*codes, *in_books]
    if len(set(coded)) < len(coded):
        raise ModelError(f"{next(name for name in coded if coded.count(name) > 1)}: two codes claim this weight")
    settings = config or Config()
    others = (layer.name for layer in inventory.layers if layer.name not in set(coded))
    tools = {re.escape(name): LayerConfig(tool="raw") for name in others}
    tools |= {re.escape(name): LayerConfig(tool="codebook") for name in in_books if name in inventory.tensors}
    plan = Plan(inventory, statistics, replace(settings, tools=("scalar",), layers=tools))
    for name in coded:
        if name not in plan.layers:
            raise ModelError(f"{name}: the model has no weight of this name that a file can hold as integers; its "
                             f"weights are {', '.join(plan.layers) or 'none'}")
    encoding = Encoding(plan, UNMEASURED_PRICE if price is None else price)
    for name, code in codes.items():
        _check_fit(name, code, inventory.tensors[name].shape)
        encoding.put(name, code)
    for names, codebook in shared:
        _put_shared(encoding, names, codebook, inventory)
    encoding.fitted.update(coded)
    written = write(encoding.complete())
    return Packed(written.data, inventory.parameters, encoding.price, None, written.weight_bytes)


def _check_fit(name: str, code: Code, shape: tuple[int, ...]) -> None:
    if isinstance(code, KernelCode):
        if code.index.shape != channels_of(shape, code.swapped, code.taps):
            raise ModelError(f"{name}: kernel indexes of shape {code.index.shape} do not fit a weight of shape {shape}")
        return
    whole = code if isinstance(code, TransformCode) else TransformCode(code, swapped=code.swapped)
    try:
        size = whole.matrix_shapes(shape)[-1]
    except ValueError as error:
        raise ModelError(f"{name}: {error}") from error
    if whole.coefficients.q.shape != (size.rows, size.columns):
        raise ModelError(f"{name}: integers of shape {whole.coefficients.q.shape} do not fit a weight of shape {shape}")


def _put_shared(encoding: Encoding, names: Sequence[str], code: CodebookCode, inventory: Inventory) -> None:
    """One codebook, its weights in the order of the file."""
    for name, index in zip(names, code.indexes, strict=True):
        if np.size(index) != inventory.tensors[name].size:
            raise ModelError(f"{name}: {np.size(index)} indexes for {inventory.tensors[name].size} weights")
    place = {name: i for i, name in enumerate(inventory.tensors)}
    order = sorted(range(len(names)), key=lambda i: place[names[i]])
    encoding.put_shared(tuple(names[i] for i in order), replace(code, indexes=[code.indexes[i] for i in order]))
