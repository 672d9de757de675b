"""The gradient G = Σ y xᵀ (d, k) of the summed loss in a layer's frozen weight: whole, or in two passes as a sketch.

The sketch is the randomised SVD of Halko, Martinsson, Tropp, 2011 (arXiv 0909.4061, algorithms 4.1 and 5.1), whose two
products are linear in G: first Y = GΩ for a seeded orthonormal Ω (k, l), then T = QᵀG for the Q = qr(Y) that the server
sends; G ≈ QT. Both come from the rows x and y at O(n(d + k)l), and the d×k matrix is never built.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedinit.statistics.nystrom import test_matrix
from fedinit.statistics.statistic import LARGEST, Statistic


@dataclass(frozen=True)
class Gradient(Statistic):
    """The whole gradient G (d, k), under the key "gradient".

    count: images, by which the sum over the clients is divided to give the gradient of the mean loss.
    """

    key: ClassVar[str] = "gradient"

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"count": (), self.key: self.shape}

    def measure(self, values: Tensor, other: Tensor | None = None) -> dict[str, Tensor]:
        count = torch.tensor(len(values), dtype=torch.float64)
        return {"count": count, self.key: self.product(values.flatten(0, 1), self.beside(other).flatten(0, 1))}

    def product(self, x: Tensor, y: Tensor) -> Tensor:
        """What rows x (n, k) and y (n, d) add to the sum under `key`."""
        return y.T @ x

    def sensitivity(self, clip: float, rows: int) -> dict[str, float]:
        """An image's gradient has norm `clip` at most, and orthonormal projections make it no longer."""
        return {self.key: clip}

    def fault(self, sums: Mapping[str, Tensor], examples: int) -> str:
        if said := super().fault(sums, examples):
            return said
        total, clip = sums[self.key].double(), self.request.sampling.clip
        longest = self.images(sums, examples)[0] * (LARGEST**2 * self.shape[1] if clip is None else 1.001 * clip)
        if not float(total.norm()) <= longest + self.slack(self.key, sums, examples) * (2 * total.numel() ** 0.5 + 6):
            return f"{self.layer}: a gradient of norm {float(total.norm()):.3g} over {examples} images"
        return ""


@dataclass(frozen=True)
class GradientRange(Gradient):
    """Y = GΩ (d, l), the first of the two products of the sketch, under the key "range".

    request.options["width"]: l, of which at most min(d, k) columns are used.
    """

    key: ClassVar[str] = "range"

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"count": (), self.key: (self.shape[0], min(int(self.request.options["width"]), *self.shape))}

    def product(self, x: Tensor, y: Tensor) -> Tensor:
        basis = test_matrix(self.request.seed, self.shape[1], self.shapes()[self.key][1]).to(x)
        return y.T @ (x @ basis)


@dataclass(frozen=True)
class GradientRows(Gradient):
    """T = QᵀG (l, k), the second of the two products of the sketch, under the key "rows".

    request.tensors["<layer>/basis"]: Q (d, l).
    """

    key: ClassVar[str] = "rows"

    @property
    def basis(self) -> Tensor:
        """Q (d, l), as the server sent it. Raises KeyError where it sent none."""
        return self.request.tensors[f"{self.layer}/basis"]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"count": (), self.key: (self.basis.shape[1], self.shape[1])}

    def product(self, x: Tensor, y: Tensor) -> Tensor:
        return (y @ self.basis.to(y)).T @ x
