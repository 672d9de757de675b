"""The server's state between two rounds, as one value: all that the next round is made from, besides what the clients
keep themselves.

A round takes a state and gives the next one (`run_round`); nothing changes a state in place, so the state of a round
that failed is still there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fedinit import wire
from fedinit.runs.observer import Roster
from fedinit.state import base_offset, digest
from fedinit.state.checkpoint import State
from fedinit.state.start import StartState
from strategies.aggregator import Aggregate
from strategies.server.base_ledger import UNKNOWN, BaseLedger


@dataclass(frozen=True)
class ClientMirror:
    """What the server counts on that one client holds, so that nothing is sent twice.

    held: {tensor by wire name: digest} of what it was sent and keeps.
    base_version: of the base offset that it holds; UNKNOWN where nothing is taken for granted.
    accepted: the last round in which its update was let in, from which it goes on with what it remembers; 0 for none.
    """

    held: Mapping[str, str] = field(default_factory=dict)
    base_version: int = 0
    accepted: int = 0

    def reconciled(self, held: Mapping[str, str], base_key: str, base: BaseLedger) -> ClientMirror:
        """Of what the client was sent before, count only on what it says it still holds.

        held: {tensor by wire name: digest} that it names. base_key: of the base offset that it names.
        base: the server's own, against which the key is checked.
        """
        same = {name: sent for name, sent in self.held.items() if held.get(name) == sent}
        version = self.base_version if base.is_key_of(self.base_version, base_key) else UNKNOWN
        unchanged = same == self.held and version == self.base_version
        return self if unchanged else replace(self, held=same, base_version=version)

    def dropped(self) -> ClientMirror:
        """Take nothing that the client was sent for granted any more."""
        return replace(self, held={}, base_version=UNKNOWN)


NOTHING_HELD = ClientMirror()  # of a client that was sent nothing


@dataclass(frozen=True, kw_only=True)
class ServerState:
    """Where a run stands between two rounds.

    round: the last that was completed; 0 after the start.
    model: global factors and head.
    base: what was merged into the frozen weights.
    roster: who takes part.
    mirrors: {partition id: what that client holds}.
    moments: {"<moment>/<tensor>": float64} of the server optimiser.
    step_scales: {wire name: number}, those of the clients' optimiser that the server fixed.
    clip: of the next round with privacy=clients, where it adapts; 0 before the first.
    bytes_up, bytes_down: of all messages of the run so far.
    """

    round: int
    model: Aggregate
    base: BaseLedger
    roster: Roster
    mirrors: Mapping[int, ClientMirror]
    moments: Mapping[str, Tensor] = field(default_factory=dict)
    step_scales: Mapping[str, float] = field(default_factory=dict)
    clip: float = 0.0
    bytes_up: int = 0
    bytes_down: int = 0

    @staticmethod
    def begun(start: StartState, roster: Roster, mirrors: Mapping[int, ClientMirror]) -> ServerState:
        """The state that round 1 begins from. start: what round 0 made; its `merge` goes into the base."""
        model = Aggregate(layers=start.layers, head=start.head)
        return ServerState(round=0, model=model, base=BaseLedger().merged(start.merge), roster=roster, mirrors=mirrors)

    def mirror(self, client: int) -> ClientMirror:
        """What this client, a partition id, is counted on to hold; nothing where it was sent nothing."""
        return self.mirrors.get(client, NOTHING_HELD)

    def mirroring(self, changed: Mapping[int, ClientMirror]) -> ServerState:
        """The state with these mirrors, {partition id: mirror}, in place of the clients' old ones."""
        return replace(self, mirrors={**self.mirrors, **changed})

    def dropping(self, clients: Iterable[int]) -> ServerState:
        """The state with nothing taken for granted of these clients; ids that are no client's are passed over."""
        known = {client for client in clients if client in self.roster.examples}
        return self.mirroring({client: self.mirror(client).dropped() for client in known})

    def accepting(self, clients: Iterable[int], round: int) -> ServerState:
        """The state once these clients' updates of a round were let in."""
        alike: dict[int, ClientMirror] = {}  # by identity: most clients of a round have the very same
        mirrors = {}
        for client in clients:
            mirror = self.mirror(client)
            if id(mirror) not in alike:
                alike[id(mirror)] = replace(mirror, accepted=round)
            mirrors[client] = alike[id(mirror)]
        return self.mirroring(mirrors)

    def lacking(
        self, starts: Mapping[int, Mapping[str, Tensor]], passing: Collection[str]
    ) -> tuple[ServerState, dict[int, dict[str, Tensor]]]:
        """The state once these starts were sent, and {client: the tensors of its start that it does not hold yet}.

        starts: {client: {wire name: tensor}}.
        passing: the names of tensors that clients do not keep. They are sent, unless a client holds the very same from
        before; all others count as held in the state that is returned.
        """
        digests: dict[tuple[str, torch.Size], str] = {}  # by shape: of one rank all have the same
        # By identity: most clients of a round start from the same, and hold the same.
        parted: dict[tuple[int, int], tuple[Mapping[str, str], dict[str, Tensor]]] = {}
        alike: dict[tuple[int, int], ClientMirror] = {}
        lacking: dict[int, dict[str, Tensor]] = {}
        mirrors = {}
        for client, start in starts.items():
            mirror = self.mirror(client)
            key = id(start), id(mirror.held)
            if key not in parted:
                parted[key] = _parted(start, mirror.held, passing, digests)
            held, lacking[client] = parted[key]
            if held is not mirror.held or mirror.base_version != self.base.version:
                pair = id(mirror), id(held)
                if pair not in alike:
                    alike[pair] = replace(mirror, held=held, base_version=self.base.version)
                mirrors[client] = alike[pair]
        return self.mirroring(mirrors), lacking

    def tensors(self) -> dict[str, Tensor]:
        """All that the model is, by wire name: factors, head, and the base offset under "offset/<layer>", (d, k)."""
        offset = {base_offset.NAME + name: value for name, value in self.base.offset.items()}
        return wire.to_tensors(self.model.layers, self.model.head) | offset

    def snapshot(self) -> State:
        """The state as a checkpoint keeps it; `restored` is its inverse."""
        tensors = {f"model/{n}": t for n, t in wire.to_tensors(self.model.layers, self.model.head).items()}
        base = self.base.snapshot()
        tensors |= {f"base/{name}": tensor for name, tensor in base.tensors.items()}
        tensors |= {f"moments/{name}": tensor for name, tensor in self.moments.items()}
        roster = self.roster
        tensors["roster/examples"] = roster.table  # as text, 100,000 take half a second
        facts = {
            "round": self.round,
            "diagnostics": dict(self.model.diagnostics),
            "base": base.facts,
            "mirrors": {
                str(client): {**vars(mirror), "held": dict(mirror.held)}
                for client, mirror in self.mirrors.items()
                if mirror != NOTHING_HELD  # as of all who were not sampled yet
            },
            "scales": dict(self.step_scales),
            "bytes": [self.bytes_up, self.bytes_down],
            "roster": {
                "classes": list(roster.class_names),
                "domains": list(roster.domain_names),
                "score": roster.score,
            },
        }
        return State(tensors, facts | ({"clip": self.clip} if self.clip else {}))

    @staticmethod
    def restored(state: State) -> ServerState:
        """The inverse of `snapshot`."""
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "base": {}, "moments": {}, "roster": {}}
        for name, tensor in state.tensors.items():
            part, _, rest = name.partition("/")
            parts[part][rest] = tensor
        facts: Mapping[str, Any] = state.facts
        layers, head = wire.from_tensors(parts["model"])
        roster = facts["roster"]
        return ServerState(
            round=facts["round"],
            model=Aggregate(layers=layers, head=head, diagnostics=facts["diagnostics"]),
            base=BaseLedger.restored(State(parts["base"], facts["base"])),
            moments=parts["moments"],
            step_scales=facts["scales"],
            clip=facts.get("clip", 0.0),
            mirrors={int(client): ClientMirror(**known) for client, known in facts["mirrors"].items()},
            roster=Roster(
                examples=dict(zip(*parts["roster"]["examples"].tolist(), strict=True)),
                class_names=roster["classes"],
                domain_names=roster["domains"],
                score=roster["score"],
            ),
            bytes_up=facts["bytes"][0],
            bytes_down=facts["bytes"][1],
        )


def _parted(
    start: Mapping[str, Tensor],
    known: Mapping[str, str],
    passing: Collection[str],
    digests: dict[tuple[str, torch.Size], str],
) -> tuple[Mapping[str, str], dict[str, Tensor]]:
    """What a client holds once it was sent a start, {name: digest}, `known` itself where that is no more; and what of
    the start it lacks until then. digests: of tensors by name and shape, more of which are put in."""
    held, lacking = dict(known), {}
    for name, tensor in start.items():
        if name in known or name not in passing:
            key = (name, tensor.shape)
            if key not in digests:
                digests[key] = digest.of_tensors({name: tensor})
            if known.get(name) == digests[key]:
                continue
            if name not in passing:
                held[name] = digests[key]
        lacking[name] = tensor
    return (known if held == known else held), lacking
