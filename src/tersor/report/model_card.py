"""A section on compression for a model card, in Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .collect import Coded, Subject


def render(subjects: Sequence[Subject]) -> str:
    """The section of each subject, one after the other."""
    return "\n".join(_section(subject) for subject in subjects if subject.files)


def _section(subject: Subject) -> str:
    lines = [f"## Compression: {plain(subject.title)}", "",
             f"{subject.parameters:,} parameters, compressed with tersor. Sizes are those of whole "
             f"files; bits/weight is 8 x bytes / parameters."]
    if subject.samples:
        lines.append(f"Compared with the original network on {subject.samples:,} inputs; KL is the mean divergence of "
                     f"the outputs in nats, ± the standard error of the paired difference.")
    lines += ["", "| file | bytes | bits/weight | times smaller | top-1 % | change, points | KL | SNR dB |",
              "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"]
    rows = [(coded.bytes, f"tersor, {plain(coded.title)}", coded.measured, coded.snr) for coded in subject.files]
    rows += [(row.bytes, plain(row.codec) + (" (ideal code length)" if row.ideal else ""), row.measured, None)
             for row in subject.baselines]
    for size, name, measured, snr in sorted(rows, key=lambda row: -row[0]):
        lines.append(_row(subject, size, name, measured, snr))
    return "\n".join([*lines, "", *_parts(subject), "", *_use(), ""])


def _row(subject: Subject, size: int, name: str, measured: dict[str, float], snr: float | None) -> str:
    times = f"{subject.raw_bytes / size:.1f}" if subject.raw_bytes else ""
    top1 = f"{100 * measured['top1']:.2f}" if "top1" in measured else ""
    change = (f"{100 * measured['top1_change']:+.2f} ± {100 * measured['top1_change_error']:.2f}"
              if {"top1_change", "top1_change_error"} <= measured.keys() else "")
    kl = f"{measured['kl']:.4f}" if "kl" in measured else ""
    decibels = measured.get("snr", snr)
    return (f"| {name} | {size:,} | {8 * size / max(1, subject.parameters):.2f} | {times} | {top1} | {change} | {kl} | "
            f"{'' if decibels is None else f'{decibels:.1f}'} |")


def _parts(subject: Subject) -> list[str]:
    coded: Coded = subject.files[len(subject.files) // 2]
    parts = ", ".join(f"{plain(part)} {size:,}" for part, size in coded.budget.items())
    return [f"Bytes of the file at {coded.bits:.2f} bits/weight: {parts}."]


def _use() -> list[str]:
    return ["```python", "import tersor", "",
            "model = tersor.restore(\"model.tersor\", into=model)  # or tersor.load, for arrays", "```"]


def plain(text: str) -> str:
    """Text that Markdown, and HTML in it, takes for nothing but text.

    >>> plain("a|b <b>*x*")
    'a\\\\|b &lt;b&gt;\\\\*x\\\\*'
    """
    text = "".join(c if c.isprintable() else " " for c in text)
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]()#+!|~])", r"\\\1", text)
