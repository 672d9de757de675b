"""Bytes that are counted are those that are written, and what cannot be written is refused."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_to_proto
from hypothesis import given, settings
from hypothesis import strategies as st

from fedinit import message_size

EDGES = [0, 1, 63, 64, -64, -65, 127, 128, 2**14, 2**31, 2**32, 2**56, 2**62, 2**63 - 1, -(2**63)]
signed = st.integers(-(2**63), 2**63 - 1) | st.sampled_from(EDGES)
unsigned = st.integers(0, 2**64 - 1)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
number = signed | unsigned | st.floats() | st.lists(signed) | st.lists(unsigned) | st.lists(st.floats())
other = st.booleans() | text | st.binary(max_size=300)
other |= st.lists(st.booleans()) | st.lists(text, max_size=4) | st.lists(st.binary(max_size=20), max_size=4)
shape = st.lists(st.integers(-(2**31), 2**31 - 1), max_size=4).map(tuple)
array = st.builds(Array, text, shape, text, st.binary(max_size=300))
record = st.dictionaries(text, array, max_size=3).map(ArrayRecord)
record |= st.dictionaries(text, number, max_size=4).map(MetricRecord)
record |= st.dictionaries(text, number | other, max_size=4).map(ConfigRecord)


def written(content: RecordDict) -> int:
    return len(recorddict_to_proto(content).SerializeToString())


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(text, record, max_size=4).map(RecordDict))
def test_counted_is_written(content):
    assert message_size.of(content) == written(content)


@pytest.mark.parametrize("size", [0, 1, 126, 127, 128, 16_383, 16_384, 2**21])
def test_lengths_take_more_bytes_as_they_grow(size):
    """Where a length or a tag passes 127, and lists of as many numbers."""
    arrays = ArrayRecord({"x" * min(size, 300): Array(np.zeros(size, np.uint8))})
    numbers = MetricRecord({"a": [1.5] * (size // 8), "b": [2**40, -3] * (size // 16), "c": [2**63] * (size // 16)})
    words = ConfigRecord({"a": "é" * size, "b": bytes(size), "c": [True] * size, "d": ["x", ""] * (size // 64)})
    content = RecordDict({"state": arrays, "metrics": numbers, "config": words})
    assert message_size.of(content) == written(content)


@pytest.mark.parametrize(
    "values",
    [
        {"a": 2**64},
        {"a": -(2**63) - 1},
        {"a": [2**64, 1]},
        {"a": [-1, 2**63]},
        {"a": [1, 2.5]},
        {"a": None},
        {"a": [[1]]},
        {"a": "\ud800"},
        {"a": ["\ud800"]},
        {1: 2},
    ],
    ids=repr,
)
def test_what_cannot_be_written_is_not_counted(values):
    record = ConfigRecord()
    record.__dict__["_data"] = values
    for of in (written, message_size.of):
        with pytest.raises((ValueError, TypeError, OverflowError)):
            of(RecordDict({"config": record}))
    with pytest.raises((ValueError, TypeError)):
        message_size.of(RecordDict({"config": record}))
