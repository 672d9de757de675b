"""The mean of a round's updates while they come, of clients in this process: nothing is kept of one that was added.

For rules that know sums alone (`Aggregator.sums`), where nobody looks at single updates: no diagnostics, no rule
against bad clients, no clip. A round's memory at the server does not grow with its clients then.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fedinit import wire
from fedinit.devices import CPU
from strategies.aggregator import Aggregator, Update
from strategies.methods.choosing import Choosing
from strategies.server.exchange import Exchange
from strategies.server.gate import Accepted
from strategies.server.method import Method
from strategies.server.placing import placed, room_for_updates
from strategies.server.state import ServerState

MEAN = -3  # in place of a partition id: the mean of a round's updates
SUMS = frozenset({"A", "B", "R"})  # that are of what clients send, as they send it


class RunningMean:
    """Σ p_i x_i over a round's updates, in float64 and in client order, as `Aggregator.aggregate` takes it.

    p_i are of the clients that are asked first, by the examples that they registered with; where some of them are not
    in the sum, or others are, it is divided by the Σ p_i of those that are. A round in which everybody's first update
    is let in ends with the very bits of one that keeps them all.
    """

    def __init__(
        self,
        start: Mapping[str, Tensor],
        sent: Collection[str],
        weights: Mapping[int, float],
        of: Callable[[int], float],
        device: torch.device = CPU,
    ) -> None:
        """start: what clients start from, by wire name, on the device that the sum is made on. sent: the names of what
        comes back; the rest stays. weights: {client: p_i} of those that are asked first. of: p_i of others, by their
        examples."""
        self._start, self._weights, self._of = start, dict(weights), of
        sizes = {name: start[name].shape for name in sent}
        self._total = torch.zeros(sum(shape.numel() for shape in sizes.values()), dtype=torch.float64, device=device)
        self._next = torch.empty_like(self._total)  # the update that is added
        self._totals, self._places = (_by_name(flat, sizes) for flat in (self._total, self._next))
        self._device = device
        self._added: dict[int, float] = {}
        self._examples = 0

    @staticmethod
    def begun(state: ServerState, method: Method, exchange: Exchange, clients: Sequence[int]) -> RunningMean | None:
        """For a round of these clients; None where single updates are needed, come over a network, or might weigh more
        than the gate lets them, whoever else comes."""
        examples, aggregator, round = state.roster.examples, method.aggregator, state.round + 1
        looks = method.robust is not None or method.privacy is not None or bool(method.ranks)
        if not exchange.is_prompt or looks or not is_of_sums(aggregator, round) or not all(map(examples.get, clients)):
            return None
        if not method.gate.enabled:  # an update weighs by what it says itself, which nobody holds to the registered
            return None
        uniform = aggregator.weighting == "uniform"
        if not uniform and max(examples.values()) > method.gate.most([min(examples.values())]):
            return None
        weights = aggregator.weights([Update(client, examples[client], {}, {}) for client in clients])

        def of(count: int) -> float:
            return weights[0] * (1 if uniform else count / examples[clients[0]])

        sent = method.returned(state.model, round)
        with room_for_updates(method.device):
            (model,) = placed([state.model], method.device)
            start = wire.to_tensors(model.layers, model.head)
            return RunningMean(start, sent, dict(zip(clients, weights, strict=True)), of, method.device)

    def add(self, accepted: Accepted) -> Update:
        """Add an update; what is kept of it: who sent it, and of how many examples."""
        client, examples = accepted.client, accepted.examples
        weight = self._weights.get(client)
        weight = self._of(examples) if weight is None else weight
        with room_for_updates(self._device):
            values = accepted.tensors
            if self._device != CPU:
                (there,) = placed([accepted.update], self._device)
                values = wire.to_tensors(there.layers, there.head)
            # In two calls, of which the second finds all numbers in a row: of small factors more calls take longer.
            torch._foreach_copy_(  # pyright: ignore[reportPrivateImportUsage]
                list(self._places.values()), [values[name] for name in self._places]
            )
            self._total.add_(self._next, alpha=weight)
        self._added[client] = weight
        self._examples += examples
        return Update(client, examples, {}, {})

    def closed(self) -> dict[str, Any]:
        """Of Admitted: the mean as its one update, in float64 what was sent, and each client's share of it."""
        everybody = self._added.keys() == self._weights.keys()
        total = 1.0 if everybody else sum(self._added.values())
        means = self._totals if everybody else {name: value / total for name, value in self._totals.items()}
        layers, head = wire.from_tensors({**self._start, **means})
        shares = {client: weight / total for client, weight in sorted(self._added.items())}
        return {"updates": [Update(MEAN, self._examples, layers, head)], "shares": shares}


def _by_name(flat: Tensor, sizes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Views of (n,) numbers, one after another, of these shapes."""
    parts = flat.split([shape.numel() for shape in sizes.values()])
    return {name: part.view(shape) for (name, shape), part in zip(sizes.items(), parts, strict=True)}


def is_of_sums(aggregator: Aggregator, round: int) -> bool:
    """Whether the rule of a round is one of sums of what clients send, and nobody looks at more."""
    looks = aggregator.diagnostics or aggregator.weighting == "norm" or aggregator.two_phase
    chooses = isinstance(aggregator, Choosing) or bool(aggregator.no_sum)
    return not looks and not chooses and SUMS.issuperset(aggregator.sums(round))
