"""Files that break one rule each, and the error that must name it: {name: (bytes, error class, message)}.

`python tests/bad_files.py` writes them to tests/golden-errors/, where they stay for ever.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bad_tools
from forge import file_of, manifest_of, tiny_file, varints

from tersor.bitstream.integers import IntegerWriter
from tersor.errors import ChecksumError, FormatError, LimitError, TersorError, UnsupportedError

FOLDER = Path(__file__).parent / "golden-errors"


def two(**columns: Any) -> bytes:
    """Two tensors, a and b, F32 [3] each, both in section 0, unless said otherwise."""
    default = {"names": ((0, b"a\0"), (0, b"b\0")), "dtypes": (0, 0), "axes": (1, 1),
               "dims": (4, 0), "homes": (1, 1)}
    return tiny_file(**default | columns)


def head(*integers: tuple[int, int]) -> bytes:
    """A payload of parameters alone: (value, context) of the integer code, after their length."""
    writer = IntegerWriter()
    for value, context in integers:
        writer.put([value], context)
    code = writer.finish()
    return bytes([len(code)]) + code


BAD: dict[str, tuple[bytes, type[TersorError], str]] = {
    "container-version": (file_of(manifest_of(), container=2), UnsupportedError, "newer"),
    "tools-version": (file_of(manifest_of(), bytes(13), tools=2), UnsupportedError, "newer"),
    "flags": (file_of(manifest_of(), bytes(13), flags=1), UnsupportedError, "newer"),
    "manifest-longer-than-file": (file_of(manifest_of())[:40], FormatError, "truncated"),
    "not-deflate": (file_of(b"", stored=b"\xff\xff"), FormatError, "inflate"),
    "inflates-to-more": (file_of(manifest_of(), bytes(13), inflated_length=5), FormatError, "inflate"),
    "inflates-to-less": (file_of(manifest_of(), bytes(13), inflated_length=500), FormatError, "inflate"),
    "bytes-after-manifest": (tiny_file(tail=b"\0"), FormatError, "follow the end"),
    "overlong-number": (tiny_file(metadata=b"\x80\x00"), FormatError, "more bytes than it needs"),
    "number-cut-off": (tiny_file(metadata=b"\x80"), FormatError, "cut off"),
    "number-too-large": (tiny_file(metadata=b"\xff" * 9 + b"\x01"), FormatError, "63 bits"),
    "tensor-count": (tiny_file(count=1000), FormatError, "announced"),
    "tensor-count-limit": (tiny_file(count=1 << 40), LimitError, "max_tensors"),
    "empty-name": (tiny_file(names=((0, b"\0"),)), FormatError, "empty"),
    "name-not-utf8": (tiny_file(names=((0, b"\xff\0"),)), FormatError, "UTF-8"),
    "name-without-end": (file_of(varints([1, 1]) + b"\0wwwwwwwww"), FormatError, "no end"),
    "name-shares-too-much": (tiny_file(names=((1, b"w\0"),)), FormatError, "shorter"),
    "name-twice": (two(names=((0, b"a\0"), (1, b"\0"))), FormatError, "twice"),
    "name-shares-too-little": (two(names=((0, b"ab\0"), (0, b"ac\0"))), FormatError, "shortest"),
    "unknown-dtype": (tiny_file(dtypes=(16,)), UnsupportedError, "element type"),
    "too-many-axes": (tiny_file(axes=(17,), dims=(1,) * 17), LimitError, "max_dimensions"),
    "axes-cut-off": (tiny_file(axes=(16,), dims=(2,)), FormatError, "announced"),
    "dimension-of-nothing": (tiny_file(dims=(0,)), FormatError, "axis"),
    "dimension-said-again": (two(dims=(2, 2)), FormatError, "axis"),
    "huge-tensor": (tiny_file(axes=(3,), dims=(1 << 62,) * 3), LimitError, "max_tensor_bytes"),
    "huge-empty-tensor": (tiny_file(axes=(2,), dims=(1, 1 << 62)), LimitError, "max_tensor_bytes"),
    "no-such-section": (tiny_file(homes=(2,)), FormatError, "section 1 of 1"),
    "unused-section": (file_of(manifest_of(sections=((0, bytes(13)), (0, b""))), bytes(13)),
                       FormatError, "holds no tensor"),
    "alias-of-nothing": (two(homes=(1, 0), targets=(2,)), FormatError, "alias"),
    "alias-of-alias": (two(names=((0, b"a\0"), (0, b"b\0"), (0, b"c\0")), dtypes=(0,) * 3, axes=(1,) * 3,
                           dims=(4, 0, 0), homes=(1, 0, 0), targets=(0, 1)), FormatError, "itself"),
    "alias-of-itself": (two(homes=(1, 0), targets=(1,)), FormatError, "itself"),
    "alias-of-other-shape": (two(homes=(1, 0), dims=(4, 3), targets=(0,)), FormatError, "alias"),
    "alias-of-other-dtype": (two(homes=(1, 0), dtypes=(0, 5), targets=(0,)), FormatError, "alias"),
    "file-too-short": (tiny_file()[:-1], FormatError, "truncated"),
    "file-too-long": (tiny_file() + b"\0", FormatError, "do not belong"),
    "metadata-twice": (tiny_file(metadata=b"\2\1k\1a\1k\1b"), FormatError, "twice"),
    "metadata-not-utf8": (tiny_file(metadata=b"\1\1\xff\0"), FormatError, "UTF-8"),
    "metadata-cut-off": (tiny_file(metadata=b"\1\1k\x05v"), FormatError, "announced"),
    "unknown-tool": (tiny_file(tool=77), UnsupportedError, "coding tool 77"),
    "section-checksum": (tiny_file()[:-1] + b"\1", ChecksumError, "section 0"),
    "raw-method": (tiny_file(b"\3" + bytes(12)), FormatError, "method"),
    "raw-empty": (tiny_file(b""), FormatError, "method"),
    "raw-too-short": (tiny_file(b"\0" + bytes(11)), FormatError, "bytes"),
    "raw-not-deflate": (tiny_file(b"\1\xff\xff"), FormatError, "inflate"),
    "raw-bool": (tiny_file(b"\0\1\0\2", dtypes=(12,)), FormatError, "boolean"),
    "vector-of-integers": (tiny_file(b"", tool=3, dtypes=(1,)), FormatError, "element type"),
    "transform-of-integers": (tiny_file(head((0, 0)), tool=5, dtypes=(1,)), FormatError, "transform section"),
    "transform-coder": (tiny_file(head((3, 0)), tool=5), FormatError, "coder"),
    "transform-swapped": (tiny_file(head((0, 0), (1, 1)), tool=5), FormatError, "swapped"),
    "transform-taps": (tiny_file(head((0, 0), (0, 1), (0, 2), (0, 3), (6, 4)), tool=5), FormatError, "taps"),
    "transform-trellis": (tiny_file(head((2, 0), (2, 1)), tool=5), FormatError, "trellis"),
    "transform-scale": (tiny_file(head((0, 0), (0, 1), (0, 2), (0, 3), (4, 4), (257, 15)), tool=5), FormatError,
                        "scales of frequencies"),
    "transform-rank": (tiny_file(head((0, 0), (0, 1), (1, 2), (0, 3), (0, 4), (2, 5)), tool=5), FormatError, "rank"),
    "transform-dct": (tiny_file(head((0, 0), (0, 1), (0, 2), (0, 3), (2, 4)), tool=5, axes=(3,), dims=(2, 2, 34)),
                      FormatError, "no DCT"),
    "transform-depth": (tiny_file(head((2, 0), (0, 1), (0, 2), (0, 3), (0, 4), (0, 14), (0, 14), (17, 15)), tool=5),
                        FormatError, "bit depths"),
    "transform-step": (tiny_file(head((0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (28801, 7), (0, 8), (0, 8), (-1, 10),
                                      (0, 13)), tool=5), FormatError, "beyond the grid"),
    "transform-blocks": (tiny_file(head((2, 0), (0, 1), (0, 2), (0, 3), (0, 4), (2, 14), (15, 14), (15, 14), (0, 14)),
                                   tool=5), FormatError, "256 blocks"),
    "transform-too-short": (tiny_file(head((2, 0), (0, 1), (0, 2), (0, 3), (0, 4), (0, 14), (0, 14), (9, 15), (0, 7)),
                                      tool=5), FormatError, "block"),
    "kernels-of-integers": (tiny_file(head((0, 0)), tool=6, dtypes=(1,)), FormatError, "kernel section"),
    "kernels-coder": (tiny_file(head((3, 0)), tool=6), FormatError, "coder"),
    "kernels-codebook": (tiny_file(head((0, 0), (0, 1), (0, 2), (-1, 3)), tool=6), FormatError, "codebook"),
    "kernels-taps": (tiny_file(head((0, 0), (0, 1), (0, 2), (0, 3), (2, 4), (0, 5), (6, 6)), tool=6), FormatError,
                     "taps"),
    "kernels-too-many": (tiny_file(head((0, 0), (0, 1), (0, 2), (0, 3), (1, 4), (3, 5), (6, 6), (0, 8), (-1, 9),
                                        (0, 11), (0, 14), (0, 14)), tool=6), FormatError, "a codebook of 4"),
    "kernels-index": (tiny_file(head((0, 0), (0, 1), (0, 2), (0, 3), (1, 4), (2, 5), (8, 6), (0, 8), (-1, 9), (0, 11),
                                     (3, 14), (0, 14)) + bytes([128, 128, 128, 0b00011100]), tool=6), FormatError,
                      "kernel index"),
    "batchnorm-of-one": (tiny_file(b"", tool=2), FormatError, "four vectors"),
} | bad_tools.BAD

if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, (data, _, _) in BAD.items():
        (FOLDER / f"{name}.tersor").write_bytes(data)
