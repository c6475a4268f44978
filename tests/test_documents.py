"""Every code block of the documentation is run, page by page; the site builds without a warning.

`sh` and `python` blocks are run in the order of the page, in a folder with a copy of examples/. What only other
machines can run (a batch system, a cluster, a build server) is `bash`, `yaml`, `toml` or `json`, and is parsed. Blocks
without a language, or of `text`, are output.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").rglob("*.md"))
BLOCK = re.compile(r"(?ms)^( *)```(\w*)[^\n]*\n(.*?)^ *```$")


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, code) of a page's fenced blocks, without their indentation."""
    text = page.read_text(encoding="utf-8")
    return [(language, re.sub(f"(?m)^{indent}", "", code)) for indent, language, code in BLOCK.findall(text)]


def parse_yaml(code: str) -> object:
    yaml = pytest.importorskip("yaml")
    return list(yaml.safe_load_all(code))


def parse_bash(code: str) -> object:
    done = subprocess.run(["bash", "-n"], input=code, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    return done


PARSED: dict[str, Callable[[str], object]] = {"yaml": parse_yaml, "bash": parse_bash, "toml": tomllib.loads,
                                              "json": json.loads}


def runnable() -> list[Path]:
    return [page for page in PAGES if any(language in ("sh", "python") for language, _ in blocks(page))]


def test_every_block_is_run_or_parsed():
    known = {"", "text", "sh", "python", *PARSED}
    for page in PAGES:
        assert {language for language, _ in blocks(page)} <= known, page
        assert page.read_text(encoding="utf-8").count("```") == 2 * len(blocks(page)), f"{page}: a block is not closed"


def test_what_is_not_run_parses():
    for page in PAGES:
        for language, code in blocks(page):
            if language in PARSED:
                PARSED[language](code)


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize("page", runnable(), ids=lambda page: page.relative_to(ROOT / "docs").as_posix())
def test_blocks_run(page: Path, tmp_path: Path):
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("zoo", "__pycache__"))
    environment = os.environ | {"PATH": os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"],
                                "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    for language, code in blocks(page):
        if language not in ("sh", "python"):
            continue
        command = [sys.executable, "-c", code] if language == "python" else ["bash", "-euo", "pipefail", "-c", code]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"


def test_every_page_is_in_the_navigation():
    listed = set(re.findall(r"- ([\w/.-]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE))
    assert listed == {page.relative_to(ROOT / "docs").as_posix() for page in PAGES}


def test_the_site_builds(tmp_path: Path):
    pytest.importorskip("zensical", reason="needs pip install '.[docs]'")
    for name in ("docs", "src"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    command = [sys.executable, "-m", "zensical", "build", "--strict"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "site" / "api" / "compress" / "index.html").read_text(encoding="utf-8")
    assert "tersor.encoder.compress" in page and "never exceeded" in page
    outside = re.findall(r'(?:src|href)="(https?://[^"]+\.(?:js|css|woff2?))"', page)
    assert not outside, "the site must work offline"
