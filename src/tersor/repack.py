"""From a file to the integers of its weights, and from integers and a network back to a file.

    packed = tersor.compress(model, stats, bits=1.4, tools=("scalar", "transform"))
    model = tersor.restore(packed.data, into=model)
    codes = finetune_transforms(model, codes_of(packed.data), batches, loss)     # tersor.transform_tuning
    again = repack(model, codes, tersor.calibrate(model, samples), price=packed.price)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from torch import nn

from .adapters.module import inventory_of_module
from .bitstream.container import open_source, read_section
from .bitstream.source import Readable
from .config import Config, LayerConfig
from .decoder import TersorFile, tool_name
from .encoding import Encoding, Plan
from .errors import ConfigError, ModelError
from .limits import DEFAULT_LIMITS, Limits
from .packed import Packed
from .statistics import Statistics
from .synthesis import scalar, transform
from .synthesis.scalar import ScalarCode
from .synthesis.transform import TransformCode
from .writer import write

UNMEASURED_PRICE = 1.0
"""Lambda where nothing is known of sensitivities: BatchNorms and biases get about 8 bits a number."""


def codes_of(file: Readable, *, limits: Limits | None = None) -> dict[str, TransformCode | ScalarCode]:
    """The integers of all weights of a .tersor file (path, bytes or binary file) that the tools scalar and transform
    have coded, by name. Raises FormatError for a bad file."""
    limits = limits or DEFAULT_LIMITS
    found: dict[str, TransformCode | ScalarCode] = {}
    with TersorFile(open_source(file), limits) as opened:
        for i, section in enumerate(opened.manifest.sections):
            tool = tool_name(section.tool)
            if tool not in ("scalar", "transform"):
                continue
            records = opened.manifest.records_of(i)
            decode = scalar.decode_codes if tool == "scalar" else transform.decode_codes
            payload = read_section(opened._source, opened.manifest, i)
            found |= zip((record.name for record in records), decode(payload, records, limits), strict=True)
    return found


def repack(model: nn.Module, codes: Mapping[str, TransformCode | ScalarCode], statistics: Statistics | None = None, *,
           price: float | None = None, config: Config | None = None) -> Packed:
    """A file with exactly these integers, and all else of the network as it is now.

    * `model`: the trained network; its coded weights are not looked at. BatchNorms and small tensors are rounded,
      and stay exact where `config.keep_exact`. Other large weights stay exact.
    * `codes`: weight name -> its integers, with steps and bases.
    * `statistics`: `tersor.calibrate` of this network, as it is now: how fine BatchNorms and biases have to be, at
      lambda = `price` (that of the file before training, `Packed.price`). None: about 8 bits a number.
    * `config`: its `mode` and `keep_exact` are used.

    Raises `ModelError` naming a weight that the model lacks, that cannot be coded so, or that a code does not fit,
    `StatisticsError` (of another model), `ConfigError` (statistics without a price).
    """
    inventory = inventory_of_module(model)
    if statistics is not None:
        if price is None:
            raise ConfigError("give price=, the lambda of the file before training (Packed.price), with statistics")
        statistics.check(inventory)
    settings = config or Config()
    others = (layer.name for layer in inventory.layers if layer.name not in codes)
    exact = {re.escape(name): LayerConfig(tool="raw") for name in others}
    plan = Plan(inventory, statistics, replace(settings, tools=("scalar",), layers=exact))
    encoding = Encoding(plan, UNMEASURED_PRICE if price is None else price)
    for name, code in codes.items():
        if name not in plan.layers:
            raise ModelError(f"{name}: the model has no weight of this name that a file can hold as integers times "
                             f"steps; its weights are {', '.join(plan.layers) or 'none'}")
        _check_fit(name, code, inventory.tensors[name].shape)
        if isinstance(code, TransformCode):
            encoding.transforms[name] = code
        else:
            encoding.scalars[name] = code
        encoding.fitted.add(name)
    written = write(encoding.complete())
    return Packed(written.data, inventory.parameters, encoding.price, None, written.weight_bytes)


def _check_fit(name: str, code: TransformCode | ScalarCode, shape: tuple[int, ...]) -> None:
    whole = code if isinstance(code, TransformCode) else TransformCode(code, swapped=code.swapped)
    try:
        size = whole.matrix_shapes(shape)[-1]
    except ValueError as error:
        raise ModelError(f"{name}: {error}") from error
    if whole.coefficients.q.shape != (size.rows, size.columns):
        raise ModelError(f"{name}: integers of shape {whole.coefficients.q.shape} do not fit a weight of shape {shape}")
