"""Lengths of, and angles between, what clients changed: in the space of products, where no choice of factors shows.

The factors (B R, R⁻¹A) are another client's view of the same layer, so distances between factors say nothing: two
clients that agree can be far apart in them, and a bad one can be near. What a client changed of a layer is
U_i = s(B_iA_i − B_0A_0), (d, k), from what it started from, and

    ⟨B_iA_i, B_jA_j⟩ = Σ [(B_iᵀB_j) ∘ (A_i A_jᵀ)],

from r×r matrices. Cores and VeRA's vectors are multiplied into B. DoRA's magnitudes stand beside the product,
m_i − m_0; both are lengths of a change of the weight, to first order. The head stands beside the adapters, but has no
unit in common with them, and whichever is longer would hide the other. So each of the two blocks is measured in its own
median length over the clients, and ⟨·,·⟩ is the sum of both.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedinit.factors import Factors, leading
from fedinit.threads import server_pool
from strategies.aggregator import Update


def gram_of(
    updates: Sequence[Update], layers: Mapping[str, Factors], head: Mapping[str, Tensor], scale: float
) -> Tensor:
    """⟨U_i, U_j⟩ of a round's updates, (K, K), in float64.

    layers, head: what the round started from; a client of a lower rank started from its leading components.
    scale: s.
    """

    def of_layer(name: str) -> Tensor:
        return _layer_gram([u.layers[name] for u in updates], layers[name], scale)

    adapters = list(server_pool().map(of_layer, layers))
    heads = [_flat_gram([u.head[key] for u in updates], head[key]) for key in head]
    return _in_medians(adapters, len(updates)) + _in_medians(heads, len(updates))


def product_gram(products: Sequence[Factors]) -> Tensor:
    """⟨B_iA_i, B_jA_j⟩, (n, n), of products of any ranks, float64; on the CPU, wherever they are.

    Where all have one A, or one B, it is ⟨B_i AAᵀ, B_j⟩: what is common is multiplied once, whatever n is.
    """
    first = products[0]
    if all(torch.equal(p.A, first.A) for p in products):
        return _one_sided([p.B for p in products], first.A @ first.A.T).cpu()
    if all(torch.equal(p.B, first.B) for p in products):
        return _one_sided([p.A.T for p in products], first.B.T @ first.B).cpu()
    A, B = torch.cat([p.A for p in products]), torch.cat([p.B for p in products], dim=1)
    edges = [0, *itertools.accumulate(p.rank for p in products)]
    gram = A.new_zeros(len(products), len(products))
    for i, (low, high) in enumerate(itertools.pairwise(edges)):
        panel = ((B[:, low:high].T @ B[:, low:]) * (A[low:high] @ A[low:].T)).sum(0)  # (R − low,)
        gram[i, i:] = torch.stack([part.sum() for part in panel.split([p.rank for p in products[i:]])])
    return (gram.triu() + gram.triu(1).T).cpu()


def _one_sided(factors: Sequence[Tensor], common: Tensor) -> Tensor:
    """⟨X_i C, X_j⟩, (n, n). factors: X_i (m, r). common: C (r, r)."""
    flat = torch.stack(list(factors))
    return (flat @ common).flatten(1) @ flat.flatten(1).T


def _layer_gram(clients: Sequence[Factors], start: Factors, scale: float) -> Tensor:
    """⟨U_i, U_j⟩ of one layer, (K, K)."""
    ranks = sorted({f.rank for f in clients})
    begun = [leading(start, rank) for rank in ranks]
    gram = product_gram([f.absorb().to(torch.float64) for f in (*clients, *begun)])
    centre = torch.eye(len(clients), len(gram), dtype=torch.float64)
    for i, factors in enumerate(clients):
        centre[i, len(clients) + ranks.index(factors.rank)] = -1
    gram = scale**2 * centre @ gram @ centre.T
    return gram + _flat_gram([f.parts["m"] for f in clients], start.parts["m"]) if "m" in start.parts else gram


def _flat_gram(values: Sequence[Tensor], start: Tensor) -> Tensor:
    changes = torch.stack([value.double().flatten() for value in values]) - start.double().flatten()
    return (changes @ changes.T).cpu()


def _in_medians(grams: Sequence[Tensor], count: int) -> Tensor:
    """Their sum, in units of the lower median of its squared lengths; of the largest, where most have none."""
    total = sum(grams, torch.zeros(count, count, dtype=torch.float64))
    squares = total.diagonal()
    unit = float(squares.median()) or float(squares.max())
    return total / unit if unit > 0 else total
