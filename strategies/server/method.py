"""What is done in every round of a run, as one value: the method, its client starts, and whom it asks for how much."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedinit import slots, wire
from fedinit.adapters.kinds import KINDS, Kind
from fedinit.config.client import ClientConfig
from fedinit.config.secure_aggregation import SecAggConfig
from fedinit.devices import CPU
from fedinit.privacy.mechanism import ClientMechanism
from fedinit.seeding import numpy_generator
from fedinit.transforms import UPDATES, UpdateTransform
from fedinit.views import LeadingRank, View, Whole
from strategies import AGGREGATORS
from strategies.aggregator import Aggregate, Aggregator
from strategies.methods.choosing import Choosing
from strategies.reinit import Reinit, ReinitContext
from strategies.robust.contract import Robust
from strategies.server.gate import Gate
from strategies.server_opt import ServerOptimizer


@dataclass(frozen=True, kw_only=True)
class Method:
    """What is done in every round.

    aggregator: what the server makes of the updates. reinit: what clients then start from.
    context: what the re-initialiser is given to work with.
    seed: of the run.
    kind: of the adapters.
    ranks: {partition id: rank} of all clients, the largest being the global one; lower ones train the leading
    components. Empty: all have the global rank.
    server_optimizer: moves the aggregate on; None: it stays as it is.
    participation: the share of the clients that are asked in a round, in (0, 1].
    evaluation: the share of the clients with test images that evaluate a round, in (0, 1].
    gate: what lets updates in.
    robust: how much each of those counts; None: as the aggregator weighs them.
    secure: how updates are summed in secret; None: the server sees each.
    quorum: how many updates a round needs, a number (int) or a share of the clients asked (float).
    resamples: how often others are asked for what is missing.
    privacy: clips and noise on the sums that the aggregator declares; None: none.
    client: how clients train; None: nobody knows.
    transforms: of the updates between training and aggregation, in the order in which they leave a client.
    device: where updates are weighed and aggregated.
    """

    aggregator: Aggregator
    reinit: Reinit
    context: ReinitContext
    seed: int
    kind: Kind = KINDS["lora"]
    ranks: Mapping[int, int] = field(default_factory=dict)
    server_optimizer: ServerOptimizer | None = None
    participation: float = 1.0
    evaluation: float = 1.0
    gate: Gate = field(default_factory=Gate)
    robust: Robust | None = None
    secure: SecAggConfig | None = None
    quorum: int | float = 1
    resamples: int = 0
    privacy: ClientMechanism | None = None
    client: ClientConfig | None = None
    transforms: Sequence[UpdateTransform] = UPDATES
    device: torch.device = CPU

    @property
    def name(self) -> str:
        """Of the aggregator, as `strategy=` has it."""
        return next((name for name, kind in AGGREGATORS.items() if kind is type(self.aggregator)), "")

    def trainable(self, round: int) -> frozenset[str]:
        """The parts of Factors that clients train in a round."""
        return self.kind.trained(self.aggregator.trainable(round))

    def returned(self, model: Aggregate, round: int) -> frozenset[str]:
        """The wire names of what comes back in a round: the method's factors, and the head."""
        trainable = self.trainable(round) - self.aggregator.personal
        return frozenset(wire.trained_names(model.layers, model.head, trainable))

    def ever_returned(self, model: Aggregate, rounds: int) -> frozenset[str]:
        """Those of any of the run's rounds, which may take turns."""
        return frozenset().union(*(self.returned(model, round) for round in range(1, max(rounds, 1) + 1)))

    def sample(self, round: int, clients: Sequence[int]) -> list[int]:
        """The clients of a round, in order: a function of the seed and the round alone. clients: all, in order."""
        if self.privacy is not None:
            return self.privacy.sample(round, clients)
        return drawn(clients, self.participation, self.seed, "sampling", round)

    def evaluators(self, round: int, clients: Sequence[int]) -> list[int]:
        """The clients that evaluate a round, likewise. clients: those with test images, in order."""
        return drawn(clients, self.evaluation, self.seed, "evaluating", round)

    def needed(self, asked: int) -> int:
        """How many of so many clients must give a usable answer; none under privacy=clients, where who answered would
        be told by whether the run goes on."""
        if self.privacy is not None:
            return 0
        return needed(self.quorum, asked)

    def view_of(self, client: int) -> View:
        """The part of the global adapter that a client works on. Those that choose their slots are sent all of it."""
        if client not in self.ranks or isinstance(self.aggregator, Choosing):
            return Whole()
        return LeadingRank(self.ranks[client], max(self.ranks.values()))

    def starts_of(self, clients: Iterable[int], model: Aggregate) -> dict[int, Mapping[str, Tensor]]:
        """{client: the global factors as it sees them, and the head, by wire name}; clients of one rank have one."""
        starts: dict[int | None, Mapping[str, Tensor]] = {}
        for client in clients:
            if (rank := self.ranks.get(client)) not in starts:
                starts[rank] = wire.to_tensors(self.view_of(client).restrict(model.layers), model.head)
        return {client: starts[self.ranks.get(client)] for client in clients}

    def budgets(self, clients: Iterable[int], round: int, model: Aggregate) -> dict[int, int]:
        """{client: slots} of those that train a part of the slots, of their own choice."""
        if not isinstance(self.aggregator, Choosing):
            return {}
        part = slots.part_of(self.trainable(round))
        total = sum(slots.count(f, part) for f in model.layers.values())
        largest = max(self.ranks.values(), default=1)
        shares = {c: self.aggregator.portion(self.ranks.get(c, largest), largest) for c in clients}
        return {c: max(1, round_half_up(share * total)) for c, share in shares.items() if share < 1}


def needed(quorum: int | float, asked: int) -> int:
    """How many of so many clients a quorum is: a number as it is, a share rounded up."""
    return quorum if isinstance(quorum, int) else math.ceil(quorum * asked - 1e-9)


def drawn(clients: Sequence[int], share: float, seed: int, purpose: str, round: int) -> list[int]:
    """A share of the clients, in order, and one at least; a function of the seed, the purpose and the round alone.
    clients: all, in order."""
    count = sample_size(share, len(clients))
    if count >= len(clients):
        return list(clients)
    draw = numpy_generator(seed, purpose, round)
    return sorted(int(client) for client in draw.choice(clients, size=count, replace=False))


def sample_size(participation: float, clients: int) -> int:
    """How many of so many clients are asked in a round; one at least."""
    return max(1, round_half_up(participation * clients))


def round_half_up(value: float) -> int:
    """0.5 goes up: half of five clients is three. The small term absorbs the rounding of share × clients."""
    return int(value + 0.5 + 1e-9)
