"""The bytes of Flower's records as protocol buffers, counted without writing them.

After the encoding of proto3 (protobuf.dev/programming-guides/encoding) and flwr/proto/recorddict.proto. To write a
message copies every array: of ViT-B's factors, 2.4 MB, it takes fifty times as long.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedinit.tensor_array import Format, TensorArray, facts, handed_of, length

SIGNED, UNSIGNED, SHAPE = (-(2**63), 2**63), (0, 2**64), (-(2**31), 2**31)  # of sint64, uint64 and int32
NUMBERS, SETTINGS = (float, int), (bool, int, float, str, bytes)  # that a record's values may be, or lists of them
PLAIN = frozenset((bool, int, float))
SHORT, FEW = 256, 16  # characters of a text, and texts of a list, that are remembered
LIST_TAG = 2  # bytes of the tags of lists, whose fields have numbers over 15


def of(content: RecordDict) -> int:
    """Bytes of the records. Raises ValueError or TypeError for what no message holds."""
    return sum(_part(_text(key) + _part(_record(record))) for key, record in content.items())


def _record(record: object) -> int:
    if isinstance(record, ArrayRecord):
        if (handed := handed_of(record)) is not None:
            return _handed(handed.format)
        return sum(
            _usual(key, a.format)
            if isinstance(a, TensorArray)
            else _array(key, a.dtype, tuple(a.shape), a.stype, length(a))
            for key, a in record.items()
        )
    if isinstance(record, MetricRecord):
        return sum(_entry(key, value, NUMBERS) for key, value in record.items())
    if isinstance(record, ConfigRecord):
        return sum(_entry(key, value, SETTINGS) for key, value in record.items())
    raise ValueError(f"a record of type {type(record).__name__}")


def _array(key: str, dtype: str, shape: tuple[int, ...], stype: str, bytes_: int) -> int:
    """Of an array with its name."""
    packed = sum(_varint(_within(size, SHAPE) % 2**64) for size in shape)
    # What is empty is not written.
    return _part(_text(key) + _part(sum(map(_given, (_utf8(dtype), packed, _utf8(stype), bytes_)))))


@functools.lru_cache(maxsize=256)
def _handed(format: Format) -> int:
    """Of tensors that are handed over: those of a run are of a few kinds."""
    return sum(_usual(name, facts(dtype, shape)["format"]) for name, dtype, shape in format)


@functools.lru_cache(maxsize=4096)
def _usual(key: str, format: tuple[str, tuple[int, ...], str, int]) -> int:
    """Of an array of this process: those of a run are of a few formats."""
    return _array(key, *format)


def _entry(key: str, value: object, kinds: Sequence[type]) -> int:
    """Of a value with its name. kinds: as for `_value`."""
    kind = type(value)
    if len(key) <= SHORT:
        if kind in PLAIN or (isinstance(value, str) and len(value) <= SHORT):
            return _short(key, 0.0 if kind is float else value, kinds)  # real numbers are all of one size
        if isinstance(value, list) and len(value) <= FEW and all(type(v) is str and len(v) <= SHORT for v in value):
            return _few(key, tuple(value), kinds)
    return _named(key, value, kinds)


def _named(key: str, value: object, kinds: Sequence[type]) -> int:
    return _part(_text(key) + _part(_value(value, kinds)))


@functools.lru_cache(maxsize=1024)
def _few(key: str, values: tuple[str, ...], kinds: Sequence[type]) -> int:
    return _named(key, list(values), kinds)


_short = functools.lru_cache(maxsize=4096, typed=True)(_named)  # most are the same in all messages of a round


def _value(value: object, kinds: Sequence[type]) -> int:
    """kinds: what may stand alone or in a list; of those that a value is of, the first counts, as for Flower."""
    for kind in kinds:
        if isinstance(value, kind):
            return _scalar(value)
        if isinstance(value, list) and (set(map(type, value)) <= {kind} or all(isinstance(v, kind) for v in value)):
            return LIST_TAG + _delimited(_list(value, kind))
    raise TypeError(f"a value of type {type(value).__name__}")


def _scalar(value: object) -> int:
    if isinstance(value, bool):
        return 2
    if isinstance(value, int):
        plain = value >= SIGNED[1]
        number = _within(value, UNSIGNED if plain else SIGNED)
        return 1 + _varint(number if plain else 2 * number if number >= 0 else -2 * number - 1)
    if isinstance(value, float):
        return 9
    return _part(_utf8(value) if isinstance(value, str) else len(memoryview(value)))  # type: ignore[arg-type]


def _list(values: Sequence, kind: type) -> int:
    """Of what stands inside a list's own length."""
    if kind in (str, bytes):
        return sum(_part(_utf8(v) if kind is str else len(v)) for v in values)
    if kind is bool:
        return _given(len(values))
    return _given(8 * len(values) if kind is float else _integers(values))


def _integers(values: Sequence[int]) -> int:
    """Bytes of all: zigzag for what sint64 holds, plain where one of them is larger, as Flower chooses for a list."""
    low, high = min(values, default=0), max(values, default=0)
    plain = high >= SIGNED[1]
    for number in (low, high):
        _within(number, UNSIGNED if plain else SIGNED)
    if plain:
        numbers = np.array(values, np.uint64)
    else:
        signed = np.array(values, np.int64)
        numbers = ((signed << 1) ^ (signed >> 63)).view(np.uint64)
    return len(values) + sum(int(np.count_nonzero(numbers >= np.uint64(1 << 7 * k))) for k in range(1, 10))


def _within(number: int, bounds: tuple[int, int]) -> int:
    if isinstance(number, float) or not bounds[0] <= number < bounds[1]:
        raise ValueError(f"{number!r} is no whole number from {bounds[0]} to {bounds[1] - 1}")
    return int(number)


def _text(key: str) -> int:
    return _given(_utf8(key))


def _utf8(text: str) -> int:
    """Bytes of a text. Raises UnicodeEncodeError, which is a ValueError, for half of a surrogate pair."""
    if not isinstance(text, str):
        raise TypeError(f"a text of type {type(text).__name__}")
    return len(text) if text.isascii() else len(text.encode())


def _given(size: int) -> int:
    """Of a field that is left out where it is empty."""
    return _part(size) if size else 0


def _part(size: int) -> int:
    """Of a field with its tag, where its number is 15 or less."""
    return 1 + _delimited(size)


def _delimited(size: int) -> int:
    return _varint(size) + size


def _varint(number: int) -> int:
    return max(1, -(-number.bit_length() // 7))
