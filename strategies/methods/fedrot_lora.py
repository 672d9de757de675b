"""FedRot-LoRA: each client's factors rotated towards the last global ones before they are averaged.

Zhang et al., ICML 2026, arXiv 2602.23638. (B_iR_i, R_iᵀA_i) has the same product for any orthogonal R_i; the Procrustes
solution R_i = UVᵀ brings it nearest to the global (B, A) that the round started from, which takes out the part of the
averaging bias that is rotation. U and V are from the SVD of A_iAᵀ, which brings the A_i nearest, in even rounds, and of
B_iᵀB in odd ones; in the first round, when B is zero, nothing is rotated. So the authors' code has it. Its softened
rotations, which their ablations try, are not here. The paper rotates on the client; the server knows the same factors.

`align=joint` is another rule: the SVD of B_iᵀB + A_iAᵀ, the best for both factors at once, in every round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch

from fedinit.factors import Factors
from strategies.aggregator import Aggregator
from strategies.means import mean_factors
from strategies.methods.fedit import FedIT


@dataclass(frozen=True, kw_only=True)
class FedRotLoRA(Aggregator):
    """The mean of factors that were rotated towards the round's start; without one, towards the first client's.

    align: which of the start's factors the clients' are brought nearest to. ``alternate``: A in even rounds, B in odd
        ones, none in the first; ``A`` or ``B``: that one, from the second round on; ``joint``: both, in every round.
    """

    reinits: ClassVar[tuple[str, ...]] = ("average", "fresh", "svd", "orthonormal", "pissa", "gauge")
    why: ClassVar[str] = "which rotates towards the factors that all clients started from, and these have their own"
    no_sum: ClassVar[str] = "each client's factors are turned by a rotation of their own before they are added"

    align: Literal["alternate", "A", "B", "joint"] = "alternate"

    def sums(self, round: int) -> tuple[str, ...]:
        return ("A", "B") if round == 1 and self.align != "joint" else ()

    def in_round(self, round: int) -> Aggregator:
        if self.align == "joint":
            return self
        if round == 1:
            return FedIT(diagnostics=self.diagnostics)
        return replace(self, align="B" if round % 2 else "A") if self.align == "alternate" else self

    def merge(self, products: Sequence[Factors], weights: Sequence[float], start: Factors | None) -> Factors:
        assert self.align != "alternate"  # which `in_round` has made one of the others
        goal = (products[0] if start is None else start).to(torch.float64)
        return mean_factors([rotate(p.to(torch.float64), goal, self.align) for p in products], weights)


def rotate(product: Factors, goal: Factors, align: Literal["A", "B", "joint"] = "joint") -> Factors:
    """(RᵀA, B R), the same product, for the orthogonal R (r, r) that brings a factor nearest to the goal's.

    align: of the least ‖RᵀA − A_goal‖ for ``A``, ‖B R − B_goal‖ for ``B``, the sum of their squares for ``joint``.
    """
    nearness = product.A.new_zeros(product.rank, goal.rank)
    if align != "B":
        nearness = nearness + product.A @ goal.A.T
    if align != "A":
        nearness = nearness + product.B.T @ goal.B
    U, _, Vh = torch.linalg.svd(nearness.cpu())
    R = (U @ Vh).to(nearness.device)
    return Factors(R.T @ product.A, product.B @ R)
