"""Without the native kernel tersor reads every file to the same bytes, refuses what the kernel refuses, and says what
is missing when it is asked to write. And it can be installed so."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from bad_files import FOLDER as BAD_FILES

from tersor.bitstream import fallback, native
from tersor.decoder import load
from tersor.errors import FormatError, KernelError
from tersor.limits import Limits

ROOT = Path(__file__).parent.parent
LIMITS = Limits(max_elements=6000, max_bytes=100_000, max_tensor_bytes=100_000)
"""Small: the fallback takes 0.05 ms for an element."""

JUDGE = """
import hashlib, json, sys
from pathlib import Path
from tersor.decoder import load
from tersor.errors import FormatError
from tersor.limits import Limits
limits = Limits(max_elements=6000, max_bytes=100_000, max_tensor_bytes=100_000)
out = {}
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        out[path.name] = load(path, limits, threads=1).digest()
    except FormatError as error:
        out[path.name] = type(error).__name__
print(json.dumps(out))
"""


def without_kernel(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, timeout=240,
                          env={**os.environ, "TERSOR_KERNEL": "none"})


def test_every_golden_file():
    done = without_kernel(ROOT / ".ci" / "check_install.py", ROOT / "tests" / "golden", "--kernel", "none")
    assert done.returncode == 0, done.stderr
    assert " 0 wrong; kernel none" in done.stdout


def judged(folder: Path) -> dict[str, str]:
    """Name -> digest or class of the error, by the kernel."""
    out = {}
    for path in sorted(folder.iterdir()):
        try:
            out[path.name] = load(path, LIMITS, threads=1).digest()
        except FormatError as error:
            out[path.name] = type(error).__name__
    return out


def test_golden_errors():
    done = without_kernel("-c", JUDGE, BAD_FILES)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == judged(BAD_FILES)


def test_mutated_files(tmp_path, monkeypatch):
    """Decoded to the same tensors, or refused by the same class of error."""
    monkeypatch.syspath_prepend(str(ROOT / "fuzz"))
    from mutator import Seeds, mutate
    seeds = Seeds.of((path.read_bytes() for path in sorted((ROOT / "tests" / "golden").glob("*.tersor"))), most=600)
    rng = random.Random(20)
    for _ in range(250):
        data = mutate(seeds, rng)
        (tmp_path / hashlib.sha256(data).hexdigest()).write_bytes(data)
    done = without_kernel("-c", JUDGE, tmp_path)
    assert done.returncode == 0, done.stderr
    expected = judged(tmp_path)
    assert json.loads(done.stdout) == expected
    assert len(set(expected.values())) > 20


def test_writing_says_what_is_missing():
    done = without_kernel("-c", "import numpy, tersor\n"
                                "tersor.compress({'a.weight': numpy.ones((9, 9), 'f4')}, bits=9.0, effort=1)")
    assert done.returncode == 1
    assert "KernelError" in done.stderr and "C++17 compiler" in done.stderr
    with pytest.raises(KernelError, match="native kernel"):
        fallback.function("tersor_rans_encode")


def test_every_stand_in_exists_and_serves_decoding_alone():
    assert native.library() is not None
    for name in fallback._PLACES:
        assert callable(fallback.function(name))
        assert hasattr(native.library(), name)


def test_installs_without_a_compiler(tmp_path):
    """From the source distribution, as pip does it."""
    backend = pytest.importorskip("setuptools.build_meta")
    setuptools = pytest.importorskip("setuptools")
    if int(setuptools.__version__.split(".")[0]) < 77:
        pytest.skip(f"setuptools {setuptools.__version__} is too old to build tersor")
    assert backend is not None
    source = tmp_path / "source"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "native", ".ci"):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, source / name)
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("*.so", "*.egg-info", "__pycache__"))
    code = "import sys, setuptools.build_meta as backend; backend.build_sdist(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=source, capture_output=True, text=True,
                          timeout=120)
    assert done.returncode == 0, done.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    assert {f"native/{path.name}" for path in (ROOT / "native").iterdir()} <= names
    environment = {**os.environ, "CC": "false", "CXX": "false"}
    environment.pop("TERSOR_REQUIRE_KERNEL", None)
    install = ["-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "--target", tmp_path / "site",
               archive]
    done = subprocess.run([sys.executable, *map(str, install)], capture_output=True, text=True, timeout=240,
                          env=environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert not list((tmp_path / "site" / "tersor").glob("_kernel*"))
    code = f"import tersor; tersor.load({str(ROOT / 'tests' / 'golden' / 'vector.tersor')!r}).verify()\n" \
           "print(tersor.__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60,
                          env={**environment, "PYTHONPATH": str(tmp_path / "site")})
    assert done.returncode == 0, done.stderr
    assert str(tmp_path) in done.stdout
    required = subprocess.run([sys.executable, *map(str, install)], capture_output=True, text=True, timeout=240,
                              env={**environment, "TERSOR_REQUIRE_KERNEL": "1"})
    assert required.returncode != 0
