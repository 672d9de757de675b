"""How unequal the two factors are, which gradient descent with small steps keeps as it was at the start."""

from __future__ import annotations

from collections.abc import Iterable

from fedinit.factors import Factors


def imbalance(products: Iterable[Factors]) -> float:
    """Σ ‖BᵀB − AAᵀ‖_F over layers, a core absorbed into B: 0 in the balanced gauge. Gradient flow conserves each of the
    matrices (Arora et al. 2018, arXiv 1802.06509), and in over-parameterised recovery the rate is set by it."""
    total = 0.0
    for product in products:
        plain = product.absorb()
        A, B = plain.A.double(), plain.B.double()
        total += float((B.T @ B - A @ A.T).norm())
    return total
