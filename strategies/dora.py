"""What averaging does to DoRA's effective weights, which are not linear in anything that clients send.

A client's layer is W_k = diag(c_k) V_k with V_k = W + s·B_kA_k and c_k = m_k/‖V_k‖ by rows; the server has
m̄ = Σ p_k m_k and V from the method. No mean of (m, B, A) gives Σ p_k W_k, also where the method is exact in V. How far
off that is, is measured here.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedinit.adapters.dora import row_norms
from fedinit.factors import Factors, norm, stack
from strategies.aggregator import Aggregate, Update
from strategies.reinit import ReinitContext


def effective_bias(
    updates: Sequence[Update], weights: Sequence[float], aggregate: Aggregate, context: ReinitContext
) -> Mapping[str, float]:
    """{"effective_bias": ‖W_agg − Σ p_k W_k‖ / ‖Σ p_k W_k − W‖} over all layers, W the weight that clients trained over
    and W_agg the effective weight of the aggregate.

    weights: p_k, in the order of the updates. context: over the round's base offset, so that it has W.

    Σ p_k W_k − W = diag(Σ p_k c_k − 1) W + s Σ p_k diag(c_k) B_kA_k: a diagonal times W and a product of low rank,
    whose norm needs no d×k matrix but W.
    """
    missed = moved = 0.0
    for name, layer in aggregate.layers.items():
        layer = layer.to(place := updates[0].layers[name].A.device)
        weight = context.weight(name).to(place)
        squares = weight.square().sum(1)

        def row_scaled(product: Factors, m: Tensor, weight=weight, squares=squares) -> tuple[Tensor, Factors]:
            """(c, diag(c) B A) in float64, c = m/‖V‖ by rows (d,)."""
            plain = product.absorb().to(torch.float64)
            c = m.double() / row_norms(weight, squares, plain.A, plain.B, context.scale)
            return c, Factors(plain.A, c[:, None] * plain.B)

        clients = [row_scaled(u.layers[name], u.layers[name].parts["m"]) for u in updates]
        rest = [aggregate.residual[name].to(place)] if name in aggregate.residual else []
        total = stack([f.to(torch.float64) for f in (layer, *rest)], [1.0] * (1 + len(rest)))
        c, product = row_scaled(total, layer.parts["m"])
        mean_c = functools.reduce(torch.add, [w * client_c for w, (client_c, _) in zip(weights, clients, strict=True)])
        mean = stack([f for _, f in clients], weights)
        missed += _square(weight, squares, c - mean_c, stack([product, mean], [1.0, -1.0]), context.scale)
        moved += _square(weight, squares, mean_c - 1, mean, context.scale)
    return {"effective_bias": (missed / moved) ** 0.5 if moved else 0.0}


def _square(weight: Tensor, squares: Tensor, diagonal: Tensor, product: Factors, scale: float) -> float:
    """‖diag(δ) W + s·B A‖²."""
    cross = ((weight @ product.A.T) * product.B).sum(1)  # ⟨W_j, (BA)_j⟩
    total = (diagonal.square() * squares).sum() + 2 * scale * (diagonal * cross).sum()
    return max(float(total) + scale**2 * norm(product) ** 2, 0.0)
