"""LoRA-FAIR's objective by gradient descent: 1 − cos(ΔW, B′Ā) + λ‖ΔB‖², B′ = B̄ + ΔB (solver=gram_sgd, dense_sgd)."""

from __future__ import annotations

import torch
from torch import Tensor

from fedinit.factors import Factors


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


def dense_sgd(ideal: Tensor, average: Factors, delta: Tensor, lam: float, steps: int, lr: float) -> Tensor:
    """The same descent with the loss evaluated on (d, k) matrices and differentiated by autograd, as in the paper.

    The cosine is written out: torch's own adds a floor of 1e-8 to the norms, which turns a product of zero into a
    gradient of 1e8 and a very small one into a wrong cosine.
    """
    ideal_norm = float(ideal.norm())
    delta = delta.clone().requires_grad_(True)
    for _ in range(steps):
        product = (average.B + delta) @ average.A
        n = product.norm()
        loss = lam * delta.square().sum()
        if ideal_norm > 0 and n > 0:
            loss = loss + 1 - torch.dot(ideal.flatten(), product.flatten()) / (ideal_norm * n)
        (gradient,) = torch.autograd.grad(loss, delta)
        with torch.no_grad():
            delta -= lr * gradient
    return delta.detach()
