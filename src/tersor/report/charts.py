"""The pictures of a report, by matplotlib: the same drawing as SVG for the page and as PNG.

In SVG every colour is a variable of the page's style sheet, so that one drawing serves light and dark; text stays text.
No name from a file is ever drawn: layers are numbers, and the tables beside say which.
"""

from __future__ import annotations

import io
import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from .collect import Baseline, Coded, Layer, Subject

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 4.2
"""Inches: narrow enough that text stays legible on a phone."""
TOOLS = ("scalar", "transform", "kernels", "codebook")
HATCHES = ("", "///", "\\\\\\", "xx")
"""Of the tools: told apart without colours too."""


@dataclass(frozen=True)
class Theme:
    """Colours: of text, of lines that stand back, of the ground, of series."""

    ink: str = "#1b1f24"
    line: str = "#c9ced6"
    ground: str = "#ffffff"
    series: tuple[str, ...] = ("#0b6e99", "#b5470d", "#4d7a12", "#7a4fa3", "#8a6100")


# Colours that nothing else has, to be replaced by variables.
_MARKED = Theme("#010203", "#010204", "#010205", ("#010301", "#010302", "#010303", "#010304", "#010305"))
_VARIABLES = {_MARKED.ink: "var(--ink)", _MARKED.line: "var(--line)", _MARKED.ground: "var(--ground)",
              **{colour: f"var(--s{i})" for i, colour in enumerate(_MARKED.series)}}


@dataclass
class Chart:
    """A drawing: `draw(theme)` makes the figure. `label`: what it shows, for those who cannot see it."""

    key: str
    title: str
    label: str
    draw: Callable[[Theme], Figure] = field(repr=False)

    def svg(self) -> str:
        """To be put into a page as it is."""
        with _styled(_MARKED, salt=self.key):
            text = _saved(self.draw(_MARKED), "svg", transparent=True).decode()
        return _inlined(text, self.key, self.label)

    def png(self, scale: float = 2.0) -> bytes:
        """On white."""
        theme = Theme()
        with _styled(theme, salt=self.key):
            return _saved(self.draw(theme), "png", dpi=100 * scale)


def charts_of(subject: Subject, number: int) -> list[Chart]:
    """Rate-distortion, accuracy, budget; only what the figures allow."""
    found = []
    key = f"m{number}"
    if any("kl" in coded.measured for coded in subject.files):
        found.append(_curve(subject, key + "-kl", "kl", "Divergence and bytes", "mean KL to the original (nats)", True))
        if subject.top1 is not None:
            found.append(_curve(subject, key + "-top1", "top1", "Accuracy and bytes", "top-1 (%)", False))
    elif len(subject.files) > 1 and all(coded.snr is not None for coded in subject.files):
        found.append(_curve(subject, key + "-snr", "snr", "Signal-to-noise ratio and bytes", "SNR at the output (dB)",
                            False))
    if subject.files:
        found.append(_budget(subject, key + "-budget"))
    return found


def layers_chart(coded: Coded, key: str) -> Chart:
    """Bits per weight of each layer, in the order of the file, a colour and a hatch for each tool."""
    known = [(layer, layer.bits) for layer in coded.layers if layer.bits is not None]

    def draw(theme: Theme) -> Figure:
        from matplotlib.ticker import MaxNLocator
        figure, axes = _figure(2.7)
        for i, tool in enumerate(TOOLS):
            chosen = [(n, bits) for n, (layer, bits) in enumerate(known, 1) if layer.tool == tool]
            if chosen:
                axes.bar([n for n, _ in chosen], [bits for _, bits in chosen], width=0.8, color=theme.series[i],
                         edgecolor=theme.ground, linewidth=0.0 if len(known) > 80 else 0.4, hatch=HATCHES[i],
                         label=tool)
        axes.set(xlabel="layer, as numbered in the table", ylabel="bits/weight", xlim=(0.3, len(known) + 0.7))
        axes.axhline(coded.bits, color=theme.ink, linewidth=0.8, linestyle="--", label="whole file")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _finish(figure, axes, theme, grid="y")
        return figure

    low, high = (end((bits for _, bits in known), default=0.0) for end in (min, max))
    tools = [layer.tool for layer, _ in known]
    used = ", ".join(f"{tools.count(tool)} by {tool}" for tool in TOOLS if tool in tools)
    return Chart(key, "Bits per layer", f"Bar chart: {len(known)} layers have {low:.2f} to {high:.2f} bits per weight; "
                 f"{used}. All values are in the table of layers.", draw)


def _curve(subject: Subject, key: str, field: str, title: str, ylabel: str, log: bool) -> Chart:
    """Quality over bytes; baselines beside."""
    def value(measured: Mapping[str, float], snr: float | None) -> float | None:
        found = snr if field == "snr" else measured.get(field)
        if found is None or (log and found <= 0):
            return None
        return 100 * found if field == "top1" else found

    series: dict[str, list[tuple[int, float]]] = {"tersor": []}
    for coded in subject.files:
        if (y := value(coded.measured, coded.snr)) is not None:
            series["tersor"].append((coded.bytes, y))
    for baseline in subject.baselines if field != "snr" else []:
        if (y := value(baseline.measured, None)) is not None:
            series.setdefault(_name(baseline), []).append((baseline.bytes, y))

    def draw(theme: Theme) -> Figure:
        figure, axes = _figure(3.0)
        for i, (name, points) in enumerate(series.items()):
            style = ("-", "--", ":", "-.")[i % 4]
            axes.plot(*zip(*sorted(points), strict=True), color=theme.series[i % 5], linestyle=style,
                      marker="os^D"[i % 4], markersize=4.5, linewidth=2.2 if i == 0 else 1.4, label=name)
        axes.set_xscale("log")
        if log:
            from matplotlib.ticker import FuncFormatter
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        if field == "top1":
            top = 100 * (subject.top1 or 0)
            axes.axhline(top, color=theme.ink, linewidth=0.8, linestyle="--", label="original")
            lowest = min(y for _, y in series["tersor"]) if series["tersor"] else top
            axes.set_ylim(max(0.0, lowest - 0.35 * (top - lowest) - 3), min(top + 1.5, 100.4))
        axes.set(xlabel="bytes of the whole file", ylabel=ylabel)
        _bytes_axis(axes, [x for points in series.values() for x, _ in points])
        _finish(figure, axes, theme, grid="both")
        return figure

    ends = sorted(series["tersor"])
    told = "" if not ends else (f" tersor from {ends[0][1]:.4g} at {ends[0][0]:,} bytes to {ends[-1][1]:.4g} at "
                                f"{ends[-1][0]:,} bytes.")
    return Chart(key, title, f"Line chart: {ylabel} over bytes for {', '.join(series)}.{told} All values are in the "
                 f"table of rates.", draw)


def _budget(subject: Subject, key: str) -> Chart:
    """Stacked bars: where the bytes of each file are."""
    files = subject.files
    total = {part: sum(coded.budget.get(part, 0) for coded in files) for coded in files for part in coded.budget}
    parts = sorted(total, key=lambda part: -total[part])

    def draw(theme: Theme) -> Figure:
        figure, axes = _figure(1.1 + 0.3 * len(files))
        left = [0.0] * len(files)
        for i, part in enumerate(parts):
            widths = [coded.budget.get(part, 0) / 1000 for coded in files]
            axes.barh(range(len(files)), widths, left=left, height=0.65, color=theme.series[i % 5],
                      hatch=HATCHES[i % 4], edgecolor=theme.ground, linewidth=0.4, label=_WORDS.get(part, part))
            left = [a + b for a, b in zip(left, widths, strict=True)]
        axes.set(xlabel="kB", yticks=range(len(files)), yticklabels=[f"{coded.bits:.2f} bits" for coded in files])
        axes.invert_yaxis()  # in the order of the table
        _finish(figure, axes, theme, grid="x", columns=2 if len(parts) > 3 else 1)
        return figure

    return Chart(key, "Where the bytes are", "Stacked bars of the parts of each file in kB; the table of bytes has all "
                 "values.", draw)


_WORDS = {"steps, BatchNorm, small tensors": "steps, small tensors", "header and manifest": "header"}


def histograms(counted: Sequence[tuple[int, int, Mapping[int, int]]], key: str) -> Chart:
    """Shares of the integers of layers: (number of the layer, width of its bins, middle of a bin -> count)."""
    def draw(theme: Theme) -> Figure:
        import matplotlib.pyplot as plt
        columns = min(3, len(counted))
        rows = -(-len(counted) // columns)
        figure, grid = plt.subplots(rows, columns, figsize=(WIDTH, 0.4 + 1.0 * rows), layout="constrained",
                                    squeeze=False)
        for axes, (number, bin_width, counts) in zip(grid.flat, counted, strict=False):
            total = sum(counts.values())
            axes.bar(list(counts), [100 * count / total for count in counts.values()],
                     width=0.85 * bin_width, color=theme.series[0])
            axes.set_title(f"layer {number}", fontsize=8, color=theme.ink, pad=2)
            axes.tick_params(labelsize=7)
            _frame(axes, theme)
        for axes in list(grid.flat)[len(counted):]:
            axes.set_visible(False)
        figure.supylabel("% of integers", fontsize=8, color=theme.ink)
        return figure

    return Chart(key, "Histograms of the coded integers", f"Histograms of the integers of {len(counted)} layers: how "
                 f"often values occur, in per cent.", draw)


def grid_picture(images: Sequence[Any], key: str, title: str, label: str, columns: int = 16) -> Chart:
    """Small matrices side by side, each scaled to its own largest magnitude: blue below 0, white 0, red above."""
    def draw(theme: Theme) -> Figure:
        import matplotlib.pyplot as plt
        import numpy as np
        height, width = images[0].shape
        across = min(columns, len(images))
        rows = -(-len(images) // across)
        canvas = np.full((rows * (height + 1) - 1, across * (width + 1) - 1), np.nan)
        for i, image in enumerate(images):
            y, x = (i // across) * (height + 1), (i % across) * (width + 1)
            canvas[y : y + height, x : x + width] = image / max(float(np.abs(image).max()), 1e-30)
        shown = plt.get_cmap("RdBu_r").with_extremes(bad=(0.0, 0.0, 0.0, 0.0))
        size = max(0.12, WIDTH * canvas.shape[0] / canvas.shape[1])
        figure = plt.figure(figsize=(WIDTH, min(size, 2 * WIDTH)))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.imshow(canvas, cmap=shown, vmin=-1, vmax=1, interpolation="nearest", aspect="equal")
        axes.axis("off")
        return figure

    return Chart(key, title, label, draw)


def _name(baseline: Baseline) -> str:
    """Of a baseline that this version measures; no text from the file is drawn."""
    for known in ("int8 per channel + zstd -19", "RTN per layer + ideal entropy"):
        if baseline.codec == known:
            return known.replace("RTN per layer", "round to nearest").replace("per channel ", "")
    return "another codec"


def _figure(height: float) -> tuple[Figure, Axes]:
    import matplotlib.pyplot as plt
    return plt.subplots(figsize=(WIDTH, height), layout="constrained")


def _finish(figure: Figure, axes: Axes, theme: Theme, grid: str, columns: int = 2) -> None:
    _frame(axes, theme)
    axes.grid(True, axis=grid, color=theme.line, linewidth=0.6)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", frameon=False, ncols=columns, fontsize=8,
                  labelcolor=theme.ink, handlelength=2.4)


def _frame(axes: Axes, theme: Theme) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("bottom", "left"):
        axes.spines[side].set_color(theme.ink)


def _bytes_axis(axes: Axes, values: Sequence[int]) -> None:
    """A few round sizes instead of powers of ten."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
    low, high = min(values), max(values)
    marks: list[float] = []
    for series in ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        marks = [m * 10**e for e in range(13) for m in series if low * 0.95 <= m * 10**e <= high * 1.05]
        # Room for each label: about a seventh of the axis.
        if all(math.log(b / a) > 0.15 * math.log(high / low) for a, b in itertools.pairwise(marks)):
            break
    if len(marks) < 2:
        marks = sorted({low, high})
    axes.xaxis.set_major_locator(FixedLocator(marks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _short(x)))


def _short(size: float) -> str:
    """
    >>> _short(70_000), _short(1_500_000), _short(812)
    ('70 kB', '1.5 MB', '812 B')
    """
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size:.0f} B"


def _saved(figure: Figure, kind: str, **options: Any) -> bytes:
    import matplotlib.pyplot as plt
    out = io.BytesIO()
    try:
        figure.savefig(out, format=kind, metadata={"Date": None} if kind == "svg" else None, **options)
    finally:
        plt.close(figure)
    return out.getvalue()


@contextmanager
def _styled(theme: Theme, salt: str) -> Iterator[None]:
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise ConfigError("a report needs matplotlib, which is not installed: pip install 'tersor[report]'") from error
    matplotlib.use("Agg")
    with matplotlib.rc_context({
        "svg.fonttype": "none", "svg.hashsalt": salt, "font.size": 9, "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"], "text.color": theme.ink, "axes.labelcolor": theme.ink,
        "axes.edgecolor": theme.ink, "xtick.color": theme.ink, "ytick.color": theme.ink, "hatch.color": theme.ground,
        "hatch.linewidth": 0.7, "figure.facecolor": theme.ground, "axes.facecolor": "none", "text.parse_math": False,
        "axes.formatter.use_mathtext": False,
    }):
        yield


def _inlined(text: str, key: str, label: str) -> str:
    """The svg element alone: no prolog, no style for the whole page, names of its own, colours as variables."""
    from markupsafe import escape
    text = text[text.index("<svg"):]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r"<style[^>]*>.*?</style>", "", text, flags=re.S)
    text = re.sub(r'\bid="', f'id="{key}-', text)
    text = re.sub(r"url\(#", f"url(#{key}-", text)
    text = re.sub(r'href="#', f'href="#{key}-', text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    head, rest = text.split(">", 1)
    head = re.sub(r' (width|height)="[^"]*"', "", head)
    return f'{head} role="img" aria-label="{escape(label)}">{rest}'


__all__ = ["Chart", "Layer", "Theme", "charts_of", "grid_picture", "histograms", "layers_chart"]
