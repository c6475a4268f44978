"""Where the tensors of an ONNX file lie: offsets of raw data in the serialized message.

The onnx library parses the message and its meaning; it does not say where in the file a tensor's bytes are. Protocol
Buffers wire format: a field is a varint key (number * 8 + type) and, for type 2, a length and bytes.
"""

from __future__ import annotations

from collections.abc import Iterator

from ...errors import ModelError

_GRAPH, _NODE, _INITIALIZER, _ATTRIBUTE, _TENSOR = 7, 1, 5, 5, 5
_NAME, _FLOATS, _RAW, _DOUBLES, _OUTPUT = 8, 4, 9, 10, 2

Span = tuple[int, int]
"""Offset and length in bytes."""


def tensor_spans(data: bytes) -> tuple[dict[str, Span], dict[str, Span]]:
    """Name -> span of the values of the main graph's initializers, and of the tensors of its Constant nodes by the name
    of their output; those only that are stored as they are in memory (raw_data, packed float_data, double_data).

    Raises ModelError where the message is not well-formed.
    """
    initializers: dict[str, Span] = {}
    constants: dict[str, Span] = {}
    for number, start, end in _fields(data, 0, len(data)):
        if number != _GRAPH:
            continue
        for inner, first, last in _fields(data, start, end):
            if inner == _INITIALIZER:
                _put_tensor(initializers, data, first, last)
            elif inner == _NODE:
                _put_constant(constants, data, first, last)
    return initializers, constants


def _put_tensor(found: dict[str, Span], data: bytes, start: int, end: int, name: str | None = None) -> None:
    span = None
    for number, first, last in _fields(data, start, end):
        if number == _NAME and name is None:
            name = data[first:last].decode("utf-8", "replace")
        elif number in (_RAW, _FLOATS, _DOUBLES):
            span = first, last - first
    if name is not None and span is not None:
        found[name] = span


def _put_constant(found: dict[str, Span], data: bytes, start: int, end: int) -> None:
    fields = list(_fields(data, start, end))
    outputs = [data[first:last].decode("utf-8", "replace") for number, first, last in fields if number == _OUTPUT]
    for number, first, last in fields:
        if number == _ATTRIBUTE and len(outputs) == 1:
            for inner, low, high in _fields(data, first, last):
                if inner == _TENSOR:
                    _put_tensor(found, data, low, high, outputs[0])


def _fields(data: bytes, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(number, start, end) of the fields with bytes; others are passed over."""
    while position < end:
        key, position = _varint(data, position, end)
        kind = key & 7
        if kind == 0:
            _, position = _varint(data, position, end)
        elif kind == 2:
            length, position = _varint(data, position, end)
            if length > end - position:
                raise ModelError("the ONNX file is truncated or damaged")
            yield key >> 3, position, position + length
            position += length
        elif kind in (1, 5):
            position += 8 if kind == 1 else 4
        else:
            raise ModelError("the ONNX file is damaged: a field of unknown type")


def _varint(data: bytes, position: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while position < end and shift < 64:
        byte = data[position]
        value |= (byte & 127) << shift
        position += 1
        if byte < 128:
            return value, position
        shift += 7
    raise ModelError("the ONNX file is truncated or damaged")
