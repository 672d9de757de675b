"""What LoRA-FAIR's closed form knows of layers: M = ΔWĀᵀ, G = ĀĀᵀ and ‖ΔW‖, at O(K r²(d + k)) each, in float64."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from fedinit.factors import Factors, norm, stack
from fedinit.seeding import torch_generator
from strategies.means import image

# From how many components on, in layers whose ΔW takes so many products of numbers, ‖ΔW‖ is estimated, and by how many
# random columns.
SKETCHED, LARGE, PROBES = 64, 2**22, 4


@dataclass(frozen=True)
class Moments:
    """Of L layers of one shape: M (L, d, r), and G = V diag(g) Vᵀ by g (L, r), ascending, and V (L, r, r).

    size: ‖ΔW‖, (L,); 0 where it was not wanted.
    """

    M: Tensor
    g: Tensor
    V: Tensor
    size: Tensor

    @classmethod
    def of(cls, M: Tensor, G: Tensor, size: Tensor | float = 0.0) -> Moments:
        """Of G (L, r, r) itself."""
        g, V = torch.linalg.eigh(G)
        return cls(M, g, V, torch.as_tensor(size, dtype=g.dtype).expand(len(g)))

    @property
    def floor(self) -> Tensor:
        """What of g is zero but for rounding, (L, 1)."""
        return self.g.amax(-1, keepdim=True).clamp(min=0) * self.g.shape[-1] * torch.finfo(self.g.dtype).eps

    @property
    def alive(self) -> Tensor:
        """Which of g are above it, (L, r)."""
        return self.g > self.floor

    @cached_property
    def turned(self) -> Tensor:
        """M V, (L, d, r)"""
        return self.M @ self.V

    def inverse(self, lam: Tensor | float = 0.0) -> Tensor:
        """1/(g + λ), or 0 where g is none, (L, r), for one λ or (L,): V diag(·) Vᵀ is (G + λI)⁺ on the rows of Ā."""
        shifted = self.g + torch.as_tensor(lam, dtype=self.g.dtype).expand(len(self.g))[:, None]
        return torch.where(self.alive, 1 / shifted, 0)

    @property
    def inside2(self) -> Tensor:
        """‖ΔW P_A‖² = ‖M G^(−1/2)‖², (L,), with P_A on the row space of Ā."""
        return (self.turned.square().sum(-2) * self.inverse()).sum(-1)


@dataclass(frozen=True)
class Seen:
    """What is taken from a layer's clients. image: ΔW Xᵀ (d, r + PROBES) or (d, r), for the rows X of Ā, and after them
    those of Ω where ‖ΔW‖ is estimated. crossed: Ā Xᵀ. size: ‖ΔW‖, where it is not."""

    image: Tensor
    crossed: Tensor
    size: float | None

    def here(self) -> Seen:
        """The same on the CPU, where what is small is fitted: step by step, each by what came out before."""
        return replace(self, image=self.image.cpu(), crossed=self.crossed.cpu())


def look(products: Sequence[Factors], weights: Sequence[float], A: Tensor, wanted: bool) -> Seen:
    """Take it, for Ā (r, k), from the clients' factors in float32 or float64. wanted: whether ‖ΔW‖ is.

    The norm is exact up to SKETCHED components in all, and in small layers; beyond, its cost, O(R²(d + k)) or O(R·d·k),
    would be most of the aggregation's. What lies in the rows of Ā stays exact, ‖M G^(−1/2)‖, and the rest,
    E = ΔW(I − P_A), is estimated by ‖EΩᵀ‖²/PROBES for a fixed Gaussian Ω (PROBES, k). The minimiser feels an error of
    ‖ΔW‖ as one of λ.
    """
    ranks, (d, k) = sum(p.rank for p in products), products[0].shape
    if wanted and ranks > SKETCHED and ranks * d * k > LARGE:
        rows = torch.cat([A, _gaussian(A.shape[1]).to(A.device)])
        return Seen(image(products, weights, rows), A @ rows.T, None)
    size = norm(stack([p.to(torch.float64) for p in products], weights)) if wanted else 0.0
    return Seen(image(products, weights, A), A @ A.T, size)


def moments(seen: Sequence[Seen]) -> Moments:
    """Those of layers of one shape."""
    images, crossed = torch.stack([s.image for s in seen]), torch.stack([s.crossed for s in seen])
    rank = crossed.shape[1]
    known = Moments.of(images[..., :rank], crossed[..., :rank])
    if crossed.shape[2] == rank:
        return replace(known, size=torch.tensor([s.size for s in seen], dtype=known.g.dtype))
    of_rows = (known.turned * known.inverse()[:, None]) @ (known.V.mT @ crossed[..., rank:])  # ΔW P_A Ωᵀ
    rest2 = (images[..., rank:] - of_rows).square().sum((-2, -1)) / PROBES
    return replace(known, size=(known.inside2 + rest2).sqrt())


@functools.cache
def _gaussian(size: int) -> Tensor:
    """(PROBES, size)"""
    draw = torch_generator(0, "lora_fair.norm", size)
    return torch.randn(size, PROBES, generator=draw, dtype=torch.float64).T.contiguous()
