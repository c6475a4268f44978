"""Decoder of the adaptive context coder in plain Python, as docs/format.md has it: slow, to be read.

Every `>>` is Python's, towards minus infinity: negative numbers are where an implementation goes wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

ANCHORS = (22, 36, 60, 98, 162, 267, 439, 720, 1179, 1921, 3108, 4971, 7812, 11955, 17625, 24743, 32768,
           40793, 47911, 53581, 57724, 60565, 62428, 63615, 64357, 64816, 65097, 65269, 65374, 65438, 65476,
           65500, 65514)
BOUNDS = (2, 4, 6, 8, 11, 14, 18, 23, 29, 37, 48, 64, 90, 128, 200)
FINE = [(512, 609, 724, 861)[level % 4] << level // 4 for level in range(32)]
TASTE = ((0, 0, 0, 0, 0, 0), (29819, 0, 0, 0, 0, 0), (29819, 0, 0, 0, 0, 0), (29819, 0, 0, 0, 0, 0),
         (0, 0, 26214, 0, 3277, 0), (24904, 0, 18350, -8520, 3932, 0), (24904, -1311, 19661, -6554, 1966, 0),
         (23593, -1311, 23265, -4588, 0, 0), (0, 0, 28180, 0, 1311, -6554), (28180, 0, 19005, -3932, 3277, -5898),
         (27525, 0, 21627, -5243, 1966, -4588), (26214, 1311, 24248, -6554, 0, -3277))
SPREAD = (40632, 13107, 22938, 11141)
MAGNITUDE_SIZES = (1024, 768, 256, 512)
SIGN_SIZES = (64, 1024, 1024, 512)
UNARY = 18
# By states of the trellis: quantizer of a state, next state for q even and q odd.
TRELLIS = {0: ((0, 0, 0),),
           4: ((0, 0, 2), (0, 2, 0), (1, 1, 3), (1, 3, 1)),
           8: ((0, 0, 2), (1, 5, 7), (0, 1, 3), (1, 6, 4), (0, 2, 0), (1, 4, 6), (0, 3, 1), (1, 7, 5))}


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
    return sum(mean >> 7 >= bound for bound in BOUNDS)


def fine(x: int) -> int:
    return sum(128 * x >= bound for bound in FINE[1:])


def clip(x: int, low: int, high: int) -> int:
    return max(low, min(high, x))


def wrapped(x: int) -> int:
    """The signed number of 32 bits that equals x modulo 2^32."""
    return (x + 2**31) % 2**32 - 2**31


def moved(mean: int, size: int, count: int, limit: int) -> int:
    """A mean after one more size."""
    return mean + (((size - mean) * reciprocal(min(count, limit))) >> 16)


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


class Set:
    """Four weights of a mixer, 2^28 = 1, and how often they were used."""

    def __init__(self) -> None:
        self.weights, self.count = [115 << 18] * 4, 0


def mixed(sets: Sequence[Set], inputs: Sequence[int]) -> int:
    """The logit of four inputs."""
    sums = [wrapped(sum(weights)) for weights in zip(*(s.weights for s in sets), strict=True)]
    return clip(sum((w >> 16) * t for w, t in zip(sums, inputs, strict=True)) >> 12, -2047, 2047)


def learn(sets: Sequence[Set], inputs: Sequence[int], x: int, bit: int) -> None:
    """All sets move alike; the first one counts."""
    sets[0].count = min(sets[0].count + 1, 65535)
    rate = 1000 + 64000 // (sets[0].count // 64 + 16)
    error = (((65535 if bit else 0) - squash(x)) * rate + 32768) >> 16
    for s in sets:
        s.weights = [wrapped(w + t * error) for w, t in zip(s.weights, inputs, strict=True)]


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
    """The arithmetic decoder and what it has decided, for one part."""

    def __init__(self, data: bytes) -> None:
        self.bits = Bits(data)
        self.states: dict[int, State] = {}
        self.factors: list[int] = []
        self.trace: list[tuple[int, int]] = []

    def decision(self, slots: Sequence[Slot], sets: Sequence[Set]) -> int:
        inputs = [slot.stretched() for slot in slots]
        x = mixed(sets, inputs)
        p = clip(squash(x), 32, 65504)
        bit = self.bits.decode(p)
        self.trace.append((p, bit))
        learn(sets, inputs, x, bit)
        for slot in slots:
            slot.update(bit)
        return bit


class State:
    """Everything that adapts, for the matrices of one kind. Bin 19 is the sign."""

    def __init__(self, model: Model) -> None:
        self.model, self.bits = model, model.bits
        self.slots = [[[Slot() for _ in range(size)] for size in (MAGNITUDE_SIZES if bin < 19 else SIGN_SIZES)]
                      for bin in range(20)]
        self.by_bin = [Set() for _ in range(20)]
        self.by_place = [[Set() for _ in range(32)] for _ in range(20)]
        self.by_level = [[Set() for _ in range(16)] for _ in range(20)]
        self.taste = [list(weights) for weights in TASTE]
        self.spread = list(SPREAD)
        self.escape = [[32768, 0] for _ in range(31)]

    def bit(self, bin: int, contexts: Sequence[int], place: int, half_level: int) -> int:
        slots = [table[context] for table, context in zip(self.slots[bin], contexts, strict=True)]
        return self.model.decision(slots, (self.by_bin[bin], self.by_place[bin][place],
                                           self.by_level[bin][half_level]))

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


Layout = tuple[int, int, int, int, int, int, int]
"""Rows, columns, taps, width, bypass, states of the trellis, kind."""


def _neighbours(kind: int, taps: int, width: int, c: int, here: Sequence[int], above: Sequence[int],
                above2: Sequence[int]) -> tuple[int, list[int]]:
    """The place in the kernel, and the six values that predict the next one."""
    def at(row: Sequence[int], c: int) -> int:
        return row[c] if 0 <= c < len(row) else 0

    if taps == 1 and kind == 0:
        return 0, [0] * 6
    if taps == 1:
        return 0, [at(here, c - 1), at(here, c - 2), above[c], at(above, c - 1), at(above, c + 1), above2[c]]
    y, x = divmod(c % taps, width)
    column = 0 if x == 0 else 3 if x == width - 1 else 1 if x == 1 else 2
    return 4 * min(y, 2) + column, [
        here[c - 1] if x > 0 else 0, here[c - 2] if x > 1 else 0, here[c - width] if y > 0 else 0,
        here[c - width - 1] if y > 0 and x > 0 else 0, here[c - width + 1] if y > 0 and x < width - 1 else 0,
        here[c - 2 * width] if y > 1 else 0]


def _contexts(pull: int, first: int, beside: int | None, kernel: int, third: int, fourth: int) -> tuple[int, ...]:
    return first + 32 * (pull >> 1), 16 * pull + kernel if beside is None else beside, third, fourth


def _matrix(model: Model, layout: Layout) -> list[list[int]]:
    rows, columns, taps, width, bypass, trellis, kind = layout
    if kind not in model.states:
        model.states[kind] = State(model)
    state = model.states[kind]
    channels = columns // taps
    column_error, channel_error, channel_size = [1024] * columns, [1024] * channels, [1024] * channels
    if kind == 0 and len(model.factors) == channels:
        channel_error, channel_size = list(model.factors), list(model.factors)
        column_error = [model.factors[c // taps] for c in range(columns)]
    row_error = row_size = 1024
    factors, out = [], []
    kept: list[list[int]] = [[0] * columns, [0] * columns]  # values in half steps of the two rows above
    alone = kind == 0 and taps == 1

    def steps(half: int) -> int:
        return min((abs(half) + 1) >> 1, 3)

    def z(value: int) -> int:
        return 0 if value == 0 else 1 if value > 0 else 2

    for r in range(rows):
        above, above2, here, final = kept[-1], kept[-2], [0] * columns, []
        found = expected = left_error = node = kernel_found = kernel_expected = kernel_error = 0
        factor = 4096
        for c in range(columns):
            channel, tap = divmod(c, taps)
            left, left2 = here[c - 1] if c > 0 else 0, here[c - 2] if c > 1 else 0
            place, near = _neighbours(kind, taps, width, c, here, above, above2)
            taste = state.taste[place]
            mu = clip(wrapped(sum(w * v for w, v in zip(taste, near, strict=True))) >> 9, -4095, 4095)
            if c % 8 == 0:
                factor = min(2**18, (found + 256) * 4096 // (expected + 256))
            if tap == 0:
                kernel_error = row_error
            if tap % 64 == 0:
                kernel_found = kernel_expected = 0
            usual = (column_error[c] + channel_error[channel]) >> 1
            scaled = clip((usual * factor) >> 16, 1, 4095)
            excess = ((kernel_found - kernel_expected) * (65536 // (tap % 64 + 6))) >> 16
            features = scaled, excess, abs(mu) >> 1, left_error
            total = wrapped(sum(w * f for w, f in zip(state.spread, features, strict=True)))
            guess = total >> 16
            sigma = clip(guess, 4, 2047)

            quantizer = TRELLIS[trellis][node][0]
            sl, rl = fine(sigma), level(row_size)
            pull = clip((mu + 16) >> 5, -15, 15)
            where = place + 16 * quantizer, sl >> 1

            beside = 512 + 64 * steps(left) + 16 * steps(left2) + 4 * steps(above[c]) + steps(above2[c])
            about = (512 * quantizer + fine(min(scaled, 2047)), beside if alone else None, level(kernel_error),
                     16 * rl + level(channel_size[channel]), 16 * sl + rl)

            m = negative = 0
            if state.bit(0, _contexts(abs(pull), *about), *where):
                ratio = clip((mu * (38480000 // FINE[sl])) >> 15, -31, 31) + 32
                pair = 9 * z(left) + 3 * z(above[c])
                negative = state.bit(19, (ratio, pair + z(above2[c]) if alone else 16 * ratio + place,
                                          32 * (pull + 16) + sl,
                                          pair + z(left2) if alone else 16 * (pull + 16) + place), *where)
                along = _contexts((-pull if negative else pull) + 16, *about)
                m = next((m for m in range(1, UNARY + 1) if state.bit(m, along, *where)), 0) or state.escaped()
            q = -m if negative else m
            if bypass:
                low = 0
                for _ in range(bypass):
                    low = 2 * low + model.bits.decode(32768)
                q = q * 2**bypass + low - 2 ** (bypass - 1)
            if not -(2**31) <= q < 2**31:
                raise Corrupt("beyond int32")
            final.append(q)

            half = 2 * min(m, 16) - (quantizer if m else 0)
            here[c] = -min(half, 15) if negative else min(half, 15)
            error = 128 * (-half if negative else half) - mu
            off = min(abs(error) >> 1, 1920)
            gain = (clip(error, -2047, 2047) * (87381 // (8 + sum(v * v for v in near)))) >> 6
            state.taste[place] = [wrapped(w + ((gain * v) >> 7)) for w, v in zip(taste, near, strict=True)]
            energy = 8192 + sum(f * f for f in features)
            gain = (clip(off - guess, -512, 512) * (335544 // min(energy >> 11, 4095))) >> 8
            state.spread = [wrapped(w + ((gain * f) >> 12)) for w, f in zip(state.spread, features, strict=True)]
            left_error = min(off, 896)
            found, expected = found + off, expected + (usual >> 4)
            if max(found, expected) > 128000:
                found, expected = found >> 1, expected >> 1
            kernel_found, kernel_expected = kernel_found + off, kernel_expected + scaled
            size, miss = 2048 * min(m, 16), 16 * off
            row_size = moved(row_size, size, c, 120)
            row_error = moved(row_error, miss, c, 120)
            kernel_error = moved(kernel_error, miss, tap % 64, 60)
            channel_size[channel] = moved(channel_size[channel], size, r * taps + tap, 250)
            channel_error[channel] = moved(channel_error[channel], miss, r * taps + tap, 250)
            column_error[c] = moved(column_error[c], miss, r, 100)
            node = TRELLIS[trellis][node][1 + q % 2]
        kept.append(here)
        out.append(final)
        factors.append(min(64000, found * 1024 // max(1, expected)))
    if kind == 0:
        model.factors = factors
    return out


def decode(payload: bytes, layouts: Iterable[Layout]) -> tuple[list[list[list[int]]], Model]:
    """The matrices of a part as lists of rows, and the model as it ended."""
    layouts = list(layouts)
    count = sum(layout[0] * layout[1] for layout in layouts)
    if count > 12000 * (4 * len(payload) + 64):
        raise Corrupt("too short")
    model = Model(payload)
    out = [_matrix(model, layout) for layout in layouts if layout[0] * layout[1]]
    if len(payload) > model.bits.position:
        raise Corrupt("bytes are left")
    empty = iter(out)
    return [next(empty) if layout[0] * layout[1] else [] for layout in layouts], model
