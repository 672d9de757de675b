"""What a client takes from a server: factors and merges of the layers that are adapted, a head, and nothing else.

A run is about one frozen backbone, which each site holds in a file of its own; the server says by its hash which one it
means. Weights that a message might carry for it are refused, not loaded.
"""

from __future__ import annotations

from collections.abc import ItemsView

import numpy as np
from flwr.app import Array, ArrayRecord, Message

from clients.site import Site
from fedinit import wire
from fedinit.errors import InputError
from fedinit.factors import PARTS
from fedinit.state import base_offset as base

ORTHONORMAL = 1e-3  # how far an entry of QᵀQ may be from the identity's; float32 leaves 1e-6
RECORDS = {wire.CONFIG, wire.STATE, wire.ASKED, base.RECORD}


def check(message: Message, site: Site) -> None:
    """Raise InputError, one line, for another backbone, and for a record, tensor or shape that is no part of a run."""
    for name in message.content.keys() - RECORDS:
        raise InputError(f"the server sent a record {name!r}, which is no part of a run")
    meant = str(wire.config(message)["backbone"]) if wire.CONFIG in message.content else ""
    if meant != site.backbone.digest:
        raise InputError(
            f"the run is for the backbone {meant[:12] or '(none named)'}, this client holds "
            f"{site.backbone.digest[:12]}; give both the same model.checkpoint"
        )
    for name, array in _arrays(message, wire.STATE):
        if name.startswith(wire.HEAD):
            shapes: dict[str, tuple[int, ...]] = {"weight": (len(site.data.class_names), site.backbone.features)}
            shapes["bias"] = shapes["weight"][:1]
            _shape(name, array, shapes.get(name[len(wire.HEAD) :]))
        else:
            _factor(name, array, site)
    for name, array in _arrays(message, wire.ASKED):
        _basis(name, array, site)
    for name, array in _arrays(message, base.RECORD):
        if name in site.targets:  # the offset whole
            _shape(name, array, site.targets[name])
        else:
            _factor(name.partition("/")[2], array, site)  # "<version>/<layer>/A"


def _arrays(message: Message, record: str) -> ItemsView[str, Array]:
    content = message.content.get(record, ArrayRecord())
    if not isinstance(content, ArrayRecord):
        raise InputError(f"the server sent {record!r} as {type(content).__name__}, expected an ArrayRecord")
    return content.items()


def _basis(name: str, array: Array, site: Site) -> None:
    """Raise InputError for what is no basis to project a statistic on: orthonormal columns (k, q) or (d, q), for the
    inputs or the outputs of an adapted layer.

    A longer column would carry more of an image than the noise is made for, and one that repeats would have noise
    averaged out.
    """
    layer = name.rpartition("/")[0]
    if layer not in site.targets:
        raise InputError(f"the server sent {name!r}, which belongs to no adapted layer")
    rows = array.shape[0] if len(array.shape) == 2 and array.shape[0] in site.targets[layer] else site.targets[layer][1]
    columns = (array.shape[1:2] or (0,))[0]
    _shape(name, array, (rows, columns))
    if columns > rows or not _off_orthonormal(array.numpy().astype(np.float64)) <= ORTHONORMAL:
        raise InputError(f"the server sent {name} with columns that are not orthonormal to {ORTHONORMAL:g}")


def _off_orthonormal(basis: np.ndarray) -> float:
    """The largest entry of |QᵀQ - I|; NaN where one of Q is."""
    return np.abs(basis.T @ basis - np.eye(basis.shape[1])).max(initial=0.0)


def _factor(name: str, array: Array, site: Site) -> None:
    """Raise InputError for what is no factor, in its shape, of an adapted layer."""
    layer, _, part = name.rpartition("/")
    if layer not in site.targets or part not in PARTS:
        raise InputError(
            f"the server sent {name!r}, which is no factor of an adapted layer; a client takes no weights of its "
            "backbone from a server"
        )
    d, k = site.targets[layer]
    rank = (array.shape or (0,))[0 if part == "A" else -1]
    core = (rank, rank) if len(array.shape) == 2 else (array.shape[0], rank, rank)  # full, or its diagonal blocks
    _shape(name, array, {"A": (rank, k), "B": (d, rank), "R": core, "b": (d,), "d": (rank,), "m": (d,)}[part])


def _shape(name: str, array: Array, expected: tuple[int, ...] | None) -> None:
    """Raise InputError for another shape, or none that is expected, and for what is not float32."""
    if expected is None:
        raise InputError(f"the server sent {name!r}, which is no part of a head")
    if tuple(array.shape) != expected or array.dtype != "float32":
        raise InputError(f"the server sent {name} as {array.dtype} {tuple(array.shape)}, expected float32 {expected}")
