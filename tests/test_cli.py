"""The command line: what it prints where, its exit codes, and that it never leaves a broken or lost file."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from forge import small_file, tiny_file, varints
from torch import nn

import tersor
from tersor import cli, commands, show
from tersor.adapters import safetensors as safetensors_adapter
from tersor.bitstream.container import TensorRecord, to_bytes
from tersor.commands import arguments, models, outputs
from tersor.synthesis import raw


def network() -> nn.Module:
    """7,136 parameters, and a tied pair of matrices."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(),
                          nn.Linear(256, 16), nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False))
    model[7].weight = model[6].weight
    return model.eval()


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A folder of one's own, with model.safetensors in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TERSOR_DEBUG", raising=False)
    tensors = {name: value.numpy() for name, value in network().state_dict().items()}
    safetensors_adapter.write("model.safetensors", tensors, {"format": "pt"})
    return Path("model.safetensors")


@pytest.fixture
def packed(model):
    assert cli.main(["compress", str(model), "--bits", "6", "-q"]) == 0
    return Path("model.tersor")


def start(*arguments: object, **options: object) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-m", "tersor", *map(str, arguments)], text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def listing() -> set[str]:
    return set(os.listdir("."))


# --- the four commands --------------------------------------------------------------------------------------


def test_there_and_back(model, capsys):
    before = model.read_bytes()
    assert cli.main(["compress", "model.safetensors", "--bits", "6"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    note, summary = err.splitlines()
    assert note.startswith("tersor: note: data-free")
    assert re.fullmatch(r"tersor: model\.safetensors -> model\.tersor: [\d,]+ -> [\d,]+ bytes, [\d.]+x "
                        r"smaller, [56]\.\d{3} bits/weight, [\d.]+ s", summary)
    assert cli.main(["verify", "model.tersor"]) == 0
    assert "model.tersor: ok, 8 tensors in " in capsys.readouterr().err
    assert cli.main(["restore", "model.tersor", "-o", "back.safetensors"]) == 0
    assert capsys.readouterr().err.startswith("tersor: model.tersor -> back.safetensors: 8 tensors, ")
    assert model.read_bytes() == before
    restored = safetensors_adapter.read("back.safetensors")
    assert restored.metadata == {"format": "pt"}
    assert restored.aliases == {"7.weight": "6.weight"}
    for name, array in safetensors_adapter.read(model).tensors.items():
        assert np.abs(restored.tensors[name] - array).max() < 0.1 * np.abs(array).max()
    assert listing() == {"model.safetensors", "model.tersor", "back.safetensors"}


def test_the_same_bytes_as_from_python(model, packed):
    assert packed.read_bytes() == tersor.compress(model, bits=6).data


@pytest.mark.parametrize(("target", "most"), [(["--size", "2.5kB"], 2500), (["--size", "2 KiB"], 2048),
                                              (["--bits", "5", "--mode", "fast", "--effort", "1"], 4460)])
def test_targets(model, capsys, target, most):
    assert cli.main(["compress", "model.safetensors", *target, "--json", "-q"]) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert err == ""
    assert Path("model.tersor").stat().st_size == report["total_bytes"] <= most
    parts = report["payload_bytes"] + report["side_bytes"] + report["header_bytes"]
    assert parts == report["total_bytes"] and report["output"] == "model.tersor"


def test_layers_and_exact_tensors(model):
    assert cli.main(["compress", "model.safetensors", "--bits", "9", "--layer", "0.weight=raw", "--layer",
                     r"2\.w.*=weight:4", "--keep-exact", "-q"]) == 0
    original = safetensors_adapter.read(model).tensors
    with tersor.load("model.tersor") as restored:
        exact = {name for name, array in original.items() if np.array_equal(restored[name], array)}
    assert exact == {"0.weight", "0.bias", "2.bias", "5.bias"}


@pytest.mark.parametrize(("arguments", "codebook"), [
    ([], {}),
    (["--method", "uniform", "--coder", "huffman", "--per-layer"],
     {"method": "uniform", "coder": "huffman", "scope": "layer"}),
    (["--method", "kmeans", "--levels", "9", "--coder", "fixed"], {"method": "kmeans", "levels": 9, "coder": "fixed"}),
], ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_codebooks(model, arguments, codebook):
    assert cli.main(["compress", "model.safetensors", "--bits", "4", "--tool", "codebook", *arguments, "-q"]) == 0
    config = tersor.Config(tools=("codebook",), codebook=tersor.CodebookConfig(**codebook))
    assert Path("model.tersor").read_bytes() == tersor.compress(model, bits=4, config=config).data
    with tersor.load("model.tersor") as restored:
        each = [set(np.unique(restored[name])) for name in ("0.weight", "2.weight", "5.weight", "6.weight")]
    assert all(len(values) <= codebook.get("levels", 64) for values in each)
    assert ("scope" in codebook) == (len(set.union(*each)) > max(map(len, each)))


@pytest.mark.parametrize(("arguments", "options"), [
    (["--tool", "scalar,transform", "--transforms", "klt,dct2"], {
        "tools": ("scalar", "transform"), "transform": tersor.TransformConfig(("klt", "dct2"))}),
    (["--tool", "kernels", "--kernels", "16", "--kernel-bits", "5"], {
        "tools": ("kernels",), "kernels": tersor.KernelConfig(size=16, value_bits=5)}),
    (["--tool", "transform", "--transforms", "elt", "--transform-coder", "fixed"], {
        "tools": ("transform",), "transform": tersor.TransformConfig(("elt",), coder="fixed")}),
    (["--effort", "7"], {"effort": 7}),
    (["--effort", "6", "--no-trellis"], {"effort": 6, "trellis": False}),
    (["--measured"], {"measured": True}),
])
def test_rival_tools_and_their_options(model, arguments, options):
    assert cli.main(["compress", "model.safetensors", "--bits", "4", *arguments, "-q"]) == 0
    from_python = tersor.compress("model.safetensors", bits=4, **options)
    with open("model.tersor", "rb") as file:
        assert file.read() == from_python.data


def test_verbose_tells_how_each_layer_was_coded(model, capsys):
    assert cli.main(["compress", "model.safetensors", "--bits", "4", "-v", "--tool", "scalar,transform"]) == 0
    text = capsys.readouterr().err
    assert re.search(r"\.weight: .*, \d\.\d\d bits/weight; next .*, cost x \d\.\d\d\d", text)


def test_the_tool_of_single_layers(model, capsys):
    layers = ["--layer", r"[05]\.weight=codebook", "--layer", "2.weight=scalar"]
    for tool, expected in (("scalar", {"0.weight", "5.weight"}), ("codebook", {"0.weight", "5.weight", "6.weight"})):
        assert cli.main(["compress", "model.safetensors", "--bits", "3", "-f", "--tool", tool, *layers, "--levels",
                         "16", "-q"]) == 0
        assert cli.main(["inspect", "model.tersor", "--json"]) == 0
        tensors = json.loads(capsys.readouterr().out)["tensors"]
        assert {tensor["name"] for tensor in tensors if tensor["tool"] == "codebook"} == expected


def test_first_of_two_equal_patterns_counts(model):
    options = cli.build_parser().parse_args(["compress", "model.safetensors", "--bits", "9", "-q", "--layer",
                                             "0.weight=raw", "--layer", "0.weight=weight:2"])
    commands.compress.run(options, show.Reporter(quiet=True))
    with tersor.load("model.tersor") as restored:
        assert np.array_equal(restored["0.weight"], safetensors_adapter.read(model).tensors["0.weight"])


def test_statistics(model, capsys):
    net = network()
    stats = tersor.calibrate(net, [torch.randn(16, 3, 8, 8)])
    stats.save("stats.safetensors")
    assert cli.main(["compress", "model.safetensors", "--bits", "6", "--stats", "stats.safetensors"]) == 0
    err = capsys.readouterr().err
    assert "data-free" not in err and "note: no second walk: it needs the nn.Module" in err
    with torch.no_grad():
        net[2].weight += 1
    tersor.calibrate(net, [torch.randn(16, 3, 8, 8)]).save("other.safetensors")
    command = ["compress", "model.safetensors", "--bits", "6", "-f", "--stats", "other.safetensors"]
    assert cli.main(command) == 1
    assert "another model: 2.weight" in capsys.readouterr().err


def test_inspect(packed, capsys):
    assert cli.main(["inspect", "model.tersor"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].split() == ["tensor", "dtype", "shape", "tool", "section"]
    assert ["0.weight", "F32", "16x3x3x3", "scalar", "0"] in [line.split() for line in lines]
    assert ["7.weight", "F32", "16x16", "same", "as", "6.weight"] in [line.split() for line in lines]
    assert re.search(rf"(?m)^file +{packed.stat().st_size:,} +100\.0%$", out)
    assert re.search(r"(?m)^metadata format +pt$", out)
    assert f"written by tersor {tersor.__version__}" in out
    assert max(map(len, lines)) <= 80 and not any(line.endswith(" ") for line in lines)
    assert err.startswith("tersor: model.tersor: ") and len(err.splitlines()) == 1
    assert cli.main(["inspect", "model.tersor", "-v"]) == 0
    assert "CRC-32" in capsys.readouterr().out


def test_inspect_as_json(packed, capsys):
    assert cli.main(["inspect", "model.tersor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["bytes"] == packed.stat().st_size
    assert report["header_bytes"] + sum(report["bytes_by_tool"].values()) == report["bytes"]
    assert report["header_bytes"] == report["sections"][0]["offset"]
    assert report["raw_bytes"] == 4 * report["parameters"]  # the tied matrix counts once
    tensors = {tensor.pop("name"): tensor for tensor in report["tensors"]}
    assert len(tensors) == 8
    assert tensors["6.weight"] == {"dtype": "F32", "shape": [16, 16], "bytes": 1024, "tool": "scalar",
                                   "section": 0, "alias_of": None}
    assert tensors["7.weight"] | {"alias_of": None} == tensors["6.weight"] | {"tool": None, "section": None}


def test_model_without_parameters(tmp_path, capsys):
    path = tmp_path / "x.tersor"
    record, payload = TensorRecord("n", "I64", (), 0), raw.encode([np.array(7)])
    path.write_bytes(to_bytes([record], [(0, payload)], parameters=0))
    assert cli.main(["inspect", str(path)]) == 0
    assert "no parameters" in capsys.readouterr().out
    assert cli.main(["inspect", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bits_per_weight"] is None


def test_verbose_and_quiet(packed, capsys):
    assert cli.main(["compress", "model.safetensors", "--bits", "6", "-f", "-v"]) == 0
    err = capsys.readouterr().err
    assert "for a target of" in err and "lambda" in err
    for command in (["compress", "model.safetensors", "--bits", "6", "-f"], ["verify", "model.tersor"],
                    ["restore", "model.tersor", "-o", "b.safetensors", "-j", "2"]):
        assert cli.main([*command, "-q"]) == 0
        assert capsys.readouterr() == ("", "")


# --- what goes wrong ------------------------------------------------------------------------------------

MODEL = "model.safetensors"


@pytest.mark.parametrize(("arguments", "code", "message"), [
    ([], 2, "required: COMMAND"),
    (["explode"], 2, "invalid choice"),
    (["compress", MODEL], 2, "--bits --size --snr --max-drop --like is required"),
    (["compress", MODEL, "--bits", "3", "--size", "9MB"], 2, "not allowed with"),
    (["compress", MODEL, "--bits", "nan"], 2, "'nan' is not a positive number"),
    (["compress", MODEL, "--bits", "-1"], 2, "'-1' is not a positive number"),
    (["compress", MODEL, "--size", "3 bananas"], 2, "'3 bananas' is not a size"),
    (["compress", MODEL, "--size", "0.1"], 2, "not a size"),
    (["compress", MODEL, "--snr", "30", "-o", "y"], 2, "measured at the output) needs a network that can be run"),
    (["compress", MODEL, "--bits", "3", "--effort", "10"], 2, "--effort"),
    (["compress", MODEL, "--bits", "3", "--mode", "tiny"], 2, "--mode"),
    (["compress", MODEL, "--bits", "3", "--layer", "raw"], 2, "REGEX=TOOL"),
    (["compress", MODEL, "--bits", "3", "--layer", "(=raw"], 2, "regular expression"),
    (["compress", MODEL, "--bits", "3", "--layer", "x=weight:none"], 2, "positive number"),
    (["compress", MODEL, "--bits", "3", "--tool", "raw"], 2, "--tool"),
    (["compress", MODEL, "--bits", "3", "--coder", "huffman"], 2, "--coder is for the codebook tool: give --tool"),
    (["compress", MODEL, "--bits", "3", "--layer", "x=raw", "--per-layer"], 2, "--per-layer is for the codebook"),
    (["compress", MODEL, "--bits", "3", "--tool", "scalar", "--levels", "8"], 2, "--levels is for the codebook"),
    (["compress", MODEL, "--bits", "3", "--tool", "codebook", "--levels", "0"], 2, "levels=0 must be an integer"),
    (["compress", MODEL, "--bits", "3", "--tool", "scalar", "--transforms", "elt"], 2, "--transforms is for the trans"),
    (["compress", MODEL, "--bits", "3", "--tool", "scalar", "--transform-coder", "fixed"], 2, "--transform-coder"),
    (["compress", MODEL, "--bits", "3", "--kernel-bits", "5"], 2, "--kernel-bits is for the kernels tool: give"),
    (["compress", MODEL, "--bits", "3", "--tool", "transform", "--transforms", "fourier"], 2, "transform 'fourier' is"),
    (["compress", MODEL, "--bits", "3", "--tool", "scalar,codebook"], 2, "no rivals"),
    (["compress", MODEL, "--bits", "3", "--tool", "codebook", "--levels", "x"], 2, "argument --levels"),
    (["compress", MODEL, "--bits", "3", "--tool", "codebook", "--method", "median"], 2, "--method"),
    (["compress", MODEL, "--bits", "3", "--tool", "codebook", "--method", "uniform", "--levels", "8"], 2,
     "--levels is for --method ecsq and kmeans"),
    (["compress", MODEL, "--bits", "3", "-f", "--layer", "nothing=raw"], 2, "fits no weight of this model"),
    (["verify", "model.tersor", "-j", "0"], 2, "number of threads"),
    (["verify", "model.tersor", "-q", "-v"], 2, "not allowed with"),
    (["compress", "no.safetensors", "--bits", "3"], 1, "no.safetensors: No such file"),
    (["compress", MODEL, "--bits", "3", "-o", "no/x.tersor"], 1, "no: there is no such folder"),
    (["compress", MODEL, "--bits", "3", "-o", "."], 1, "is a folder"),
    (["compress", MODEL, "--bits", "3", "-o", MODEL, "-f"], 2, "is an input; sources are kept"),
    (["compress", MODEL, "--bits", "3", "-f", "--stats", "s", "-o", "s"], 1, "no such file"),
    (["compress", MODEL, "--bits", "6", "-f", "--stats", MODEL], 1, "not a readable statistics file"),
    (["compress", "model.tersor", "--bits", "3", "-o", "y"], 1, "compressed already"),
    (["compress", MODEL, "--bits", "6"], 1, "model.tersor: exists already; -f overwrites"),
    (["restore", "model.tersor"], 1, "model.safetensors: exists already"),
    (["restore", MODEL, "-o", "y"], 3, "looks like a .safetensors file"),
    (["inspect", "."], 1, "Is a directory"),
    (["inspect", os.devnull], 3, "not a .tersor file"),
    (["compress", MODEL, "--size", "1", "-f"], 4, "out of reach"),
    (["compress", MODEL, "--bits", "500", "-f"], 4, "out of reach"),
], ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_errors_are_one_line(packed, capsys, arguments, code, message):
    before, content = listing(), packed.read_bytes()
    try:
        found = cli.main(arguments)
    except SystemExit as error:  # how argparse ends
        found = error.code
    out, err = capsys.readouterr()
    assert (found, out) == (code, "")
    assert err.startswith("tersor: error: ") and len(err.splitlines()) == 1
    assert message.lower() in err.lower()
    assert (listing(), packed.read_bytes()) == (before, content)


@pytest.mark.parametrize(("place", "kind"), [
    (3, "FormatError"), (8, "UnsupportedError"), (30, "ChecksumError"), (-1, "ChecksumError")])
def test_damage(packed, capsys, place, kind):
    data = bytearray(packed.read_bytes())
    data[place] ^= 64
    packed.write_bytes(data)
    assert cli.main(["verify", "model.tersor", "--json"]) == 3
    out, err = capsys.readouterr()
    error = json.loads(out)["error"]
    assert (error["kind"], error["exit_code"]) == (kind, 3)
    assert err == f"tersor: error: {error['message']}\n"
    assert cli.main(["restore", "model.tersor", "-o", "back.safetensors"]) == 3
    assert not Path("back.safetensors").exists()


def test_verify_decodes_what_has_the_right_checksum(tmp_path, capsys):
    path = tmp_path / "x.tersor"
    path.write_bytes(tiny_file(b"\3" + bytes(12)))
    assert cli.main(["inspect", str(path)]) == 0
    assert cli.main(["verify", str(path)]) == 3
    assert "method" in capsys.readouterr().err


def test_unknown_tool_can_be_inspected(tmp_path, capsys):
    path = tmp_path / "x.tersor"
    path.write_bytes(tiny_file(tool=77))
    assert cli.main(["inspect", str(path)]) == 0
    assert "unknown tool 77" in capsys.readouterr().out
    assert cli.main(["verify", str(path)]) == 3


def test_debugging_shows_the_traceback(model, monkeypatch):
    monkeypatch.setenv("TERSOR_DEBUG", "1")
    with pytest.raises(FileNotFoundError):
        cli.main(["verify", "no.tersor"])


def test_bugs_are_told_in_one_line(packed, monkeypatch, capsys):
    def broken(*_: object) -> None:
        raise ZeroDivisionError("division\nby zero")
    monkeypatch.setattr(commands.verify, "run", broken)
    assert cli.main(["verify", "model.tersor"]) == 1
    err = capsys.readouterr().err
    assert "please report it: ZeroDivisionError: division\\nby zero" in err and len(err.splitlines()) == 1


def test_memory_error(packed, monkeypatch, capsys):
    def full(*_: object) -> None:
        raise MemoryError
    monkeypatch.setattr(commands.verify, "run", full)
    assert cli.main(["verify", "model.tersor"]) == 1
    assert "not enough memory" in capsys.readouterr().err


def test_somebody_else_writes_the_output_meanwhile(model, monkeypatch, capsys):
    """What `check_output` cannot see, the atomic write still refuses."""
    monkeypatch.setattr(commands.compress, "check_output", lambda *_: Path("model.tersor").write_bytes(b"theirs"))
    assert cli.main(["compress", "model.safetensors", "--bits", "6"]) == 1
    assert "exists" in capsys.readouterr().err
    assert Path("model.tersor").read_bytes() == b"theirs"


# --- the process ----------------------------------------------------------------------------------------


def test_version_and_help():
    for argument in ("--version", "--help"):
        with start(argument) as process:
            out, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (0, "")
        assert out == f"tersor {tersor.__version__}\n" if argument == "--version" else "restore" in out


def test_no_progress_without_a_terminal(packed):
    with start("verify", "model.tersor") as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and out == ""
    assert "\x1b" not in err and len(err.splitlines()) == 1


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
def test_progress_on_a_terminal(model):
    import pty
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "80"}
    command = [sys.executable, "-m", "tersor", "compress", "model.safetensors", "--bits", "6"]
    with subprocess.Popen(command, stderr=theirs, stdout=theirs, env=environment) as process:
        os.close(theirs)
        seen = b""
        while True:
            try:
                part = os.read(ours, 4096)
            except OSError:  # how Linux says that nobody holds the other end any more
                break
            if not part:
                break
            seen += part
    os.close(ours)
    assert process.returncode == 0
    assert b"compressing model.safetensors" in seen and b"bits/weight" in seen


@pytest.mark.skipif(os.name != "posix", reason="POSIX pipes")
def test_reader_of_the_pipe_has_gone(packed):
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "tersor", "inspect", "model.tersor"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_standard_output_is_full(packed):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "tersor", "inspect", "model.tersor", "--json"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("tersor: error: No space left")


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
def test_interrupted(model):
    """Ctrl-C in the middle of the search: code 130, one line, nothing half-written."""
    code = ("import signal, sys\nsys.argv[1:1] = ['compress', 'model.safetensors', '--bits', '6', '-v']\n"
            "signal.signal(signal.SIGINT, signal.default_int_handler)  # a parent may have it ignored\n"
            "from tersor import cli, show\n"
            "def wait(*_): print('ready', flush=True); signal.pause()\n"
            "show.Reporter.progress = wait\nsys.exit(cli.main())\n")
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        try:
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, err) == (130, "tersor: error: interrupted\n")
    assert listing() == {"model.safetensors"}


# --- files of strangers -------------------------------------------------------------------------------------

EVIL = "\x1b]0;owned\x07\x1b[2J\r\n\u202e[red]é:smile:"


def test_control_characters_are_escaped(tmp_path, capsys):
    payload = raw.encode([np.zeros(3, "f4")])
    record = TensorRecord(EVIL, "F32", (3,), 0)
    data = to_bytes([record], [(0, payload)], parameters=3, metadata={EVIL: EVIL * 9})
    path = tmp_path / "x.tersor"
    for content in (data, data[:-1] + bytes([data[-1] ^ 1])):
        path.write_bytes(content)
        for command in (["inspect", str(path)], ["inspect", str(path), "-v"], ["verify", str(path)]):
            assert cli.main(command) in (0, 3)
            out, err = capsys.readouterr()
            assert all(c.isprintable() or c == "\n" for c in out + err)
            assert command[0] == "verify" or "[red]é:smile:" in out
            assert len(err.splitlines()) == 1


def test_names_that_the_terminal_cannot_show(tmp_path):
    path = tmp_path / "x.tersor"
    record, payload = TensorRecord("größe.重み", "F32", (3,), 0), raw.encode([np.zeros(3, "f4")])
    path.write_bytes(to_bytes([record], [(0, payload)], parameters=3))
    with start("inspect", path, env=os.environ | {"PYTHONIOENCODING": "ascii"}) as process:
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "gr\\xf6\\xdfe." in out


def test_long_names_do_not_widen_the_table(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    names = sorted(["a" * 4000, "b"])
    path = tmp_path / "x.tersor"
    path.write_bytes(to_bytes([TensorRecord(name, "F32", (3,), 0) for name in names],
                              [(0, raw.encode([np.zeros(3, "f4")] * 2))], parameters=6))
    assert cli.main(["inspect", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "a" * 4000
    assert lines[2].split() == ["F32", "3", "raw", "0"]
    assert all(len(line) <= 80 for line in lines if line != lines[1])


def test_metadata_is_cut_unless_verbose(tmp_path, capsys):
    path = tmp_path / "x.tersor"
    text = "y" * 1000
    path.write_bytes(tiny_file(metadata=varints([1, 1]) + b"k" + varints([1000]) + text.encode()))
    assert cli.main(["inspect", str(path)]) == 0
    out = capsys.readouterr().out
    assert text not in out and "1,000 characters; -v shows all" in out
    assert cli.main(["inspect", str(path), "-v"]) == 0
    assert text in capsys.readouterr().out


def test_restore_refuses_a_name_that_safetensors_reserves(tmp_path, capsys):
    path = tmp_path / "x.tersor"
    path.write_bytes(tiny_file(names=((0, b"__metadata__\0"),)))
    assert cli.main(["restore", str(path)]) == 1
    assert "__metadata__" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["x.tersor"]


def test_limits_are_exit_code_3(tmp_path, capsys):
    path = tmp_path / "x.tersor"
    path.write_bytes(tiny_file(axes=(3,), dims=(1 << 40,) * 3))
    assert cli.main(["verify", str(path)]) == 3
    assert "max_tensor_bytes" in capsys.readouterr().err


def test_symbolic_links_to_a_source_are_seen(packed):
    os.symlink("model.tersor", "link")
    assert cli.main(["restore", "model.tersor", "-o", "link", "-f"]) == 2
    assert tersor.load("model.tersor")


# --- small parts ----------------------------------------------------------------------------------------


def test_json_has_no_infinities(capsys):
    outcome = show.Outcome("done", {"snr_db": float("inf"), "all": [float("nan")]})
    show.Reporter(json_wanted=True).finish(outcome)
    assert json.loads(capsys.readouterr().out) == {"snr_db": None, "all": [None]}


def test_doctests():
    import doctest
    for module in (cli, arguments, models, outputs, show):
        assert doctest.testmod(module).failed == 0


def test_small_file_round_trip(tmp_path):
    data, expected = small_file()
    (tmp_path / "s.tersor").write_bytes(data)
    assert cli.main(["restore", str(tmp_path / "s.tersor"), "-q"]) == 0
    restored = safetensors_adapter.read(tmp_path / "s.safetensors")
    assert set(restored.names) == set(expected) and restored.metadata == {"from": "a test", "é": ""}
