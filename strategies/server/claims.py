"""Which client every node says that it is: two may say the same, and nobody can tell which of them is right."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from fedinit.transport.introduction import Introduction


class Claims:
    """Who says that it is whom, of the nodes whose introductions fit the run."""

    def __init__(self) -> None:
        self._client: dict[int, int] = {}  # node id -> partition id

    def rivals(
        self,
        fitting: Mapping[int, Introduction],
        is_online: Callable[[int], bool],
        discounted: Collection[int] = (),
    ) -> dict[int, set[int]]:
        """{node: the others that are online and say that they are the same client}, of those of which there are any.
        What these nodes say is remembered: who comes later is held to it. discounted: nodes that are nobody's rivals.
        """
        self._client |= {node: introduction.client for node, introduction in fitting.items()}
        if not fitting:
            return {}
        first: dict[int, int] = {}  # client: a node that says it is this one; of a hundred thousand one has no list
        claimants: dict[int, list[int]] = {}
        for node, client in self._client.items():
            if node not in discounted and first.setdefault(client, node) != node:
                claimants.setdefault(client, [first[client]]).append(node)
        found: dict[int, set[int]] = {}
        for node, introduction in fitting.items():
            if (client := introduction.client) in claimants or first.get(client, node) != node:
                several = claimants.get(client, [first[client]])
                if others := {other for other in several if other != node and is_online(other)}:
                    found[node] = others
        return found

    def withdrawn(self, answers: Collection[int], fitting: Mapping[int, Introduction]) -> dict[int, int]:
        """{node: the client that it said it is} of those that answered again and do not say so any more. Forgets it."""
        gone = {
            node: client
            for node, client in ((node, self._client[node]) for node in answers if node in self._client)
            if node not in fitting or fitting[node].client != client
        }
        for node in gone:
            del self._client[node]
        return gone

    def of(self, node: int) -> int:
        """The client that it said it is; -1 where it said none."""
        return self._client.get(node, -1)


def sorted_out(
    answers: Mapping[int, Introduction | str], misfit: Callable[[int, Introduction], str]
) -> tuple[dict[int, Introduction], dict[int, str]]:
    """{node: what it says} of those that fit, and {node: why} of those that cannot be used."""
    fitting: dict[int, Introduction] = {}
    unfit: dict[int, str] = {}
    for node, answer in answers.items():
        if isinstance(answer, str):
            unfit[node] = answer or "an error without words"
        elif why := misfit(node, answer):
            unfit[node] = why
        else:
            fitting[node] = answer
    return fitting, unfit
