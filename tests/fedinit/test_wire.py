"""Tensors as Flower's arrays: the bytes are those that Flower itself writes, and nothing else is read as such."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, RecordDict

from fedinit import wire

TENSORS = [
    torch.randn(3, 4),
    torch.randn(4, 3).T,
    torch.randn(0, 5),
    torch.tensor(3.0),
    torch.randn(2, 3).half(),
    torch.randn(2).double(),
    torch.arange(4),
    torch.tensor([True]),
    torch.zeros(2, dtype=torch.uint8),
]


@pytest.mark.parametrize("tensor", TENSORS, ids=lambda t: f"{t.dtype}-{tuple(t.shape)}")
def test_an_array_is_what_flower_makes_of_the_tensor(tensor: torch.Tensor) -> None:
    (ours,) = wire.encode({"x": tensor}).values()
    theirs = Array(tensor.contiguous().numpy())
    assert (ours.dtype, ours.shape, ours.stype, ours.data) == (theirs.dtype, theirs.shape, theirs.stype, theirs.data)
    assert ours.object_id == theirs.object_id
    read = wire.decode(ArrayRecord({"x": theirs}))["x"]
    assert read.dtype == tensor.dtype and torch.equal(read, tensor)


@pytest.mark.parametrize("order", ["C", "F"])
def test_what_numpy_writes_otherwise_is_read_or_refused(order: str) -> None:
    """An array in the order of columns has another header: of one dimension it is the same, of two it is refused."""
    for values in (np.arange(3.0, dtype=np.float32), np.asarray(np.arange(6.0).reshape(2, 3), order=order)):
        record = ArrayRecord({"x": Array(values)})
        if order == "F" and values.ndim == 2:
            with pytest.raises(ValueError, match="row after row"):
                wire.decode(record)
        else:
            assert np.array_equal(wire.decode(record)["x"].numpy(), values)


@pytest.mark.parametrize("shape", [(3,), (-1,), (2, 1), (10**9, 10**9), (), (1,) * 20])
def test_bytes_of_another_shape_than_declared_are_refused(shape: tuple[int, ...]) -> None:
    data = Array(np.zeros(2, np.float32)).data
    with pytest.raises(ValueError, match="x: "):
        wire.decode(ArrayRecord({"x": Array("float32", shape, "numpy.ndarray", data)}))
    # The control: of its own shape it is read.
    assert wire.decode(ArrayRecord({"x": Array("float32", (2,), "numpy.ndarray", data)}))["x"].tolist() == [0, 0]


def test_one_byte_more_or_less_is_refused() -> None:
    data = Array(np.zeros(2, np.float32)).data
    for wrong in (data[:-1], data + b"0", data[:5], b""):
        with pytest.raises(ValueError, match="x: "):
            wire.decode(ArrayRecord({"x": Array("float32", (2,), "numpy.ndarray", wrong)}))


def test_a_clone_is_over_the_same_bytes_and_is_another() -> None:
    sent = RecordDict({"state": wire.encode({"x": torch.ones(2)})})
    there = wire.clone(sent)
    assert there["state"]["x"].data is sent["state"]["x"].data
    there["state"]["x"].data = b""
    del there["state"]["x"]
    assert wire.decode(sent["state"])["x"].tolist() == [1, 1]


def test_a_decoded_tensor_owns_its_memory() -> None:
    record = wire.encode({"x": torch.ones(2)})
    wire.decode(record)["x"].zero_()
    assert wire.decode(record)["x"].tolist() == [1, 1]


def test_what_many_messages_hold_is_written_once_and_is_the_same_bytes(monkeypatch) -> None:
    """A merge of many clients' factors is megabytes, and went to each of them as a copy of its own."""
    shared, own = torch.randn(3, 4), [torch.randn(2) for _ in range(3)]
    made: list[int] = []
    array = wire._array
    monkeypatch.setattr(wire, "_array", lambda tensor: made.append(id(tensor)) or array(tensor))
    encoder = wire.Encoder()
    records = [encoder.encode({"shared": shared, "own": value}) for value in own]
    assert len(made) == 1 + len(own)
    assert all(record["shared"].data is records[0]["shared"].data for record in records)
    assert len({id(record["shared"]) for record in records}) == 3  # what Flower does to one is not done to another
    for record, value in zip(records, own, strict=True):
        assert record.keys() == wire.encode({"shared": shared, "own": value}).keys()
        assert all(
            record[name].data == array.data for name, array in wire.encode({"shared": shared, "own": value}).items()
        )
