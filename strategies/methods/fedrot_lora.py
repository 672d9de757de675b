"""FedRot-LoRA: each client's factors rotated towards the last global ones before they are averaged.

arXiv 2602.23638. (B_iR_i, R_iᵀA_i) has the same product for any orthogonal R_i; the Procrustes solution R_i = UVᵀ, from
the SVD of B_iᵀB + A_iAᵀ, brings it nearest to the global (B, A) that the round started from, which takes out the part
of the averaging bias that is rotation. The paper rotates on the client; the server knows the same factors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from fedinit.factors import Factors
from strategies.aggregator import Aggregator
from strategies.means import mean_factors


@dataclass(frozen=True, kw_only=True)
class FedRotLoRA(Aggregator):
    """The mean of factors that were rotated towards the round's start; without one, towards the first client's."""

    reinits: ClassVar[tuple[str, ...]] = ("average", "fresh", "svd", "orthonormal", "pissa", "gauge")
    why: ClassVar[str] = "which rotates towards the factors that all clients started from, and these have their own"

    no_sum: ClassVar[str] = "each client's factors are turned by a rotation of their own before they are added"

    def sums(self, round: int) -> tuple[str, ...]:
        return ()

    def merge(self, products: Sequence[Factors], weights: Sequence[float], start: Factors | None) -> Factors:
        goal = products[0] if start is None else start
        return mean_factors([rotate(p.to(torch.float64), goal.to(torch.float64)) for p in products], weights)


def rotate(product: Factors, goal: Factors) -> Factors:
    """(RᵀA, B R), the same product, for the orthogonal R (r, r) of the least ‖B R − B_goal‖² + ‖RᵀA − A_goal‖²."""
    U, _, Vh = torch.linalg.svd(product.B.T @ goal.B + product.A @ goal.A.T)
    R = U @ Vh
    return Factors(R.T @ product.A, product.B @ R)
