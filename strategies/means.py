"""Weighted sums of the clients' factors, in float64 and in client order: what methods' rules are made of."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fedinit.factors import Factors, mean, pad


def mean_factors(products: Sequence[Factors], weights: Sequence[float]) -> Factors:
    """(Ā, B̄) in float64, with lower ranks padded with zeros."""
    products = at_one_rank(products)
    return Factors(mean([p.A for p in products], weights), mean([p.B for p in products], weights))


def at_one_rank(products: Sequence[Factors]) -> list[Factors]:
    """All products at the highest rank among them, padded with zeros."""
    rank = max(p.rank for p in products)
    return [pad(p, rank) for p in products]


def at_rank_of(start: Factors, merged: Factors) -> Factors:
    """The same product at the rank of the start at least, in float64.

    Where all clients of a round have lower ranks, nobody returns the last components. They have no weight then, but
    keep the start's row of A over a zero column of B, or its column of B where that row is zero: of two zeros neither
    would ever get a gradient, and the layer would have lost its rank for good.
    """
    low = merged.rank
    if low >= start.rank:
        return merged
    A, B = start.A[low:].double(), start.B[:, low:].double()
    return Factors(torch.cat([merged.A, A]), torch.cat([merged.B, B.masked_fill(A.any(dim=1), 0)], dim=1))


def centred(products: Sequence[Factors], weights: Sequence[float], average: Factors) -> Factors:
    """C = ΔW − B̄Ā as Σ p_i (B_i − B̄)(A_i − Ā), of rank K·r, in float64; lower ranks are padded with zeros.

    Formed from centred factors, so that a small bias does not drown in the rounding of two large terms.
    """
    padded, rank = at_one_rank(products), average.rank
    A = average.A.new_empty(len(padded) * rank, average.A.shape[1])
    B = average.B.new_empty(average.B.shape[0], len(padded) * rank)
    for i, (product, weight) in enumerate(zip(padded, weights, strict=True)):
        own = slice(i * rank, (i + 1) * rank)  # in their place at once: of many clients copies would be most of it
        torch.sub(product.A, average.A, out=A[own])
        torch.mul(product.B - average.B, weight, out=B[:, own])
    return Factors(A, B)
