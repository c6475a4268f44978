"""Decoder of the adaptive context coder in plain Python, as docs/format.md has it: slow, to be read.

Every `>>` is Python's, towards minus infinity: negative numbers are where an implementation goes wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

ANCHORS = (22, 36, 60, 98, 162, 267, 439, 720, 1179, 1921, 3108, 4971, 7812, 11955, 17625, 24743, 32768,
           40793, 47911, 53581, 57724, 60565, 62428, 63615, 64357, 64816, 65097, 65269, 65374, 65438, 65476,
           65500, 65514)
BOUNDS = (2, 4, 6, 8, 11, 14, 18, 23, 29, 37, 48, 64, 90, 128, 200)
MAGNITUDE_SIZES = (256, 256, 256, 64, 1024, 256)
SIGN_SIZES = (27, 225, 225, 27, 675, 81)
UNARY = 18


class Corrupt(Exception):
    """The payload breaks a rule of the format."""


def squash(x: int) -> int:
    i = x + 2048
    w = i % 128
    return (ANCHORS[i // 128] * (128 - w) + ANCHORS[i // 128 + 1] * w + 64) >> 7


def _stretch_table() -> list[int]:
    table, x = [], -2047
    for p in range(4096):
        while x < 2047 and squash(x) < 16 * p + 8:
            x += 1
        table.append(x)
    return table


STRETCH = _stretch_table()


def reciprocal(n: int) -> int:
    return 65536 // (n + 2)


def level(mean: int) -> int:
    return sum(mean >> 3 >= bound for bound in BOUNDS)


def moved(mean: int, magnitude: int, count: int, limit: int) -> int:
    """A mean after one more magnitude."""
    return mean + (((128 * min(magnitude, 60) - mean) * reciprocal(min(count, limit))) >> 16)


class Slot:
    """An adaptive probability of 22 bits."""

    __slots__ = ("n", "p")

    def __init__(self) -> None:
        self.p, self.n = 1 << 21, 0

    def stretched(self) -> int:
        return STRETCH[self.p >> 10]

    def update(self, bit: int) -> None:
        self.p += (((4194303 if bit else 0) - self.p) * reciprocal(self.n)) >> 16
        self.n = min(self.n + 1, 255)


class Mixer:
    """Six weights, 65536 = 1."""

    def __init__(self) -> None:
        self.weights = [21845] * 6

    def logit(self, inputs: Sequence[int]) -> int:
        return max(-2047, min(2047, sum(w * x for w, x in zip(self.weights, inputs, strict=True)) >> 16))

    def update(self, inputs: Sequence[int], x: int, bit: int) -> None:
        error = (65535 if bit else 0) - squash(x)
        self.weights = [max(-1048576, min(1048576, w + ((t * error + 8192) >> 15)))
                        for w, t in zip(self.weights, inputs, strict=True)]


class Bits:
    """The arithmetic decoder of the integer code."""

    def __init__(self, data: bytes) -> None:
        self.data, self.position, self.range = data, 8, (1 << 64) - 1
        self.code = int.from_bytes(data[:8].ljust(8, b"\0"), "big")

    def decode(self, p: int) -> int:
        bound = (self.range >> 16) * p
        bit = int(self.code < bound)
        if bit:
            self.range = bound
        else:
            self.code -= bound
            self.range -= bound
        if self.range < 1 << 32:
            word = self.data[self.position : self.position + 4].ljust(4, b"\0")
            self.position += 4
            self.range <<= 32
            self.code = (self.code << 32 | int.from_bytes(word, "big")) % (1 << 64)
        return bit


class Model:
    """Everything that adapts, for one part."""

    def __init__(self, data: bytes) -> None:
        self.bits = Bits(data)
        self.slots = [[[Slot() for _ in range(size)] for size in MAGNITUDE_SIZES] for _ in range(UNARY + 1)]
        self.by_bin = [Mixer() for _ in range(UNARY + 1)]
        self.by_tap = [[Mixer() for _ in range(25)] for _ in range(UNARY + 1)]
        self.sign_slots = [[Slot() for _ in range(size)] for size in SIGN_SIZES]
        self.sign_mixer = Mixer()
        self.escape = [[32768, 0] for _ in range(31)]
        self.trace: list[tuple[int, int]] = []

    def _mixed(self, slots: Sequence[Slot], mixers: Sequence[Mixer]) -> int:
        inputs = [slot.stretched() for slot in slots]
        logits = [mixer.logit(inputs) for mixer in mixers]
        p = max(32, min(65504, squash(logits[0] if len(logits) == 1 else (logits[0] + logits[1]) >> 1)))
        bit = self.bits.decode(p)
        self.trace.append((p, bit))
        for mixer, x in zip(mixers, logits, strict=True):
            mixer.update(inputs, x, bit)
        for slot in slots:
            slot.update(bit)
        return bit

    def magnitude_bit(self, bin: int, tap: int, contexts: Sequence[int]) -> int:
        slots = [table[context] for table, context in zip(self.slots[bin], contexts, strict=True)]
        return self._mixed(slots, (self.by_bin[bin], self.by_tap[bin][tap]))

    def sign_bit(self, contexts: Sequence[int]) -> int:
        slots = [table[context] for table, context in zip(self.sign_slots, contexts, strict=True)]
        return self._mixed(slots, (self.sign_mixer,))

    def escaped(self) -> int:
        e = 0
        while True:
            if e == 31:
                raise Corrupt("escape prefix")
            state = self.escape[e]
            bit = self.bits.decode(min(max(state[0], 32), 65504))
            change = abs((65535 if bit else 0) - state[0]) // (state[1] + 2)
            state[0] += change if bit else -change
            state[1] = min(state[1] + 1, 158)
            if not bit:
                break
            e += 1
        u = 1
        for _ in range(e):
            u = 2 * u + self.bits.decode(32768)
        if u + UNARY >= 1 << 31:
            raise Corrupt("magnitude")
        return u + UNARY


def _matrix(model: Model, rows: int, columns: int, taps: int, width: int, bypass: int) -> list[list[int]]:
    column_mean, channel_mean, row_mean = [64] * columns, [64] * (columns // taps), 64
    out: list[list[int]] = []
    kept: list[list[int]] = [[0] * columns, [0] * columns]  # h of the two rows above

    def a(row: Sequence[int], c: int) -> int:
        return min(abs(row[c]), 15) if c >= 0 else 0

    def z(row: Sequence[int], c: int) -> int:
        return 0 if c < 0 or row[c] == 0 else 1 if row[c] > 0 else 2

    for r in range(rows):
        above, above2, here, final = kept[-1], kept[-2], [0] * columns, []
        kernel_mean = row_mean
        for c in range(columns):
            channel, tap = divmod(c, taps)
            t = min(tap, 24)
            if tap == 0:
                kernel_mean = row_mean
            up = c - width if tap >= width else -1
            back = c - taps if channel > 0 else -1
            left, left2, over = a(here, c - 1), a(here, c - 2), a(here, up)
            previous, previous2 = a(above, c), a(above2, c)
            means = row_mean, column_mean[c], channel_mean[channel], kernel_mean
            rl, cl, il, kl = map(level, means)
            near = left + over + previous + left2
            blend = (3 * row_mean + 3 * column_mean[c] + 2 * channel_mean[channel] + 64 * near) // 60
            contexts = (16 * rl + cl, 16 * il + kl,
                        64 * min(left, 3) + 16 * min(over, 3) + 4 * min(previous, 3) + min(previous2, 3),
                        min(blend, 63), 64 * rl + 4 * kl + min(left, 3), 16 * rl + il)
            h = 0
            if model.magnitude_bit(0, t, contexts):
                zl, zl2, zo, zb = z(here, c - 1), z(here, c - 2), z(here, up), z(here, back)
                zp, zp2 = z(above, c), z(above2, c)
                negative = model.sign_bit((9 * zl + 3 * zo + zp, 9 * t + 3 * zl + zo, 9 * t + 3 * zp + zp2,
                                           9 * zb + 3 * zp + zl, 27 * t + 9 * zl + 3 * zl2 + zo,
                                           27 * zp + 9 * zp2 + 3 * zb + zl))
                h = next((m for m in range(1, UNARY + 1) if model.magnitude_bit(m, t, contexts)), 0)
                h = h or model.escaped()
                h = -h if negative else h
            q = h
            if bypass:
                low = 0
                for _ in range(bypass):
                    low = 2 * low + model.bits.decode(32768)
                q = h * 2**bypass + low - 2 ** (bypass - 1)
            if not -(2**31) <= q < 2**31:
                raise Corrupt("beyond int32")
            here[c] = h
            final.append(q)
            row_mean = moved(row_mean, abs(h), c, 60)
            kernel_mean = moved(kernel_mean, abs(h), tap, 60)
            column_mean[c] = moved(column_mean[c], abs(h), r, 30)
            channel_mean[channel] = moved(channel_mean[channel], abs(h), r * taps + tap, 200)
        kept.append(here)
        out.append(final)
    return out


def decode(payload: bytes,
           shapes: Iterable[tuple[int, int, int, int, int]]) -> tuple[list[list[list[int]]], Model]:
    """The matrices of (rows, columns, taps, width, bypass) as lists of rows, and the model as it ended."""
    shapes = list(shapes)
    count = sum(shape[0] * shape[1] for shape in shapes)
    if count > 12000 * (4 * len(payload) + 64):
        raise Corrupt("too short")
    model = Model(payload)
    out = [_matrix(model, *shape) for shape in shapes]
    if len(payload) > model.bits.position:
        raise Corrupt("bytes are left")
    return out, model
