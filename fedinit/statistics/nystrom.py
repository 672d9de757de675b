"""A sketch of the second moment: Y = Σ x (xᵀΩ) = GΩ for an orthonormal Ω (k, l), and tr G. Ω is seeded, or sent.

The single-pass Nyström method for positive semi-definite matrices (Tropp, Yurtsever, Udell, Cevher, NeurIPS 2017, arXiv
1706.05736). It costs 4nkl operations where G costs 2nk², and, in half precision, l/k of the bytes; only leading
directions come out. With an Ω that holds the leading directions of a first, thinner sketch it is a step of subspace
iteration, and what it misses falls with the square of the ratio of the eigenvalues.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedinit.seeding import torch_generator
from fedinit.statistics.gram import about_mean, is_longer, is_positive, joined_total, split_total
from fedinit.statistics.statistic import Request, Statistic


@dataclass(frozen=True)
class Nystrom(Statistic):
    """The sketch of the second moment of a layer's k inputs, and what is exact beside it.

    count: the rows.
    trace: Σ ‖x‖², tr G.
    sum: (k,), Σ x.
    sketch: (k, l), Y = GΩ, in half precision on the way.

    On the way trace and sketch are about the client's mean, and rest (k,) is what sum lacks in float32.

    request.options["width"]: l, of which at most k columns are used.
    request.tensors["<layer>/basis"]: Ω (k, l); absent: the seeded one.
    """

    half: ClassVar[frozenset[str]] = frozenset({"sketch"})
    per_row: ClassVar[bool] = True

    def shapes(self) -> dict[str, tuple[int, ...]]:
        k = self.shape[1]
        return {"count": (), "trace": (), "sum": (k,), "sketch": (k, min(int(self.request.options["width"]), k))}

    def measure(self, values: Tensor, other: Tensor | None = None) -> dict[str, Tensor]:
        basis = basis_of(self.request, self.layer, *self.shapes()["sketch"]).to(values.device)
        count = len(values)
        rows, centre, total = about_mean(values)  # as in `Gram.measure`
        means = shift_of(centre, total, count, basis.double())
        return {
            "count": torch.tensor(count, dtype=torch.float64),
            "trace": rows.square().sum(dtype=torch.float64) + centre @ (2 * total + count * centre),
            "sum": total + count * centre,
            "sketch": (rows.T @ (rows @ basis.to(rows))).double() + means,
        }

    def sensitivity(self, clip: float, rows: int) -> dict[str, float]:
        return {"sum": rows * clip, "trace": rows * clip**2, "sketch": rows * clip**2}

    def fault(self, sums: Mapping[str, Tensor], examples: int) -> str:
        """For an orthonormal Ω: 0 ⪯ ΩᵀGΩ, and its trace and ‖GΩ‖ are no more than tr G; up to half precision. So too
        about the mean, where no noise hides it."""
        if said := super().fault(sums, examples):
            return said
        count, trace, sketch = float(sums["count"]), float(sums["trace"]), sums["sketch"].double()
        total = sums["sum"].double()
        k, width = sketch.shape
        slack, beside = self.slack("sketch", sums, examples), 6 * self.slack("trace", sums, examples)
        if not -beside <= trace <= self.energy(count) + beside:
            return f"{self.layer}: a trace of {trace:.3g} over {count:g} rows"
        if is_longer(total, count * (trace + beside), self.slack("sum", sums, examples)):
            return f"{self.layer}: a sum of rows that is longer than rows of such a trace have"
        basis, rounding = basis_of(self.request, self.layer, k, width).double(), 0.0
        if not slack:
            mean, rounding = total / max(count, 1e-12), 1e-9 * trace  # in half precision it is about the mean
            sketch, trace = sketch - torch.outer(total, mean @ basis), trace - float(total @ mean)
        core = basis.T @ sketch
        most = 1.02 * max(trace, 0.0) + beside + rounding
        longest = float(sketch.norm()) - slack * (2 * (k * width) ** 0.5 + 6)
        if longest > most or float(core.trace()) > most + 6 * slack * width**0.5:
            return f"{self.layer}: a sketch that is more than the trace beside it"
        off = 0.02 * max(trace, 0.0) + rounding + 3 * slack * width**0.5
        if not is_positive((core + core.T) / 2, off, trace):
            return f"{self.layer}: its sketch is not of a positive semi-definite matrix"
        return ""

    def sent(self) -> dict[str, tuple[int, ...]]:
        return self.shapes() | {"rest": self.shape[1:]}

    def reduced(self, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        """Sketch and trace about the client's own mean, and what Σ x lacks in float32: half precision need not hold the
        mean too."""
        centre, rest, count = split_total(sums)
        trace, sketch = self._means(centre, rest, count)
        return sums | {"rest": rest, "trace": sums["trace"] - trace, "sketch": sums["sketch"] - sketch}

    def restored(self, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        centre, rest, count = joined_total(sums)
        trace, sketch = self._means(centre, rest, count)
        return {
            "count": sums["count"],
            "trace": sums["trace"] + trace,
            "sum": rest + count * centre,
            "sketch": sums["sketch"] + sketch,
        }

    def _means(self, centre: Tensor, total: Tensor, count: float) -> tuple[Tensor, Tensor]:
        """What a centre adds to trace and sketch; total: Σ (x − centre)."""
        basis = basis_of(self.request, self.layer, *self.shapes()["sketch"]).double()
        return centre @ (2 * total + count * centre), shift_of(centre, total, count, basis)


def shift_of(centre: Tensor, total: Tensor, count: float, basis: Tensor) -> Tensor:
    """(k, l): `gram.shift` times a basis (k, l), without the k×k matrix."""
    half = total + count / 2 * centre
    return torch.outer(centre, half @ basis) + torch.outer(half, centre @ basis)


def basis_of(request: Request, layer: str, k: int, width: int) -> Tensor:
    """Ω (k, width) of a layer: the one that came with the request, else the seeded one. Raises ValueError where the one
    that came has another shape."""
    basis = request.tensors.get(f"{layer}/basis")
    if basis is None:
        return test_matrix(request.seed, k, width)
    if tuple(basis.shape) != (k, width):
        raise ValueError(f"{layer}: a basis of shape {tuple(basis.shape)}, expected {(k, width)}")
    return basis


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
    eigenvalues = torch.zeros(sketch.shape[1], dtype=sketch.dtype)
    rows = torch.zeros_like(sketch.T)
    eigenvalues[: len(S)], rows[: len(S)] = (S.square() - shift).clamp(min=0), U.T
    return eigenvalues, rows
