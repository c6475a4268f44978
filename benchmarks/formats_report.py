"""docs/formats.md from benchmarks/results/formats.json."""

from __future__ import annotations

from typing import Any

HEAD = """# Formats, there and back

Written by `benchmarks/formats.py`. Each network was written in each format, compressed without data at 4 bits/weight
plus what the rest of the file takes, and restored to the format that it came in. *Rest*: bytes of the .tersor file that
hold everything but the tensors (graph, pickle, index; deflated). *Opening*, *restoring*: CPU time as a multiple of the
same for .safetensors. *Error*: the largest of any logit of the restored file, run by its own runtime (ONNX Runtime,
torch.export, torch), against the network with the decoded weights: rounding only. *Exact*: a file compressed without
loss came back byte for byte.

"onnx" is `torch.onnx.export` as it is by default (operator set 20, BatchNorms folded into the convolutions, weights in
a data file of their own), "graph as it is" the same without its optimizer, "opset 13" the older exporter."""

TITLES = {"resnet20": "ResNet-20", "squeezenet1_1": "SqueezeNet 1.1"}


def render(results: dict[str, Any]) -> str:
    """The whole document."""
    lines = [HEAD]
    for name, entry in results["networks"].items():
        lines += [f"\n## {TITLES[name]}, {entry['parameters']:,} parameters\n", *trips(entry["trips"])]
        if "calibrated" in entry:
            lines += [f"\nCompressed to 2 bits/weight and the rest, with {entry['calibration']} calibration images, "
                      f"effort {entry['effort']}.\nKL (nats) and agreement on {entry['images']} evaluation images, by "
                      f"the runtime of the format:\n", *calibrated(entry["calibrated"])]
        if "compressed" in entry:
            lines += ["\nONNX files whose weights stay compressed (`tersor restore --runtime compressed`), and their "
                      "largest logit error\nagainst the dense restored file:\n", *compressed(entry["compressed"])]
    return "\n".join(lines) + "\n"


def trips(found: dict[str, Any]) -> list[str]:
    """There and back, a row for each format."""
    base = found["safetensors"]
    rows = [["format", "file", ".tersor", "of it the rest", "restored", "opening", "restoring", "error", "exact"]]
    for kind, trip in found.items():
        opening, restoring = (trip[key] / base[key] for key in ("open_seconds", "restore_seconds"))
        rows.append([kind, f"{trip['bytes']:,}", f"{trip['tersor_bytes']:,}", f"{trip['rest_bytes']:,}",
                     f"{trip['restored_bytes']:,}", f"{opening:.1f}", f"{restoring:.1f}", f"{trip['max_error']:.1e}",
                     "yes" if trip["identical"] else "no"])
    return table(rows)


def calibrated(found: dict[str, Any]) -> list[str]:
    """What came of calibrating each kind of file."""
    rows = [["calibrated from", ".tersor without the rest", "SNR, dB", "KL", "agreement", "largest logit error"]]
    for kind, one in found.items():
        rows.append(["nn.Module" if kind == "safetensors" else kind, f"{one['tersor_bytes'] - one['rest_bytes']:,}",
                     f"{one['snr']:.2f}", f"{one['kl']:.4f} ± {one['kl_error']:.4f}", f"{one['agreement']:.1%}",
                     f"{one['max_error']:.2f}"])
    return table(rows)


def compressed(found: dict[str, Any]) -> list[str]:
    """ONNX with integers or tables."""
    rows = [["export; tool", "dense .onnx", "compressed .onnx", ".tersor", "error", "nodes"]]
    for kind, tools in found.items():
        for label, one in tools.items():
            nodes = ", ".join(f"{count} {name}" for name, count in one["operators"].items())
            rows.append([f"{kind}; {label}", f"{one['bytes']:,}", f"{one['onnx_bytes']:,}", f"{one['tersor_bytes']:,}",
                         f"{one['max_error']:.1e}", nodes])
    return table(rows)


def table(rows: list[list[str]]) -> list[str]:
    """Markdown."""
    return [f"| {' | '.join(row)} |" for row in (rows[0], ["---"] * len(rows[0]), *rows[1:])]
