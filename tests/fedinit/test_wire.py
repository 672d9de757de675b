"""Tensors as Flower's arrays: the bytes are those that Flower itself writes, and nothing else is read as such."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto

from fedinit import wire
from fedinit.message_limit import Limit, excess

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
    assert wire.to_bytes(there) == wire.to_bytes(sent)
    with pytest.raises(AttributeError):
        there["state"]["x"].data = b""
    del there["state"]["x"]
    assert wire.decode(sent["state"])["x"].tolist() == [1, 1]


def test_a_tensor_decoded_from_bytes_owns_its_memory() -> None:
    sent = RecordDict({"state": wire.encode({"x": torch.ones(2)})})
    record = recorddict_from_proto(recorddict_to_proto(sent))["state"]
    wire.decode(record)["x"].zero_()
    assert wire.decode(record)["x"].tolist() == [1, 1]


def test_in_one_process_the_tensor_itself_is_handed_over_and_nobody_may_change_it() -> None:
    """No bytes are written, however many are sent it; who changes it is told, and not who reads something else."""
    sent = torch.ones(2, 3)
    record = wire.clone(RecordDict({"state": wire.encode({"x": sent})}))["state"]
    assert wire.decode(record)["x"].data_ptr() == sent.data_ptr()
    sent[0, 0] = 7
    for read in (wire.decode, lambda record: record["x"].data):
        with pytest.raises(RuntimeError, match=r"float32 tensor \(2, 3\) was changed in place after it was sent"):
            read(record)


def test_what_its_sender_makes_of_a_tensor_afterwards_is_not_what_was_sent() -> None:
    """Another shape, or a graph, would be past whoever judged the declared one; neither counts as a change."""
    sent = torch.ones(2, 3)
    record = wire.encode({"x": sent})
    sent.requires_grad_()
    sent.data = torch.zeros(1, 7)
    (there,) = wire.decode(record).values()
    assert there.tolist() == [[1.0] * 3] * 2 and not there.requires_grad


def test_what_is_written_when_it_is_read_goes_to_another_process_as_bytes() -> None:
    array = wire.encode({"x": torch.arange(6.0).reshape(2, 3).T})["x"]
    for there in (pickle.loads(pickle.dumps(array)), copy.deepcopy(array)):
        assert type(there) is Array and there == Array(array.numpy())


def test_what_many_messages_hold_is_one_tensor_and_the_same_bytes() -> None:
    """A merge of many clients' factors is megabytes, and went to each of them as a copy of its own."""
    shared, own = torch.randn(3, 4), [torch.randn(2) for _ in range(3)]
    encoder = wire.Encoder()
    records = [encoder.encode({"shared": shared, "own": value}) for value in own]
    for record, value in zip(records, own, strict=True):
        there = wire.decode(record)
        assert there["shared"].data_ptr() == shared.data_ptr() and there["own"].data_ptr() == value.data_ptr()
        alone = ArrayRecord({"shared": Array(shared.numpy()), "own": Array(value.numpy())})
        assert written(record) == written(alone)


def written(record: ArrayRecord) -> bytes:
    return wire.to_bytes(RecordDict({"r": record}))


def plain(record: ArrayRecord) -> ArrayRecord:
    """The same record, of arrays that are there."""
    return recorddict_from_proto(recorddict_to_proto(RecordDict({"r": record}))).array_records["r"]


def test_a_record_that_is_handed_over_is_to_flower_what_its_arrays_are() -> None:
    tensors = {"l/A": torch.randn(2, 5), "l/B": torch.randn(3, 2).T, "head/n": torch.arange(4), "x": torch.ones(())}
    handed, there = wire.encode(tensors), plain(wire.encode(tensors))
    assert written(handed) == written(there) and handed.object_id == there.object_id
    assert len(handed) == len(there) and "x" in handed and "y" not in handed
    assert list(handed) == list(there) and handed.keys() == there.keys() and repr(handed) == repr(there)
    assert handed == handed.copy() and handed == wire.clone(RecordDict({"r": handed}))["r"]
    for copied in (pickle.loads(pickle.dumps(handed)), copy.deepcopy(handed)):
        assert copied == there and type(copied.__dict__["_data"]) is dict
    for limit in (Limit(0), Limit(400), Limit(10_000, 40), Limit(10_000, 10_000)):
        assert bool(excess(RecordDict({"r": handed}), limit)) == bool(excess(RecordDict({"r": there}), limit))
    assert excess(RecordDict({"r": handed}), Limit(10_000, 10_000)) == ""
    assert wire.nbytes([RecordDict({"r": handed})]) == len(wire.to_bytes(RecordDict({"r": there})))


@pytest.mark.parametrize("change", ["put", "new", "taken", "popped", "emptied"])
def test_who_changes_a_record_that_was_handed_over_has_its_arrays_and_nobody_else(change: str) -> None:
    """A part that a test or an attack puts in is what is sent: sizes, limits and values are of it."""
    sent = wire.encode({"x": torch.ones(3), "y": torch.zeros(2)})
    mine = wire.clone(RecordDict({"r": sent})).array_records["r"]
    other = Array(torch.full((700,), 2.0).numpy())
    {
        "put": lambda: mine.update({"x": other}),
        "new": lambda: mine.update({"z": other}),
        "taken": lambda: mine.__delitem__("x"),
        "popped": lambda: mine.pop("x"),
        "emptied": mine.clear,
    }[change]()
    expected = plain(mine)
    assert written(mine) == written(expected) and wire.decode(mine).keys() == expected.keys()
    assert all(torch.equal(value, wire.decode(expected)[name]) for name, value in wire.decode(mine).items())
    content = RecordDict({"r": mine})
    assert wire.nbytes([content]) == len(wire.to_bytes(RecordDict({"r": expected})))
    assert bool(excess(content, Limit(600, 10_000))) == (change in ("put", "new"))
    assert wire.decode(sent).keys() == {"x", "y"} and wire.decode(sent)["x"].tolist() == [1, 1, 1]
