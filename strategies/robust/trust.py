"""Trust: a client counts as far as its change points where a trusted one does, and no change is longer than that one.

FLTrust, Cao et al., NDSS 2021, arXiv 2012.13995: TS_i = max(0, cos(U_i, U_0)), and Σ TS_i (‖U_0‖/‖U_i‖) U_i / Σ TS_i,
with U_0 what the server makes of a root set of its own. This server trains nothing itself, in a deployment it holds no
images at all; its root set is a client's: `root` is the partition id of a client that who runs the server runs too, on
images that he vouches for. It trains as the others do and takes part with a trust of one, where the paper's server
update only measures. Differs: trust is multiplied with p_i, and a change that is shorter than the root's is not made
longer, so that no weight of the start is below zero. Where nobody is trusted, the root's own change is the round's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from fedinit.config.checks import at_least
from strategies.robust.contract import Changes, Robust, shrink


@dataclass(frozen=True, kw_only=True)
class Trust(Robust):
    """root: the partition id of the trusted client."""

    root: int | None = None

    def __post_init__(self) -> None:
        if self.root is not None:
            at_least("robust.root", self.root, 0)

    def lacks(self) -> str:
        why = "the server trains nothing itself, and needs a client whose images it vouches for; name its partition id"
        return f"{why}, robust.root=0" if self.root is None else ""

    def fault(self, clients: Sequence[int]) -> str:
        return "" if self.root in clients else f"robust.root={self.root}: the trusted client's update is not there"

    def weigh(self, changes: Changes) -> Tensor:
        root = next(place for place, client in enumerate(changes.clients) if client == self.root)
        norms = changes.norms
        cosines = changes.gram[root] / (norms * norms[root]).clamp(min=1e-300)
        trusted = changes.shares * cosines.clamp(0, 1)
        trusted[root] = changes.shares[root]  # also where it did not move
        return trusted / trusted.sum() * shrink(norms, float(norms[root]))
