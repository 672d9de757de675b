"""VeRA: two trained vectors around matrices that are random, frozen and shared by all clients and layers.

    ΔW = diag(b) B diag(d) A          y = x Wᵀ + bias + b ∘ ((d ∘ (x Aᵀ)) Bᵀ)          b: (d,)  d: (r,)  s = 1

Kopiczko et al., ICLR 2024, arXiv 2310.11454. A layer takes the leading columns of one A and the leading rows of one B.
In a bank b is (K, d) and d (K, r) around one A and one B, which are held once, whatever K is.

For an aggregation method the vectors are a product of rank one. With M = b dᵀ (d×r) a layer's update is
ΔW = (M ∘ B) A, linear in M, so Σ p_i ΔW_i = (M̄ ∘ B) A for M̄ = Σ p_i b_i d_iᵀ, exactly. A method is given b for B and dᵀ
for A, and what it makes of them is a pair again, and a rest that goes into the base. Plain averaging takes b̄ d̄ᵀ, which
misses the covariance of b and d.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from fedinit.adapters.contract import Frozen, Kind, Leaves
from fedinit.factors import Factors, resized


@dataclass(frozen=True)
class VeRAFactors(Factors):
    """The product diag(b) @ B @ diag(d) @ A. b: (d,), d: (r,)."""

    b: Tensor
    d: Tensor

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.b.shape != self.B.shape[:1] or self.d.shape != self.A.shape[:1]:
            raise ValueError(f"vectors b and d do not fit B and A: {self.shapes}")

    def absorb(self) -> Factors:
        """b and d multiplied into B."""
        return Factors(self.A, self.b[:, None] * self.B * self.d)

    def at_rank(self, rank: int) -> VeRAFactors:
        A, B, d = resized(self.A, 0, rank), resized(self.B, 1, rank), resized(self.d, 0, rank)
        return replace(self, A=A, B=B, d=d)

    def blank(self, like: Factors) -> Factors:
        """Vectors of zeros around this one's A and B, which are shared by the whole bank."""
        return replace(self, b=torch.zeros_like(self.b), d=torch.zeros_like(self.d))

    def as_product(self) -> Factors:
        """M = b dᵀ (d, r), as a product of rank one."""
        return Pair(self.d[None], self.b[:, None], self)

    def as_products(self, clients: Sequence[Factors]) -> Sequence[Factors]:
        """M of every client. Raises ValueError for a client whose A or B are not this one's, to the bit."""
        frame = self.to(torch.float64)
        return [replace(pair_of(client, self), frame=frame) for client in clients]

    def from_product(self, product: Factors, clients: Sequence[Factors] = (), weights: Sequence[float] = ()) -> Factors:
        """The vectors of a pair around these matrices. Raises ValueError for more than a pair."""
        if product.rank != 1:
            raise ValueError(f"vectors b and d from a product of rank {product.rank}; expected one")
        dtype = product.A.dtype
        return VeRAFactors(self.A.to(dtype), self.B.to(dtype), b=product.B[:, 0], d=product.A[0])

    def lift(self, product: Factors) -> Factors:
        """(M ∘ B) A for an M of any rank, as a product of rank r."""
        M = product.dense()
        return Factors(self.A.to(M.dtype), M * self.B)

    def correctable2(self, average: Factors, missed: Factors) -> float:
        """‖·‖² of the part of (C ∘ B) A that a change of b can repair: each row's projection on v_j = (B_j ∘ d̄) A."""
        A, B = self.A.double(), self.B.double()
        VG = (B * average.A[0]) @ (A @ A.T)
        size2 = (VG * (B * average.A[0])).sum(1)
        dots = ((missed.dense() * B) * VG).sum(1)
        return float(torch.where(size2 > 0, dots.square() / size2.clamp(min=1e-300), 0.0).sum())


@dataclass(frozen=True)
class Pair(Factors):
    """M = b dᵀ as a product of rank one. frame: the factors whose A and B the vectors b and d go around."""

    frame: VeRAFactors

    @property
    def parts(self) -> dict[str, Tensor]:
        return {"A": self.A, "B": self.B}


def pair_of(client: Factors, frame: VeRAFactors) -> Pair:
    """A client's vectors as a pair. Raises ValueError where its A or B are not the frame's, to the bit."""
    shared = torch.equal(client.A, frame.A) and torch.equal(client.B, frame.B)
    if not isinstance(client, VeRAFactors) or not shared:
        raise ValueError("a client's A and B are not the frozen ones that all clients share, with vectors b and d")
    return Pair(client.d[None], client.b[:, None], frame)


class VeRA(Kind):
    """`adapter=vera`. Vectors that do not learn are absorbed."""

    product: ClassVar[type[Factors]] = VeRAFactors
    names: ClassVar[Mapping[str, str]] = MappingProxyType({"A": "d", "B": "b"})
    reinits: ClassVar[tuple[str, ...] | None] = ("average",)
    rank_one: ClassVar[bool] = True
    why: ClassVar[str] = "whose A and B are frozen and the same in all layers"
    files: ClassVar[Mapping[str, str]] = MappingProxyType({"b": "vera_lambda_b", "d": "vera_lambda_d"})

    def learns(self, trainable: frozenset[str]) -> bool:
        return not trainable.isdisjoint({"b", "d"})

    def stack(self, products: Sequence[Factors], room: int, trainable: frozenset[str]) -> dict[str, Tensor]:
        """Raises ValueError for vectors around different A or B."""
        first = products[0]
        if not all(torch.equal(p.A, first.A) and torch.equal(p.B, first.B) for p in products):
            raise ValueError("clients with vectors b and d around different A or B")
        vectors = {part: torch.stack([p.parts[part] for p in products]) for part in ("b", "d")}
        return {"A": first.A[None], "B": first.B[None], **vectors}

    def forward(self, x: Tensor, mask: Tensor | None, frozen: Frozen, leaves: Leaves, scale: float) -> Tensor:
        n = len(x)
        A, B, d, b = (leaves[part].to(x.dtype) for part in "ABdb")
        low = F.linear(x if mask is None else x * mask, A[0]) * d[:n, None]  # (n, t, r)
        high = F.linear(low, B[0]) * b[:n, None]  # (n, t, d)
        return torch.add(F.linear(x, frozen.weight, frozen.bias), high, alpha=scale)

    def client(self, leaves: Leaves, i: int) -> Factors:
        return VeRAFactors(leaves["A"][0], leaves["B"][0], b=leaves["b"][i], d=leaves["d"][i])

    def parameter_count(self, part: str, rank: int, leaves: Leaves) -> int:
        return leaves[part].shape[1]

    def peft_settings(self, ranks: Mapping[str, int], scale: float, dropout: float) -> dict[str, Any]:
        return {"peft_type": "VERA", "r": max(ranks.values()), "save_projection": True, "vera_dropout": dropout}
