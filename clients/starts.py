"""What a client starts from: what it was sent, and what it holds from before, together as the server made it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flwr.app import ArrayRecord, Context, Message
from torch import Tensor

from clients.replies import HELD, held
from clients.site import Site
from clients.state import rounds
from fedinit import wire
from fedinit.factors import PARTS, Factors
from fedinit.state import digest
from fedinit.transforms.personal import with_personal


@dataclass(frozen=True)
class Start:
    """What a client starts from: tensors by wire name, their digest, and the factors and head that they are."""

    tensors: Mapping[str, Tensor]
    digest: str
    layers: Mapping[str, Factors]
    head: Mapping[str, Tensor]


class Starts:
    """Of a site's clients. Those of a round in one process are sent the very same tensors, which nobody may change:
    what was made of them once is there for all."""

    def __init__(self, site: Site) -> None:
        self._order = list(site.targets)
        self._last = Start({}, digest.of_tensors({}), {}, {})
        # What was sent last of which nothing is held, the parts to keep that went with it, and the start that it is.
        self._whole: tuple[Mapping[str, Tensor], list[str], Mapping[str, Tensor]] = {}, [], {}
        self._needed = frozenset(f"{layer}/{part}" for layer in site.targets for part in ("A", "B"))
        self._factors = frozenset(f"{layer}/{part}" for layer in site.targets for part in PARTS)

    def of(
        self, message: Message, sent: Mapping[str, Tensor], context: Context
    ) -> tuple[dict[str, Factors], dict[str, Tensor]]:
        """The adapter and head that the message is about: what was `sent`, and what this client holds already.

        What was sent of the parts that the message tells to keep is held from here on.
        Raises LookupError where that is not the start that the server made.
        """
        config = wire.config(message)
        tensors = self._complete(sent, wire.words(config, "keep"), context)
        start = self._read(tensors, str(config["start-digest"]))
        personal = wire.words(config, "personal")
        own = of_last_accepted(message, context) if personal else None
        return with_personal(start.layers, own, personal), dict(start.head)

    def _complete(self, sent: Mapping[str, Tensor], keep: list[str], context: Context) -> Mapping[str, Tensor]:
        """Factors and head: those sent, and those that this client holds; the parts to `keep` it holds from here on.
        What came whole, and leaves nothing to hold, is the same for all who are sent it."""
        of, parts, whole = self._whole
        if sent is of and keep == parts and HELD not in context.state:
            return whole
        retained, known = {f"/{part}" for part in keep}, held(context)
        kept = {name: value for name, value in sent.items() if name[-2:] in retained and not name.startswith(wire.HEAD)}
        if kept:  # what it held stays the very arrays that they were, which clients of one process share
            before = wire.record(context.state, HELD, ArrayRecord) if HELD in context.state else {}
            context.state[HELD] = ArrayRecord({**before, **wire.encode(kept)})
        complete = known | dict(sent)
        absent = sorted(self._needed - complete.keys())
        if absent:
            raise LookupError(f"factor {absent[0]} was neither sent nor is held by this client")
        tensors = {k: v for k, v in complete.items() if k in self._factors or k.startswith(wire.HEAD)}
        if HELD not in context.state:
            self._whole = sent, keep, tensors
        return tensors

    def _read(self, tensors: Mapping[str, Tensor], meant: str) -> Start:
        """The start that these tensors are. Of the same ones as before it is the same: a round's clients in one process
        start from these. meant: its digest, as the server has it. Raises LookupError where it has another."""
        start = self._last
        known = tensors is start.tensors or wire.are_same(tensors, start.tensors)
        if (start.digest if known else digest.of_tensors(tensors)) != meant:
            raise LookupError("the start that this client put together is not the one the server made")
        if not known:
            layers, head = wire.from_tensors(tensors)
            ordered = {layer: layers[layer] for layer in self._order}
            self._last = start = Start(tensors, meant, ordered, head)
        return start


def of_last_accepted(message: Message, context: Context) -> dict[str, Factors] | None:
    """What this client ended the round of its last accepted update with; None where it has nothing of its own."""
    return rounds.own_factors(context, rounds.accepted(message))
