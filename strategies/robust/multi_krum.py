"""Multi-Krum: the clients nearest to their neighbours count, the others do not.

Blanchard et al., NeurIPS 2017. With f of K clients bad, a client's score is the sum of its squared distances to its
K − f − 2 nearest neighbours; the K − f of the lowest scores are averaged, with their p_i. The paper's guarantee needs
K ≥ 2f + 3. `selection=iterated` is the selection of Bulyan (El Mhamdi et al., ICML 2018): the best is taken out and the
rest scored anew, K − 2f times; its second step, a trimmed mean of coordinates, depends on the factors' gauge and is
left out. A client unlike all others, of a rare domain, is thrown out like a bad one: look at the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fedinit.config.checks import at_least, within
from strategies.robust.contract import Changes, Robust


@dataclass(frozen=True, kw_only=True)
class MultiKrum(Robust):
    """bad: f, as a number of clients (int), or as a share of the round's, rounded down (float).
    selection: ``best``: the K − f of the lowest scores; ``iterated``: Bulyan's K − 2f."""

    bad: int | float = 0.3
    selection: Literal["best", "iterated"] = "best"

    def __post_init__(self) -> None:
        if isinstance(self.bad, int):
            at_least("robust.bad", self.bad, 0)
        else:
            within("robust.bad", self.bad, 0, 0.5, open_high=True)

    def fault(self, clients: Sequence[int]) -> str:
        count, f = len(clients), self._f(len(clients))
        needed = max(f + 3, 2 * f + 1)
        if count >= needed:
            return ""
        return f"robust.bad={self.bad}: with {f} bad updates among them it needs {needed} or more, there are {count}"

    def weigh(self, changes: Changes) -> Tensor:
        count, f = len(changes.clients), self._f(len(changes.clients))
        between, left = changes.between(), list(range(count))
        kept: list[int] = []
        if self.selection == "best":
            kept = _by_score(between, left, f)[: self._kept(count)]
        while len(kept) < self._kept(count):
            kept.append(_by_score(between, left, f)[0])
            left.remove(kept[-1])
        chosen = torch.zeros(count, dtype=torch.float64)
        chosen[kept] = changes.shares[kept]
        return chosen / chosen.sum()

    def _f(self, count: int) -> int:
        return self.bad if isinstance(self.bad, int) else int(self.bad * count + 1e-9)

    def _kept(self, count: int) -> int:
        return count - self._f(count) * (1 if self.selection == "best" else 2)


def _by_score(between: Tensor, clients: Sequence[int], f: int) -> list[int]:
    """These clients, the lowest score first; of equal ones the lower number. between: (K, K) squared distances."""
    places = torch.tensor(clients)
    near = between[places][:, places].sort(dim=1).values[:, 1 : max(len(clients) - f - 2, 1) + 1]  # itself is the first
    return [clients[i] for i in near.sum(dim=1).argsort(stable=True).tolist()]
