"""The adapters that clients of this process ended with, of a method whose clients keep some factors to themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from clients.state.rounds import own_factors
from fedinit.factors import Factors
from fedinit.transforms.personal import with_personal
from fedinit.transport.contexts import Contexts


class OwnAdapters(Mapping[int, Mapping[str, Factors]]):
    """{client: {layer: factors}} as each client that has some to itself uses them, which are read when they are looked
    at, and not kept."""

    def __init__(
        self,
        contexts: Contexts,
        accepted: Mapping[int, int],
        shared: Mapping[str, Factors],
        personal: frozenset[str],
    ) -> None:
        """accepted: {client: the round of its last update that was let in}. shared: {layer: factors} of all. personal:
        the parts of these of which each client has its own."""
        self._contexts, self._nodes = contexts, contexts.of_clients()
        self._shared, self._personal = shared, personal
        self._rounds = {client: round for client, round in accepted.items() if self._own(client, round) is not None}

    def __getitem__(self, client: int) -> Mapping[str, Factors]:
        return with_personal(self._shared, self._own(client, self._rounds[client]), self._personal)

    def __iter__(self) -> Iterator[int]:
        return iter(self._rounds)

    def __len__(self) -> int:
        return len(self._rounds)

    def _own(self, client: int, round: int) -> dict[str, Factors] | None:
        if round == 0:
            return None
        with self._contexts.lent(self._nodes[client]) as context:
            return own_factors(context, round)
