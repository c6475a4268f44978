"""Imports point one way, reading needs no torch, and decoding never touches the encoder."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from forge import small_file

import tersor
from tersor.adapters import safetensors as safetensors_adapter

SOURCE = Path(tersor.__file__).parent

ROWS: tuple[frozenset[str], ...] = tuple(frozenset(row.split()) for row in (
    "errors", "limits",
    "bitstream", "synthesis", "decoder", "streaming",  # bytes -> integers -> weights: all that reading needs
    "adapters anatomy codes config gpu packed parallel threads",
    "statistics runtime modes sections records", "calibration tools evaluate data",
    "sensitivity allocation choice diagonals onnx restored", "plan", "columns encoding", "stage walk",
    "lockstep writer guess journal trust", "memory published", "job", "encoder",
    "difference hub gap training sweep predict report repack",
    "show", "commands", "cli", "__main__",
))
"""The rooms of the house (a module or a package of `tersor`). Each imports only from rows before its own, and
from itself. A new room gets the earliest row that works; some have a place before they are built."""

DECODING = ROWS[0] | ROWS[1] | ROWS[2] | ROWS[3] | ROWS[4] | ROWS[5]
LEAN = DECODING | {"anatomy", "config", "packed", "show", "commands", "cli"}
"""Rooms that never import torch by themselves, not even in a function."""
LEAN_ADAPTERS = {"adapters", "adapters.safetensors", "adapters.inventory", "adapters.skeleton",
                 "adapters.restored"}


def modules() -> dict[str, Path]:
    """Name below `tersor` -> file; packages by their own name."""
    found = {}
    for path in SOURCE.rglob("*.py"):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path) -> Iterator[str]:
    """Absolute names of all that a module imports, wherever in it; modules of tersor as `tersor.x.y`."""
    package = ["tersor", *name.split(".")] if name else ["tersor"]
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            origin = ".".join(base + ([node.module] if node.module else []))
            yield origin
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def rooms_of(name: str, path: Path) -> set[str]:
    """Rooms that a module imports from."""
    rooms = {name.partition(".")[0] for name in modules()}  # not names such as tersor.__version__
    return {target.split(".")[1] for target in imports(name, path) if target.startswith("tersor.")} & rooms


@pytest.mark.parametrize("name", sorted(set(modules()) - {""}))
def test_imports_point_one_way(name):
    room = name.partition(".")[0]
    row = next((number for number, rooms in enumerate(ROWS) if room in rooms), None)
    assert row is not None, f"tersor.{room} is a new room: give it a place in ROWS"
    allowed = frozenset({room}).union(*ROWS[:row])
    wrong = rooms_of(name, modules()[name]) - allowed
    assert not wrong, f"tersor.{name} imports {sorted(wrong)}, which come after it"


def test_the_test_sees_imports(tmp_path):
    path = tmp_path / "x.py"
    path.write_text("from .. import encoder\n\ndef f():\n"
                    "    from ..tools.scalar import g\n    import torch.nn\n")
    assert {"tersor.encoder", "tersor.tools.scalar.g", "torch.nn"} <= set(imports("bitstream.x", path))
    assert rooms_of("bitstream.x", path) == {"encoder", "tools"}


@pytest.mark.parametrize("name", sorted(modules()))
def test_lean_modules_do_not_import_torch(name):
    if name.partition(".")[0] in LEAN or name in LEAN_ADAPTERS or not name:
        assert not [target for target in imports(name, modules()[name]) if target.split(".")[0] == "torch"]


BLOCK = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "matplotlib", "scipy"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
"""

LOADED = """
print("\\n".join(sorted(name for name in sys.modules if name.split(".")[0] in {"tersor", "torch", "rich"})))
"""


def run_without_torch(code: str, *arguments: object) -> set[str]:
    """Run code where torch cannot be imported; the modules of tersor, torch and rich that it loaded."""
    command = [sys.executable, "-c", BLOCK + code + LOADED, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return {line for line in done.stdout.splitlines() if line.split(".")[0] in {"tersor", "torch", "rich"}}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "small.tersor"
    path.write_bytes(small_file()[0])
    return path


def test_loading_and_decoding_without_torch(file):
    loaded = run_without_torch("import tersor\n"
                               "with tersor.load(sys.argv[1]) as tensors:\n"
                               "    assert len(dict(tensors)) == len(tensors) == 10\n"
                               "    tensors.verify()\n", file)
    rooms = {name.split(".")[1] for name in loaded if "." in name}
    assert rooms <= DECODING, "decoding imported something else"
    assert "tersor.synthesis.vector" in loaded


@pytest.mark.parametrize("command", ["inspect", "verify", "restore"])
def test_commands_without_torch(file, command):
    code = f"from tersor.cli import main\nassert main([{command!r}, sys.argv[1], '-v']) == 0\n"
    loaded = run_without_torch(code, file)
    allowed = {f"tersor.{name}" for name in LEAN_ADAPTERS}
    rooms = {name.split(".")[1] for name in loaded - allowed if name.startswith("tersor.")}
    assert rooms <= DECODING | {"anatomy", "cli", "commands", "show", "config", "__main__"}
    assert not [name for name in loaded if name.startswith("rich")], "for a terminal only"


def test_restored_without_torch(file):
    run_without_torch("from tersor.cli import main\nassert main(['restore', sys.argv[1]]) == 0\n", file)
    expected = small_file()[1]
    restored = safetensors_adapter.read(file.with_suffix(".safetensors")).tensors
    assert restored.keys() == expected.keys()
    for name, array in expected.items():
        assert np.array_equal(restored[name], array) and restored[name].dtype == array.dtype


def test_compressing_without_torch_says_what_is_missing(tmp_path):
    path = tmp_path / "x.safetensors"
    safetensors_adapter.write(path, {"fc.weight": np.ones((8, 16), "f4")})
    command = [sys.executable, "-c", BLOCK + "from tersor.cli import main\nsys.exit(main(sys.argv[1:]))",
               "compress", str(path), "--bits", "8"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.startswith("tersor: error: ") and "pip install 'tersor[torch]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_public_names_exist():
    assert all(getattr(tersor, name) is not None for name in tersor.__all__)
    assert set(tersor.__all__) <= set(dir(tersor))
    with pytest.raises(AttributeError, match="nonsense"):
        _ = tersor.nonsense
