"""What the aggregation methods must compute, from the formulas, on dense float64 matrices in numpy.

Written for reading, not for speed: ΔW and every product are built as (d, k) matrices, and each least-squares problem
is handed to np.linalg.lstsq as it stands. Letters as in strategies/aggregator.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from fedinit.adapters.core import CoreFactors
from fedinit.factors import Factors, leading
from strategies import create_aggregator
from strategies.aggregator import Aggregate, Update

Matrix = np.ndarray


@dataclass(frozen=True)
class Clients:
    """The K clients of one layer: A_i (r_i, k), B_i (d, r_i), n_i."""

    A: tuple[Matrix, ...]
    B: tuple[Matrix, ...]
    examples: tuple[int, ...]

    @property
    def p(self) -> Matrix:
        return np.array(self.examples) / sum(self.examples)

    @property
    def padded(self) -> Clients:
        """All at the largest rank, with zeros: the same products."""
        rank = max(len(A) for A in self.A)
        A = tuple(np.pad(a, ((0, rank - len(a)), (0, 0))) for a in self.A)
        B = tuple(np.pad(b, ((0, 0), (0, rank - b.shape[1]))) for b in self.B)
        return replace(self, A=A, B=B)

    @property
    def turned(self) -> Clients:
        """The transposed problem, (B A)ᵀ = Aᵀ Bᵀ."""
        return Clients(tuple(b.T for b in self.B), tuple(a.T for a in self.A), self.examples)

    def regauged(self, cores: Sequence[Matrix]) -> Clients:
        """(B_i R_i, R_i⁻¹ A_i): every client's product as it was."""
        A = tuple(np.linalg.solve(R, a) for R, a in zip(cores, self.A, strict=True))
        return replace(self, A=A, B=tuple(b @ R for R, b in zip(cores, self.B, strict=True)))

    def factors(self, dtype: torch.dtype = torch.float64) -> list[Factors]:
        pairs = zip(self.A, self.B, strict=True)
        return [Factors(torch.tensor(A, dtype=dtype), torch.tensor(B, dtype=dtype)) for A, B in pairs]

    def updates(self, dtype: torch.dtype = torch.float64) -> list[Update]:
        """One layer named "layer", and a head of two numbers that are the client's id and its square."""
        return [
            Update(i, n, {"layer": f}, {"weight": torch.tensor([i, i * i], dtype=dtype)})
            for i, (n, f) in enumerate(zip(self.examples, self.factors(dtype), strict=True))
        ]


def as_trained(name: str, own: Factors, start: Factors, round: int = 1, **options: Any) -> Factors:
    """A client's factors as the method's clients return them from `start`: what it freezes is the start's, and a method
    with a core has one, of (r, r), made of the client's own A."""
    method = create_aggregator(name, **options)
    trained = method.trainable(round)
    if method.cores:
        core = torch.zeros(start.rank, start.rank, dtype=own.A.dtype)
        core[: own.rank, : own.rank] = own.A[:, : own.rank]
        return leading(method.adopt(CoreFactors(start.A, start.B, core)), own.rank)
    A = own.A if "A" in trained else start.A[: own.rank]
    B = own.B if "B" in trained else start.B[:, : own.rank]
    return Factors(A, B)


def draw_clients(
    seed: int, d: int, k: int, ranks: Sequence[int], examples: Sequence[int] | None = None, spread: float = 1.0
) -> Clients:
    """Clients around a common start: spread 0 makes them equal, 1 makes them unrelated."""
    rng = np.random.default_rng(seed)
    A, B = rng.standard_normal((max(ranks), k)), rng.standard_normal((d, max(ranks)))
    common = 1 - spread
    return Clients(
        tuple(common * A[:r] + spread * rng.standard_normal((r, k)) for r in ranks),
        tuple(common * B[:, :r] + spread * rng.standard_normal((d, r)) for r in ranks),
        tuple(examples or [1] * len(ranks)),
    )


@st.composite
def clients(draw: st.DrawFn, min_clients: int = 1, mixed_ranks: bool = True) -> Clients:
    """K in 1..6, d and k in 2..24, ranks up to min(d, k), n_i in 1..50, near or unrelated clients."""
    count = draw(st.integers(min_clients, 6))
    d, k = draw(st.integers(2, 24)), draw(st.integers(2, 24))
    rank = st.integers(1, min(d, k))
    ranks = draw(st.lists(rank, min_size=count, max_size=count)) if mixed_ranks else [draw(rank)] * count
    examples = draw(st.lists(st.integers(1, 50), min_size=count, max_size=count))
    return draw_clients(draw(st.integers(0, 2**31)), d, k, ranks, examples, draw(st.sampled_from([0.1, 0.5, 1.0])))


def rotated_clients(seed: int = 0, d: int = 20, k: int = 14, rank: int = 4, count: int = 6) -> Clients:
    """Clients that agree on the product, up to noise, and have each turned the factors a little their own way."""
    rng = np.random.default_rng(seed)
    near = draw_clients(seed, d, k, [rank] * count, spread=0.1)
    turns = [np.linalg.qr(np.eye(rank) + 0.25 * rng.standard_normal((rank, rank))) for _ in range(count)]
    return near.regauged([q * np.sign(np.diag(r)) for q, r in turns])


def well_posed(c: Clients) -> bool:
    """Ā and B̄ far enough from losing rank for a solved system to keep ten digits."""
    return all(np.linalg.cond(m) < 1e3 for m in factor_means(c))


def layer_product(made: Aggregate) -> Matrix:
    """B A of the layer named "layer"."""
    layer = made.layers["layer"]
    return layer.B.double().numpy() @ layer.A.double().numpy()


def fair(c: Clients, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """(A, B) that lora_fair makes of the clients."""
    layer = create_aggregator("lora_fair", **options).aggregate(c.updates(), 1).layers["layer"]
    return layer.A.numpy(), layer.B.numpy()


def fair_product(c: Clients, **options: Any) -> np.ndarray:
    A, B = fair(c, **options)
    return B @ A


# -- sums over clients -------------------------------------------------------------------------------------------------


def mean(values: Sequence[Matrix], p: Matrix) -> Matrix:
    return np.average(np.stack(values), axis=0, weights=p)


def factor_means(c: Clients) -> tuple[Matrix, Matrix]:
    """Ā, B̄, of factors padded to one rank."""
    return mean(c.padded.A, c.p), mean(c.padded.B, c.p)


def ideal_update(c: Clients) -> Matrix:
    """ΔW = Σ p_i B_i A_i."""
    return mean([B @ A for A, B in zip(c.A, c.B, strict=True)], c.p)


def covariance_bias(c: Clients) -> Matrix:
    """C = Σ p_i (B_i − B̄)(A_i − Ā)."""
    A, B = factor_means(c)
    return mean([(b - B) @ (a - A) for a, b in zip(c.padded.A, c.padded.B, strict=True)], c.p)


# -- figures of merit --------------------------------------------------------------------------------------------------


def row_projector(A: Matrix) -> Matrix:
    """P_A, the orthogonal projector on the row space of A."""
    return np.linalg.pinv(A, rcond=1e-10) @ A


def correctable(c: Clients) -> float:
    """ρ = ‖C P_A‖²/‖C‖²; 0 where there is no bias."""
    C = covariance_bias(c)
    size2 = np.sum(C**2)
    return float(np.sum((C @ row_projector(factor_means(c)[0])) ** 2) / size2) if size2 else 0.0


def cosine(left: Matrix, right: Matrix) -> float:
    """0 where either is zero."""
    size = np.linalg.norm(left) * np.linalg.norm(right)
    return float(np.sum(left * right) / size) if size else 0.0


def best_cosine(c: Clients) -> float:
    """‖ΔW P_A‖/‖ΔW‖: no B′Ā comes nearer to ΔW in direction."""
    ideal = ideal_update(c)
    return float(np.linalg.norm(ideal @ row_projector(factor_means(c)[0])) / np.linalg.norm(ideal))


def block_diagonal(blocks: Sequence[Matrix]) -> Matrix:
    """All layers as one matrix."""
    rows, columns = (sum(b.shape[axis] for b in blocks) for axis in (0, 1))
    whole, row, column = np.zeros((rows, columns)), 0, 0
    for b in blocks:
        whole[row : row + b.shape[0], column : column + b.shape[1]] = b
        row, column = row + b.shape[0], column + b.shape[1]
    return whole


# -- LoRA-FAIR ---------------------------------------------------------------------------------------------------------


def ridge_correction(c: Clients, lam: float) -> Matrix:
    """ΔB of the least ‖ΔW − (B̄ + ΔB)Ā‖² + λ‖ΔB‖², as one stacked system [Āᵀ; √λ I] ΔBᵀ = [(ΔW − B̄Ā)ᵀ; 0].

    Where that has many solutions, the one of least norm.
    """
    A, B = factor_means(c)
    left = np.vstack([A.T, np.sqrt(lam) * np.eye(len(A))])
    right = np.vstack([(ideal_update(c) - B @ A).T, np.zeros((len(A), len(B)))])
    return np.linalg.lstsq(left, right, rcond=1e-10)[0].T


def relative_lam(c: Clients, lam: float) -> float:
    """λ′ = λ·tr(ĀĀᵀ)/r."""
    A, _ = factor_means(c)
    return lam * float(np.trace(A @ A.T)) / len(A)


def cosine_loss(c: Clients, delta: Matrix, lam: float) -> float:
    """The paper's objective, 1 − cos(ΔW, (B̄ + ΔB)Ā) + λ‖ΔB‖²."""
    A, B = factor_means(c)
    return 1 - cosine(ideal_update(c), (B + delta) @ A) + lam * float(np.sum(delta**2))


def least(value: Callable[[torch.Tensor], torch.Tensor], starts: Sequence[torch.Tensor]) -> float:
    """The lowest value of a function that L-BFGS reaches from any of the starts, in units of the first one's size."""
    size = float(starts[0].norm()) or 1.0

    def reached(start: torch.Tensor) -> float:
        point = (start / size).requires_grad_(True)
        search = torch.optim.LBFGS([point], 1.0, 400, 800, 1e-12, 1e-15, 20, "strong_wolfe")

        def closure() -> torch.Tensor:
            search.zero_grad()
            loss = value(size * point)
            loss.backward()
            return loss

        search.step(closure)
        return float(value(size * point.detach()))

    return min(reached(start) for start in starts)


def least_cosine_loss(c: Clients, lam: float) -> float:
    """The lowest value of the paper's objective, from no correction and from the ridge solution of 2λ‖ΔW‖²."""
    A, B = factor_means(c)
    ideal = ideal_update(c)
    ridge = B + ridge_correction(c, 2 * lam * float(np.sum(ideal**2)))
    A, B, ideal, ridge = (torch.tensor(value) for value in (A, B, ideal, ridge))

    def value(corrected: torch.Tensor) -> torch.Tensor:
        product = corrected @ A
        return 1 - (product * ideal).sum() / (product.norm() * ideal.norm()) + lam * (corrected - B).square().sum()

    return least(value, [B, ridge])


def cosine_gradient(c: Clients, delta: Matrix, lam: float, step: float = 1e-5) -> Matrix:
    """Its gradient in ΔB by central differences, entry by entry."""
    gradient = np.zeros_like(delta)
    for place in np.ndindex(delta.shape):
        shift = np.zeros_like(delta)
        shift[place] = step
        gradient[place] = (cosine_loss(c, delta + shift, lam) - cosine_loss(c, delta - shift, lam)) / (2 * step)
    return gradient


def cosine_descent(c: Clients, lam: float, steps: int, lr: float) -> Matrix:
    """ΔB after gradient descent from zero, with ∂cos/∂W′ = (ΔW/‖ΔW‖ − cos·W′/‖W′‖)/‖W′‖ at W′ = (B̄ + ΔB)Ā.

    ΔW, B̄ and Ā are divided by their sizes first, Ā so that ‖B̄Ā‖ = 1, and ΔB is multiplied by that of B̄ at the end.
    """
    (A, B), ideal = factor_means(c), ideal_update(c)
    size = np.linalg.norm(B)
    A, B, ideal, lam = A * size / np.linalg.norm(B @ A), B / size, ideal / np.linalg.norm(ideal), lam * size**2
    lr = min(lr / max(1, 2 * lam), 1 / (2 * lam + np.linalg.norm(A, 2) ** 2))
    delta = np.zeros_like(B)
    for _ in range(steps):
        product = (B + delta) @ A
        n = np.linalg.norm(product)
        by_product = (ideal / np.linalg.norm(ideal) - cosine(ideal, product) * product / n) / n
        delta = delta - lr * (2 * lam * delta - by_product @ A.T)
    return size * delta
