"""A short run of the fuzzers in fuzz/: what they found interesting once, and some new mutations. `make fuzz` runs
them for longer."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

FUZZ = Path(__file__).parent.parent / "fuzz"
SECONDS = float(os.environ.get("TERSOR_FUZZ_SECONDS", "4"))
"""Of new mutations; set it higher for a longer run."""

sys.path.append(str(FUZZ))
import files  # noqa: E402
from grammar import take_apart  # noqa: E402
from mutator import Seeds, mutate  # noqa: E402
from oracle import Finding, judge  # noqa: E402

TARGETS = ("context", "integers", "huffman", "kernels", "mix", "rans")


def test_kept_files():
    """One file for each way in which files were refused (lines of the source move, so the ways are not compared)."""
    kept = files.corpus("files")
    assert len(kept) > 100
    verdicts = {judge(data) for data in kept.values()}
    assert len(verdicts) > 80


def test_new_mutations():
    seeds, rng = Seeds.of(files.golden_files()), random.Random(int.from_bytes(os.urandom(8), "big"))
    assert len(seeds) > 60
    end, decoded, refused = time.monotonic() + SECONDS, 0, set()
    while time.monotonic() < end:
        state = rng.getstate()
        data = mutate(seeds, rng)
        try:
            verdict = judge(data)
        except Finding as finding:
            pytest.fail(f"{finding}\n{len(data)} bytes: {data.hex()}\nstate {hash(state)}")
        decoded += not verdict
        refused.add(verdict)
    assert decoded > 5 and len(refused) > 10


def test_mutations_get_past_the_checksums():
    seeds, rng = Seeds.of(files.golden_files()), random.Random(1)
    verdicts = [judge(mutate(seeds, rng)) for _ in range(300)]
    assert sum("Checksum" in verdict for verdict in verdicts) < 15
    assert sum(not verdict for verdict in verdicts) > 15


def test_grammar_is_the_file_taken_apart():
    for data in files.golden_files():
        parts = take_apart(data)
        again = take_apart(parts.join())
        assert again == parts
        assert parts.join(parts.manifest()) == parts.join()
        for section in range(len(parts.tools)):
            judge(parts.only(section).join())


def test_the_oracle_finds(monkeypatch):
    monkeypatch.setattr("oracle.load", lambda *_, **__: 1 // 0)
    with pytest.raises(Finding, match="ZeroDivisionError"):
        judge(b"")


def test_corpus_is_small():
    assert sum(path.stat().st_size for path in (FUZZ / "corpus").iterdir()) < 300_000


@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="no C++ compiler")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="sanitizers are tried on Linux only")
def test_native_targets_on_kept_inputs(tmp_path):
    """Every native decoder, with address and undefined-behaviour sanitizers, on what libFuzzer kept."""
    compiler = "clang++" if shutil.which("clang++") else "g++"
    flags = ["-std=c++17", "-O0", "-ffp-contract=off", "-fsanitize=address,undefined",
             "-fno-sanitize-recover=undefined"]
    probe = tmp_path / "probe.cpp"
    probe.write_text("int main() { return 0; }")
    if subprocess.run([compiler, *flags, probe, "-o", tmp_path / "probe"], capture_output=True).returncode:
        pytest.skip(f"{compiler} has no sanitizers here")
    replay = FUZZ / "native" / "replay.cpp"
    for target in TARGETS:
        program = tmp_path / target
        source = FUZZ / "native" / f"{target}.cpp"
        done = subprocess.run([compiler, *flags, source, "-include", replay, "-o", program], capture_output=True,
                              text=True)
        assert done.returncode == 0, done.stderr
        done = subprocess.run([program, FUZZ / "corpus" / f"{target}.bin"], capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, f"{target}: {done.stdout}{done.stderr}"
        assert int(done.stdout.split()[0]) > 50


def test_atheris_target(tmp_path):
    """A few seconds, where atheris is installed."""
    pytest.importorskip("atheris", reason="atheris is not installed (pip install atheris)")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for name, data in list(files.corpus("files").items())[:40]:
        (corpus / name).write_bytes(data)
    done = subprocess.run([sys.executable, FUZZ / "atheris_files.py", corpus, "-runs=300", "-max_len=4000"],
                          cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Done 300 runs" in done.stderr
