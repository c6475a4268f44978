"""Fuzzing of whole files without any fuzzer: random grammar-aware mutations of the golden files.

    python fuzz/files.py --seconds 600 --seed 1 --out findings/     # writes what breaks the oracle
    python fuzz/files.py --collect fuzz/corpus/files.zip            # and keeps one small file per way to be refused

Prints the executions, the ways in which files were refused, and the findings. Exit code 1 if there are any.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import sys
import time
import zipfile
from collections import Counter
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent)]
from mutator import Seeds, mutate  # noqa: E402
from oracle import Finding, judge, limit_memory  # noqa: E402

ROOT = Path(__file__).parent.parent
CORPUS = Path(__file__).parent / "corpus"


def golden_files() -> list[bytes]:
    """The files that mutations start from, in a fixed order."""
    return [path.read_bytes() for path in sorted((ROOT / "tests" / "golden").glob("*.tersor"))]


def corpus(name: str) -> dict[str, bytes]:
    """The inputs of one kept archive by their names; none where there is no archive."""
    path = CORPUS / f"{name}.zip"
    if not path.exists():
        return {}
    with zipfile.ZipFile(path) as archive:
        return {member: archive.read(member) for member in sorted(archive.namelist())}


def keep(name: str, inputs: dict[str, bytes]) -> None:
    """Write an archive; the same inputs make the same bytes."""
    CORPUS.mkdir(exist_ok=True)
    with zipfile.ZipFile(CORPUS / f"{name}.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for member, data in sorted(inputs.items()):
            archive.writestr(zipfile.ZipInfo(member, (1980, 1, 1, 0, 0, 0)), data, zipfile.ZIP_DEFLATED, 9)


def run(seconds: float, seed: int,
        smallest: dict[str, bytes] | None = None) -> tuple[int, Counter[str], dict[str, tuple[str, bytes]]]:
    """Executions, verdicts, and findings: last line of the message -> (message, file).

    smallest: takes the smallest file of each verdict.
    """
    seeds, rng = Seeds.of(golden_files()), random.Random(seed)
    verdicts: Counter[str] = Counter()
    findings: dict[str, tuple[str, bytes]] = {}
    end, count = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        data = mutate(seeds, rng)
        count += 1
        try:
            verdict = judge(data)
        except Finding as finding:
            text = str(finding)
            lines = [line.strip() for line in text.strip().splitlines()]
            place = next((line for line in reversed(lines) if line.startswith("File ")), "")
            if len(data) < len(findings.get(place, ("", data + b"."))[1]):
                findings[place] = text, data
            continue
        verdicts[verdict] += 1
        if smallest is not None and len(data) < len(smallest.get(verdict, data + b".")):
            smallest[verdict] = data
    return count, verdicts, findings


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--collect", action="store_true", help="add the smallest file of each verdict to fuzz/corpus")
    options = parser.parse_args()
    limit_memory()
    smallest: dict[str, bytes] = {}
    for data in corpus("files").values():
        smallest.setdefault(judge(data), data)
    kept = len(smallest)
    count, verdicts, findings = run(options.seconds, options.seed, smallest)
    print(f"{count:,} files, {verdicts['']:,} decoded, refused in {len(verdicts) - ('' in verdicts)} ways, "
          f"{len(findings)} findings; {len(smallest) - kept} verdicts are new")
    for place, (text, data) in findings.items():
        print(f"---- {place}\n{text}\n{len(data)} bytes: {data[:60].hex()}")
        if options.out:
            options.out.mkdir(exist_ok=True)
            (options.out / f"{hashlib.sha256(data).hexdigest()[:12]}.tersor").write_bytes(data)
    if options.collect:
        keep("files", {f"{hashlib.sha256(data).hexdigest()[:12]}.tersor": data for data in smallest.values()})
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
