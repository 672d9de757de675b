"""Weighted sums of the clients' factors, in float64 and in client order: what methods' rules are made of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedinit.factors import Factors, dense_is_cheaper, mean, pad

SIDE_BY_SIDE = 2**18  # numbers of a factor that are laid side by side at once, 2 MB


def mean_factors(products: Sequence[Factors], weights: Sequence[float]) -> Factors:
    """(Ā, B̄) in float64, with lower ranks padded with zeros."""
    products = at_one_rank(products)
    return Factors(mean([p.A for p in products], weights), mean([p.B for p in products], weights))


def image(products: Sequence[Factors], weights: Sequence[float], rows: Tensor) -> Tensor:
    """ΔW rowsᵀ = Σ p_i B_i (A_i rowsᵀ), (d, c), in float64, for rows (c, k).

    Clients are laid side by side, as few at a time as a cache holds: two large products instead of two small ones of
    each.
    """
    # Transposed: a few long rows on the left are faster in the product than a few columns on the right.
    out = rows.new_zeros(rows.shape[0], products[0].B.shape[0])
    for some in _few_at_a_time(products):
        those, shares = products[some], weights[some]
        ranks = [p.rank for p in those]
        A, B = rows.new_empty(sum(ranks), rows.shape[1]), rows.new_empty(out.shape[1], sum(ranks))
        torch._foreach_copy_(  # pyright: ignore[reportPrivateImportUsage]
            [*A.split(ranks), *B.split(ranks, 1)], [*(p.A for p in those), *(p.B for p in those)]
        )
        cores = rows @ A.T  # (c, k) @ (k, Σ r_i)
        of_each = [share for share, rank in zip(shares, ranks, strict=True) for _ in range(rank)]
        out.addmm_(cores.mul_(torch.tensor(of_each, dtype=cores.dtype).to(cores.device)), B.T)
    return out.T


def _few_at_a_time(products: Sequence[Factors]) -> list[slice]:
    few = max(1, SIDE_BY_SIDE // max(max(p.A.numel(), p.B.numel()) for p in products))
    return [slice(start, start + few) for start in range(0, len(products), few)]


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
    rank = average.rank
    A = average.A.new_empty(len(products) * rank, average.A.shape[1])
    B = average.B.new_empty(average.B.shape[0], len(products) * rank)
    for i, (product, weight) in enumerate(zip((pad(p, rank) for p in products), weights, strict=True)):
        own = slice(i * rank, (i + 1) * rank)  # in their place at once: of many clients copies would be most of it
        torch.sub(product.A, average.A, out=A[own])
        torch.mul(product.B - average.B, weight, out=B[:, own])
    return Factors(A, B)


def averaging_error(products: Sequence[Factors], weights: Sequence[float], average: Factors) -> Factors:
    """C of `centred`; where clients are so many that a d×k matrix is less work than their factors side by side, summed
    to one, a few clients at a time: the memory it takes does not grow with them."""
    d, k = average.shape
    few = _few_at_a_time(products)
    if len(few) == 1 or not dense_is_cheaper(average, len(products) * average.rank):
        return centred(products, weights, average)
    total = average.A.new_zeros(d, k)
    for some in few:
        part = centred(products[some], weights[some], average)
        total.addmm_(part.B, part.A)
    one = torch.eye(min(d, k), dtype=total.dtype, device=total.device)
    return Factors(total, one) if d <= k else Factors(one, total)
