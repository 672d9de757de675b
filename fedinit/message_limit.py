"""What a message may hold at the most, and whether it does: by lengths, without a look at a value."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedinit.tensor_array import Format, facts, handed_of, length

Formats = Mapping[str, tuple[tuple[int, ...], torch.dtype]]  # {name: (shape, dtype)}
BESIDE = 16  # bytes of a value besides its name


@dataclass(frozen=True)
class Limit:
    """What a reply may hold at the most, in bytes: `values` of arrays with their headers, `rest` of names, numbers and
    whatever else."""

    values: int = 0
    rest: int = 2**16

    @staticmethod
    def of(formats: Formats) -> Limit:
        """Of a reply with tensors of these formats, and a page of numbers."""
        values = sum(math.prod(shape) * dtype.itemsize + 256 for shape, dtype in formats.values())
        return Limit(values, 2**16 + 1024 * len(formats))

    def __str__(self) -> str:
        return f"{self.values} and {self.rest}"


def excess(content: RecordDict, limit: Limit) -> str:
    """Why the records are more than a limit allows; empty where they are not. Looks at lengths and at no value, and no
    further than to the limit."""
    values = rest = 0
    for name, record in content.items():
        for of_values, of_rest in _lengths(name, record, limit.rest):
            values, rest = values + of_values, rest + of_rest
            if values > limit.values or rest > limit.rest:
                return f"more than {values} bytes of arrays and {rest} of other things, {limit} may come"
    return ""


def _lengths(name: str, record: ArrayRecord | ConfigRecord | MetricRecord, most: int) -> Iterator[tuple[int, int]]:
    """Bytes of values, and of other things, of a record's entries one after another; of tensors that are handed over at
    once. most: as of `_length`."""
    handed = handed_of(record) if isinstance(record, ArrayRecord) else None
    if handed is not None:
        values, rest = _of_format(handed.format)
        yield values, rest + len(name) * len(handed.format)
        return
    for key, entry in record.items():
        beside = len(name) + len(key) + BESIDE
        if isinstance(entry, Array):
            yield length(entry), beside + _beside(entry.dtype, entry.stype, entry.shape)
        else:
            yield 0, beside + _length(entry, most)


@functools.lru_cache(maxsize=256)
def _of_format(format: Format) -> tuple[int, int]:
    """Bytes of the values, and of other things but the record's name, of tensors that are handed over."""
    of_each = [(name, facts(dtype, shape)) for name, dtype, shape in format]
    rest = sum(len(name) + BESIDE + _beside(f["dtype"], f["stype"], f["shape"]) for name, f in of_each)
    return sum(f["length"] for _, f in of_each), rest


def _beside(dtype: str, stype: str, shape: tuple[int, ...]) -> int:
    return len(dtype) + len(stype) + 8 * len(shape)


def _length(entry: object, most: int) -> int:
    """Bytes of a record's value, or of what is too much of it."""
    if isinstance(entry, list):
        return 8 * len(entry) if 8 * len(entry) > most else sum(_length(value, most) for value in entry)
    return 8 + (len(entry) if isinstance(entry, (str, bytes)) else 0)
