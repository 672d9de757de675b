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

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedinit.adapters.kinds import EVERY_KIND, KINDS
from fedinit.adapters.vera import Pair
from fedinit.config.checks import at_least, positive, refuse_unread, within
from fedinit.errors import InputError
from fedinit.factors import Factors, norm, stack
from fedinit.seeding import torch_generator
from fedinit.threads import intra_op, server_pool
from strategies.aggregator import Aggregator, Layer, Solver
from strategies.means import mean_factors
from strategies.methods.fair_columns import columns_fit, columns_loss
from strategies.methods.fair_correction import cosine_correction, fit_axes, near_the_least, ridge_correction
from strategies.methods.fair_descent import dense_sgd, gram_sgd, normalised_rate
from strategies.methods.fair_moments import Moments, Seen, look, moments


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
        if self.solver == "closed_form":
            why = "with strategy.solver=closed_form, but by gram_sgd and dense_sgd"
            refuse_unread("strategy", self, ("steps", "lr", "delta_init"), why)
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
            return "strategy.similarity=columns: the search has not converged; a larger strategy.lam may help"
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
        if self.two_phase:  # the correction is for `complete`
            return mean_factors(products, weights), True
        if isinstance(products[0], Pair):
            return self._solve_pairs(products, weights)
        return self._solve_together([Layer(products, products[0], is_start=False)], weights)[0]

    def solvers(self, layers: Sequence[Layer], weights: Sequence[float]) -> list[Solver]:
        if self.two_phase or isinstance(layers[0].products[0], Pair):
            return super().solvers(layers, weights)
        return [lambda found=found: found for found in self._solve_together(layers, weights)]

    def _solve_together(self, layers: Sequence[Layer], weights: Sequence[float]) -> list[tuple[Factors, bool]]:
        if self.side == "B":
            return self._corrected(layers, weights)
        if self.side == "both":
            met = self._corrected(layers, weights)
        else:
            met = [(mean_factors(layer.products, weights), True) for layer in layers]
        turned = self._corrected(layers, weights, [turn(average) for average, _ in met])
        return [(turn(product), done and before) for (product, done), (_, before) in zip(turned, met, strict=True)]

    def _corrected(
        self, layers: Sequence[Layer], weights: Sequence[float], turned: Sequence[Factors | None] = ()
    ) -> list[tuple[Factors, bool]]:
        """Ā and B̄′ of each layer in float64, and whether it is what was looked for.

        turned: B̄ᵀ for Ā and Āᵀ for B̄ of each, where the problem is the transposed one; so is what comes back.
        """
        wanted = self.lam_scale == "cosine" and self.lam > 0
        at_once = self.solver == "closed_form" and self.similarity == "matrix"

        def begun(layer: Layer, average: Factors | None) -> tuple[Factors, Seen | tuple[Tensor, bool]]:
            products = [turn(p) for p in layer.products] if average else layer.products
            average = average or mean_factors(products, weights)
            if at_once:
                return average, look(products, weights, average.A, wanted).here()
            return average, self._searched(stack([p.to(torch.float64) for p in products], weights), average)

        averages, found = zip(*server_pool().map(begun, layers, turned or [None] * len(layers)), strict=True)
        corrected = self._closed_form(found, [average.B.cpu() for average in averages]) if at_once else found
        return [
            (replace(average, B=B.to(average.A.device)), done)
            for average, (B, done) in zip(averages, corrected, strict=True)
        ]

    def _searched(self, ideal: Factors, average: Factors) -> tuple[Tensor, bool]:
        """B̄′ (d, r) in float64, for fixed Ā, and whether it is what was looked for, by steps. ideal: ΔW."""
        if self.solver == "closed_form":
            return self._fit_columns(ideal, average, self.lam)
        # What is small is looked at here, by single numbers, wherever the factors are.
        M, G, B = (ideal.B @ (ideal.A @ average.A.T)).cpu(), (average.A @ average.A.T).cpu(), average.B.cpu()
        size2 = float(B.square().sum())
        lam = self.lam / size2 if self.lam_scale == "relative" and size2 else self.lam
        delta = self._start(B)
        ideal_norm, rate = norm(ideal), normalised_rate(G, B, lam, self.lr)
        if self.solver == "dense_sgd":
            columns = self.similarity == "columns"
            delta = dense_sgd(ideal.dense(), average, delta.to(average.B.device), lam, self.steps, rate, columns)
            if columns:
                least, exists = self._fit_columns(ideal, average, lam)
                losses = [float(columns_loss(ideal.dense(), average, d, lam)) for d in (delta, least - average.B)]
                return average.B + delta, exists and losses[0] <= 1.01 * losses[1] + 1e-12
        else:
            delta = gram_sgd(M, G, ideal_norm, B, delta, lam, self.steps, rate)
        delta = delta.cpu()
        known = Moments.of(M[None], G[None], ideal_norm)
        return B + delta, near_the_least(known, B[None], delta[None], lam)

    def _closed_form(self, seen: Sequence[Seen], Bs: Sequence[Tensor]) -> list[tuple[Tensor, bool]]:
        """B̄′ (d, r) of each layer, from what was seen of it and B̄; those of one shape at once."""
        shapes = [(of_layer.image.shape, of_layer.crossed.shape) for of_layer in seen]
        out: dict[int, tuple[Tensor, bool]] = {}
        for shape in dict.fromkeys(shapes):
            those = [i for i, other in enumerate(shapes) if other == shape]
            with intra_op(1):  # what is split waits in a loop for more, on a core that the next layers need
                corrected, done = self._fitted(moments([seen[i] for i in those]), torch.stack([Bs[i] for i in those]))
            out |= dict(zip(those, zip(corrected, done.tolist(), strict=True), strict=True))
        return [out[i] for i in range(len(seen))]

    def _fitted(self, known: Moments, B: Tensor) -> tuple[Tensor, Tensor]:
        """B̄′ (L, d, r) of layers of one shape, from B̄; lam_scale=cosine alone reads ‖ΔW‖."""
        if self.lam_scale == "cosine" and self.lam > 0:
            return cosine_correction(known, B, self.lam)
        lam = self.lam * known.g.mean(1) if self.lam_scale == "relative" else self.lam  # tr(G)/r
        return B + ridge_correction(known, B, lam), torch.ones(len(B), dtype=torch.bool)

    def complete_layer(self, average: Factors, image: Tensor) -> tuple[Factors, bool]:
        known = Moments.of(image.double()[None], (average.A.double() @ average.A.double().T)[None])
        B, done = self._fitted(replace(known, size=known.inside2.sqrt()), average.B.double()[None])
        return replace(average, B=B[0].to(average.B.dtype)), bool(done)

    def _fit_columns(self, ideal: Factors, average: Factors, lam: float) -> tuple[Tensor, bool]:
        """B̄′ of the least objective by columns, searched for from that of the whole matrix."""
        A, B = average.A, average.B.cpu()[None]
        known = Moments.of((ideal.B @ (ideal.A @ A.T)).cpu()[None], (A @ A.T).cpu()[None], norm(ideal))
        start = (cosine_correction(known, B, lam)[0] - B if lam else ridge_correction(known, B, 0.0))[0]
        delta, done = columns_fit(ideal, average, start.to(A.device), lam)
        return average.B + delta, done

    def _solve_pairs(self, pairs: Sequence[Factors], weights: Sequence[float]) -> tuple[Factors, bool]:
        """VeRA's d̄ and b̄′ (d, 1) in float64, for fixed d̄, and whether it is what was looked for."""
        average, first = mean_factors(pairs, weights), pairs[0]
        assert isinstance(first, Pair)
        dots, size2, ideal_norm = row_moments(first.frame, pairs, weights, average)
        dots, size2, place = dots.cpu(), size2.cpu(), average.B.device
        if self.lam_scale == "cosine" and self.lam > 0:
            known = Moments(dots[None, None], size2[None], torch.empty(0), torch.tensor([ideal_norm]).double())
            fitted, done = fit_axes(known, average.B.cpu().T[None], self.lam)
            return Factors(average.A, fitted[0].T.to(place)), bool(done)
        b = corrected_b(dots, size2, average.B.cpu(), self.lam, self.lam_scale == "relative")
        return Factors(average.A, b.to(place)), True

    def _start(self, B: Tensor) -> Tensor:
        if self.delta_init == "zero":
            return torch.zeros_like(B)
        bound = (6 / sum(B.shape)) ** 0.5
        draw = torch_generator(0, "lora_fair.delta", *B.shape)
        return torch.empty_like(B).uniform_(-bound, bound, generator=draw)


def turn(product: Factors) -> Factors:
    """(BA)ᵀ = AᵀBᵀ"""
    return Factors(product.B.T, product.A.T)


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
