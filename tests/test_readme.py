"""What README.md says can be done is done here, block by block, in the order of the text."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"(?ms)^```(\w*)\n(.*?)^```$", README)
sys.path.append(str(ROOT / "benchmarks"))

import readme_table  # noqa: E402  (benchmarks/ is no package)

MAKE = f'make() {{ command make --dry-run -C "{ROOT}" "$@" > /dev/null; }}\n'
"""The targets must be there; what they do would run these tests again."""


def test_every_block_is_of_a_kind_that_is_run():
    assert {language for language, _ in BLOCKS} == {"sh", "python"}


@pytest.mark.skipif(not (shutil.which("bash") and shutil.which("make")), reason="needs bash and make")
def test_blocks_run(tmp_path):
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    path = os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]
    environment = os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"}
    for language, code in BLOCKS:
        command = [sys.executable, "-c", code] if language == "python" else ["bash", "-euc", MAKE + code]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True,
                              timeout=600)
        assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
    assert {"digits.tersor", "back.safetensors", "digits-stats.safetensors"} <= set(os.listdir(tmp_path))


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"])
def test_links_and_files_that_are_named_exist(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    links += re.findall(r"`((?:src|tests|docs|native|benchmarks|examples)/[\w./-]*)`", text)
    assert links or document in ("CHANGELOG.md", "SECURITY.md")
    assert not [link for link in links if not (ROOT / link).exists()]


def results() -> dict[str, object]:
    """As benchmarks/frontier.py writes them, with made-up numbers."""
    point = {"bytes": 100_000, "top1": 0.91, "top1_reference": 0.9164, "top1_change": -0.002,
             "top1_change_error": 0.003, "kl": 0.0081}
    peer = {"use_dq": True, "opt_qp": True, "nonweight_qp": -40, "bytes": 160_000, "kl": 0.03}
    entry = {"parameters": 269_722, "fp32_bytes": 1_092_520,
             "curve": {"100,000 bytes": point, "80,000 bytes": point | {"bytes": 80_000, "kl": 0.03}},
             "nncodec": {"a": peer, "b": peer | {"bytes": 200_000, "kl": 0.01}}}
    return {"networks": {"resnet20": entry, "resnet32": {"peers": {}}}}


def tuned() -> dict[str, object]:
    """As benchmarks/finetuned.py writes them, with made-up numbers."""
    lossless = {"mean": 0.1, "low": -0.1, "high": 0.3}
    way = {"bytes": 50_000, "drop": lossless}
    lossy = {"bytes": 40_000, "drop": lossless | {"low": 0.05}}
    return {"resnet20:1": {"fp32": 0.9164, "fp32_bytes": 1_000_000, "plain": way, "tuned": lossy},
            "resnet56:1": {"fp32": 0.9282, "fp32_bytes": 2_000_000, "plain": lossy},
            "resnet20:nncodec": {"points": [way | {"bytes": 100_000}, lossy | {"bytes": 80_000}]}}


def test_table():
    text = readme_table.render(results(), tuned())
    assert "| ResNet-20 | 91.64 | 1,000,000 | 50,000 | 20.0 | -0.10 (-0.30 to +0.10) | compressed | 100,000 (10" in text
    assert "| ResNet-20, fp32 | 1,092,520 | 32.40 | 1 | 91.64 |  |  |" in text
    assert text.count("| ResNet-20 | 100,000 | 2.97 | 10.9 | 91.00 | -0.20 ± 0.30 | 0.0081 |") == 1
    assert "| NNCodec, best setting | 160,000 (2.00x) |" in text
    assert "| DeepCABAC-style | out of its range |" in text and "ResNet-32" not in text and "| ResNet-56 |" not in text
    once = readme_table.replaced(README, text)
    assert text in once and readme_table.replaced(once, text) == once


def test_table_command(tmp_path):
    (tmp_path / "README.md").write_text(README, encoding="utf-8")
    (tmp_path / "frontier.json").write_text(json.dumps(results()), encoding="utf-8")
    command = [sys.executable, str(ROOT / "benchmarks" / "readme_table.py"), "--results",
               str(tmp_path / "frontier.json"), "--readme", str(tmp_path / "README.md")]
    assert [subprocess.run([*command, *more], capture_output=True).returncode
            for more in (["--check"], [], ["--check"])] == [1, 0, 0]


@pytest.mark.skipif(not readme_table.RESULTS.exists(), reason="not measured yet")
def test_figures_are_those_of_the_results():
    measured = json.loads(readme_table.RESULTS.read_text(encoding="utf-8"))
    new = readme_table.replaced(README, readme_table.render(measured, readme_table.tuned_cases()))
    assert new == README, "run benchmarks/readme_table.py"
