"""DoRA: LoRA for the direction of each row of the weight, and a magnitude beside it.

    W′ = m/‖V‖ ∘ V by rows,  V = W + s·B A          y = m/‖V‖ ∘ (x Wᵀ + s · (x Aᵀ) Bᵀ) + bias          m: (d,)

Liu et al., ICML 2024, arXiv 2402.09353. The norm counts as a constant in the gradient (their section 4.3). Dropout is
on the adapter's input alone. ‖V_j‖² = ‖W_j‖² + 2s⟨W_j, (BA)_j⟩ + s²‖(BA)_j‖² needs W Aᵀ (d×r) and A Aᵀ (r×r) only, and
no d×k matrix a client. In a bank m is (K, d).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedinit.adapters.adapted import Adapted
from fedinit.adapters.contract import Frozen, Leaves
from fedinit.adapters.lora import LoRA
from fedinit.factors import Factors, mean

FLOOR = 1e-12  # below which a row counts as this long: a row of zeros is divided by something


@dataclass(frozen=True)
class DoRAFactors(Factors):
    """m: (d,), the magnitudes of the rows of the weight that the product B @ A is added to; no part of the product."""

    m: Tensor

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.m.shape != self.B.shape[:1]:
            raise ValueError(f"magnitudes do not fit B: {self.shapes}")

    def absorb(self) -> Factors:
        return Factors(self.A, self.B)

    def blank(self, like: Factors) -> Factors:
        plain = super().blank(like)
        return DoRAFactors(plain.A, plain.B, m=torch.zeros_like(self.m))

    @property
    def is_zero(self) -> bool:
        """False: also where B is zero, m need not be the norms of the rows, and is not looked into."""
        return False

    def fold(self, weight: Tensor, scale: float) -> Tensor:
        """W′; ‖V‖ is that of the whole rows, which are there."""
        whole = super().fold(weight, scale)
        norms = whole.norm(dim=1).clamp(min=FLOOR)
        return (self.m.to(norms.device) / norms)[:, None] * whole

    def as_product(self) -> Factors:
        """B A: a method does with it what it does with LoRA's, and m is averaged with the same weights."""
        return self.absorb()

    def from_product(self, made: Factors, clients: Sequence[Factors] = (), weights: Sequence[float] = ()) -> Factors:
        own = [client.parts["m"] for client in clients]
        return DoRAFactors(made.A, made.B, m=mean(own, weights) if own else self.m.to(made.A.dtype))

    def with_product(self, product: Factors) -> Factors:
        return DoRAFactors(product.A, product.B, m=self.m)


class DoRA(LoRA):
    """`adapter=dora`."""

    product: ClassVar[type[Factors]] = DoRAFactors
    beside: ClassVar[frozenset[str]] = frozenset({"m"})
    reinits: ClassVar[tuple[str, ...] | None] = ("average", "fresh", "svd", "orthonormal", "pissa", "gauge")
    why: ClassVar[str] = "whose magnitudes belong to one global product B A"
    files: ClassVar[Mapping[str, str]] = MappingProxyType({**LoRA.files, "m": "lora_magnitude_vector"})

    def begin(self, drawn: Factors, whole: Factors, weight: Tensor, scale: float) -> Factors:
        """m = ‖W + s·B0A0‖, which leaves the model as it was."""
        return DoRAFactors(drawn.A, drawn.B, m=magnitudes(weight, whole.A, whole.B, scale).float())

    def forward(self, x: Tensor, mask: Tensor | None, frozen: Frozen, leaves: Leaves, scale: float) -> Tensor:
        n = len(x)
        A, B = leaves["A"][:n], leaves["B"][:n]
        y = Adapted.apply(x, mask, frozen.weight, None, A, B, None, scale)
        with torch.no_grad():
            norms = row_norms(frozen.weight, frozen.squares, A, B, scale)  # (n, d)
        y = y * (leaves["m"][:n] / norms)[:, None]
        return y if frozen.bias is None else y + frozen.bias

    def parameter_count(self, part: str, rank: int, leaves: Leaves) -> int:
        return leaves["m"].shape[1] if part == "m" else super().parameter_count(part, rank, leaves)

    def peft_settings(self, ranks: Mapping[str, int], scale: float, dropout: float) -> dict[str, Any]:
        return {**super().peft_settings(ranks, scale, dropout), "use_dora": True}


def row_norms(weight: Tensor, squares: Tensor, A: Tensor, B: Tensor, scale: float) -> Tensor:
    """(…, d): ‖W + s·BA‖ by rows; weight W (d, k), squares (d,) its ‖W_j‖², A (…, r, k), B (…, d, r)."""
    cross = ((weight @ A.mT) * B).sum(-1)  # (d, k) @ (…, k, r) -> (…, d, r)
    change = ((B @ (A @ A.mT)) * B).sum(-1)
    # Rounding can make a row that the adapter takes out almost whole slightly negative.
    return (squares + 2 * scale * cross + scale**2 * change).clamp(min=0).sqrt().clamp(min=FLOOR)


def magnitudes(weight: Tensor, A: Tensor, B: Tensor, scale: float) -> Tensor:
    """m (d,) in float64 with which diag(m/‖·‖) leaves W + s·BA as it is."""
    whole = weight.double()
    return row_norms(whole, whole.square().sum(1), A.double(), B.double(), scale)
