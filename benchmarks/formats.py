"""Each format there and back, and whether a network calibrates as well from its file as from its Python code.

    python benchmarks/formats.py            # results/formats.json and docs/formats.md
    python benchmarks/formats.py --report   # the document alone, from the results

Part one: a network written in each format, compressed, restored; bytes of each, CPU seconds as multiples of the
.safetensors ones, the largest logit error of the restored file against the network that was compressed, and whether a
file that is compressed without loss comes back byte for byte. Part two: 2 bits/weight from an nn.Module, an exported
program and two ONNX exports. Part three: ONNX files whose weights stay compressed.
"""

from __future__ import annotations

import argparse
import copy
import logging
import resource
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import common
import numpy as np
import onnx
import onnxruntime
import torch
from common import RESULTS, ROOT, read_json, write_json
from formats_report import render
from networks import SqueezeNet, load
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import tersor
import tersor.onnx
from tersor import evaluate
from tersor.adapters.module import load_into
from tersor.encoding import Encoding
from tersor.plan import Plan
from tersor.runtime.onnx_graph import compressed_model
from tersor.synthesis import raw
from tersor.writer import write

OUTPUT, DOCUMENT = RESULTS / "formats.json", ROOT / "docs" / "formats.md"
BITS = 2.0
FORMATS = ("safetensors", "pytorch", "folder", "pt2", "onnx", "onnx, graph as it is", "onnx, opset 13")
PARTS = ("trips", "calibrated", "compressed")
EFFORTS = {"resnet20": 4, "squeezenet1_1": 2}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="the data folder (benchmarks/README.md)")
    parser.add_argument("--network", choices=tuple(EFFORTS), action="append", help="only this one")
    parser.add_argument("--part", choices=PARTS, action="append", help="only this one")
    parser.add_argument("--format", choices=FORMATS, action="append", help="only this one")
    parser.add_argument("--report", action="store_true", help="only write the document")
    options = parser.parse_args()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    if not options.report:
        folder = common.data_folder(options.data)
        for name in options.network or tuple(EFFORTS):
            measure(name, folder, options.part or PARTS, options.format or FORMATS)
    DOCUMENT.write_text(render(read_json(OUTPUT)), encoding="utf-8")


def measure(name: str, data: Path, wanted: Sequence[str], formats: Sequence[str]) -> None:
    """All parts of one network; written part by part, and not measured again."""
    model, calibration, images = network(name, data)
    results = read_json(OUTPUT)
    entry = results.setdefault("networks", {}).setdefault(name, {})
    entry |= {"parameters": sum(p.numel() for p in model.parameters()), "calibration": len(calibration),
              "images": len(images), "effort": EFFORTS[name]}
    results["environment"] = common.environment()
    parts: dict[str, Callable[..., Any]] = {"trips": trips, "calibrated": calibrated, "compressed": compressed}
    for part in wanted:
        for kind in formats if part != "compressed" else [kind for kind in formats if kind.startswith("onnx")]:
            if kind not in entry.setdefault(part, {}):
                with tempfile.TemporaryDirectory() as folder:
                    found = parts[part](kind, model, calibration, images, Path(folder), EFFORTS[name])
                if found is not None:
                    entry[part][kind] = found
                    print(name, part, kind, found, flush=True)
                    write_json(OUTPUT, results)


def network(name: str, data: Path) -> tuple[nn.Module, Tensor, Tensor]:
    """Model, calibration images (of the training set), evaluation images."""
    if name != "squeezenet1_1":
        subject = common.subject(name, data, calibration=160)
        return subject.model, subject.calibration, subject.images
    folder = data / "imagenet"
    return (load(SqueezeNet(), folder / "squeezenet1_1.safetensors"), photographs(folder / "calibration", 32),
            photographs(folder / "evaluation", 100))


def photographs(folder: Path, count: int) -> Tensor:
    """float32 [count, 3, 224, 224], normalised; evenly spread over the folder."""
    from PIL import Image
    paths = sorted(folder.glob("*.jpg"))
    arrays = []
    for path in paths[:: max(1, len(paths) // count)][:count]:
        image = Image.open(path).convert("RGB")
        left, top = (image.width - 224) // 2, (image.height - 224) // 2
        arrays.append(np.asarray(image.crop((left, top, left + 224, top + 224))))
    return common.normalised(np.stack(arrays))


def written(kind: str, model: nn.Module, sample: Tensor, folder: Path) -> Path:
    """The network as a file (or folder) of this format."""
    batch = torch.export.Dim("batch", min=1, max=4096)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind == "safetensors":
            save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
            return folder / "model.safetensors"
        if kind == "pytorch":
            torch.save(model.state_dict(), folder / "model.pt")
            return folder / "model.pt"
        if kind == "folder":
            return sharded(model, folder / "hub")
        if kind == "pt2":
            program = torch.export.export(model, (sample,), dynamic_shapes=({0: batch},))
            torch.export.save(program, folder / "model.pt2")
            return folder / "model.pt2"
        path = folder / "model.onnx"
        if kind == "onnx, opset 13":
            torch.onnx.export(model, (sample,), path, dynamo=False, opset_version=13, input_names=["x"],
                              dynamic_axes={"x": {0: "batch"}})
        else:
            torch.onnx.export(model, (sample,), path, dynamo=True, optimize=kind == "onnx", external_data=True,
                              dynamic_shapes=({0: batch},), verbose=False)
        return path


def sharded(model: nn.Module, folder: Path) -> Path:
    """Two .safetensors files with an index, as the Hugging Face hub has them."""
    folder.mkdir()
    state = model.state_dict()
    names = list(state)
    halves = names[: len(names) // 2], names[len(names) // 2 :]
    index: dict[str, Any] = {"metadata": {"total_size": sum(t.nbytes for t in state.values())}, "weight_map": {}}
    for number, half in enumerate(halves, 1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file({name: state[name] for name in half}, folder / file, metadata={"format": "pt"})
        index["weight_map"] |= dict.fromkeys(half, file)
    write_json(folder / "model.safetensors.index.json", index)
    write_json(folder / "config.json", {"architectures": [type(model).__name__]})
    return folder


def trips(kind: str, model: nn.Module, calibration: Tensor, images: Tensor, folder: Path, effort: int) -> Any:
    """Data-free at 4 bits/weight with effort 3, there and back; and without any loss."""
    source = written(kind, model, torch.zeros_like(calibration[:2]), folder)
    with Clock() as opening:
        opened = tersor.open_model(source)
    rest = rest_bytes(opened)
    with Clock() as compressing:
        packed = tersor.compress(opened, size=rest + opened.inventory.parameters * 4 // 8, effort=3)
    packed.save(folder / "m.tersor")
    back = fresh(folder / "back") / source.name
    with Clock() as restoring:
        size = tersor.restore_file(folder / "m.tersor", back)
    x = images[:64]
    expected = with_weights(model if opened.module is None else opened.module, packed, x)
    (folder / "exact.tersor").write_bytes(exact(opened))
    again = fresh(folder / "again") / source.name
    tersor.restore_file(folder / "exact.tersor", again)
    return {"bytes": opened.bytes, "tersor_bytes": packed.size, "rest_bytes": rest, "restored_bytes": size,
            "open_seconds": opening.seconds, "compress_seconds": compressing.seconds,
            "restore_seconds": restoring.seconds, "max_error": float((outputs(back, model, x) - expected).abs().max()),
            "identical": contents(source) == contents(again), "notes": opened.notes}


def calibrated(kind: str, model: nn.Module, calibration: Tensor, images: Tensor, folder: Path, effort: int) -> Any:
    """2 bits/weight and what the rest of the file takes; `safetensors` stands for the nn.Module itself."""
    if kind in ("pytorch", "folder"):
        return None  # weights only, as .safetensors
    source = written(kind, model, torch.zeros_like(calibration[:2]), folder)
    opened = tersor.open_model(source)
    subject = opened.module or model
    parameters = sum(parameter.numel() for parameter in model.parameters())
    with Clock() as measuring:
        stats = tersor.calibrate(subject, calibration.split(32), keep=min(len(calibration), 320))
    rest = rest_bytes(opened)
    packed = tersor.compress(subject, stats, size=rest + int(parameters * BITS / 8), effort=effort)
    packed.save(folder / "m.tersor")
    y = torch.cat([run(source, model, batch) for batch in images.split(50)])
    if kind == "safetensors":
        z = with_weights(model, packed, images)
    else:
        back = fresh(folder / "back") / source.name
        tersor.restore_file(folder / "m.tersor", back)
        z = torch.cat([run(back, model, batch) for batch in images.split(50)])
    figures = evaluate.compare(y, z)
    return {"tersor_bytes": packed.size, "rest_bytes": rest, "snr": packed.snr, "kl": figures.kl,
            "kl_error": figures.kl_error, "agreement": figures.agreement, "max_error": float((y - z).abs().max()),
            "calibrate_seconds": measuring.seconds, "notes": packed.notes}


def compressed(kind: str, model: nn.Module, calibration: Tensor, images: Tensor, folder: Path, effort: int) -> Any:
    """Data-free; ONNX files with small integers or tables, run beside the dense restored ones."""
    source = written(kind, model, torch.zeros_like(calibration[:2]), folder)
    opened = tersor.open_model(source)
    found = {}
    uniform = tersor.CodebookConfig(method="uniform")
    batches = [batch.numpy() for batch in images[:100].split(50)]
    for label, bits, settings in (("scalar, 4 bits", 4, {"tools": ("scalar",), "mode": "fast", "effort": 2}),
                                  ("codebook, 4 bits", 4, {"tools": ("codebook",), "codebook": uniform})):
        packed = tersor.compress(opened, size=rest_bytes(opened) + opened.inventory.parameters * bits // 8, **settings)
        with packed.load() as file:
            small = compressed_model(file)
        (folder / "small.onnx").write_bytes(small)
        dense = tersor.onnx.session(packed.data)
        error = tersor.onnx.difference(dense, folder / "small.onnx", batches).max_error
        change = tersor.onnx.difference(source, dense, batches)
        found[label] = {"bytes": opened.bytes, "tersor_bytes": packed.size, "onnx_bytes": len(small),
                        "max_error": error, "kl": change.figures.kl, "agreement": change.figures.agreement,
                        "operators": operators(small)}
    return found


class Clock:
    """CPU seconds of this process within a `with` block."""

    def __enter__(self) -> Clock:
        self.start = self.now()
        return self

    def __exit__(self, *error: object) -> None:
        self.seconds = self.now() - self.start

    @staticmethod
    def now() -> float:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return usage.ru_utime + usage.ru_stime


def rest_bytes(opened: tersor.OpenedModel) -> int:
    """Bytes in a .tersor file for all of the model's file that is not its tensors."""
    source = opened.inventory.source
    return len(raw.encode([np.frombuffer(source, dtype=np.uint8)])) if source else 0


def exact(opened: tersor.OpenedModel) -> bytes:
    """A .tersor file that keeps every tensor bit for bit."""
    config = tersor.Config(keep_exact=True, layers={".*": tersor.LayerConfig(tool="raw")})
    return write(Encoding(Plan(opened.inventory, None, config), 1.0)).data


def with_weights(model: nn.Module, packed: tersor.Packed, x: Tensor) -> Tensor:
    """Logits of the network with the weights of the file."""
    other = copy.deepcopy(model)
    with packed.load() as file:
        load_into(other, file.read_all(), file.aliases if file.tied else None)
    return evaluate.logits(other, x.split(50))


def outputs(path: Path, model: nn.Module, x: Tensor) -> Tensor:
    return torch.cat([run(path, model, batch) for batch in x.split(50)])


def run(path: Path, model: nn.Module, x: Tensor) -> Tensor:
    """Logits of a model file, by what runs such files."""
    if path.suffix == ".onnx":
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])
    with torch.no_grad():
        if path.suffix == ".pt2":
            return torch.export.load(path).module()(x)
        if path.suffix == ".pt":
            state = torch.load(path, weights_only=True)
        else:
            files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
            state = {name: tensor for file in files for name, tensor in load_file(file).items()}
        other = copy.deepcopy(model)
        other.load_state_dict(state)
        return other.eval()(x)


def operators(data: bytes) -> dict[str, int]:
    """How many nodes of each new kind a graph has."""
    kinds = [node.op_type for node in onnx.load_from_string(data).graph.node]
    return {kind: kinds.count(kind) for kind in ("DequantizeLinear", "Gather") if kind in kinds}


def contents(path: Path) -> dict[str, bytes]:
    """Name -> bytes of a file, of its data file, or of all files of a folder."""
    files = path.iterdir() if path.is_dir() else path.parent.glob(path.name + "*")
    return {file.name: file.read_bytes() for file in files}


def fresh(folder: Path) -> Path:
    folder.mkdir()
    return folder


if __name__ == "__main__":
    main()
