"""LoRA-FAIR's objective by gradient descent: 1 − cos(ΔW, B′Ā) + λ‖ΔB‖², B′ = B̄ + ΔB (solver=gram_sgd, dense_sgd)."""

from __future__ import annotations

import torch
from torch import Tensor

from fedinit.factors import Factors
from strategies.methods.fair_columns import columns_loss


def normalised_rate(G: Tensor, B: Tensor, lam: float, lr: float) -> float:
    """The rate at which a step is the one of size `lr` on ΔW/‖ΔW‖, B̄/‖B̄‖ and Ā/‖B̄Ā‖·‖B̄‖: lr·‖B̄‖².

    The cosine does not see the size of B′, and its curvature goes with 1/‖B̄‖²: at a rate that does not, a step on a
    small B̄ overshoots and B′ grows without bound, and one on a large B̄ moves nothing. Where λ‖B̄‖² or the condition
    of Ā makes the objective stiff, the rate is lower, so that no step overshoots.
    """
    size2, n2 = float(B.square().sum()), float(((B @ G) * B).sum())
    if not n2 > 0:
        return lr
    stiff = 2 * lam * size2
    return size2 * min(lr / max(1.0, stiff), 1 / (stiff + size2 * float(torch.linalg.matrix_norm(G, 2)) / n2))


def gram_sgd(
    M: Tensor, G: Tensor, ideal_norm: float, B: Tensor, delta: Tensor, lam: float, steps: int, lr: float
) -> Tensor:
    """ΔB after `steps` of gradient descent on 1 − cos(ΔW, B′Ā) + λ‖ΔB‖², B′ = B + ΔB.

    With n = ‖B′Ā‖ = √⟨B′G, B′⟩ and cos = ⟨M, B′⟩/(‖ΔW‖ n), the gradient is
    −(M/(‖ΔW‖ n) − cos · B′G/n²) + 2λΔB. Where ΔW or B′Ā is zero the cosine has no gradient.
    """
    for _ in range(steps):
        corrected = B + delta
        image = corrected @ G
        n = float((image * corrected).sum().clamp(min=0).sqrt())
        gradient = 2 * lam * delta
        if ideal_norm > 0 and n > 0:
            cosine = float((M * corrected).sum()) / (ideal_norm * n)
            gradient = gradient - M / (ideal_norm * n) + image * (cosine / n**2)
        delta = delta - lr * gradient
    return delta


def dense_sgd(
    ideal: Tensor, average: Factors, delta: Tensor, lam: float, steps: int, lr: float, columns: bool = False
) -> Tensor:
    """The same descent with the loss evaluated on (d, k) matrices and differentiated by autograd, as in the paper.

    columns: one cosine a column (`columns_loss`).

    The cosine is written out: torch's own adds a floor of 1e-8 to the norms, which turns a product of zero into a
    gradient of 1e8 and a very small one into a wrong cosine.
    """
    ideal_norm = float(ideal.norm())
    delta = delta.clone().requires_grad_(True)
    for _ in range(steps):
        product = (average.B + delta) @ average.A
        n = product.norm()
        loss = lam * delta.square().sum()
        if columns:
            loss = columns_loss(ideal, average, delta, lam)
        elif ideal_norm > 0 and n > 0:
            loss = loss + 1 - torch.dot(ideal.flatten(), product.flatten()) / (ideal_norm * n)
        (gradient,) = torch.autograd.grad(loss, delta)
        with torch.no_grad():
            delta -= lr * gradient
    return delta.detach()
