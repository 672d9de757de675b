"""LoRA-FAIR: the averaged factors, with a correction that turns B̄Ā towards the ideal update.

Bian et al., ICCV 2025, arXiv 2411.14961. B̄′ = B̄ + ΔB with Ā unchanged, where ΔB minimises
1 − cos(ΔW, (B̄ + ΔB)Ā) + λ‖ΔB‖²; the paper runs SGD on the d×k matrices.

Everything needed is in M = ΔW Āᵀ = Σ p_i B_i (A_i Āᵀ), d×r, G = ĀĀᵀ, r×r, and ‖ΔW‖, at O(K r²(d + k)) a layer. Three
solvers (`solver=`):

closed_form  lam_scale=cosine: the objective's minimiser itself (fair_cosine.py), whose one scalar equation starts at
             the ridge solution with λ′ = 2λ‖ΔW‖². The other scales stop at a ridge solution of
             ‖ΔW − (B̄ + ΔB)Ā‖² + λ′‖ΔB‖², ΔB = (M − B̄G)(G + λ′I)⁻¹. At λ = 0 all attain the largest cosine any ΔB
             can, ‖ΔW P_A‖/‖ΔW‖, and get the magnitude right too, which the cosine ignores.
gram_sgd     the paper's objective by SGD, with loss and gradient evaluated from M, G and ‖ΔW‖.
dense_sgd    the paper's way, on d×k matrices: the baseline that benchmarks compare with.

`phases=2` is for a server that knows sums alone: factors are averaged first, then each client answers Ā with
B_i(A_iĀᵀ), whose mean is M. ‖ΔW‖ is no sum; it is taken in the rows of Ā, ‖ΔW P_A‖, which M and G know, so that
lam_scale=cosine has λ·‖ΔW P_A‖/‖ΔW‖ for λ (the minimiser depends on λ‖ΔW‖). The other scales are as they are.

`side` chooses the corrected factor. A is corrected as B of the transposed problem; ``both`` corrects B first, then A
against the corrected B. With VeRA (fedinit/adapters/vera.py) b is corrected for the averaged d, row by row.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedinit.adapters.kinds import EVERY_KIND, KINDS
from fedinit.adapters.vera import Pair
from fedinit.config.checks import at_least, positive, within
from fedinit.errors import InputError
from fedinit.factors import Factors, norm, stack
from fedinit.seeding import torch_generator
from strategies.aggregator import Aggregator
from strategies.means import mean_factors
from strategies.methods.fair_columns import columns_fit, columns_loss
from strategies.methods.fair_cosine import Axes, cosine_fit
from strategies.methods.fair_descent import dense_sgd, gram_sgd, normalised_rate

SKETCHED, PROBES = 64, 4  # from how many components on ‖ΔW‖ is estimated, and by how many random columns


@dataclass(frozen=True, kw_only=True)
class LoRAFAIR(Aggregator):
    """The averaged factors, one or both of them corrected.

    solver: how the correction is found, as above. side: which factor is corrected; ``both``: B, then A.
    lam: λ, from 0 to 1e100.
    lam_scale: what λ stands against. ``cosine``: 1 − cos, as in the paper. The others leave that objective:
    ``absolute`` has λ′ = λ against the squared residual of the closed form, ``relative`` λ′ = λ·tr(G)/r. To the SGD
    solvers, which know the cosine alone, ``absolute`` is as ``cosine``, and ``relative`` takes λ/‖B̄‖².
    steps, lr: of the SGD solvers, steps a layer and the learning rate, of ΔW, B̄ and Ā normalised to one size
    (`normalised_rate`). Where they end more than 1 % above the objective's least value, the log says so.
    similarity: whether the cosine is that of the whole ΔW, or the mean of those of its columns (fair_columns.py).
    phases: 2: from sums alone, in a second exchange with the clients; closed form, side B, one cosine.
    delta_init: where they start; the Xavier start of some public code is harmful at small λ, since its noise decays by
    only (1 − 2·lr·λ‖B̄‖²) a step.
    """

    mixed_ranks: ClassVar[bool] = True
    kinds: ClassVar[tuple[str, ...]] = EVERY_KIND

    solver: Literal["closed_form", "gram_sgd", "dense_sgd"] = "closed_form"
    side: Literal["B", "A", "both"] = "B"
    lam: float = 0.01
    lam_scale: Literal["cosine", "relative", "absolute"] = "cosine"
    steps: int = 1000
    lr: float = 0.01
    delta_init: Literal["zero", "xavier"] = "zero"
    similarity: Literal["matrix", "columns"] = "matrix"
    phases: Literal[1, 2] = 1

    def __post_init__(self) -> None:
        within("strategy.lam", self.lam, 0, 1e100)  # far above the largest that float32 factors feel
        at_least("strategy.steps", self.steps, 1)
        positive("strategy.lr", self.lr)
        if self.phases == 2 and (self.solver, self.side, self.similarity) != ("closed_form", "B", "matrix"):
            raise InputError(
                "strategy.phases=2: its sum is all that strategy.solver=closed_form, strategy.side=B and "
                "strategy.similarity=matrix need, the others need more; use these, or strategy.phases=1"
            )
        if self.similarity == "columns" and self.solver == "gram_sgd":
            raise InputError(
                "strategy.similarity=columns: does not go with strategy.solver=gram_sgd, whose M and G know no "
                "columns; choose one of: closed_form, dense_sgd"
            )
        if self.similarity == "columns" and self.solver == "closed_form" and self.lam_scale != "cosine":
            raise InputError(
                f"strategy.similarity=columns: does not go with strategy.lam_scale={self.lam_scale}, whose "
                "objective has no cosine; choose one of: cosine"
            )

    @property
    def two_phase(self) -> bool:
        return self.phases == 2

    def objection(self, kind: str) -> str:
        if KINDS[kind].rank_one and self.two_phase:
            return "the second phase's sum is of products B A, and VeRA's b has another: use strategy.phases=1"
        if KINDS[kind].rank_one and (self.solver, self.side, self.similarity) != ("closed_form", "B", "matrix"):
            return "VeRA's b is corrected in closed form: solver=closed_form, side=B, similarity=matrix"
        return super().objection(kind)

    def sums(self, round: int) -> tuple[str, ...]:
        """B̄ in "(B̄ᵀB)A" is the corrected one with side=both. With VeRA the second phase is of d numbers, ⟨ΔW_j, v_j⟩ of
        `corrected_b`."""
        if self.two_phase:
            return ("A", "B", "B(AĀᵀ)")
        if self.solver != "closed_form" or self.lam_scale == "cosine":  # the cosine's own ‖ΔW‖
            return ("A", "B", "BA")
        second = {"B": ("B(AĀᵀ)",), "A": ("(B̄ᵀB)A",), "both": ("B(AĀᵀ)", "(B̄ᵀB)A")}
        return ("A", "B", *second[self.side])

    def shortfall(self) -> str:
        if self.similarity == "columns" and self.solver == "closed_form":
            return "strategy.similarity=columns: the search has not converged"
        if self.solver != "closed_form":
            return (
                f"strategy.solver={self.solver}: has not converged after strategy.steps={self.steps}, more than 1 % "
                "above the least value of 1 − cos + λ‖ΔB‖²; take more steps, or solver=closed_form"
            )
        return (
            "strategy=lora_fair: 1 − cos + λ‖ΔB‖² has no minimum, since the averaged factors turn away from the ideal "
            "update; the better of its ridge solution and the plain averages was taken"
        )

    def merge(self, products: Sequence[Factors], weights: Sequence[float], start: Factors | None) -> Factors:
        return self.solve(products, weights, start)[0]

    def solve(
        self, products: Sequence[Factors], weights: Sequence[float], start: Factors | None
    ) -> tuple[Factors, bool]:
        average, first = mean_factors(products, weights), products[0]
        if self.two_phase:  # the correction is for `complete`
            return average, True
        if isinstance(first, Pair):
            b, done = self._correct_b(first.frame, products, weights, average)
            return Factors(average.A, b), done
        met = []
        if self.side != "A":
            B, done = self._correct(products, weights, average)
            average, met = Factors(average.A, B), [done]
        if self.side != "B":
            turned = [Factors(p.B.T, p.A.T) for p in products]
            A, done = self._correct(turned, weights, Factors(average.B.T, average.A.T))
            average, met = Factors(A.T, average.B), [*met, done]
        return average, all(met)

    def _correct(self, products: Sequence[Factors], weights: Sequence[float], average: Factors) -> tuple[Tensor, bool]:
        """B̄′ (d, r) in float64, for fixed Ā, and whether it is what was looked for."""
        if self.solver == "closed_form":
            cosine = self.lam_scale == "cosine" and self.lam > 0
            M, G, ideal_norm = moments_and_norm(products, weights, average.A, cosine)
            if self.similarity == "columns":
                return self._fit_columns(products, weights, average, self.lam)
            return self._closed_form(M, G, ideal_norm, average.B)
        M, G = moments(products, weights, average.A)
        size2 = float(average.B.square().sum())
        lam = self.lam / size2 if self.lam_scale == "relative" and size2 else self.lam
        delta = self._start(average.B)
        ideal = stack([p.to(torch.float64) for p in products], weights)
        ideal_norm, rate = norm(ideal), normalised_rate(G, average.B, lam, self.lr)
        if self.solver == "dense_sgd":
            columns = self.similarity == "columns"
            delta = dense_sgd(ideal.dense(), average, delta, lam, self.steps, rate, columns)
            if columns:
                least, exists = self._fit_columns(products, weights, average, lam)
                losses = [float(columns_loss(ideal.dense(), average, d, lam)) for d in (delta, least - average.B)]
                return average.B + delta, exists and losses[0] <= 1.01 * losses[1] + 1e-12
        else:
            delta = gram_sgd(M, G, ideal_norm, average.B, delta, lam, self.steps, rate)
        return average.B + delta, near_the_least(M, G, ideal_norm, average.B, delta, lam)

    def _closed_form(self, M: Tensor, G: Tensor, ideal_norm: float, B: Tensor) -> tuple[Tensor, bool]:
        """B̄′ from M (d, r), G (r, r), ‖ΔW‖, which lam_scale=cosine alone reads, and B̄ (d, r)."""
        if self.lam_scale == "cosine" and self.lam > 0:
            return cosine_correction(M, G, ideal_norm, B, self.lam)
        lam = self.lam * float(G.trace()) / G.shape[0] if self.lam_scale == "relative" else self.lam
        return B + ridge_correction(M, G, B, lam), True

    def complete_layer(self, average: Factors, image: Tensor) -> tuple[Factors, bool]:
        M, G = image.double(), average.A.double() @ average.A.double().T
        inside2 = float(((M @ torch.linalg.pinv(G, hermitian=True)) * M).sum())  # ‖ΔW P_A‖²
        B, done = self._closed_form(M, G, max(inside2, 0.0) ** 0.5, average.B.double())
        return replace(average, B=B.to(average.B.dtype)), done

    def _fit_columns(
        self, products: Sequence[Factors], weights: Sequence[float], average: Factors, lam: float
    ) -> tuple[Tensor, bool]:
        """B̄′ of the least objective by columns, searched for from that of the whole matrix."""
        ideal = stack([p.to(torch.float64) for p in products], weights)
        M, G = moments(products, weights, average.A)
        if lam:
            start = cosine_correction(M, G, norm(ideal), average.B, lam)[0] - average.B
        else:
            start = ridge_correction(M, G, average.B, 0.0)
        delta, done = columns_fit(ideal, average, start, lam)
        return average.B + delta, done

    def _correct_b(
        self, frozen: Factors, pairs: Sequence[Factors], weights: Sequence[float], average: Factors
    ) -> tuple[Tensor, bool]:
        """VeRA's b̄′ (d, 1) in float64, for fixed d̄, and whether it is what was looked for."""
        dots, size2, ideal_norm = row_moments(frozen, pairs, weights, average)
        if self.lam_scale == "cosine" and self.lam > 0:
            fitted, done = fit_axes(dots[None], size2, ideal_norm, average.B.T, self.lam)
            return fitted.T, done
        return corrected_b(dots, size2, average.B, self.lam, self.lam_scale == "relative"), True

    def _start(self, B: Tensor) -> Tensor:
        if self.delta_init == "zero":
            return torch.zeros_like(B)
        bound = (6 / sum(B.shape)) ** 0.5
        draw = torch_generator(0, "lora_fair.delta", *B.shape)
        return torch.empty_like(B).uniform_(-bound, bound, generator=draw)


def moments(products: Sequence[Factors], weights: Sequence[float], A: Tensor) -> tuple[Tensor, Tensor]:
    """M = Σ p_i B_i (A_i Aᵀ), (d, r), and G = A Aᵀ, (r, r), in float64, for the averaged A (r, k)."""
    return image(products, weights, A), A @ A.T


def image(products: Sequence[Factors], weights: Sequence[float], rows: Tensor) -> Tensor:
    """ΔW rowsᵀ = Σ p_i B_i (A_i rowsᵀ), (d, c), in float64, for rows (c, k)."""
    # Everything transposed: a few long rows on the left are faster in the product than a few columns on the right.
    out = torch.zeros(rows.shape[0], products[0].B.shape[0], dtype=torch.float64)
    # A pair of float64 buffers for each rank, which stay in the cache, and as few calls a client as can be.
    buffers = {}
    for product, weight in zip(products, weights, strict=True):
        if product.rank not in buffers:
            buffers[product.rank] = tuple(torch.empty_like(t, dtype=torch.float64) for t in (product.A, product.B))
        wide, tall = buffers[product.rank]
        core = rows.mm(wide.copy_(product.A).T)  # (c, k) @ (k, r_i) -> (c, r_i)
        out.addmm_(core, tall.copy_(product.B).T, alpha=weight)
    return out.T


def moments_and_norm(
    products: Sequence[Factors], weights: Sequence[float], A: Tensor, wanted: bool = True
) -> tuple[Tensor, Tensor, float]:
    """M and G of `moments`, and ‖ΔW‖ (0 where it is not wanted).

    The norm is exact up to SKETCHED components in all; from there on its cost, O(R²(d + k)), would be most of the
    aggregation's. What lies in the rows of A stays exact, ‖M G^(−1/2)‖, and the rest, E = ΔW(I − P_A), is estimated by
    ‖EΩᵀ‖²/PROBES for a fixed Gaussian Ω (PROBES, k). The minimiser feels an error of ‖ΔW‖ as one of λ.
    """
    if not wanted or sum(p.rank for p in products) <= SKETCHED:
        M, G = moments(products, weights, A)
        return M, G, norm(stack([p.to(torch.float64) for p in products], weights)) if wanted else 0.0
    probes = _gaussian(A.shape[1])
    both, G = image(products, weights, torch.cat([A, probes])), A @ A.T
    M, seen = both[:, : A.shape[0]], both[:, A.shape[0] :]
    values, vectors = torch.linalg.eigh(G)
    kept = values > values[-1].clamp(min=0) * G.shape[0] * torch.finfo(G.dtype).eps
    inverse = (vectors * torch.where(kept, 1 / values, 0)) @ vectors.T  # as pinv, in a fifth of its time
    inside2 = float(((M @ inverse) * M).sum())
    rest2 = float((seen - M @ (inverse @ (A @ probes.T))).square().sum()) / PROBES
    return M, G, max(inside2 + rest2, 0.0) ** 0.5


@functools.cache
def _gaussian(size: int) -> Tensor:
    """(PROBES, size)"""
    draw = torch_generator(0, "lora_fair.norm", size)
    return torch.randn(size, PROBES, generator=draw, dtype=torch.float64).T.contiguous()


def cosine_correction(M: Tensor, G: Tensor, ideal_norm: float, B: Tensor, lam: float) -> tuple[Tensor, bool]:
    """B̄ + ΔB (d, r) of the least 1 − cos(ΔW, (B̄ + ΔB)Ā) + λ‖ΔB‖², λ > 0, from M (d, r), G (r, r), ‖ΔW‖ and B̄ (d, r),
    and whether it is a minimum (`cosine_fit`)."""
    values, vectors = torch.linalg.eigh(G)
    fitted, done = fit_axes(M @ vectors, values, ideal_norm, B @ vectors, lam)
    return fitted @ vectors.T, done


def near_the_least(M: Tensor, G: Tensor, ideal_norm: float, B: Tensor, delta: Tensor, lam: float) -> bool:
    """Whether 1 − cos(ΔW, (B̄ + ΔB)Ā) + λ‖ΔB‖² is within 1 % of its least value, or 1e-12; not where it has none."""

    def loss(corrected: Tensor) -> float:
        n = float(((corrected @ G) * corrected).sum().clamp(min=0).sqrt())
        cosine = float((M * corrected).sum()) / (ideal_norm * n) if n else 0.0
        return 1 - cosine + lam * float((corrected - B).square().sum())

    if not ideal_norm:
        return True
    least, exists = cosine_correction(M, G, ideal_norm, B, lam) if lam else (B + ridge_correction(M, G, B, 0.0), True)
    return exists and loss(B + delta) <= 1.01 * loss(least) + 1e-12


def fit_axes(M: Tensor, g: Tensor, ideal_norm: float, B: Tensor, lam: float) -> tuple[Tensor, bool]:
    """The same where G = diag(g), g (r,), ascending or not. Columns with no g stay as they are."""
    floor = g.max().clamp(min=0) * g.shape[0] * torch.finfo(g.dtype).eps
    kept = g > floor
    if not ideal_norm or not kept.any():
        return B, True
    if not kept.all():
        corrected = B.clone()
        corrected[:, kept], done = fit_axes(M[:, kept], g[kept], ideal_norm, B[:, kept], lam)
        return corrected, done
    # Below this λ the minimiser moves no more: it is MG⁺, as long as ⟨MG⁺, B̄⟩ has it.
    lam = max(lam, 1e-40 * float(g.max()) / ideal_norm**2)
    m, x, b = (M.square().sum(0), (M * B).sum(0), B.square().sum(0))
    fit = cosine_fit(Axes(g.numpy(), m.numpy(), x.numpy(), b.numpy(), ideal_norm), lam)
    moved = (fit.w * (M - B * g) + (fit.p - fit.w) * M) / (1 + fit.w * g)  # ΔB; nought where M = B̄G
    return B + moved, fit.converged


def ridge_correction(M: Tensor, G: Tensor, B: Tensor, lam: float) -> Tensor:
    """ΔB = (M − B G)(G + λI)⁺, (d, r), from M (d, r), G (r, r) and B (d, r).

    By the eigenvectors of G, so that a rank-deficient Ā (zero padding, or λ = 0) gives the least-norm solution.
    """
    values, vectors = torch.linalg.eigh(G)
    shifted = values + lam
    floor = values[-1].clamp(min=0) * G.shape[0] * torch.finfo(G.dtype).eps
    inverse = torch.where(shifted > floor, 1 / shifted, 0)
    return ((M - B @ G) @ vectors * inverse) @ vectors.T


def row_moments(
    frozen: Factors, pairs: Sequence[Factors], weights: Sequence[float], average: Factors
) -> tuple[Tensor, Tensor, float]:
    """⟨ΔW_j, v_j⟩ and ‖v_j‖² of every row, (d,), and ‖ΔW‖, in float64, of VeRA's vectors.

    frozen: A and B of the layer, in float64; pairs: the clients' b and dᵀ, average: b̄ and d̄ᵀ, as products of rank one.
    Row j of the model is b_j·v_j with v_j = (B_j ∘ d̄) A, and ΔW = (B ∘ M) A with M = Σ p_i b_i d_iᵀ.
    """
    G = frozen.A @ frozen.A.T
    V = frozen.B * average.A[0]  # (d, r): v_j without A
    ideal = frozen.B * stack([p.to(torch.float64) for p in pairs], weights).dense()
    size2 = float(((ideal @ G) * ideal).sum())
    return ((ideal @ G) * V).sum(1), ((V @ G) * V).sum(1), max(size2, 0.0) ** 0.5


def corrected_b(dots: Tensor, size2: Tensor, b: Tensor, lam: float, relative: bool) -> Tensor:
    """b̄ + Δb (d, 1) of the least ‖ΔW − diag(b̄ + Δb) B diag(d̄) A‖² + λ‖Δb‖² for the averaged d̄.

    Each b_j has a least-squares problem of its own (`row_moments`): Δb_j = (⟨ΔW_j, v_j⟩ − b̄_j‖v_j‖²)/(‖v_j‖² + λ);
    `relative` makes it λ‖v_j‖². A row of zeros keeps its b̄_j.
    """
    shifted = size2 * (1 + lam) if relative else size2 + lam
    step = torch.where(shifted > 0, (dots - b[:, 0] * size2) / shifted.clamp(min=1e-300), 0.0)
    return b + step[:, None]
