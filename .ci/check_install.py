"""What an installed tersor must do, wherever it came from: read every golden file to the same bytes.

    python .ci/check_install.py tests/golden --kernel native     # or: none, where there was no compiler

Needs what tersor itself needs, and nothing else.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path

import tersor
from tersor.bitstream import native
from tersor.bitstream.dtypes import to_bytes


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("golden", type=Path)
    parser.add_argument("--kernel", choices=("native", "none"), required=True)
    options = parser.parse_args()
    kernel = "none" if native.library() is None else "native"
    if kernel != options.kernel:
        print(f"{tersor.__file__}: the kernel is {kernel}, not {options.kernel}", file=sys.stderr)
        return 1
    count = wrong = 0
    for path in sorted(options.golden.glob("*.tersor")):
        expected = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["tensors"]
        with tersor.load(path) as file:
            file.verify()
            found = {name: hashlib.sha256(to_bytes(array)).hexdigest() for name, array in file.read_all().items()}
        count += 1
        if found != {name: about["sha256"] for name, about in expected.items()}:
            wrong += 1
            print(f"{path.name}: other tensors than it was made of", file=sys.stderr)
    print(f"{count} golden files, {wrong} wrong; kernel {kernel}, tersor from {Path(tersor.__file__).parent}")
    return 1 if wrong or not count else 0


if __name__ == "__main__":
    sys.exit(main())
