"""What happens to an update between a client's training and the server's aggregation.

A chain of transforms is the same on both sides. On its way out every transform's `on_client` is applied, in order; each
reply that arrives goes through `received` in the opposite order, before it is validated and summed; what was summed
goes through `on_server` in the opposite order, before the server's optimiser and the re-initialiser see it.

    client   trained tensors -> t1.on_client -> t2.on_client -> reply
    server   reply -> t2.received -> t1.received -> validation -> aggregation -> t2.on_server -> t1.on_server

Clipping is an `on_client`; its noise goes on the clients' sums before a method's rule, which may be no linear one
(strategies/server/weighing.py). A compression is an `on_client` with its inverse in `received`.
A transform keeps nothing between two calls, so that a task that is given again makes the same bytes again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from torch import Tensor

from fedinit.factors import Factors
from fedinit.slots import Chosen

Aggregated = TypeVar("Aggregated")


@dataclass(frozen=True)
class Payload:
    """What leaves a client.

    tensors: by wire name ("<layer>/B", "head/weight"), as they go into the reply.
    chosen: {layer: places} of the slots that the client trained, where it had a choice; None: all.
    """

    tensors: Mapping[str, Tensor]
    chosen: Chosen | None = None


class Task(Protocol):
    """What a transform may ask of a client's task.

    client: its partition id.
    round: the number of the round.
    adapter: {layer: factors} that it started from.
    head: {key: tensor} that it started from.
    trainable: the parts of the factors that it trains, "A", "B" and so on.
    personal: the parts that it trains and never sends.
    """

    @property
    def client(self) -> int: ...
    @property
    def round(self) -> int: ...
    @property
    def adapter(self) -> Mapping[str, Factors]: ...
    @property
    def head(self) -> Mapping[str, Tensor]: ...
    @property
    def trainable(self) -> frozenset[str]: ...
    @property
    def personal(self) -> frozenset[str]: ...


class Asked(Protocol):
    """What the server knows of the message that a reply answers.

    sent: {wire name: tensor} of the client's whole start.
    trained: the wire names that are to come back.
    slots: how many slots of the trained factor may come back, chosen by the client; None: all of them do.
    """

    @property
    def sent(self) -> Mapping[str, Tensor]: ...
    @property
    def trained(self) -> frozenset[str]: ...
    @property
    def slots(self) -> int | None: ...


class Malformed(ValueError):
    """A reply that a transform cannot take back."""

    def __init__(self, code: str, detail: str) -> None:
        """
        code: the reason by which the reply is refused, as the ledger has it.
        detail: one line for people.
        """
        super().__init__(detail)
        self.code, self.detail = code, detail


class UpdateTransform:
    """One step between a client's training and the server's aggregation; each method changes nothing by default."""

    def on_client(self, task: Task, result: Payload) -> Payload:
        """What leaves the client. result: what it made of the task, after the transforms before this one."""
        return result

    def received(self, asked: Asked, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The inverse of `on_client` for one reply, as far as there is one.

        The tensors come from outside and are not validated yet. Raises Malformed for what cannot be taken back.
        """
        return tensors

    def on_server(self, aggregate: Aggregated, admitted: Sequence[Any]) -> Aggregated:
        """The aggregate of a round as the next step takes it. admitted: the updates that it was made from, in client
        order."""
        return aggregate


def leave(transforms: Sequence[UpdateTransform], task: Task, result: Payload) -> Payload:
    """What leaves the client after all transforms, in order."""
    for transform in transforms:
        result = transform.on_client(task, result)
    return result


def receive(transforms: Sequence[UpdateTransform], asked: Asked, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """One reply's tensors after all inverses, in the opposite order. Raises Malformed."""
    for transform in reversed(transforms):
        tensors = transform.received(asked, tensors)
    return tensors


def settle(transforms: Sequence[UpdateTransform], aggregate: Aggregated, admitted: Sequence[Any]) -> Aggregated:
    """The aggregate after all transforms, in the opposite order."""
    for transform in reversed(transforms):
        aggregate = transform.on_server(aggregate, admitted)
    return aggregate
