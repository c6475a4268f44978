"""The HTML page: one file that works offline, without a script, in light and dark, on paper and read aloud."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from .. import __version__
from ..errors import ConfigError
from ..limits import Limits
from .charts import Chart, charts_of, layers_chart
from .collect import Coded, Layer, Subject
from .pictures import pictures_of

WORST = 8
"""Layers in the table of those that cost most at the output."""


@dataclass(frozen=True)
class Part:
    """A subject as the template wants it."""

    subject: Subject
    charts: list[Chart]
    detail: Coded
    bars: Chart
    pictures: list[tuple[Chart, str]]
    worst: list[tuple[int, Layer]]


def render(subjects: Sequence[Subject], limits: Limits | None = None) -> str:
    """The page. Raises `ConfigError` where jinja2 or matplotlib is missing."""
    try:
        from jinja2 import Environment, StrictUndefined
        from markupsafe import Markup
    except ModuleNotFoundError as error:
        raise ConfigError("a report needs jinja2, which is not installed: pip install 'tersor[report]'") from error
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"n": _integer, "f": _fixed, "percent": _percent, "name": _name, "how": _how,
                            "svg": lambda chart: Markup(chart.svg())}
    folder = resources.files(__package__)
    template = environment.from_string((folder / "page.html.j2").read_text(encoding="utf-8"))
    style = Markup((folder / "page.css").read_text(encoding="utf-8"))
    parts = [_part(subject, i, limits) for i, subject in enumerate(subjects) if subject.files]
    return template.render(parts=parts, style=style, version=__version__, figures=_figures)


def _part(subject: Subject, number: int, limits: Limits | None) -> Part:
    detail = subject.files[len(subject.files) // 2]
    key = f"m{number}"
    worst = sorted(((i, layer) for i, layer in enumerate(detail.layers, 1) if layer.error is not None),
                   key=lambda entry: -(entry[1].error or 0.0))[:WORST]
    return Part(subject, charts_of(subject, number), detail, layers_chart(detail, key + "-layers"),
                pictures_of(detail, key, limits), worst)


def _figures(measured: dict[str, float], snr: float | None) -> dict[str, str]:
    """Cells of the table of rates."""
    change, error = measured.get("top1_change"), measured.get("top1_change_error")
    decibels = measured.get("snr", snr)
    return {"top1": _percent(measured.get("top1"), 2, sign=False),
            "change": "" if change is None else f"{100 * change:+.2f}" + ("" if error is None else
                                                                        f" ± {100 * error:.2f}"),
            "kl": _small(measured.get("kl")), "snr": _fixed(decibels, 1),
            "agreement": _percent(measured.get("agreement"), 1, sign=False)}


def _name(text: str) -> Any:
    """A name that may be broken after its dots."""
    from markupsafe import Markup, escape
    return Markup(".<wbr>").join(escape(part) for part in text.split("."))


def _how(layer: Layer) -> str:
    """What there is to say beyond the name of the tool."""
    return "" if layer.label == layer.tool else layer.label.removeprefix(f"{layer.tool}, ")


def _integer(value: Any) -> str:
    return "" if value is None else f"{round(value):,}"


def _fixed(value: float | None, digits: int = 2) -> str:
    return "" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def _small(value: float | None) -> str:
    """Four digits, or two that count."""
    return "" if value is None else f"{value:.4f}" if value >= 0.001 or value == 0 else f"{value:.1e}"


def _percent(value: float | None, digits: int = 1, sign: bool = True) -> str:
    return "" if value is None else f"{100 * value:.{digits}f}" + ("%" if sign else "")
