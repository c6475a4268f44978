"""libFuzzer's folders of inputs to the archives that are kept, and back.

    python fuzz/pack.py unpack fuzz/corpus/rans.bin FOLDER      # to start from
    python fuzz/pack.py pack FOLDER fuzz/corpus/rans.bin        # after `rans -merge=1 FOLDER ...`

An archive holds for each input its length (4 bytes, little-endian) and its bytes; the smallest inputs come first, and
what is beyond 45 kB is left out.
"""

from __future__ import annotations

import hashlib
import struct
import sys
from pathlib import Path

MOST = 45_000


def pack(folder: Path, archive: Path) -> int:
    """The number of inputs that were kept."""
    out, count = bytearray(), 0
    for data in sorted((path.read_bytes() for path in folder.iterdir()), key=lambda data: (len(data), data)):
        if len(out) + 4 + len(data) > MOST:
            break
        out += struct.pack("<I", len(data)) + data
        count += 1
    archive.parent.mkdir(exist_ok=True)
    archive.write_bytes(out)
    return count


def unpack(archive: Path, folder: Path) -> int:
    """The number of inputs."""
    folder.mkdir(parents=True, exist_ok=True)
    data, at, count = archive.read_bytes(), 0, 0
    while at < len(data):
        (size,) = struct.unpack_from("<I", data, at)
        one = data[at + 4 : at + 4 + size]
        (folder / hashlib.sha256(one).hexdigest()[:16]).write_bytes(one)
        at, count = at + 4 + size, count + 1
    return count


if __name__ == "__main__":
    what, source, target = sys.argv[1:]
    print({"pack": pack, "unpack": unpack}[what](Path(source), Path(target)), "inputs")
