"""What a client takes from a server: factors and merges of the layers that are adapted, a head, and nothing else.

Everything is decoded here, once, into what was declared and the site's own model has. A run is about one frozen
backbone, which each site holds in a file of its own; the server says by its hash which one it means. Weights that a
message might carry for it are refused, not loaded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from flwr.app import ArrayRecord, Message
from torch import Tensor

from clients.site import Site
from fedinit import wire
from fedinit.errors import Refused, machine_failed
from fedinit.factors import PARTS
from fedinit.norms import first_not_finite
from fedinit.secagg import messages as secagg
from fedinit.state import base_offset as base
from fedinit.statistics import Request, shapes_of
from fedinit.tensor_array import Handed, handed_of

Received = Mapping[str, dict[str, Tensor]]  # {record: {name: tensor}}, which may be others' too: nobody changes it

ORTHONORMAL = 1e-3  # how far an entry of QᵀQ may be from the identity's; float32 leaves 1e-6
RECORDS = {wire.CONFIG, wire.STATE, wire.ASKED, base.RECORD, secagg.RECORD}


class Guard:
    """Of a site's clients. What it has looked through it knows again by identity: a round's clients in one process are
    sent the very same tensors, which nobody may change."""

    def __init__(self, site: Site) -> None:
        self._site = site
        # By record, what was let in last; and what it came as, where that was handed over in this process.
        self._passed: dict[str, tuple[dict[str, Tensor], Handed | None]] = {}

    def check(self, message: Message) -> Received:
        """The tensors of the message, by record and name.

        Raises Refused, one line, for another backbone, and for a record, tensor, shape or value that is no part of a
        run.
        """
        check_records(message)
        meant = str(wire.config(message)["backbone"]) if wire.CONFIG in message.content else ""
        if meant != (ours := self._site.backbone.digest):
            raise Refused(
                f"the run is for the backbone {meant[:12] or '(none named)'}, this client holds "
                f"{ours[:12]}; give both the same model.checkpoint"
            )
        return {record: self._received(message, record, look) for record, look in LOOKS.items()}

    def _received(self, message: Message, record: str, look: Callable[[str, Tensor, Site], None]) -> dict[str, Tensor]:
        """The tensors of a record, all values finite, each of a name and a shape that `look` lets in."""
        content = message.content.get(record)
        handed = handed_of(content) if isinstance(content, ArrayRecord) else None
        last, came_as = self._passed.get(record, ({}, None))
        if handed is not None and handed is came_as and handed.tensors:  # which looks whether they are as they were
            return last
        tensors = _decoded(message, record)
        if wire.are_same(tensors, last):
            return tensors
        if (name := first_not_finite(tensors)) is not None:
            raise Refused(f"the server sent {name} with NaN or infinity")
        for name, array in tensors.items():
            look(name, array, self._site)
        self._passed[record] = tensors, handed
        return tensors


def check_records(message: Message) -> None:
    """Raise Refused for a message with a record that is no part of a run."""
    for name in message.content.keys() - RECORDS:
        raise Refused(f"the server sent a record {name!r}, which is no part of a run")


def check_request(request: Request, site: Site, has_start: bool) -> None:
    """Raise Refused for a statistic of what the site's model does not have, or with sums larger than the square of
    a layer's width, before anything is allocated for it. has_start: adapters came with it, as to `adapters` alone."""
    if has_start != (request.source == "adapters"):
        raise Refused(
            f"the server asked for statistics of {request.source}, {'with' if has_start else 'without'} a start"
        )
    for name, shape in request.shapes.items():
        expected = {
            "features": (len(site.data.class_names), site.backbone.features),
            "adapters": shape,  # of the start's tensors, which bank.leaf knows by name
        }.get(request.source, site.targets.get(name))
        if tuple(shape) != expected or not all(type(size) is int and size > 0 for size in shape):
            what = f"which is {expected} here" if expected else "which is no adapted layer"
            raise Refused(f"the server asked for statistics of {name!r} as {tuple(shape)}, {what}")
    try:
        request.sampling.check("sampling")
        shapes = shapes_of(request)
    except Exception as error:  # options from outside: whatever reading them raises
        if machine_failed(error):
            raise
        raise Refused("the server asked for statistics that are none, or with options that they cannot have") from error
    widest = 1 + max(max(shape) for shape in (*site.targets.values(), (site.backbone.features,)))
    for name, shape in shapes.items():
        if not math.prod(shape) <= max(widest, len(site.data.class_names)) ** 2:
            raise Refused(f"the server asked for {name} as {shape}, more than the square of a layer's width")


def _decoded(message: Message, record: str) -> dict[str, Tensor]:
    """The arrays of a record, decoded; none where there is no such record."""
    if record not in message.content:
        return {}
    content = message.content[record]
    if not isinstance(content, ArrayRecord):
        raise Refused(f"the server sent {record!r} as {type(content).__name__}, expected an ArrayRecord")
    try:
        return wire.decode(content)
    except ValueError as error:
        raise Refused(f"the server sent {error}") from error


def _state(name: str, array: Tensor, site: Site) -> None:
    """Raise Refused for what is neither of a head of the site's own classes nor a factor."""
    if not name.startswith(wire.HEAD):
        _factor(name, array, site)
        return
    weight = len(site.data.class_names), site.backbone.features
    _shape(name, array, {"weight": weight, "bias": weight[:1]}.get(name[len(wire.HEAD) :]))


def _merge(name: str, array: Tensor, site: Site) -> None:
    """Raise Refused for what is neither a layer's offset whole nor a factor of a merge, "<version>/<layer>/A"."""
    if name in site.targets:
        _shape(name, array, site.targets[name])
    else:
        _factor(name.partition("/")[2], array, site, stacked=True)


def _basis(name: str, array: Tensor, site: Site) -> None:
    """Raise Refused for what is no basis to project a statistic on: orthonormal columns (k, q) or (d, q), for the
    inputs or the outputs of an adapted layer.

    A longer column would carry more of an image than the noise is made for, and one that repeats would have noise
    averaged out.
    """
    layer = name.rpartition("/")[0]
    if layer not in site.targets:
        raise Refused(f"the server sent {name!r}, which belongs to no adapted layer")
    rows = array.shape[0] if len(array.shape) == 2 and array.shape[0] in site.targets[layer] else site.targets[layer][1]
    columns = (array.shape[1:2] or (0,))[0]
    _shape(name, array, (rows, columns))
    if columns > rows or not _off_orthonormal(array.double()) <= ORTHONORMAL:
        raise Refused(f"the server sent {name} with columns that are not orthonormal to {ORTHONORMAL:g}")


def _off_orthonormal(basis: Tensor) -> float:
    """The largest entry of |QᵀQ - I|."""
    off = (basis.T @ basis - torch.eye(basis.shape[1])).abs()
    return float(off.max()) if off.numel() else 0.0


def _factor(name: str, array: Tensor, site: Site, stacked: bool = False) -> None:
    """Raise Refused for what is no factor, in its shape, of an adapted layer.

    stacked: of a merge, which may hold the factors of all clients side by side.
    """
    layer, _, part = name.rpartition("/")
    if layer not in site.targets or part not in PARTS:
        raise Refused(
            f"the server sent {name!r}, which is no factor of an adapted layer; a client takes no weights of its "
            "backbone from a server"
        )
    d, k = site.targets[layer]
    rank = (tuple(array.shape) or (0,))[0 if part == "A" else -1]
    if part in ("A", "B") and not stacked and rank > min(d, k):
        raise Refused(f"the server sent {name} of rank {rank}; a map from {k} to {d} has no more than {min(d, k)}")
    core = (rank, rank) if len(array.shape) == 2 else (array.shape[0], rank, rank)  # full, or its diagonal blocks
    _shape(name, array, {"A": (rank, k), "B": (d, rank), "R": core, "b": (d,), "d": (rank,), "m": (d,)}[part])


def _shape(name: str, array: Tensor, expected: tuple[int, ...] | None) -> None:
    """Raise Refused for another shape, or none that is expected, and for what is not float32."""
    if expected is None:
        raise Refused(f"the server sent {name!r}, which is no part of a head")
    if tuple(array.shape) != expected or array.dtype != torch.float32:
        dtype = str(array.dtype).removeprefix("torch.")
        raise Refused(f"the server sent {name} as {dtype} {tuple(array.shape)}, expected float32 {expected}")


# How each record of tensors is looked through.
LOOKS: Mapping[str, Callable[[str, Tensor, Site], None]] = {wire.STATE: _state, wire.ASKED: _basis, base.RECORD: _merge}
