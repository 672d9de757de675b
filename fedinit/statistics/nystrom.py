"""A sketch of the second moment in one pass: Y = Σ x (xᵀΩ) = GΩ for a seeded orthonormal Ω (k, l), and tr G.

The single-pass Nyström method for positive semi-definite matrices (Tropp, Yurtsever, Udell, Cevher, NeurIPS 2017, arXiv
1706.05736). It costs 4nkl operations where G costs 2nk², and l/(k/2) of the bytes; only leading directions come out.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from fedinit.seeding import torch_generator
from fedinit.statistics.statistic import Statistic


@dataclass(frozen=True)
class Nystrom(Statistic):
    """request.options["width"]: l; at most k columns are used."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        k = self.shape[1]
        return {"count": (), "trace": (), "sum": (k,), "sketch": (k, min(int(self.request.options["width"]), k))}

    def measure(self, values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        basis = test_matrix(self.request.seed, *self.shapes()["sketch"]).to(values)
        return {
            "count": torch.tensor(len(values), dtype=torch.float64),
            "trace": values.square().sum(dtype=torch.float64),
            "sum": values.sum(0),
            "sketch": values.T @ (values @ basis),
        }

    def sensitivity(self, clip: float, rows: int) -> dict[str, float]:
        return {"sum": rows * clip, "trace": rows * clip**2, "sketch": rows * clip**2}


@functools.lru_cache(maxsize=16)
def test_matrix(seed: int, k: int, width: int) -> Tensor:
    """Ω (k, width) in float64: orthonormal columns, the Q with a positive diagonal of R, from the run's seed."""
    drawn = torch.randn(k, width, generator=torch_generator(seed, "init.sketch", k, width), dtype=torch.float64)
    q, r = torch.linalg.qr(drawn)
    return q * r.diagonal().sign()


def decompose(sketch: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """(eigenvalues (l,) falling, eigenvectors (l, k) as rows) of the Nyström approximation Y (ΩᵀY)⁺ Yᵀ.

    A shift of the size of float32's rounding, in which clients measured, keeps the small core from being singular; it
    is taken off the eigenvalues again. A zero sketch gives zeros.
    """
    shift = len(sketch) ** 0.5 * torch.finfo(torch.float32).eps * float(torch.linalg.matrix_norm(sketch, 2))
    if shift == 0:
        return torch.zeros(sketch.shape[1], dtype=sketch.dtype), torch.zeros_like(sketch.T)
    shifted = sketch + shift * basis
    core = basis.T @ shifted
    values, vectors = torch.linalg.eigh((core + core.T) / 2)
    # The floor leaves out directions that noise or rounding made negative.
    alive = values > values[-1] * 1e-12
    half = shifted @ (vectors[:, alive] / values[alive].sqrt())
    U, S, _ = torch.linalg.svd(half, full_matrices=False)
    found = torch.zeros(sketch.shape[1], dtype=sketch.dtype)
    rows = torch.zeros_like(sketch.T)
    found[: len(S)], rows[: len(S)] = (S.square() - shift).clamp(min=0), U.T
    return found, rows
