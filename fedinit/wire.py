"""The core's values as Flower records, and back.

Tensors travel in one ArrayRecord under the names "<layer>/A", "<layer>/B", "head/<key>". What is not in a message
(a factor that the receiver holds already, or did not train) is left out, and the receiver fills it in.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common.serde import recorddict_to_proto
from numpy.lib import format as npy
from torch import Tensor

from fedinit import message_size
from fedinit.adapters.kinds import of_parts
from fedinit.factors import Factors
from fedinit.state import digest
from fedinit.state.checkpoint import State
from fedinit.tensor_array import DTYPES, NUMPY, Handed, TensorArray, handed_of, handed_over, header, made

STATE = "state"  # the ArrayRecord of factors and head, in both directions
CONFIG = "config"  # the ConfigRecord that goes down
ASKED = "asked"  # the ArrayRecord of what a statistic needs besides the head: {"<layer>/<key>": (d or k, width)}
METRICS = "metrics"  # the MetricRecord that comes back
HEAD = "head/"
IMAGE = "/S"

Wanted = TypeVar("Wanted")
Record = TypeVar("Record", bound=ArrayRecord | ConfigRecord | MetricRecord | RecordDict)


class RecordMissing(LookupError):
    """A message or a state that lacks a record, or has one of another kind under its name."""


def config(message: Message) -> ConfigRecord:
    """The settings that came with a message. Raises RecordMissing."""
    return record(message.content, CONFIG, ConfigRecord)


def arrays(message: Message, name: str = STATE) -> ArrayRecord:
    """The arrays of this name that came with a message. Raises RecordMissing."""
    return record(message.content, name, ArrayRecord)


def metrics(message: Message) -> MetricRecord:
    """The numbers that came with a reply. Raises RecordMissing."""
    return record(message.content, METRICS, MetricRecord)


def record(content: RecordDict, name: str, kind: type[Wanted]) -> Wanted:
    """The record of this name and kind. Raises RecordMissing where there is none, or one of another kind."""
    stored = _data(content).get(name)  # as its own `get`, which is asked dozens of times a message
    if not isinstance(stored, kind):
        there = "none" if stored is None else type(stored).__name__
        raise RecordMissing(f"there is no {kind.__name__} {name!r} (there is {there})")
    return stored


def settings(values: ConfigRecord | MetricRecord) -> dict[str, Any]:
    """All of a record's values, of whatever kinds they are."""
    return dict(_data(values))


def value(values: ConfigRecord | MetricRecord, key: str, kind: type[Wanted]) -> Wanted:
    """A record's value, of this type. Raises KeyError for a key that is missing, TypeError for another type."""
    stored = _data(values)[key]
    if not isinstance(stored, kind):
        raise TypeError(f"{key} is {stored!r}, expected {kind.__name__}")
    return stored


def words(values: ConfigRecord, key: str) -> list[str]:
    """A record's list of strings. Raises KeyError and TypeError as `value` does."""
    return [str(word) for word in value(values, key, list)]


def to_tensors(layers: Mapping[str, Factors], head: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """{"<layer>/A": …, "head/weight": …}, the flat form of adapters and a head."""
    return digest.named_parts(layers) | {HEAD + key: value for key, value in head.items()}


def trained_names(layers: Mapping[str, Factors], head: Mapping[str, Tensor], trainable: frozenset[str]) -> list[str]:
    """The names of the factors that are trained, and of the head, in order."""
    return sorted(n for n in to_tensors(layers, head) if n.startswith(HEAD) or n[-1] in trainable)


def are_same(tensors: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> bool:
    """Whether both have the very same tensors, not equal ones, by the same names."""
    return tensors.keys() == others.keys() and all(others[name] is value for name, value in tensors.items())


def image_name(layer: str) -> str:
    """Of what a client answers in the second phase of a round for a layer, B(AĀᵀ)."""
    return layer + IMAGE


def from_tensors(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Factors], dict[str, Tensor]]:
    """The inverse of `to_tensors`. Raises KeyError naming a factor that is missing, ValueError for shapes
    or for tensors that make no kind of factors together."""
    layers: dict[str, dict[str, Tensor]] = {}
    head: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if name.startswith(HEAD):
            head[name[len(HEAD) :]] = value
        else:
            layer, _, part = name.rpartition("/")
            layers.setdefault(layer, {})[part] = value
    for layer, parts in layers.items():
        for part in ("A", "B"):
            if part not in parts:
                raise KeyError(f"{layer}/{part}")
    return {layer: of_parts(parts) for layer, parts in layers.items()}, head


def encode(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """Named tensors as numpy arrays on the wire; dtypes and order are kept. Bytes are written when they are read, which
    they are on the way to another process: until then nobody may change the tensors."""
    return handed_over(Handed(tensors))


class Encoder:
    """`encode` for several messages, to clients most of which are sent the same: what the very same mapping holds is
    looked at once."""

    def __init__(self) -> None:
        # By identity; the mapping too, so that no other gets it.
        self._made: dict[int, tuple[Mapping[str, Tensor], Handed]] = {}

    def encode(self, tensors: Mapping[str, Tensor]) -> ArrayRecord:
        """As the function of this name."""
        if id(tensors) not in self._made:
            self._made[id(tensors)] = tensors, Handed(tensors)
        return handed_over(self._made[id(tensors)][1])


def _record(arrays: Mapping[str, Array]) -> ArrayRecord:
    """A record of just these arrays; `ArrayRecord(arrays)` is one of copies, each checked anew."""
    return _filled(ArrayRecord(), arrays)


def _data(record: ArrayRecord | ConfigRecord | MetricRecord | RecordDict) -> Any:
    """What Flower keeps a record's values in."""
    return record.__dict__["_data"]


def _filled(record: Record, values: Mapping[str, Any]) -> Record:
    """The new record with these values, which are known to be what it takes: Flower looks at every key and at every
    element of every list, for all messages of a round anew."""
    _data(record).update(values)
    return record


def numbers(values: Mapping[str, int | float]) -> MetricRecord:
    """A new record of these. Flower's own takes as long for six numbers as for a message."""
    if all(type(value) in (int, float) for value in values.values()):
        return _filled(MetricRecord(), values)
    return MetricRecord(dict(values))


def of_records(records: Mapping[str, ArrayRecord | ConfigRecord | MetricRecord]) -> RecordDict:
    """The content of a message, or a state, of these records."""
    return _filled(RecordDict(), records)


def extended(common: ConfigRecord, own: Mapping[str, str | int]) -> ConfigRecord:
    """A new record of the settings that many messages share, and of those of one. Flower looks through the former
    once, and not for each."""
    return _filled(_filled(ConfigRecord(), common), own)


def decode(record: ArrayRecord) -> dict[str, Tensor]:
    """The inverse of `encode`. The tensors own their memory, or are those that this process encoded, which nobody
    changes.

    Nothing is made of bytes that are not what their array declares: a shape of the bytes' own would be past whoever
    judged the declared one, and might ask for any amount of memory. Raises ValueError, naming the tensor.
    """
    if (handed := handed_of(record)) is not None:
        return dict(handed.tensors)
    return {name: _tensor(name, array) for name, array in record.items()}


def _tensor(name: str, array: Array) -> Tensor:
    """The tensor of the declared shape and type. Raises ValueError for other bytes than numpy's of just this tensor."""
    if isinstance(array, TensorArray):
        return array.tensor
    shape = tuple(array.shape)
    usual = array.dtype in DTYPES and array.stype == NUMPY and len(shape) <= 8 and all(type(n) is int for n in shape)
    if usual:  # in all likelihood it is what `encode` wrote; what is not is read closely
        dtype = DTYPES[array.dtype]
        start = header(array.dtype, shape)
        left = len(array.data) - len(start)
        if array.data.startswith(start) and left == dtype.itemsize * math.prod(shape):
            return torch.from_numpy(np.frombuffer(array.data, dtype, offset=len(start)).reshape(shape).copy())
    declared = f"{array.dtype} {tuple(array.shape)}"
    if array.stype != NUMPY:
        raise ValueError(f"{name}: its bytes are {array.stype!r}, expected 'numpy.ndarray'")
    content = io.BytesIO(array.data)
    try:
        version = npy.read_magic(content)
        shape, fortran, dtype = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[version](content)
    except (ValueError, KeyError, SyntaxError, RecursionError, MemoryError) as error:
        # A MemoryError is of Python's parser, at what is nested too deep, and not of this machine.
        cause = None if isinstance(error, MemoryError) else error
        raise ValueError(f"{name}: its bytes are no numpy array, declared as {declared}") from cause
    if shape != tuple(array.shape) or str(dtype) != array.dtype or dtype.hasobject:
        raise ValueError(f"{name}: its bytes are {dtype} {shape}, declared as {declared}")
    left = len(array.data) - content.tell()
    if left != dtype.itemsize * math.prod(shape) or (fortran and len(shape) > 1):
        raise ValueError(f"{name}: {left} bytes of values, declared as {declared}, row after row")
    values = np.frombuffer(array.data, dtype, offset=content.tell()).reshape(shape)
    return torch.from_numpy(values.copy())  # a copy, since the bytes are the message's


def clone(content: RecordDict) -> RecordDict:
    """Fresh records over the same immutable bytes, so that a receiver can change nothing of the sender's.

    Not deepcopy: an ArrayRecord that was sent once holds memory views, which cannot be copied.
    """
    copies: dict[str, Any] = {}
    for key, record in content.items():
        if isinstance(record, ArrayRecord):
            handed = handed_of(record)
            alike = handed_over(handed) if handed else _record({n: _alike(array) for n, array in record.items()})
            copies[key] = alike
            continue
        values: dict[str, Any] = {k: list(v) if isinstance(v, list) else v for k, v in record.items()}
        copies[key] = _filled(type(record)(), values)
    return of_records(copies)


def _alike(array: Array) -> Array:
    """Another over the same bytes; itself, where nobody can change it."""
    return array if isinstance(array, TensorArray) else made(array.dtype, array.shape, array.stype, array.data)


class Shared:
    """The arrays and records that many hold, each once: what several have to the last byte is one object. It forgets
    what nobody holds any more."""

    def __init__(self) -> None:
        self._arrays: WeakValueDictionary[tuple[object, ...], Array] = WeakValueDictionary()
        self._records: WeakValueDictionary[tuple[object, ...], ArrayRecord] = WeakValueDictionary()

    def put(self, content: RecordDict, but: str | None = None) -> None:
        """Have this content's arrays, and records of them, be those that others hold, where they are equal. Its records
        are replaced; none is changed in place. but: those with this in their names stay as they are."""
        for key, record in [*content.items()]:
            if isinstance(record, ArrayRecord) and (but is None or but not in key):
                arrays = {name: a.written() if isinstance(a, TensorArray) else a for name, a in record.items()}
                arrays = {name: self._arrays.setdefault(_key(a), a) for name, a in arrays.items()}
                same = tuple((name, id(array)) for name, array in arrays.items())
                content[key] = self._records.setdefault(same, _record(arrays))


def _key(array: Array) -> tuple[object, ...]:
    """All that an array is. Cheap to look up: Python hashes a string of bytes once, and compares none with itself."""
    return array.dtype, array.shape, array.stype, array.data


def to_state(content: RecordDict) -> State:
    """Records as a checkpoint keeps them: arrays as tensors "<record>/<name>", the other records as facts. Equal arrays
    are one tensor."""
    tensors: dict[str, Tensor] = {}
    decoded: dict[tuple[object, ...], Tensor] = {}
    facts: dict[str, object] = {}
    for key, record in content.items():
        if isinstance(record, ArrayRecord):
            decoded |= {
                _key(array): _tensor(name, array) for name, array in record.items() if _key(array) not in decoded
            }
            tensors |= {f"{key}/{name}": decoded[_key(array)] for name, array in record.items()}
            facts[key] = {"arrays": list(record)}
        else:
            kind = "config" if isinstance(record, ConfigRecord) else "metrics"
            facts[key] = {kind: {k: {"hex": v.hex()} if isinstance(v, bytes) else v for k, v in record.items()}}
    return State(tensors, facts)


def from_state(state: State) -> RecordDict:
    """The inverse of `to_state`; a tensor of several names is encoded once."""
    content = RecordDict()
    distinct = {id(tensor): tensor for tensor in state.tensors.values()}
    encoded = {of: TensorArray(tensor).written() for of, tensor in distinct.items()}
    for key, facts in state.facts.items():
        ((kind, values),) = facts.items()
        if kind == "arrays":
            content[key] = _record({name: encoded[id(state.tensors[f"{key}/{name}"])] for name in values})
        else:
            plain: dict[str, Any] = {
                k: bytes.fromhex(v["hex"]) if isinstance(v, dict) else v for k, v in values.items()
            }
            content[key] = ConfigRecord(plain) if kind == "config" else MetricRecord(plain)
    return content


def to_bytes(content: RecordDict) -> bytes:
    """The records as one string of bytes, the same for equal records."""
    return recorddict_to_proto(content).SerializeToString(deterministic=True)


def nbytes(contents: Iterable[RecordDict]) -> int:
    """Bytes of the records as protocol buffers. Raises ValueError or TypeError for what no message holds."""
    return sum(map(message_size.of, contents))
