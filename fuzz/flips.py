"""Does `verify` find any changed byte of a file? Tries every byte.

    python fuzz/flips.py examples/zoo/lenet5.tersor --each 8     # 8 changes of every byte: its single bits
    python fuzz/flips.py FILE --each 1 --first 0 --last 50000

Each change is one load and one `verify` of the changed bytes in memory; it counts as found if a FormatError says so.
Prints what was tried and every change that was not found. Exit code 1 if there is one.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from pathlib import Path

from tersor.decoder import load
from tersor.errors import FormatError


def masks_of(position: int, each: int) -> list[int]:
    """`each` different changes of a byte (XOR, 1 to 255): single bits first, from a bit that varies by position."""
    bits = [1 << (position + i) % 8 for i in range(8)]
    others = [mask for mask in range(1, 256) if mask not in bits]
    random.Random(position).shuffle(others)
    return (bits + others)[:each]


def found(data: bytes) -> bool:
    """Whether these bytes are refused."""
    try:
        with load(data, threads=1) as file:
            file.verify()
    except FormatError:
        return True
    return False


def unseen(data: bytes, positions: range, each: int) -> list[tuple[int, int]]:
    """The changes (position, mask) that `verify` does not find."""
    changed, out = bytearray(data), []
    for position in positions:
        for mask in masks_of(position, each):
            changed[position] ^= mask
            if not found(bytes(changed)):
                out.append((position, mask))
            changed[position] ^= mask
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--each", type=int, default=1, metavar="N", help="changes of every byte, at most 255")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--last", type=int)
    options = parser.parse_args()
    data = options.file.read_bytes()
    if found(data):
        print(f"{options.file} is damaged already", file=sys.stderr)
        return 2
    positions = range(options.first, len(data) if options.last is None else min(options.last, len(data)))
    start = time.process_time()
    missed = unseen(data, positions, options.each)
    print(f"{options.file}: bytes {positions.start:,} to {positions.stop - 1:,} of {len(data):,}, "
          f"{len(positions) * options.each:,} changes, {len(missed)} not found, {time.process_time() - start:.0f} s")
    for position, mask in missed:
        print(f"  byte {position:,} XOR {mask:#04x}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
