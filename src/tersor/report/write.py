"""Reports as files: one HTML page, a PNG, CSV tables, a section for a model card."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..bitstream.atomic import atomic_write
from ..errors import ConfigError, DataError
from ..limits import Limits
from . import model_card, page
from .charts import charts_of, layers_chart
from .collect import Coded, Subject, collect

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class Outputs:
    """What was written, and how many bytes."""

    files: dict[str, int]


def write(paths: Sequence[PathLike], html: PathLike | None = None, *, png: PathLike | None = None,
          csv_file: PathLike | None = None, markdown: PathLike | None = None, overwrite: bool = True,
          limits: Limits | None = None) -> Outputs:
    """Report on .tersor files, folders of sweeps, JSON of `compress --json` (see `collect`).

    * `html`: a page that needs nothing else. `png`: its charts below each other. `csv_file`: a row for each file and
      baseline; beside it NAME-layers.csv with a row for each layer. `markdown`: a section for a model card.

    Raises `DataError`, `FormatError` for what cannot be reported on, `ConfigError` (a package is missing), OSError.
    """
    subjects = collect(paths, limits=limits)
    if not any(subject.files for subject in subjects):
        raise DataError("there is nothing to report: no file has been made yet")
    made: dict[str, bytes] = {}
    if html is not None:
        made[os.fspath(html)] = page.render(subjects, limits).encode()
    if png is not None:
        made[os.fspath(png)] = picture(subjects)
    if csv_file is not None:
        name = Path(csv_file)
        made[os.fspath(name)] = _csv(_POINTS, [row for subject in subjects for row in _points(subject)])
        made[os.fspath(name.with_name(f"{name.stem}-layers{name.suffix}"))] = _csv(
            _LAYERS, [row for subject in subjects for coded in subject.files for row in _layers(subject, coded)])
    if markdown is not None:
        made[os.fspath(markdown)] = model_card.render(subjects).encode()
    for path, data in made.items():
        with atomic_write(path, overwrite=overwrite) as file:
            file.write(data)
    return Outputs({path: len(data) for path, data in made.items()})


def chosen(subject: Subject) -> Coded:
    """The file that is shown in detail: the middle one."""
    return subject.files[len(subject.files) // 2]


def picture(subjects: Sequence[Subject]) -> bytes:
    """All charts of the subjects below each other, PNG."""
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise ConfigError("--png needs Pillow, which is not installed: pip install 'tersor[images]'") from error
    images = []
    for number, subject in enumerate(subjects):
        if subject.files:
            charts = [*charts_of(subject, number), layers_chart(chosen(subject), f"m{number}-layers")]
            images += [Image.open(io.BytesIO(chart.png())).convert("RGB") for chart in charts]
    columns = 2 if len(images) > 1 else 1
    rows = [images[i : i + columns] for i in range(0, len(images), columns)]
    width = max(sum(image.width for image in row) for row in rows)
    whole = Image.new("RGB", (width, sum(max(image.height for image in row) for row in rows)), "white")
    top = 0
    for row in rows:
        left = 0
        for image in row:
            whole.paste(image, (left, top))
            left += image.width
        top += max(image.height for image in row)
    out = io.BytesIO()
    whole.save(out, "png")
    return out.getvalue()


_MEASURED = ("count", "kl", "kl_error", "snr", "agreement", "top1_reference", "top1", "top1_change",
             "top1_change_error")
_POINTS = ("model", "codec", "setting", "bytes", "bits_per_weight", "ideal", *_MEASURED)
_LAYERS = ("model", "file", "number", "layer", "tool", "how", "weights", "bits_per_weight", "bytes", "error_share",
           "next_best", "next_best_cost")


def _points(subject: Subject) -> list[list[Any]]:
    rows = [[subject.title, "tersor", coded.title, coded.bytes, coded.bits, False,
             *(coded.measured.get(name, coded.snr if name == "snr" else None) for name in _MEASURED)]
            for coded in subject.files]
    return rows + [[subject.title, row.codec, row.setting, row.bytes, 8 * row.bytes / max(1, subject.parameters),
                    row.ideal, *(row.measured.get(name) for name in _MEASURED)] for row in subject.baselines]


def _layers(subject: Subject, coded: Coded) -> list[list[Any]]:
    return [[subject.title, coded.title, number, layer.name, layer.tool, layer.label, layer.weights, layer.bits,
             layer.bytes, layer.error, *(layer.losers[0] if layer.losers else (None, None))]
            for number, layer in enumerate(coded.layers, 1)]


def _csv(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> bytes:
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow(header)
    writer.writerows([_cell(value) for value in row] for row in rows)
    return out.getvalue().encode()


def _cell(value: Any) -> Any:
    """A name that a spreadsheet would take for a formula is kept from being one."""
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return "'" + value
    return "" if value is None else value
