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

FLOOR = 1e-12  # the least norm of a row that is divided by, so that a row of zeros divides nothing by zero


@dataclass(frozen=True)
class DoRAFactors(Factors):
    """The product B @ A, with the magnitudes of the rows of the weight that it is added to.

    m: (d,); it is no part of the product.
    """

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
        """False, whatever the factors: where B is zero, m may still differ from the norms of the weight's rows, which
        these tensors do not tell."""
        return False

    def fold(self, weight: Tensor, scale: float) -> Tensor:
        """W′ (d, k), with ‖V‖ taken of V itself: here the full rows are there to be measured."""
        effective = super().fold(weight, scale)
        norms = effective.norm(dim=1).clamp(min=FLOOR)
        return (self.m.to(norms.device) / norms)[:, None] * effective

    def as_product(self) -> Factors:
        """B A, as of LoRA: a method treats it like LoRA's, and m is averaged with the same weights."""
        return self.absorb()

    def from_product(self, product: Factors, clients: Sequence[Factors] = (), weights: Sequence[float] = ()) -> Factors:
        trained = [client.parts["m"] for client in clients]
        return DoRAFactors(product.A, product.B, m=mean(trained, weights) if trained else self.m.to(product.A.dtype))

    def with_product(self, product: Factors) -> Factors:
        return DoRAFactors(product.A, product.B, m=self.m)


class DoRA(LoRA):
    """`adapter=dora`: as LoRA, with a trained magnitude for each row of the effective weight."""

    product: ClassVar[type[Factors]] = DoRAFactors
    beside: ClassVar[frozenset[str]] = frozenset({"m"})
    reinits: ClassVar[tuple[str, ...] | None] = ("average", "fresh", "svd", "orthonormal", "pissa", "gauge")
    why: ClassVar[str] = "whose magnitudes belong to one global product B A"
    files: ClassVar[Mapping[str, str]] = MappingProxyType({**LoRA.files, "m": "lora_magnitude_vector"})

    def begin(self, drawn: Factors, total: Factors, weight: Tensor, scale: float) -> Factors:
        """Factors with m = ‖W + s·B0A0‖ by rows, which leaves the model as it was."""
        return DoRAFactors(drawn.A, drawn.B, m=magnitudes(weight, total.A, total.B, scale).float())

    def forward(self, x: Tensor, mask: Tensor | None, frozen: Frozen, leaves: Leaves, scale: float) -> Tensor:
        n = len(x)
        A, B = leaves["A"][:n], leaves["B"][:n]
        y = Adapted.apply(x, mask, frozen.weight, None, A, B, None, scale)
        with torch.no_grad():
            norms = row_norms(frozen.exact, frozen.squares, A, B, scale)  # (n, d)
        y = y * (leaves["m"][:n] / norms)[:, None].to(y.dtype)
        return y if frozen.bias is None else y + frozen.bias

    def parameter_count(self, part: str, rank: int, leaves: Leaves) -> int:
        return leaves["m"].shape[1] if part == "m" else super().parameter_count(part, rank, leaves)

    def peft_settings(self, ranks: Mapping[str, int], scale: float, dropout: float) -> dict[str, Any]:
        return {**super().peft_settings(ranks, scale, dropout), "use_dora": True}


def row_norms(weight: Tensor, squares: Tensor, A: Tensor, B: Tensor, scale: float) -> Tensor:
    """(…, d): ‖W + s·BA‖ by rows, FLOOR at least, without the (d, k) sum.

    weight: W (d, k).
    squares: (d,), ‖W_j‖² of its rows.
    A, B: (…, r, k) and (…, d, r).
    scale: s.
    """
    cross = ((weight @ A.mT) * B).sum(-1)  # (d, k) @ (…, k, r) -> (…, d, r)
    change = ((B @ (A @ A.mT)) * B).sum(-1)
    # Rounding can make a row that the adapter takes out almost whole slightly negative.
    return (squares + 2 * scale * cross + scale**2 * change).clamp(min=0).sqrt().clamp(min=FLOOR)


def magnitudes(weight: Tensor, A: Tensor, B: Tensor, scale: float) -> Tensor:
    """(d,) in float64: the norms of the rows of W + s·BA, which as magnitudes leave it as it is."""
    exact = weight.double()
    return row_norms(exact, exact.square().sum(1), A.double(), B.double(), scale)
