"""Grammar-aware mutations of .tersor files: fields of the header and the manifest, integers of a section's
parameters, bytes of payloads, sections of other files; checksums and lengths are made right again.

    seeds = Seeds.of(golden files)
    data = mutate(seeds, random.Random(7))
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from grammar import Parts, deflated, take_apart, varints
from oracle import LIMITS

from tersor.bitstream.integers import IntegerReader, IntegerWriter
from tersor.decoder import load
from tersor.errors import TersorError

RAW, BATCHNORM, VECTOR = 0, 2, 3
FLOATS = (0, 2, 3, 4, 13, 14)
"""Codes of element types that lossy tools can hold."""


@dataclass
class Seed:
    """A file, and the integers that its first section's parameters hold, in the order of reading: (context, value)."""

    parts: Parts
    integers: list[tuple[int, int]]
    head: int
    """Bytes of the first payload before the integer code, -1 where it has none."""
    code: int
    """Bytes of the integer code."""


class Seeds(list[Seed]):
    """Small files to start from."""

    @classmethod
    def of(cls, files: Iterable[bytes], most: int = 1500) -> Seeds:
        """Each file, and each section of at most `most` bytes as a file of its own."""
        seeds = cls()
        for data in files:
            try:
                parts = take_apart(data)
            except (TersorError, ValueError, struct.error):
                continue
            if sum(map(len, parts.payloads)) <= most:
                seeds.append(seed_of(parts))
            seeds += [seed_of(parts.only(i)) for i, payload in enumerate(parts.payloads)
                      if len(payload) <= most and len(parts.payloads) > 1]
        return seeds


def seed_of(parts: Parts) -> Seed:
    """The seed with the integers of its first section, recorded while the library reads them."""
    found: list[tuple[int, int]] = []
    taken: list[bytes] = []
    real = IntegerReader.take

    def take(self: IntegerReader, count: int, context: int) -> np.ndarray:
        values = real(self, count, context)
        if not taken:
            taken.append(self._data)
        if self._data is taken[0]:
            found.extend((context, value) for value in values.tolist())
        return values

    IntegerReader.take = take  # type: ignore[method-assign]
    try:
        load(parts.only(0).join() if len(parts.tools) > 1 else parts.join(), limits=LIMITS, threads=1).verify()
    except (TersorError, IndexError):
        found.clear()
    finally:
        IntegerReader.take = real  # type: ignore[method-assign]
    if not found or not parts.payloads:
        return Seed(parts, [], -1, 0)
    tool, payload, code = parts.tools[0], parts.payloads[0], taken[0]
    head = 0 if tool == VECTOR else len(payload) - len(code) if tool == BATCHNORM else len(varints([len(code)]))
    return Seed(parts, found, head, len(code))


def number(rng: random.Random, old: int = 0) -> int:
    """Near the old one, small, a power of two, or anything; often enough out of any range."""
    kind = rng.randrange(6)
    if kind < 2:
        return old + rng.choice((-1, 1, 2, -2, 64, -64))
    if kind == 2:
        return rng.randrange(-3, 40)
    if kind == 3:
        return rng.choice((-1, 1)) * (1 << rng.randrange(41)) + rng.randrange(-1, 2)
    if kind == 4:
        return rng.choice((28800, 28801, -28801, 255, 256, 65535, 65536, 4096, 1 << 40))
    return rng.randrange(-(1 << 20), 1 << 20)


def clip(value: int) -> int:
    """What the integer code holds."""
    return max(-(1 << 40), min(1 << 40, value))


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """A few bytes changed, put in, taken out, repeated, or zeroed."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(len(out) + 1)
        kind = rng.randrange(7)
        if kind < 3 and at < len(out):
            out[at] = rng.randrange(256) if kind else out[at] ^ 1 << rng.randrange(8)
        elif kind == 3:
            out[at:at] = rng.randbytes(rng.randrange(1, 9))
        elif kind == 4:
            del out[at : at + rng.randrange(1, 9)]
        elif kind == 5:
            length = rng.randrange(1, 33)
            out[at:at] = out[at : at + length]
        else:
            length = rng.randrange(1, 33)
            out[at : at + length] = bytes([rng.choice((0, 255))]) * len(out[at : at + length])
    return bytes(out) if rng.randrange(12) else bytes(out[: rng.randrange(len(out) + 1)])


# ---- what a mutation may do to the parts -------------------------------------------------------------

def payload_bytes(seed: Seed, parts: Parts, seeds: Seeds, rng: random.Random) -> None:
    """Bytes of a payload; after the parameters, if there are some, in two of three cases."""
    i = rng.randrange(len(parts.payloads))
    payload = parts.payloads[i]
    start = seed.head + seed.code if i == 0 and seed.head >= 0 and rng.randrange(3) else 0
    parts.payloads[i] = payload[:start] + mutate_bytes(payload[start:], rng)


def parameters(seed: Seed, parts: Parts, seeds: Seeds, rng: random.Random) -> None:
    """Integers of the parameters, coded anew; sometimes one more or less, or one in another context."""
    if seed.head < 0:
        payload_bytes(seed, parts, seeds, rng)
        return
    integers = list(seed.integers)
    for _ in range(rng.choice((1, 1, 2, 3))):
        # Small and early ones decide most; long lists of residuals should not take all the attention.
        at = rng.randrange(min(len(integers), rng.choice((8, 24, 1 << 30)))) if integers else 0
        kind = rng.randrange(10)
        if not integers or kind == 0:
            integers.insert(at, (rng.randrange(32), clip(number(rng))))
        elif kind == 1:
            del integers[at]
        else:
            integers[at] = integers[at][0], clip(number(rng, integers[at][1]))
    writer = IntegerWriter()
    for context, value in integers:
        writer.put([value], context)
    code, payload = writer.finish(), parts.payloads[0]
    head = payload[: seed.head] if parts.tools[0] in (VECTOR, BATCHNORM) else varints([len(code)])
    rest = payload[seed.head + seed.code :]
    parts.payloads[0] = head + code + (rest if rng.randrange(4) else mutate_bytes(rest, rng))


def shapes(seed: Seed, parts: Parts, seeds: Seeds, rng: random.Random) -> None:
    """Dimensions, numbers of axes, element types."""
    for _ in range(rng.choice((1, 1, 2))):
        kind = rng.randrange(6)
        if kind < 3 and parts.dims:
            at = rng.randrange(len(parts.dims))
            parts.dims[at] = max(0, number(rng, parts.dims[at]))
        elif kind == 3 and parts.axes:
            at = rng.randrange(len(parts.axes))
            parts.axes[at] = rng.randrange(6)
            parts.dims = [rng.choice((1, 2, 3, 4, 9)) for _ in range(sum(parts.axes))]
        elif parts.types:
            at = rng.randrange(len(parts.types))
            parts.types[at] = rng.choice(FLOATS) if kind == 4 else rng.randrange(18)


def columns(seed: Seed, parts: Parts, seeds: Seeds, rng: random.Random) -> None:
    """Other columns of the manifest, and the counts that it states."""
    kind = rng.randrange(8)
    if kind == 0 and parts.homes:
        parts.homes[rng.randrange(len(parts.homes))] = max(0, number(rng, 1))
        parts.targets = [max(0, number(rng)) for _ in range(parts.homes.count(0))]
    elif kind == 1:
        parts.tools[rng.randrange(len(parts.tools))] = max(0, number(rng, 3)) if rng.randrange(3) else rng.randrange(7)
    elif kind == 2 and parts.names:
        at = rng.randrange(len(parts.names))
        shared, suffix = parts.names[at]
        parts.names[at] = max(0, number(rng, shared)), mutate_bytes(suffix, rng)
    elif kind == 3:
        parts.metadata = [(mutate_bytes(b"key", rng), mutate_bytes(b"value", rng)) for _ in range(rng.randrange(4))]
    elif kind == 4:
        parts.lies[rng.choice(("tensors", "sections", "pairs", "inflated", "length"))] = max(0, number(rng, 1))
    elif kind == 5:
        parts.header[rng.randrange(6)] = rng.randrange(256)
    elif kind == 6:
        parts.tail = rng.randbytes(rng.randrange(5))
    else:
        parts.parameters = max(0, number(rng, parts.parameters))


def sections(seed: Seed, parts: Parts, seeds: Seeds, rng: random.Random) -> None:
    """A section more or less, in another order, of another file, or read by another tool."""
    other = rng.choice(seeds).parts
    kind = rng.randrange(4)
    if kind == 0:
        parts.payloads[rng.randrange(len(parts.payloads))] = rng.choice(other.payloads)
    elif kind == 1:
        parts.tools.append(other.tools[0])
        parts.payloads.append(other.payloads[0])
    elif kind == 2:
        rng.shuffle(parts.payloads)
    else:
        at, a, b = rng.randrange(len(parts.payloads)), parts.payloads[0], other.payloads[0]
        parts.payloads[at] = a[: rng.randrange(len(a) + 1)] + b[rng.randrange(len(b) + 1) :]


def raw_payload(seed: Seed, parts: Parts, seeds: Seeds, rng: random.Random) -> None:
    """A raw section: a method, and data deflated well or wrongly."""
    data = rng.randbytes(rng.randrange(200))
    method = rng.randrange(4)
    parts.tools[0] = RAW
    parts.payloads[0] = bytes([method]) + (deflated(data) if method else data) + rng.randbytes(rng.choice((0, 0, 1)))


MUTATIONS: tuple[Callable[[Seed, Parts, Seeds, random.Random], None], ...] = (
    payload_bytes, payload_bytes, payload_bytes, parameters, parameters, parameters, parameters, shapes, shapes,
    columns, sections, raw_payload)
"""As often as they stand here."""


def mutate(seeds: Seeds, rng: random.Random) -> bytes:
    """A file made from a random seed. Every thirtieth has bytes changed anywhere, and wrong checksums."""
    seed = rng.choice(seeds)
    return mutate_seed(seed, seeds, rng)


def mutate_seed(seed: Seed, seeds: Seeds, rng: random.Random) -> bytes:
    """A file made from this one."""
    parts = seed.parts.copy()
    if not parts.payloads:
        return mutate_bytes(parts.join(), rng)
    for _ in range(rng.choice((1, 1, 1, 2))):
        rng.choice(MUTATIONS)(seed, parts, seeds, rng)
    kind = rng.randrange(30)
    if kind == 0:
        return mutate_bytes(parts.join(), rng)
    return parts.join(mutate_bytes(parts.manifest(), rng)) if kind == 1 else parts.join()
