"""LoRA-FAIR: the averaged factors, with a correction that turns B̄Ā towards the ideal update.

Bian et al., ICCV 2025, arXiv 2411.14961. B̄′ = B̄ + ΔB with Ā unchanged, where ΔB minimises
1 − cos(ΔW, (B̄ + ΔB)Ā) + λ‖ΔB‖²; the paper runs SGD on the d×k matrices.

Everything needed is in M = ΔW Āᵀ = Σ p_i B_i (A_i Āᵀ), d×r, and G = ĀĀᵀ, r×r, at O(K r²(d + k)) a layer. Three
solvers (`solver=`):

closed_form  ΔB = (M − B̄G)(G + λ′I)⁻¹, the ridge solution of ‖ΔW − (B̄ + ΔB)Ā‖² + λ′‖ΔB‖². At λ = 0 it attains the
             largest cosine any ΔB can, ‖ΔW P_A‖/‖ΔW‖, and gets the magnitude right too, which the cosine ignores.
gram_sgd     the paper's objective by SGD, with loss and gradient evaluated from M, G and ‖ΔW‖.
dense_sgd    the paper's way, on d×k matrices: the baseline that benchmarks compare with.

`side` chooses the corrected factor. A is corrected as B of the transposed problem; ``both`` corrects B first, then A
against the corrected B. With VeRA (fedinit/adapters/vera.py) b is corrected for the averaged d, row by row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedinit.adapters.kinds import EVERY_KIND, KINDS
from fedinit.adapters.vera import Pair
from fedinit.config.checks import at_least, positive, within
from fedinit.factors import Factors, norm, stack
from fedinit.seeding import torch_generator
from strategies.aggregator import Aggregator
from strategies.means import mean_factors


@dataclass(frozen=True, kw_only=True)
class LoRAFAIR(Aggregator):
    """The averaged factors, one or both of them corrected.

    solver: how the correction is found, as above. side: which factor is corrected; ``both``: B, then A.
    lam: λ ≥ 0.
    lam_scale: ``relative`` makes λ dimensionless, λ′ = λ·tr(G)/r in the closed form and λ/‖B̄‖² in the cosine
    objective; ``absolute`` takes λ as it is, as the paper does; None is relative for the closed form and absolute for
    the two SGD solvers.
    steps, lr: of the SGD solvers, steps a layer and the learning rate.
    delta_init: where they start; the Xavier start of some public code is harmful at small λ, since its noise decays by
    only (1 − 2·lr·λ) a step.
    """

    mixed_ranks: ClassVar[bool] = True
    kinds: ClassVar[tuple[str, ...]] = EVERY_KIND

    solver: Literal["closed_form", "gram_sgd", "dense_sgd"] = "closed_form"
    side: Literal["B", "A", "both"] = "B"
    lam: float = 0.01
    lam_scale: Literal["relative", "absolute"] | None = None
    steps: int = 1000
    lr: float = 0.01
    delta_init: Literal["zero", "xavier"] = "zero"

    def __post_init__(self) -> None:
        within("strategy.lam", self.lam, 0, float("inf"), open_high=True)
        at_least("strategy.steps", self.steps, 1)
        positive("strategy.lr", self.lr)

    def objection(self, kind: str) -> str:
        if KINDS[kind].rank_one and (self.solver != "closed_form" or self.side != "B"):
            return "VeRA's b is corrected in closed form: solver=closed_form, side=B"
        return super().objection(kind)

    def sums(self, round: int) -> tuple[str, ...]:
        """B̄ in "(B̄ᵀB)A" is the corrected one with side=both. With VeRA the second phase is of d numbers, ⟨ΔW_j, v_j⟩ of
        `corrected_b`."""
        if self.solver != "closed_form":  # the cosine's own ‖ΔW‖
            return ("A", "B", "BA")
        second = {"B": ("B(AĀᵀ)",), "A": ("(B̄ᵀB)A",), "both": ("B(AĀᵀ)", "(B̄ᵀB)A")}
        return ("A", "B", *second[self.side])

    def merge(self, products: Sequence[Factors], weights: Sequence[float], start: Factors | None) -> Factors:
        average, first = mean_factors(products, weights), products[0]
        if isinstance(first, Pair):
            relative = self.lam_scale != "absolute"
            return Factors(average.A, corrected_b(first.frame, products, weights, average, self.lam, relative))
        if self.side != "A":
            average = Factors(average.A, self._correct(products, weights, average))
        if self.side != "B":
            turned = [Factors(p.B.T, p.A.T) for p in products]
            average = Factors(self._correct(turned, weights, Factors(average.B.T, average.A.T)).T, average.B)
        return average

    def _correct(self, products: Sequence[Factors], weights: Sequence[float], average: Factors) -> Tensor:
        """B̄′ (d, r) in float64, for fixed Ā."""
        M, G = moments(products, weights, average.A)
        relative = (self.lam_scale or ("relative" if self.solver == "closed_form" else "absolute")) == "relative"
        if self.solver == "closed_form":
            lam = self.lam * float(G.trace()) / G.shape[0] if relative else self.lam
            return average.B + ridge_correction(M, G, average.B, lam)
        size2 = float(average.B.square().sum())
        lam = self.lam / size2 if relative and size2 else self.lam
        delta = self._start(average.B)
        ideal = stack([p.to(torch.float64) for p in products], weights)
        if self.solver == "dense_sgd":
            return average.B + dense_sgd(ideal.dense(), average, delta, lam, self.steps, self.lr)
        return average.B + gram_sgd(M, G, norm(ideal), average.B, delta, lam, self.steps, self.lr)

    def _start(self, B: Tensor) -> Tensor:
        if self.delta_init == "zero":
            return torch.zeros_like(B)
        bound = (6 / sum(B.shape)) ** 0.5
        draw = torch_generator(0, "lora_fair.delta", *B.shape)
        return torch.empty_like(B).uniform_(-bound, bound, generator=draw)


def moments(products: Sequence[Factors], weights: Sequence[float], A: Tensor) -> tuple[Tensor, Tensor]:
    """M = Σ p_i B_i (A_i Aᵀ), (d, r), and G = A Aᵀ, (r, r), in float64, for the averaged A (r, k)."""
    M = torch.zeros(products[0].B.shape[0], A.shape[0], dtype=torch.float64)
    turned = A.T.contiguous()  # the product below runs twice as fast on it as on the transposed view
    # A pair of float64 buffers for each rank, which stay in the cache, and as few calls a client as can be.
    buffers = {}
    for product, weight in zip(products, weights, strict=True):
        if product.rank not in buffers:
            buffers[product.rank] = tuple(torch.empty_like(t, dtype=torch.float64) for t in (product.A, product.B))
        rows, columns = buffers[product.rank]
        core = rows.copy_(product.A).mm(turned)  # (r_i, k) @ (k, r) -> (r_i, r)
        M.addmm_(columns.copy_(product.B), core, alpha=weight)
    return M, A @ A.T


def ridge_correction(M: Tensor, G: Tensor, B: Tensor, lam: float) -> Tensor:
    """ΔB = (M − B G)(G + λI)⁺, (d, r), from M (d, r), G (r, r) and B (d, r).

    By the eigenvectors of G, so that a rank-deficient Ā (zero padding, or λ = 0) gives the least-norm solution.
    """
    values, vectors = torch.linalg.eigh(G)
    shifted = values + lam
    floor = values[-1].clamp(min=0) * G.shape[0] * torch.finfo(G.dtype).eps
    inverse = torch.where(shifted > floor, 1 / shifted, 0)
    return ((M - B @ G) @ vectors * inverse) @ vectors.T


def corrected_b(
    frozen: Factors, pairs: Sequence[Factors], weights: Sequence[float], average: Factors, lam: float, relative: bool
) -> Tensor:
    """b̄ + Δb (d, 1) of the least ‖ΔW − diag(b̄ + Δb) B diag(d̄) A‖² + λ‖Δb‖² for the averaged d̄.

    frozen: A and B of the layer, in float64; pairs: the clients' b and dᵀ, average: b̄ and d̄ᵀ, as products of rank one.
    Row j of the model is b_j·v_j with v_j = (B_j ∘ d̄) A, so each b_j has a least-squares problem of its own:
    Δb_j = (⟨ΔW_j, v_j⟩ − b̄_j‖v_j‖²)/(‖v_j‖² + λ); `relative` makes it λ‖v_j‖². A row of zeros keeps its b̄_j.
    """
    G = frozen.A @ frozen.A.T
    V = frozen.B * average.A[0]  # (d, r): v_j without A
    VG = V @ G
    size2 = (VG * V).sum(1)
    dots = torch.zeros_like(size2)  # ⟨ΔW_j, v_j⟩
    for pair, weight in zip(pairs, weights, strict=True):
        dots += weight * pair.B[:, 0] * ((frozen.B * pair.A[0]) * VG).sum(1)
    shifted = size2 * (1 + lam) if relative else size2 + lam
    step = torch.where(shifted > 0, (dots - average.B[:, 0] * size2) / shifted.clamp(min=1e-300), 0.0)
    return average.B + step[:, None]


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
