"""More files that break one rule each: of the container's edges, and of every tool's parameters and streams. Part of
`bad_files.BAD`."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from forge import file_of, manifest_of, tiny_file, varints

from tersor.bitstream import context
from tersor.bitstream.integers import IntegerWriter
from tersor.errors import ChecksumError, FormatError, LimitError, TersorError
from tersor.synthesis import codebook, scalar, vector
from tersor.synthesis.codebook import CodebookCode
from tersor.synthesis.scalar import FAST, SMALL, ScalarCode
from tersor.synthesis.vector import VectorCode

Bad = dict[str, tuple[bytes, type[TersorError], str]]


def code(*integers: tuple[int, int]) -> bytes:
    """The integer code of (value, context)."""
    writer = IntegerWriter()
    for value, where in integers:
        writer.put([value], where)
    return writer.finish()


def section(*integers: tuple[int, int], after: bytes = b"") -> bytes:
    """A payload that begins with its parameters."""
    data = code(*integers)
    return varints([len(data)]) + data + after


def four(payload: bytes) -> bytes:
    """A BatchNorm of three channels."""
    return tiny_file(payload, tool=2, names=((0, b"a\0"), (0, b"b\0"), (0, b"c\0"), (0, b"d\0")), dtypes=(0,) * 4,
                     axes=(1,) * 4, dims=(4, 0, 0, 0), homes=(1,) * 4)


def norm(*integers: tuple[int, int], eps: tuple[float, ...] = (1e-5,)) -> bytes:
    return four(varints([len(eps)]) + struct.pack(f"<{len(eps)}f", *eps) + code(*integers))


def alone(tool: int, *integers: tuple[int, int], after: bytes = b"", **columns: Any) -> bytes:
    """One tensor F32 [3], unless said otherwise, in a section of this tool."""
    return tiny_file(section(*integers, after=after), tool=tool, **columns)


PLAIN = ((0, 0), (0, 1), (0, 2), (0, 3), (0, 3), (-1, 5), (0, 7))
"""Parameters of a scalar section: rANS, no shifts, one step, one part."""
SMALLER = ((1, 0), (0, 1), (0, 2), (0, 3), (0, 3), (0, 4), (-1, 5), (0, 7))
"""The same with adaptive contexts."""
BOOK = ((0, 0), (1, 1), (0, 2), (0, 3))
"""Parameters of a codebook section: fixed-length indexes of two values, origin 0."""
HUFFMAN = ((1, 0), (1, 1), (0, 2), (0, 3), (0, 4), (0, 7))
VALUES = struct.pack("<2f", 0.0, 1.0)
KERNELS = ((0, 0), (0, 1), (0, 2), (0, 3), (1, 4), (0, 5), (1, 6))
"""Parameters of a kernel section up to the codebook, of one kernel of one tap with values of one bit."""
TRANSFORM = ((0, 0), (0, 1), (0, 2), (0, 3), (0, 4))
"""Parameters of a transform section without maps."""


def container() -> Bad:
    good = tiny_file()
    names = tuple((0, bytes([97 + i]) * 4000 + b"\0") for i in range(5))
    many = file_of(varints([1, 0, 1 << 30]))
    return {
        "empty-file": (b"", FormatError, "empty file"),
        "a-zip-archive": (b"PK\3\4" + bytes(60), FormatError, "zip archive"),
        "a-pickle": (b"\x80\4" + bytes(60), FormatError, "pickle"),
        "safetensors": (struct.pack("<Q", 60) + b"{" + bytes(60), FormatError, "safetensors"),
        "as-text": (good.replace(b"\r\n", b"\n", 1), FormatError, "damaged in transfer"),
        "header-cut-off": (good[:20], FormatError, "too few"),
        "header-checksum": (good[:10] + b"\7" + good[11:], ChecksumError, "header and manifest"),
        "manifest-limit": (file_of(manifest_of(), inflated_length=(16 << 20) + 1), LimitError, "max_manifest_bytes"),
        "section-count-limit": (many, LimitError, "max_sections"),
        "section-count": (file_of(varints([1, 0, 1000])), FormatError, "announced"),
        "name-limit": (tiny_file(names=((0, b"w" * 4097 + b"\0"),)), LimitError, "max_name_bytes"),
        "metadata-count": (tiny_file(metadata=b"\x7f"), FormatError, "announced"),
        "huge-together": (tiny_file(names=names, dtypes=(0,) * 5, axes=(1,) * 5, dims=((1 << 32) + 1, 0, 0, 0, 0),
                                    homes=(1,) * 5), LimitError, "max_elements"),
    }


def scalars() -> Bad:
    tall = {"dims": ((1 << 22) + 1,)}
    far = scalar.encode([ScalarCode(np.ones((3, 1), np.int32), 32 * 20)], [(3,)], FAST)
    whole = scalar.encode([ScalarCode(np.array([[3], [0], [-1]], np.int32), 0)], [(3,)], FAST)
    small = scalar.encode([ScalarCode(np.array([[3], [0], [-1]], np.int32), 0)], [(3,)], SMALL)
    large = context.encode([np.array([[200], [0], [0]], np.int32)], [context.Shape(3, 1)])
    return {
        "scalar-coder": (alone(1, (2, 0)), FormatError, "entropy coder"),
        "scalar-of-integers": (alone(1, (0, 0), dtypes=(1,)), FormatError, "scalar section"),
        "scalar-swapped": (alone(1, (0, 0), (1, 1)), FormatError, "swapped"),
        "scalar-trellis": (alone(1, (0, 0), (6, 1)), FormatError, "trellis"),
        "scalar-shift": (alone(1, *PLAIN[:3], (49, 3)), FormatError, "shift"),
        "scalar-bypass": (alone(1, *SMALLER[:5], (25, 4)), FormatError, "bypass"),
        "scalar-resolution": (alone(1, *PLAIN[:5], (6, 5)), FormatError, "resolution"),
        "scalar-size-class": (alone(1, *PLAIN[:5], (0, 5), (8, 6)), FormatError, "size class"),
        "scalar-step": (alone(1, *PLAIN[:2], (28801, 2), *PLAIN[3:]), FormatError, "beyond the grid"),
        "scalar-row-step": (alone(1, *PLAIN[:5], (0, 5), (0, 6), (901, 8), (0, 8), (0, 8)), FormatError,
                            "beyond the grid"),
        "scalar-rows-per-part": (alone(1, *PLAIN[:6], (-1, 7)), FormatError, "rows per part"),
        "scalar-part-lengths": (alone(1, *PLAIN[:6], (1, 7)), FormatError, "announced"),
        "scalar-parameters-cut-off": (tiny_file(b"\x7f\0", tool=1), FormatError, "bytes of parameters"),
        "scalar-not-finite": (tiny_file(far, tool=1, dtypes=(2,)), FormatError, "cannot hold"),
        "integers-left": (tiny_file(varints([30]) + code(*PLAIN).ljust(20, b"\0") + b"U" * 10, tool=1), FormatError,
                          "after the last integer"),
        "integer-too-large": (tiny_file(b"\x80", tool=3), FormatError, "contradicts"),
        "rans-empty": (alone(1, *PLAIN), FormatError, "ends before"),
        "rans-shape": (alone(1, *PLAIN, after=b"\7\0" + bytes(20)), FormatError, "contradicts"),
        "rans-state": (alone(1, *PLAIN, after=b"\0\0\0\0\2\x80\x80" + bytes(4)), FormatError, "contradicts"),
        "rans-words-left": (tiny_file(whole + bytes(2), tool=1), FormatError, "contradicts"),
        "rans-words-odd": (tiny_file(whole + bytes(1), tool=1), FormatError, "contradicts"),
        "context-too-short": (alone(1, *SMALLER, **tall), FormatError, "cannot hold"),
        "context-left": (tiny_file(small + bytes(20), tool=1), FormatError, "after the last weight"),
        "context-beyond-32-bits": (alone(1, *SMALLER[:5], (24, 4), *SMALLER[6:], after=large), FormatError,
                                   "contradicts"),
    }


def norms_and_vectors() -> Bad:
    far = vector.encode([VectorCode(np.array([1, 2, 3]), 32 * 30)])
    fine = ((0, 1), (0, 2), (0, 3))
    return {
        "batchnorm-eps": (norm(eps=(2.0,)), FormatError, "eps outside"),
        "batchnorm-eps-index": (norm((2, 0), eps=(0.1, 0.2)), FormatError, "eps index"),
        "batchnorm-resolution": (norm((13, 1)), FormatError, "resolution"),
        "batchnorm-base": (norm((0, 1), (901, 2)), FormatError, "scale base"),
        "batchnorm-step": (norm((0, 1), (0, 2), (28801, 3)), FormatError, "shift step"),
        "batchnorm-sign": (norm(*fine, (2, 5), (0, 5), (0, 5)), FormatError, "sign code"),
        "batchnorm-scale": (norm(*fine, (0, 5), (0, 5), (0, 5), (0, 4), (901, 8), (0, 8), (0, 8)), FormatError,
                            "beyond the grid"),
        "vector-step": (tiny_file(code((28801, 0)), tool=3), FormatError, "step"),
        "vector-size-class": (tiny_file(code((0, 0), (0, 1), (-1, 2)), tool=3), FormatError, "size class"),
        "vector-not-finite": (tiny_file(far, tool=3, dtypes=(2,)), FormatError, "cannot hold"),
        "vector-left": (tiny_file(code((0, 0), (0, 1), (0, 2)).ljust(20, b"U"), tool=3), FormatError,
                        "after the last integer"),
    }


def codebooks() -> Bad:
    sparse = (*BOOK, (1, 4), (1, 5))
    good = codebook.encode(CodebookCode.of([0, 1, 2], [np.array([2, 0, 1], np.int32)]), [(3,)], "fixed", "dense")[0]
    skewed = codebook.encode(CodebookCode.of([0, 1, 2], [np.array([2, 0, 1], np.int32)]), [(3,)], "fast", "dense")[0]
    dense = (*BOOK, (0, 4), (0, 7))
    return {
        "codebook-of-integers": (alone(4, *BOOK, dtypes=(1,)), FormatError, "codebook section"),
        "codebook-coder": (alone(4, (4, 0)), FormatError, "entropy coder"),
        "codebook-size": (alone(4, (0, 0), (65536, 1)), FormatError, "last index"),
        "codebook-values": (alone(4, (0, 0), (1, 1), (2, 2)), FormatError, "form of the values"),
        "codebook-origin": (alone(4, (0, 0), (1, 1), (0, 2), (2, 3)), FormatError, "origin"),
        "codebook-layout": (alone(4, *BOOK, (2, 4)), FormatError, "layout"),
        "codebook-gap-symbols": (alone(4, *BOOK, (1, 4), (4, 5)), FormatError, "gap symbols"),
        "codebook-part": (alone(4, *BOOK, (0, 4), (15, 7)), FormatError, "parts of"),
        "codebook-part-size": (alone(4, *BOOK, (0, 4), (41, 7)), FormatError, "size of parts"),
        "codebook-bypass": (alone(4, (2, 0), *BOOK[1:], (0, 4), (0, 7), (25, 10)), FormatError, "bypass"),
        "codebook-longest-gap": (alone(4, *sparse, (0, 6)), FormatError, "longest gap"),
        "codebook-lengths": (alone(4, *sparse, (1, 6), (-1, 11), after=VALUES), FormatError, "negative length"),
        "codebook-not-finite": (alone(4, *dense, after=struct.pack("<2f", 0, np.inf) + bytes(1)), FormatError,
                                "not finite"),
        "codebook-beyond-type": (alone(4, *dense, after=struct.pack("<2f", 0, 1e30) + bytes(1), dtypes=(2,)),
                                 FormatError, "cannot hold"),
        "codebook-values-cut-off": (alone(4, *dense, after=VALUES[:7]), FormatError, "bytes of values"),
        "codebook-left": (alone(4, *BOOK, (1, 4), (0, 5), after=VALUES + bytes(1)), FormatError,
                          "after the last stream"),
        "codebook-gaps": (alone(4, *BOOK, (1, 4), (2, 5), (3, 6), (1, 11), after=VALUES + b"\xc0"),
                        FormatError, "gaps reach"),
        "codebook-symbol": (tiny_file(good[:-1] + b"\xfc", tool=4), FormatError, "symbol outside"),
        "fixed-too-short": (alone(4, *dense, after=VALUES), FormatError, "ends before"),
        "fixed-too-long": (alone(4, *dense, after=VALUES + bytes(2)), FormatError, "contradicts"),
        "fixed-bits-left": (alone(4, *dense, after=VALUES + b"\1"), FormatError, "contradicts"),
        "huffman-length": (alone(4, *HUFFMAN, (0, 8), (0, 8), (21, 9), (0, 9), after=VALUES), FormatError,
                           "code length"),
        "huffman-incomplete": (alone(4, *HUFFMAN, (0, 8), (0, 8), (1, 9), (1, 9), after=VALUES + bytes(1)),
                               FormatError, "contradicts"),
        "huffman-single": (alone(4, *HUFFMAN, (0, 8), (1, 8), (2, 9), after=VALUES), FormatError, "contradicts"),
        "huffman-truncated": (alone(4, *HUFFMAN, (0, 8), (0, 8), (1, 9), (0, 9), after=VALUES), FormatError,
                              "ends before"),
        "codebook-rans-cut-off": (tiny_file(skewed[:-3], tool=4), FormatError, "rANS"),
    }


def kernels_and_transforms() -> Bad:
    steps = (*KERNELS, (0, 8), (-1, 9))
    many = {"dims": ((1 << 22) + 1,)}
    head = (*TRANSFORM, (0, 7), (0, 8), (0, 8), (-1, 10), (0, 13))
    fixed = ((2, 0), (0, 1), (0, 2), (0, 3), (0, 4))
    infinite = (*TRANSFORM, (28800, 7), (0, 8), (0, 8), (-1, 10), (0, 13))
    whole = scalar.encode([ScalarCode(np.ones((3, 1), np.int32), 0)], [(3,)], FAST)
    stream = whole[1 + whole[0] :]
    wide = context.encode([np.array([[70000]], np.int32)], [context.Shape(1, 1)])
    long = ((0, 0), (1, 1), *KERNELS[2:6], (0, 6), (0, 8), (-1, 9), (0, 11), (len(wide), 14), (0, 14))
    return {
        "kernels-value-coder": (alone(6, (0, 0), (2, 1)), FormatError, "coder of codebook values"),
        "kernels-swapped": (alone(6, (0, 0), (0, 1), (1, 2)), FormatError, "axis order"),
        "kernels-no-taps": (alone(6, *KERNELS[:4], (0, 4)), FormatError, "taps"),
        "kernels-size": (alone(6, *KERNELS[:5], (65536, 5)), FormatError, "size of the codebook"),
        "kernels-bits": (alone(6, *KERNELS[:6], (17, 6)), FormatError, "bits of codebook values"),
        "kernels-decay": (alone(6, (1, 0), *KERNELS[1:], (257, 7)), FormatError, "decay"),
        "kernels-step": (alone(6, *KERNELS, (28801, 8), (-1, 9)), FormatError, "beyond the grid"),
        "kernels-row-step": (alone(6, *KERNELS, (0, 8), (5, 9), (0, 10), (28801, 16), (0, 16), (0, 16)), FormatError,
                             "beyond the grid"),
        "kernels-resolution": (alone(6, *KERNELS, (0, 8), (6, 9)), FormatError, "resolution"),
        "kernels-gains": (alone(6, *steps, (2, 11)), FormatError, "gains"),
        "kernels-least-gain": (alone(6, *steps, (1, 11), ((1 << 20) + 1, 12)), FormatError, "least gain"),
        "kernels-gain-range": (alone(6, *steps, (1, 11), (0, 12), (65536, 13)), FormatError, "range of gains"),
        "kernels-gain": (alone(6, *steps, (1, 11), (0, 12), (2, 13), (1, 14), (1, 14), after=b"\0\xc0"), FormatError,
                         "beyond the largest"),
        "kernels-gain-limit": (alone(6, *steps, (1, 11), (1 << 20, 12), (1, 13), (1, 14), (1, 14), after=b"\0\xe0"),
                               FormatError, "a gain is beyond"),
        "kernels-bypass": (alone(6, (1, 0), *KERNELS[1:], (0, 7), (0, 8), (-1, 9), (1, 11), (25, 12)), FormatError,
                           "bypass bits of gains"),
        "kernels-lengths": (alone(6, *steps, (0, 11), (-1, 14)), FormatError, "length of a stream"),
        "kernels-left": (alone(6, *steps, (0, 11), (1, 14), (0, 14), after=bytes(3)), FormatError, "after the last"),
        "kernels-too-short": (alone(6, (1, 0), (0, 1), (0, 2), (0, 3), (1, 4), (1, 5), (1, 6), (0, 7), (0, 8), (-1, 9),
                                    (0, 11), (1, 14), (0, 14), after=bytes(1), **many), FormatError, "cannot hold"),
        "kernels-wide-value": (alone(6, *long, after=wide), FormatError, "more than 16 bits"),
        "transform-bypass": (alone(5, (1, 0), *TRANSFORM[1:], (0, 7), (0, 8), (0, 8), (25, 9)), FormatError, "bypass"),
        "transform-shift": (alone(5, *TRANSFORM, (0, 7), (49, 8)), FormatError, "shift"),
        "transform-resolution": (alone(5, *TRANSFORM, (0, 7), (0, 8), (0, 8), (6, 10)), FormatError, "resolution"),
        "transform-rows-per-part": (alone(5, *head[:-1], (-1, 13)), FormatError, "rows per part"),
        "transform-part-lengths": (alone(5, *head[:-1], (1, 13)), FormatError, "announced"),
        "transform-axis": (alone(5, *fixed, (3, 14)), FormatError, "axis of its blocks"),
        "transform-block-count": (alone(5, *fixed, (0, 14), (255, 14)), FormatError, "number of blocks"),
        "transform-negative-depth": (alone(5, *fixed, (0, 14), (0, 14), (-1, 15)), FormatError, "negative"),
        "transform-left": (alone(5, *fixed, (0, 14), (0, 14), (0, 15), after=b"\0"), FormatError,
                           "after the last block"),
        "transform-empty-scaled": (alone(5, (0, 0), (0, 1), (0, 2), (0, 3), (5, 4), dims=(1,)), FormatError,
                                   "without elements"),
        "transform-not-finite": (alone(5, *infinite, after=stream), FormatError, "not finite"),
    }


BAD: Bad = {**container(), **scalars(), **norms_and_vectors(), **codebooks(), **kernels_and_transforms()}
