"""A second decoder of .tersor files, in plain Python and NumPy.

It was written from docs/format.md and docs/format-rans.md alone, to show that they suffice and that the
library does what they say; it shares no code with the library. Names are those of the documents. It is slow
(0.1 ms for an element in mode 1). It refuses invalid files, but it does not bound what it allocates.
"""

import math
import struct
import zlib
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Literal, NamedTuple

import ml_dtypes
import numpy as np
import tiny_kernels  # this one and the next import the other: names of either are looked up when they are used
import tiny_transform

MAGIC = bytes.fromhex("935453520d0a1a0a")
ELEMENT_TYPES = [
    np.float32, np.int64, np.float16, ml_dtypes.bfloat16, np.float64, np.int32, np.int16, np.int8, np.uint64,
    np.uint32, np.uint16, np.uint8, np.bool_, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, np.complex64,
]  # fmt: skip
LOSSY = {np.dtype(ELEMENT_TYPES[code]) for code in (0, 2, 3, 4, 13, 14)}
DICTIONARY = """
inv_freq masked_bias gamma beta kernel weight_v weight_g in_proj_weight in_proj_bias out_proj.weight scale
zero_point lora_A.weight lora_B.weight relative_position_bias_table relative_position_index vision_model.
text_model. image_encoder. model.decoder. transformer.h.0. wte.weight wpe.weight ln_1.weight
attn.c_attn.weight c_proj.weight ln_2.weight mlp.c_fc.weight ln_f.weight bert.embeddings.position_ids
bert.embeddings.word_embeddings.weight position_embeddings.weight token_type_embeddings.weight
patch_embeddings.projection.weight encoder.layer.0.attention.self.query.weight key.weight value.weight
attention.output.dense.weight layernorm_before.weight layernorm_after.weight output.dense.weight
intermediate.dense.weight LayerNorm.weight bert.pooler.dense.weight model.embed_tokens.weight
model.layers.0.self_attn.q_proj.weight k_proj.weight v_proj.weight o_proj.weight mlp.gate_proj.weight
up_proj.weight down_proj.weight input_layernorm.weight post_attention_layernorm.weight model.norm.weight
lm_head.weight cls_token pos_embed patch_embed.proj.weight blocks.0.norm1.weight attn.qkv.weight proj.weight
norm2.weight mlp.fc1.weight fc2.weight norm.weight head.weight stages.0. conv_dw.weight conv_pw.weight
conv_pwl.weight se.conv_reduce.weight conv_expand.weight features.denseblock1.denselayer1.norm1.weight
transition1.norm.weight squeeze.weight expand1x1.weight expand3x3.weight shortcut.0.weight
features.0.0.weight 1.conv.0.0.weight classifier.1.weight linear.weight fc.weight downsample.0.weight
1.weight layer1.0.conv1.weight bn1.weight conv2.weight bn2.weight conv3.weight bn3.weight bias running_mean
running_var num_batches_tracked
"""
PRESET = b"".join(name.encode() + b"\0" for name in DICTIONARY.split())


class Tensor(NamedTuple):
    name: str
    dtype: np.dtype
    shape: tuple[int, ...]


class Matrix(NamedTuple):
    rows: int
    columns: int
    taps: int
    width: int
    bypass: int
    trellis: int = 0  # 1: of 4 states, 2: of 8
    kind: int = 0


def must(condition: bool, rule: str) -> None:
    if not condition:
        raise ValueError(f"invalid file: {rule}")


def clip(x: int, low: int, high: int) -> int:
    return max(low, min(x, high))


class Reader:
    """Bytes from the first to the last."""

    def __init__(self, data: bytes):
        self.data, self.at = data, 0

    def take(self, n: int) -> bytes:
        must(self.at + n <= len(self.data), "it ends early")
        self.at += n
        return self.data[self.at - n : self.at]

    def rest(self) -> bytes:
        return self.take(len(self.data) - self.at)

    def varint(self, bits: int = 63) -> int:
        result, shift, byte = 0, 0, 128
        while byte & 128:
            byte = self.take(1)[0]
            result |= (byte & 127) << shift
            shift += 7
            must(result < 1 << bits, "a varint is too large")
        must(byte != 0 or shift == 7, "a varint is not the shortest")
        return result

    def varints(self, n: int) -> list[int]:
        return [self.varint() for _ in range(n)]


def inflate(data: bytes, length: int, dictionary: bytes = b"") -> bytes:
    stream = zlib.decompressobj(-15, dictionary)  # -15: without any wrapper
    try:
        result = stream.decompress(data, length + 1)
    except zlib.error as error:
        raise ValueError("invalid file: DEFLATE stream") from error
    must(stream.eof and not stream.unused_data and len(result) == length, "DEFLATE stream")
    return result


# The file

def decode(data: bytes) -> dict[str, np.ndarray]:
    """The tensors of a file by name, in the file's order; aliases as the same array under another name."""
    reader = Reader(data)
    magic, container, version, _library, flags, stored, inflated, checksum = struct.unpack(
        "<8sBB3sBIII", reader.take(26)
    )
    must((magic, container, version, flags) == (MAGIC, 1, 1, 0), "magic, versions, or flags")
    stored_manifest = reader.take(stored)
    must(zlib.crc32(data[:22] + stored_manifest) == checksum, "CRC-32 of the manifest")
    tensors, homes, targets, sections = manifest(inflate(stored_manifest, inflated, PRESET))

    arrays: dict[int, np.ndarray] = {}
    for number, (tool, length, crc) in enumerate(sections):
        payload = reader.take(length)
        must(zlib.crc32(payload) == crc, "CRC-32 of a section")
        must(tool in TOOLS, f"tool {tool} is not known")
        members = [i for i, home in enumerate(homes) if home == number + 1]
        must(members != [], "an empty section")
        arrays.update(zip(members, TOOLS[tool](payload, [tensors[i] for i in members]), strict=True))
    must(reader.at == len(data), "bytes after the last section")
    for alias, target in targets.items():
        must(target < len(homes) and homes[target] != 0, "target of an alias")
        must(tensors[alias][1:] == tensors[target][1:], "type and shape of an alias")
        arrays[alias] = arrays[target]
    return {tensor.name: arrays[i] for i, tensor in enumerate(tensors)}


Manifest = tuple[list[Tensor], list[int], dict[int, int], list[tuple[int, int, int]]]


def manifest(data: bytes) -> Manifest:
    """The tensors; their homes; the targets by alias; tool, length and checksum of each section."""
    reader = Reader(data)
    _parameters, t = reader.varints(2)
    names, name = [], b""
    for shared in reader.varints(t):
        end = data.index(b"\0", reader.at)
        suffix = reader.take(end - reader.at)
        reader.take(1)
        must(shared <= len(name) and (suffix[:1] != name[shared : shared + 1] or not suffix), "shared")
        name = name[:shared] + suffix
        names.append(name.decode())
    must("" not in names and len(set(names)) == t, "names")

    types = reader.varints(t)
    must(max(types, default=0) < len(ELEMENT_TYPES), "element type")
    shapes: list[tuple[int, ...]] = []
    previous: tuple[int, ...] = ()
    for axes in reader.varints(t):
        shape: list[int] = []
        for axis in range(axes):
            same = previous[axis] if axis < len(previous) else None
            d = reader.varint()
            dimension = d - 1 if d > 0 else same
            must(dimension is not None and (d == 0 or dimension != same), "dimension")
            shape.append(dimension)
        shapes.append(tuple(shape))
        previous = shapes[-1] or previous
    tensors = [Tensor(n, np.dtype(ELEMENT_TYPES[c]), s) for n, c, s in zip(names, types, shapes, strict=True)]

    homes = reader.varints(t)
    targets = {i: reader.varint() for i in range(t) if homes[i] == 0}
    s = reader.varint()
    must(max(homes, default=0) <= s, "home")
    tools, lengths = reader.varints(s), reader.varints(s)
    checksums = struct.unpack(f"<{s}I", reader.take(4 * s))
    keys = []
    for _ in range(reader.varint()):
        keys.append(reader.take(reader.varint()).decode())
        reader.take(reader.varint()).decode()
    must(len(set(keys)) == len(keys), "metadata keys")
    must(reader.at == len(data), "bytes after the manifest")
    return tensors, homes, targets, list(zip(tools, lengths, checksums, strict=True))


# Logarithmic grid, rounding

def value(k: int, j: int = 5) -> float:
    must(abs(k) <= 900 * 2**j, "logarithmic grid")
    result, root = 1.0, 2.0
    for bit in reversed(range(j)):
        root = math.sqrt(root)
        if k >> bit & 1:
            result *= root
    return math.ldexp(result, k >> j)


def rounded(values: np.ndarray, tensor: Tensor) -> np.ndarray:
    must(tensor.dtype in LOSSY, "element type of a lossy tool")
    with np.errstate(all="ignore"):
        wide = values if tensor.dtype == np.float64 else values.astype(np.float32)
        result = wide.astype(tensor.dtype)
    must(bool(np.isfinite(result.astype(np.float64)).all()), "an element that is not finite")
    return result.reshape(tensor.shape)


# Integer code

class ArithmeticDecoder:
    def __init__(self, data: bytes):
        self.data, self.read = data, 0
        self.range, self.code = 2**64 - 1, self.next(8)

    def next(self, n: int) -> int:
        self.read += n
        return int.from_bytes(self.data[self.read - n : self.read].ljust(n, b"\0"), "big")

    def decode(self, p: int) -> int:
        bound = (self.range >> 16) * p
        if bit := int(self.code < bound):
            self.range = bound
        else:
            self.code, self.range = self.code - bound, self.range - bound
        if self.range < 2**32:
            self.range <<= 32
            self.code = (self.code << 32 | self.next(4)) % 2**64
        return bit

    def end(self) -> None:
        must(len(self.data) <= self.read, "a code is too long")


class AdaptiveBit:
    def __init__(self) -> None:
        self.p, self.n = 32768, 0

    def decode(self, decoder: ArithmeticDecoder) -> int:
        bit = decoder.decode(clip(self.p, 32, 65504))
        self.p += (65535 - self.p) // (self.n + 2) if bit else -(self.p // (self.n + 2))
        self.n = min(self.n + 1, 158)
        return bit


class IntegerCode:
    def __init__(self, data: bytes):
        self.decoder = ArithmeticDecoder(data)
        self.bits: defaultdict[tuple, AdaptiveBit] = defaultdict(AdaptiveBit)

    def bit(self, *which: int | str) -> int:
        return self.bits[which].decode(self.decoder)

    def integer(self, context: int) -> int:
        if self.bit(context, "zero"):
            return 0
        negative = self.bit(context, "sign")
        e = 0
        while self.bit(context, "prefix", e):
            e += 1
            must(e <= 40, "an integer is too large")
        u = 1
        for i in reversed(range(e)):
            if i < e - 2:
                bit = self.decoder.decode(32768)
            else:
                bit = self.bit(context, "first", e) if i == e - 1 else self.bit(context, "second", e, u % 2)
            u = 2 * u + bit
        return -u if negative else u

    def within(self, context: int, low: int, high: int) -> int:
        result = self.integer(context)
        must(low <= result <= high, "an integer is out of range")
        return result

    def list(self, n: int, a: int, b: int) -> list[int]:
        c = self.within(a, 0, 7)
        return [self.integer(b + c) for _ in range(n)]


# Tool 0

def raw(payload: bytes, tensors: list[Tensor]) -> list[np.ndarray]:
    sizes = [math.prod(tensor.shape) * tensor.dtype.itemsize for tensor in tensors]
    reader = Reader(payload)
    method, data = reader.take(1)[0], reader.rest()
    must(method <= 2, "method")
    reader = Reader(inflate(data, sum(sizes)) if method > 0 else data)
    must(len(reader.data) == sum(sizes), "length of the data")
    arrays = []
    for tensor, size in zip(tensors, sizes, strict=True):
        elements = np.frombuffer(reader.take(size), np.uint8)
        if method == 2:
            elements = elements.reshape(tensor.dtype.itemsize, -1).T
        must(tensor.dtype != np.bool_ or not (elements > 1).any(), "BOOL")
        little = np.frombuffer(elements.tobytes(), tensor.dtype.newbyteorder("<"))
        arrays.append(little.astype(tensor.dtype).reshape(tensor.shape))
    return arrays


# Tool 1

def matrix_of(shape: tuple[int, ...], swapped: int = 0) -> Matrix:
    rows = shape[swapped] if shape else 1
    columns = math.prod(shape[:swapped] + shape[swapped + 1 :])
    width = shape[-1] or 1 if len(shape) > 2 else 1
    return Matrix(rows, columns, math.prod(shape[2:]) or 1, width, 0)


def scalar(payload: bytes, tensors: list[Tensor]) -> list[np.ndarray]:
    reader = Reader(payload)
    code = IntegerCode(reader.take(reader.varint()))
    mode = code.within(0, 0, 1)
    matrices, swaps, steps, shifts, trellises = [], [], [], [], []
    index = 0
    for tensor in tensors:
        axes = len(tensor.shape)
        must(axes >= 1, "scalar in tool 1")
        layout = code.within(1, 0, 5)
        swaps.append(layout % 2)
        must(axes > 1 or not swaps[-1], "a vector cannot be swapped")
        trellises.append(layout // 2)
        matrix = matrix_of(tensor.shape, swaps[-1])
        index += code.integer(2)
        shifts.append([0, 0] if trellises[-1] else [code.within(3, 0, 48), code.within(3, 0, 48)])
        matrices.append(matrix._replace(bypass=code.within(4, 0, 24) if mode == 1 else 0, trellis=trellises[-1]))
        j = code.within(5, -1, 5)
        exponents = code.list(matrix.rows, 6, 8) if j != -1 else [0] * matrix.rows
        must(max(map(abs, exponents), default=0) <= 28800, "row exponent")
        ks = [index + 2 ** (5 - max(j, 0)) * exponent for exponent in exponents]
        must(abs(index) <= 28800 or (j != -1 and matrix.rows > 0), "step index")
        with np.errstate(all="ignore"):
            steps.append(np.array([value(k) for k in ks], np.float64).astype(np.float32))
    rows_per_part = code.within(7, 0, 2**40) if len(tensors) == 1 else 0
    code.decoder.end()

    groups = [matrices]
    if rows_per_part > 0:
        rows = matrices[0].rows
        starts = range(0, max(rows, 1), rows_per_part)
        groups = [[matrices[0]._replace(rows=min(rows_per_part, rows - start))] for start in starts]
    lengths = reader.varints(len(groups) - 1)
    parts = [reader.take(length) for length in lengths] + [reader.rest()]
    part_decoder: Callable[[bytes, list[Matrix]], list[np.ndarray]] = context_part if mode == 1 else rans
    decoded = [part_decoder(part, group) for part, group in zip(parts, groups, strict=True)]
    integers = [np.concatenate([group[0] for group in decoded])] if len(tensors) == 1 else decoded[0]

    arrays = []
    for tensor, swapped, step, (s1, s2), t, q in zip(
        tensors, swaps, steps, shifts, trellises, integers, strict=True
    ):
        with np.errstate(all="ignore"):
            elements = (trellis_levels(q, TRELLIS[t]) if t else level(q, s1, s2)) * step[:, None]
        if swapped:
            shape = (tensor.shape[1], tensor.shape[0], *tensor.shape[2:])
            elements = elements.reshape(shape).swapaxes(0, 1)
        arrays.append(rounded(elements, tensor))
    return arrays


def level(q: np.ndarray, s1: int, s2: int) -> np.ndarray:
    magnitude = abs(q)
    shifted = np.sign(q) * (magnitude - np.where(magnitude == 1, s1, s2) / 64) + 0.0  # never -0
    return np.where(magnitude > 4096, q, shifted).astype(np.float32)


# By state: quantizer, next state for q even, for q odd.
TRELLIS = {
    1: [(0, 0, 2), (0, 2, 0), (1, 1, 3), (1, 3, 1)],
    2: [(0, 0, 2), (1, 5, 7), (0, 1, 3), (1, 6, 4), (0, 2, 0), (1, 4, 6), (0, 3, 1), (1, 7, 5)],
}  # fmt: skip


def trellis_levels(q: np.ndarray, table: list[tuple[int, int, int]]) -> np.ndarray:
    levels = np.zeros(q.shape, np.float32)
    for r, row in enumerate(q.tolist()):
        state = 0
        for c, integer in enumerate(row):
            quantizer, *after = table[state]
            sign = (integer > 0) - (integer < 0)
            levels[r, c] = np.float32(2 * integer - quantizer * sign)
            state = after[integer % 2]
    return levels


# Tools 2 and 3

def batchnorm(payload: bytes, tensors: list[Tensor]) -> list[np.ndarray]:
    reader = Reader(payload)
    count = reader.varint()
    eps = [float(e) for e in np.frombuffer(reader.take(4 * count), "<f4")]
    must(all(0 <= e < 1 for e in eps), "eps")
    must(len(tensors) % 4 == 0, "tensors of a BatchNorm")
    code = IntegerCode(reader.rest())
    arrays = []
    for i in range(0, len(tensors), 4):
        (channels,) = tensors[i].shape
        must(all(tensor.shape == (channels,) for tensor in tensors[i : i + 4]), "shapes of a BatchNorm")
        e = eps[code.within(0, 0, count - 1) if count != 1 else 0]
        j = code.within(1, 0, 12)
        base = code.within(2, -900 * 2**j, 900 * 2**j)
        step = value(code.integer(3))
        signs = [{0: 1, 1: -1, -1: 0}[code.within(4, -1, 1)] for _ in range(channels)]
        residuals = iter(code.list(sum(sign != 0 for sign in signs), 5, 8))
        a = [sign * value(base + next(residuals), j) if sign else 0.0 for sign in signs]
        b = [float(shift) * step for shift in code.list(channels, 6, 16)]
        columns = (a, b, [0.0] * channels, [1 - e] * channels)
        for tensor, values in zip(tensors[i : i + 4], columns, strict=True):
            arrays.append(rounded(np.array(values, np.float64), tensor))
    code.decoder.end()
    return arrays


def vector(payload: bytes, tensors: list[Tensor]) -> list[np.ndarray]:
    code = IntegerCode(payload)
    arrays = []
    for tensor in tensors:
        elements: list[float] = []
        if n := math.prod(tensor.shape):
            step = value(code.integer(0))
            base = code.integer(1)
            elements = [float(base + residual) * step for residual in code.list(n, 2, 8)]
        arrays.append(rounded(np.array(elements, np.float64), tensor))
    code.decoder.end()
    return arrays


# Tool 4

def codebook(payload: bytes, tensors: list[Tensor]) -> list[np.ndarray]:
    reader = Reader(payload)
    code = IntegerCode(reader.take(reader.varint()))
    coder, k, half = code.within(0, 0, 3), 1 + code.within(1, 0, 65535), code.within(2, 0, 1)
    origin = code.within(3, 0, k - 1)
    sizes = [math.prod(tensor.shape) for tensor in tensors]
    gap_symbols = [code.within(5, 0, size) if code.within(4, 0, 1) else None for size in sizes]
    dense = [i for i, n in enumerate(gap_symbols) if n is None and sizes[i]]
    sparse = [i for i, n in enumerate(gap_symbols) if n is not None]

    parts: list[list[Matrix]] = []
    if dense:
        e = code.within(7, 0, 40)
        must(e == 0 or e >= 16, "size of parts")
        parts = deal([matrix_of(tensors[i].shape) for i in dense], 2**e if e else math.inf)
        index_parameters = stream_parameters(code, coder, k)
    if any(gap_symbols):
        m = code.within(6, 1, 65535) if coder < 2 else 2**30
        gap_parameters = stream_parameters(code, coder, m + 1)
        survivor_parameters = stream_parameters(code, coder, k - 1)
    streams = len(parts) + 2 * any(gap_symbols)
    lengths = [code.integer(11) for _ in range(streams - 1)]
    must(min(lengths, default=0) >= 0, "length of a stream")
    code.decoder.end()

    value_type = np.dtype("<f2" if half else "<f4")
    values = np.frombuffer(reader.take(k * value_type.itemsize), value_type).astype(np.float32)
    data = [reader.take(length) for length in lengths] + ([reader.rest()] if streams else [])
    must(reader.at == len(payload), "bytes after the values")

    indexes = [np.full(size, origin) for size in sizes]
    if dense:
        found = [
            matrix.ravel()
            for part, bits in zip(parts, data[: len(parts)], strict=True)
            for matrix in stream(bits, coder, part, index_parameters, k, origin)
        ]
        ends = np.cumsum([sizes[i] for i in dense])
        for i, of_tensor in zip(dense, np.split(np.concatenate(found), ends[:-1]), strict=True):
            indexes[i] = of_tensor
    if any(gap_symbols):
        rows = [row_matrix(gap_symbols[i]) for i in sparse]
        places = []
        for i, (gaps,) in zip(sparse, stream(data[-2], coder, rows, gap_parameters, m + 1, 0), strict=True):
            after = np.cumsum(gaps + (gaps < m))  # elements up to the end of each gap symbol
            must(gaps.size == 0 or after[-1] <= sizes[i], "gaps beyond the tensor")
            places.append(after[gaps < m] - 1)
        rows = [row_matrix(place.size) for place in places]
        survivors = stream(data[-1], coder, rows, survivor_parameters, k - 1, origin)
        for i, place, (symbols,) in zip(sparse, places, survivors, strict=True):
            indexes[i][place] = symbols + (symbols >= origin)
    return [
        rounded(values, tensor._replace(shape=(k,)))[index].reshape(tensor.shape)
        for tensor, index in zip(tensors, indexes, strict=True)
    ]


def row_matrix(columns: int) -> Matrix:
    return Matrix(1, columns, 1, 1, 0)


def deal(matrices: list[Matrix], elements: float) -> list[list[Matrix]]:
    """The parts of the index streams: a part ends with the row with which it has so many elements."""
    parts: list[Counter[int]] = []
    size = elements
    for i, matrix in enumerate(matrices):
        for _ in range(matrix.rows):
            if size >= elements:
                parts, size = [*parts, Counter()], 0
            parts[-1][i] += 1
            size += matrix.columns
    return [[matrices[i]._replace(rows=rows) for i, rows in part.items()] for part in parts]


Words = dict[tuple[int, int], int]  # symbol by (length, code word)


def stream_parameters(code: IntegerCode, coder: int, size: int) -> Words | int:
    """The code words of coders 0 and 1, the bypass of coder 2."""
    if coder == 0:
        return {(max(size - 1, 0).bit_length(), symbol): symbol for symbol in range(size)}
    if coder >= 2:
        return code.within(10, 0, 24) if coder == 2 else 0
    without_word = [code.within(8, 0, 1) for _ in range(size)]
    symbols = [symbol for symbol in range(size) if not without_word[symbol]]
    lengths = np.cumsum([code.integer(9) for _ in symbols]).tolist()
    must(all(1 <= length <= 20 for length in lengths), "length of a word")
    if len(symbols) == 1:
        must(lengths == [1], "length of the only word")
        return {(0, 0): symbols[0]}
    words: Words = {}
    word, before = 0, 0
    for length, symbol in sorted(zip(lengths, symbols, strict=True)):
        word <<= length - before
        words[length, word] = symbol
        word, before = word + 1, length
    must(not words or word == 2**before, "Huffman code")
    return words


def stream(
    data: bytes, coder: int, matrices: list[Matrix], parameters: Words | int, size: int, offset: int
) -> list[np.ndarray]:
    if coder >= 2:
        decoder = context_part if coder == 2 else rans
        symbols = [q + offset for q in decoder(data, [m._replace(bypass=parameters) for m in matrices])]
    else:
        bits = BitString(data, "big")
        symbols = [np.zeros((m.rows, m.columns), np.int64) for m in matrices]
        for matrix in symbols:
            for i in range(matrix.size):
                length = word = 0
                while (length, word) not in parameters:
                    length, word = length + 1, 2 * word + bits.number(1)
                matrix.flat[i] = parameters[length, word]
        must(bits.end() == len(data), "end of a stream")
    must(all(((matrix >= 0) & (matrix < size)).all() for matrix in symbols), "a symbol is out of range")
    return symbols


TOOLS: dict[int, Callable[[bytes, list[Tensor]], list[np.ndarray]]] = {
    0: raw, 1: scalar, 2: batchnorm, 3: vector, 4: codebook,
    5: lambda payload, tensors: tiny_transform.transform(payload, tensors),
    6: lambda payload, tensors: tiny_kernels.kernels(payload, tensors),
}  # fmt: skip


# rANS (docs/format-rans.md)


class BitString:
    def __init__(self, data: bytes, order: Literal["little", "big"] = "little"):
        self.bits, self.at = np.unpackbits(np.frombuffer(data, np.uint8), bitorder=order).tolist(), 0

    def number(self, n: int) -> int:
        must(self.at + n <= len(self.bits), "a bit string ends early")
        self.at += n
        return sum(bit << i for i, bit in enumerate(self.bits[self.at - n : self.at]))

    def end(self) -> int:
        """The number of bytes that the bits read so far take."""
        must(not any(self.bits[self.at : -(-self.at // 8) * 8]), "bits left over")
        return -(-self.at // 8)


class Table:
    def __init__(self, reader: Reader, p: int):
        kind = reader.take(1)[0]
        histogram, self.escape, asymmetric, t = kind & 1, kind >> 1 & 1, kind >> 2 & 1, kind >> 4
        must(not kind & 8 and t <= 13 and not (asymmetric if histogram else t), "kind of a table")
        u = reader.varint(32)
        self.first = -(u + 1) // 2 if u % 2 else u // 2
        self.size = reader.varint(32) + 1
        must(self.size <= 255 and self.first + self.size <= 2**31, "size of a table")
        self.f = self.histogram(reader, p, t) if histogram else self.parametric(reader, p, asymmetric)
        must(min(self.f) >= 0 and sum(self.f) == 2**p, "frequencies")
        self.c = np.cumsum([0, *self.f]).tolist()
        self.symbol_of_slot = np.repeat(np.arange(len(self.f)), self.f).tolist()

    def histogram(self, reader: Reader, p: int, t: int) -> list[int]:
        f = [0] * (self.size + self.escape)
        filler = reader.take(1)[0]
        must(filler < len(f), "filler")
        bits = BitString(reader.data[reader.at :])
        for s in range(len(f)):
            if s != filler and (length := bits.number(4)):
                must(length < 15, "length of a frequency")
                k = min(length - 1, t)
                f[s] = 2 ** (length - 1) + bits.number(k) * 2 ** (length - 1 - k)
        reader.take(bits.end())
        f[filler] = 2**p - sum(f)
        must(f[filler] >= 1, "frequency of the filler")
        return f

    def parametric(self, reader: Reader, p: int, asymmetric: int) -> list[int]:
        last = self.first + self.size - 1
        must(self.first <= 0 <= last, "alphabet of a parametric table")
        z, d = reader.take(2)
        d_minus, a = reader.take(2) if asymmetric else (d, 128)
        w = {1: 2**24, -1: a * 2**17}
        for v in range(1, 256):
            w[v + 1] = (w[v] * d) >> 8
            w[-v - 1] = (w[-v] * d_minus) >> 8
        w[0] = 0
        total = sum(w[v] for v in range(self.first, last + 1))
        free = 2**p - self.size - self.escape
        f0 = (free * z) >> 8 if total else free
        r = free - f0
        f, below = [], 0
        for v in range(self.first, last + 1):
            share = r * (below + w[v]) // total - r * below // total if total else 0
            f.append(1 + (f0 if v == 0 else share))
            below += w[v]
        return f + [1] * self.escape


def rans(payload: bytes, matrices: list[Matrix]) -> list[np.ndarray]:
    result = [np.zeros((m.rows, m.columns), np.int64) for m in matrices]
    if not any(q.size for q in result):
        must(payload == b"", "a payload without elements")
        return result
    reader = Reader(payload)
    shape, bypass = reader.take(2)
    lanes, p, classes = 1 << (shape & 7), (shape >> 3 & 3) + 12, (shape >> 5) + 1
    must(lanes <= 64 and p <= 14, "shape of a payload")
    low_bits = list(reader.take(len(matrices))) if bypass == 255 else [bypass] * len(matrices)
    must(max(low_bits) <= 24, "bypass")
    tables = [Table(reader, p) for _ in range(classes)]
    map_table = Table(reader, p) if classes > 1 else None
    must(map_table is None or not map_table.escape, "escape in the class map")
    order, escapes = 0, BitString(b"")
    if any(table.escape for table in tables):
        order = reader.take(1)[0]
        must(order <= 31, "escape order")
        escapes = BitString(reader.take(reader.varint(32)))
    lows = BitString(reader.take((sum(q.size * b for q, b in zip(result, low_bits, strict=True)) + 7) // 8))
    states = [int(x) for x in np.frombuffer(reader.take(4 * lanes), "<u4")]
    must(min(states) >= 2**16, "a state is too small")
    words = Reader(reader.rest())
    t = 0

    def symbol(table: Table) -> int:
        nonlocal t
        x = states[t % lanes]
        slot = x % 2**p
        s = table.symbol_of_slot[slot]
        x = table.f[s] * (x >> p) + slot - table.c[s]
        if x < 2**16:
            x = x * 2**16 + int.from_bytes(words.take(2), "little")
        states[t % lanes] = x
        t += 1
        return s

    def element(table: Table, b: int) -> int:
        s = symbol(table)
        h = table.first + s
        if s == table.size:
            n = order
            while escapes.number(1):
                n += 1
                must(n <= 33, "an escape code is too long")
            e = 2**n + escapes.number(n) - 2**order
            h = table.first - 1 - (e - 1) // 2 if e % 2 else table.first + table.size + e // 2
        q = h * 2**b + lows.number(b) - 2 ** (b - 1) if b else h
        must(-(2**31) <= q < 2**31, "an element is out of range")
        return q

    def class_symbol(largest: int) -> int:
        c = map_table.first + symbol(map_table) if map_table else 0
        must(0 <= c <= largest, "class")
        return c

    kinds = [class_symbol(classes) if q.size else 0 for q in result]
    row_classes = [
        [class_symbol(classes - 1) if kind == classes else kind for _ in q]
        for q, kind in zip(result, kinds, strict=True)
    ]
    for c, table in enumerate(tables):
        for q, b, class_of_row in zip(result, low_bits, row_classes, strict=True):
            for row, row_class in zip(q, class_of_row, strict=True):
                if row_class == c:
                    row[:] = [element(table, b) for _ in row]
    must(all(x == 2**16 for x in states), "a last state")
    must(words.at == len(words.data), "words left over")
    must(escapes.end() * 8 == len(escapes.bits) and lows.end() * 8 == len(lows.bits), "bits left over")
    return result


# Adaptive context coder

ANCHORS = [
    22, 36, 60, 98, 162, 267, 439, 720, 1179, 1921, 3108, 4971, 7812, 11955, 17625, 24743, 32768, 40793,
    47911, 53581, 57724, 60565, 62428, 63615, 64357, 64816, 65097, 65269, 65374, 65438, 65476, 65500, 65514,
]  # fmt: skip
LEVELS = [2, 4, 6, 8, 11, 14, 18, 23, 29, 37, 48, 64, 90, 128, 200]


def squash(x: int) -> int:
    a, w = divmod(x + 2048, 128)
    return (ANCHORS[a] * (128 - w) + ANCHORS[a + 1] * w + 64) >> 7


SQUASHED = [squash(x) for x in range(-2047, 2048)]
STRETCH = [min(bisect_left(SQUASHED, 16 * p + 8) - 2047, 2047) for p in range(4096)]
SIGN = 19  # the number of the sign decision among the bins
FINE = [(512, 609, 724, 861)[i % 4] * 2 ** (i // 4) for i in range(32)]
TASTE = [
    [0, 0, 0, 0, 0, 0], [29819, 0, 0, 0, 0, 0], [29819, 0, 0, 0, 0, 0], [29819, 0, 0, 0, 0, 0],
    [0, 0, 26214, 0, 3277, 0], [24904, 0, 18350, -8520, 3932, 0], [24904, -1311, 19661, -6554, 1966, 0],
    [23593, -1311, 23265, -4588, 0, 0], [0, 0, 28180, 0, 1311, -6554], [28180, 0, 19005, -3932, 3277, -5898],
    [27525, 0, 21627, -5243, 1966, -4588], [26214, 1311, 24248, -6554, 0, -3277],
]  # fmt: skip
SPREAD = [40632, 13107, 22938, 11141]
RECIP = [65536 // (n + 2) for n in range(256)]


class Slot:
    __slots__ = ("n", "p")

    def __init__(self) -> None:
        self.p, self.n = 2097152, 0

    def update(self, bit: int) -> None:
        self.p += (((4194303 if bit else 0) - self.p) * RECIP[self.n]) >> 16
        self.n = min(self.n + 1, 255)


class Mixer:
    def __init__(self) -> None:
        self.weight = [21845] * 6

    def logit(self, t: list[int]) -> int:
        return clip(sum(w * x for w, x in zip(self.weight, t, strict=True)) >> 16, -2047, 2047)

    def update(self, t: list[int], x: int, bit: int) -> None:
        error = (65535 if bit else 0) - SQUASHED[x + 2047]
        for i in range(6):
            self.weight[i] = clip(self.weight[i] + ((t[i] * error + 8192) >> 15), -1048576, 1048576)


class Weights:
    """A set of weights of the adaptive context coder."""

    __slots__ = ("count", "weight")

    def __init__(self) -> None:
        self.weight, self.count = [30146560] * 4, 0


def wrap(x: int) -> int:
    return (x + 2**31) % 2**32 - 2**31


def mean(m: int, size: int, n: int, limit: int) -> int:
    return m + (((size - m) * RECIP[min(n, limit)]) >> 16)


def mean_level(m: int) -> int:
    return bisect_right(LEVELS, m >> 7)


def fine(x: int) -> int:
    return bisect_right(FINE, 128 * x, 1) - 1


def z(v: int) -> int:
    return 1 if v > 0 else 2 if v < 0 else 0


def s(v: int) -> int:
    return min((abs(v) + 1) >> 1, 3)


class ContextState:
    """What one kind of matrices has learnt. Slots and sets are made where they are first used."""

    def __init__(self, decoder: ArithmeticDecoder):
        self.decoder = decoder
        self.slots: defaultdict[tuple, Slot] = defaultdict(Slot)
        self.sets: defaultdict[tuple, Weights] = defaultdict(Weights)
        self.escape_bits: defaultdict[int, AdaptiveBit] = defaultdict(AdaptiveBit)
        self.taste, self.spread = [list(weights) for weights in TASTE], list(SPREAD)

    def decision(self, m: int, contexts: list[int], place: int, half_level: int) -> int:
        chosen = [self.slots[m, i, context] for i, context in enumerate(contexts)]
        t = [STRETCH[slot.p >> 10] for slot in chosen]
        a, b, c = sets = self.sets[m,], self.sets[m, "place", place], self.sets[m, "level", half_level]
        x = 0
        for i in range(4):
            x += (wrap(a.weight[i] + b.weight[i] + c.weight[i]) >> 16) * t[i]
        x = clip(x >> 12, -2047, 2047)
        bit = self.decoder.decode(clip(SQUASHED[x + 2047], 32, 65504))
        a.count = min(a.count + 1, 65535)
        rate = 1000 + 64000 // (a.count // 64 + 16)
        error = (((65535 if bit else 0) - SQUASHED[x + 2047]) * rate + 32768) >> 16
        for one in sets:
            for i in range(4):
                one.weight[i] = wrap(one.weight[i] + t[i] * error)
        for slot in chosen:
            slot.update(bit)
        return bit

    def escape(self) -> int:
        e = 0
        while self.escape_bits[e].decode(self.decoder):
            e += 1
            must(e <= 30, "an escape is too long")
        u = 1
        for _ in range(e):
            u = 2 * u + self.decoder.decode(32768)
        must(18 + u < 2**31, "an element is out of range")
        return 18 + u


class ContextPart:
    """A part: its decoder, the states by kind, and the factors of the last matrix of kind 0."""

    def __init__(self, data: bytes):
        self.decoder = ArithmeticDecoder(data)
        self.states = ContextState(self.decoder), ContextState(self.decoder)
        self.factor: list[int] = []

    def matrix(self, matrix: Matrix) -> np.ndarray:
        q = np.zeros((matrix.rows, matrix.columns), np.int64)
        if q.size:
            rows = ContextRows(self.states[matrix.kind], matrix, self.factor if matrix.kind == 0 else [])
            for r in range(matrix.rows):
                q[r] = rows.row(r)
            if matrix.kind == 0:
                self.factor = rows.factor
        return q


class ContextRows:
    """The rows of one matrix. Names are those of the document."""

    def __init__(self, state: ContextState, matrix: Matrix, factor: list[int]):
        self.state, self.m = state, matrix
        channels = matrix.columns // matrix.taps
        known = factor if len(factor) == channels else [1024] * channels
        self.column_error = [known[c // matrix.taps] for c in range(matrix.columns)]
        self.channel_error, self.channel_size = list(known), list(known)
        self.row_size = self.row_error = 1024
        self.factor: list[int] = []
        self.rows = defaultdict(lambda: [0] * (matrix.columns + 3))  # v, two columns late

    def v(self, r: int, c: int) -> int:
        return self.rows[r][c + 2]

    def neighbours(self, r: int, c: int, x: int, y: int) -> list[int]:
        v, width = self.v, self.m.width
        if self.m.taps == 1:
            if self.m.kind == 0:
                return [0] * 6
            return [v(r, c - 1), v(r, c - 2), v(r - 1, c), v(r - 1, c - 1), v(r - 1, c + 1), v(r - 2, c)]
        return [
            v(r, c - 1) if x > 0 else 0, v(r, c - 2) if x > 1 else 0, v(r, c - width) if y > 0 else 0,
            v(r, c - width - 1) if y > 0 and x > 0 else 0,
            v(r, c - width + 1) if y > 0 and x < width - 1 else 0, v(r, c - 2 * width) if y > 1 else 0,
        ]  # fmt: skip

    def row(self, r: int) -> list[int]:
        taps, width, bypass = self.m.taps, self.m.width, self.m.bypass
        state, v = self.state, self.v
        alone = taps == 1 and self.m.kind == 0
        found = expected = left_error = node = 0
        row = []
        for c in range(self.m.columns):
            channel, tap = divmod(c, taps)
            y, x = divmod(tap, width)
            place = 0
            if taps > 1:
                place = 4 * min(y, 2) + (0 if x == 0 else 3 if x == width - 1 else 1 if x == 1 else 2)
            if tap == 0:
                kernel_error = self.row_error
            if tap % 64 == 0:
                kernel_found = kernel_expected = 0
            if c % 8 == 0:
                factor = min((found + 256) * 4096 // (expected + 256), 262144)

            N, taste = self.neighbours(r, c, x, y), state.taste[place]
            mu = clip(wrap(sum(taste[i] * N[i] for i in range(6))) >> 9, -4095, 4095)
            usual = (self.column_error[c] + self.channel_error[channel]) >> 1
            scaled = clip((usual * factor) >> 16, 1, 4095)
            excess = ((kernel_found - kernel_expected) * (65536 // (tap % 64 + 6))) >> 16
            E = [scaled, excess, abs(mu) >> 1, left_error]
            guess = wrap(sum(state.spread[i] * E[i] for i in range(4))) >> 16
            sigma = clip(guess, 4, 2047)

            b = TRELLIS[self.m.trellis][node][0] if self.m.trellis else 0
            S, R, p = fine(sigma), mean_level(self.row_size), clip((mu + 16) >> 5, -15, 15)
            where = place + 16 * b, S >> 1
            first = 512 * b + fine(min(scaled, 2047))
            last = [16 * R + mean_level(self.channel_size[channel]), 16 * S + R]
            signs = 9 * z(v(r, c - 1)) + 3 * z(v(r - 1, c))
            beside = 64 * s(v(r, c - 1)) + 16 * s(v(r, c - 2)) + 4 * s(v(r - 1, c)) + s(v(r - 2, c)) + 512

            def contexts(u: int, k=first, o=beside if alone else None, g=kernel_error, last=last) -> list[int]:
                return [k + 32 * (u >> 1), 16 * u + mean_level(g) if o is None else o, *last]

            m, negative = 0, 0
            if state.decision(0, contexts(abs(p)), *where):
                k = clip((mu * (38480000 // FINE[S])) >> 15, -31, 31) + 32
                one = signs + z(v(r - 2, c)) if alone else 16 * k + place
                other = signs + z(v(r, c - 2)) if alone else 16 * (p + 16) + place
                negative = state.decision(SIGN, [k, one, 32 * (p + 16) + S, other], *where)
                after = contexts(16 - p if negative else 16 + p)
                m = 1
                while m <= 18 and not state.decision(m, after, *where):
                    m += 1
                if m == 19:
                    m = state.escape()
            h = -m if negative else m
            low = 0
            for _ in range(bypass):
                low = 2 * low + state.decoder.decode(32768)
            q = h * 2**bypass + low - 2 ** (bypass - 1) if bypass else h
            must(-(2**31) <= q < 2**31, "an element is out of range")
            row.append(q)
            if self.m.trellis:
                node = TRELLIS[self.m.trellis][node][1 + q % 2]

            w = 2 * min(m, 16) - (b if m else 0)
            self.rows[r][c + 2] = -min(w, 15) if negative else min(w, 15)
            miss = 128 * (-w if negative else w) - mu
            error = min(abs(miss) >> 1, 1920)
            gain = (clip(miss, -2047, 2047) * (87381 // (8 + sum(n * n for n in N)))) >> 6
            for i in range(6):
                taste[i] = wrap(taste[i] + ((gain * N[i]) >> 7))
            gain = (clip(error - guess, -512, 512) * (335544 // min((8192 + sum(e * e for e in E)) >> 11, 4095))) >> 8
            for i in range(4):
                state.spread[i] = wrap(state.spread[i] + ((gain * E[i]) >> 12))
            left_error = min(error, 896)
            found, expected = found + error, expected + (usual >> 4)
            if max(found, expected) > 128000:
                found, expected = found // 2, expected // 2
            kernel_found, kernel_expected = kernel_found + error, kernel_expected + scaled
            size, error = 2048 * min(m, 16), 16 * error
            self.row_size, self.row_error = mean(self.row_size, size, c, 120), mean(self.row_error, error, c, 120)
            kernel_error = mean(kernel_error, error, tap % 64, 60)
            self.channel_size[channel] = mean(self.channel_size[channel], size, r * taps + tap, 250)
            self.channel_error[channel] = mean(self.channel_error[channel], error, r * taps + tap, 250)
            self.column_error[c] = mean(self.column_error[c], error, r, 100)
        self.factor.append(min(1024 * found // max(expected, 1), 64000))
        return row


def context_part(data: bytes, matrices: list[Matrix]) -> list[np.ndarray]:
    must(sum(m.rows * m.columns for m in matrices) <= 12000 * (4 * len(data) + 64), "too many elements")
    part = ContextPart(data)
    result = [part.matrix(matrix) for matrix in matrices]
    part.decoder.end()
    return result
