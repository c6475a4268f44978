"""Side information: lists of signed integers in one adaptive arithmetic code.

Steps, BatchNorm numbers, class maps and biases travel this way. Values of the same meaning share a
*context*, whose bit probabilities adapt from the first value on, so no tables are sent:

    writer = IntegerWriter()
    writer.put([3, 3, 4], context=0)
    reader = IntegerReader(writer.finish())
    reader.take(3, context=0)          # array([3, 3, 4])
    reader.end()
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..errors import FormatError
from . import native

CONTEXTS = 32
MAX_MAGNITUDE = 1 << 40

_encode = native.function("tersor_integers_encode",
                          [native.array(np.int64), native.array(np.uint8), native.INT64,
                           native.array(np.uint8, writable=True), native.INT64])
_state_size = native.function("tersor_integers_state_size", [])
_start = native.function("tersor_integers_start",
                         [native.BYTES, native.INT64, native.array(np.uint8, writable=True)], None)
_decode = native.function("tersor_integers_decode",
                          [native.BYTES, native.INT64, native.array(np.uint8, writable=True), native.INT64,
                           native.INT64, native.array(np.int64, writable=True)])


class IntegerWriter:
    """Collects integers with their contexts; `finish` codes them all."""

    def __init__(self) -> None:
        self._values: list[npt.NDArray[np.int64]] = []
        self._contexts: list[npt.NDArray[np.uint8]] = []

    def put(self, values: npt.ArrayLike, context: int) -> None:
        """Append integers (any shape, in C order), |value| <= 2^40, to be coded in `context` (0..31)."""
        flat = np.ravel(np.asarray(values)).astype(np.int64)
        if not 0 <= context < CONTEXTS:
            raise ValueError(f"context {context} is not in 0..{CONTEXTS - 1}")
        if flat.size and int(np.abs(flat).max()) > MAX_MAGNITUDE:
            raise ValueError(f"an integer of context {context} is beyond +-2^40")
        self._values.append(flat)
        self._contexts.append(np.full(flat.size, context, dtype=np.uint8))

    def finish(self) -> bytes:
        """The coded bytes; without trailing zero bytes, which the reader supplies."""
        values = np.concatenate([np.empty(0, np.int64), *self._values])
        contexts = np.concatenate([np.empty(0, np.uint8), *self._contexts])
        # No bit costs more than 11 bits, no integer has more than 2 * 41 + 2 of them.
        out = np.empty(64 + values.size * 116, dtype=np.uint8)
        written = native.check(_encode(values, contexts, values.size, out, out.size), "coding integers")
        return out[:written].tobytes()


class IntegerReader:
    """Reads back what `IntegerWriter` wrote, in the same order and with the same contexts."""

    def __init__(self, data: bytes) -> None:
        self._data = bytes(data)
        self._position = 0
        self._state = np.zeros(int(_state_size()), dtype=np.uint8)
        _start(self._data, len(self._data), self._state)

    def take(self, count: int, context: int) -> npt.NDArray[np.int64]:
        """The next `count` integers, int64 [count]; FormatError where no encoder wrote such bits.

        The caller must have bounded `count` by the shapes of the manifest: it is allocated here.
        """
        out = np.empty(count, dtype=np.int64)
        self._position = native.check(
            _decode(self._data, len(self._data), self._state, context, count, out), "decoding integers")
        return out

    def one(self, context: int, low: int, high: int, what: str) -> int:
        """A single integer that must lie in [low, high]; FormatError that names `what` otherwise."""
        value = int(self.take(1, context)[0])
        if not low <= value <= high:
            raise FormatError(f"{what} is {value}, outside {low}..{high}: the file is corrupt")
        return value

    def end(self) -> None:
        """FormatError if bytes are left that nothing has read."""
        if len(self._data) > max(self._position, 8):
            raise FormatError(f"{len(self._data) - self._position} bytes are left after the last integer: "
                              f"the file is corrupt")
