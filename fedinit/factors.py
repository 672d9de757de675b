"""Algebra of low-rank products, without ever building a d×k matrix.

Letters: d = outputs, k = inputs of a layer, r = rank, K = number of products in a sum. A sum of products
Σ w_i B_i A_i is itself one product of stacked factors, B_s = [w_1 B_1 … w_K B_K] and A_s = [A_1; …; A_K], of rank
R = Σ r_i; norms and inner products follow from R×R Gram matrices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

PANEL = 256  # wide enough for the matrix product's full speed
PARTS = ("A", "B", "R", "b", "d", "m")  # the fields of Factors, which are one letter on the wire too


@dataclass(frozen=True)
class Factors:
    """The product B @ A, B @ R @ A, or diag(b) @ B @ diag(d) @ A, without the scale α/r.

    A: (r, k). B: (d, r). R: the core, (r, r); or (h, r/h, r/h), the h blocks of one that is block diagonal; or None for
    the identity. b: (d,) and d: (r,), VeRA's vectors, both or neither. m: (d,), DoRA's magnitudes of the rows of the
    weight that the product is added to; no part of the product. Raises ValueError when the shapes do not chain.
    """

    A: Tensor
    B: Tensor
    R: Tensor | None = None
    b: Tensor | None = None
    d: Tensor | None = None
    m: Tensor | None = None

    def __post_init__(self) -> None:
        shapes = [tuple(self.B.shape), None if self.R is None else tuple(self.R.shape), tuple(self.A.shape)]
        rank = self.A.shape[0] if self.A.ndim == 2 else -1
        core = self.R is None or (
            self.R.ndim in (2, 3)
            and self.R.shape[-1] == self.R.shape[-2]
            and self.R.shape[:-1].numel() == rank  # (r,) or (h, r/h)
        )
        if self.B.ndim != 2 or self.B.shape[1] != rank or not core:
            raise ValueError(f"factors do not chain: B, R, A have shapes {shapes}")
        if self.m is not None and (self.m.shape != self.B.shape[:1] or self.b is not None):
            raise ValueError(f"magnitudes of {tuple(self.m.shape)} do not fit B and A, {shapes}")
        if self.b is None and self.d is None:
            return
        if self.b is None or self.d is None or self.R is not None:
            raise ValueError("the vectors b and d come together, and without a core")
        if self.b.shape != self.B.shape[:1] or self.d.shape != self.A.shape[:1]:
            raise ValueError(f"vectors of {tuple(self.b.shape)} and {tuple(self.d.shape)} do not fit B and A, {shapes}")

    @property
    def rank(self) -> int:
        return self.A.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(d, k), the shape of the product."""
        return self.B.shape[0], self.A.shape[1]

    @property
    def blocks(self) -> Tensor:
        """The core as blocks (h, r/h, r/h); one that is not block diagonal is one block. Needs a core."""
        return self.R if self.R.ndim == 3 else self.R[None]

    @property
    def parts(self) -> dict[str, Tensor]:
        """The tensors that are there, by field."""
        return {name: value for name in PARTS if (value := getattr(self, name)) is not None}

    def absorb(self) -> Factors:
        """The same product with R, or b and d, multiplied into B."""
        if self.b is not None:
            return Factors(self.A, self.b[:, None] * self.B * self.d)
        if self.R is None:
            return self
        blocks = self.blocks
        wide = self.B.unflatten(1, blocks.shape[:2]).transpose(0, 1) @ blocks  # (h, d, r/h)
        return Factors(self.A, wide.transpose(0, 1).reshape(self.B.shape))

    def to(self, dtype: torch.dtype) -> Factors:
        return Factors(**{name: value.to(dtype) for name, value in self.parts.items()})

    def dense(self) -> Tensor:
        """The (d, k) product. For folding into a weight and for tests; the server never calls it."""
        f = self.absorb()
        return f.B @ f.A


def stack(products: Sequence[Factors], weights: Sequence[float]) -> Factors:
    """Σ w_i B_i A_i as one product of rank Σ r_i; the weights go into B, so they may be negative."""
    parts = [p.absorb() for p in products]
    return Factors(
        torch.cat([p.A for p in parts], dim=0),
        torch.cat([w * p.B for w, p in zip(weights, parts, strict=True)], dim=1),
    )


def inner(left: Factors, right: Factors) -> float:
    """⟨B A, B′ A′⟩_F = Σ_jl [(BᵀB′) ∘ (A A′ᵀ)]_jl."""
    left, right = left.absorb(), right.absorb()
    return float(((left.B.T @ right.B) * (left.A @ right.A.T)).sum())


def norm(product: Factors) -> float:
    """‖B A‖_F, from the upper half of the two symmetric Gram matrices, in panels of PANEL rows.

    Rounding can make the Gram form slightly negative near zero; that counts as zero.
    """
    product = product.absorb()
    A, B, total = product.A, product.B, 0.0
    for low in range(0, product.rank, PANEL):
        high = min(low + PANEL, product.rank)
        panel = (B[:, low:high].T @ B[:, low:]) * (A[low:high] @ A[low:].T)  # (high − low, R − low)
        total += float(panel[:, : high - low].sum() + 2 * panel[:, high - low :].sum())
    return max(total, 0.0) ** 0.5


def pad(product: Factors, rank: int) -> Factors:
    """The same product at a higher rank, with zero rows in A and zero columns in B (exact)."""
    extra = rank - product.rank
    if extra < 0:
        raise ValueError(f"cannot pad rank {product.rank} down to {rank}")
    if extra == 0:
        return product
    widen = torch.nn.functional.pad
    core = product.R
    if core is not None and core.ndim == 2:
        core = widen(core, (0, extra, 0, extra))
    elif core is not None:
        core = widen(core, (0, 0, 0, 0, 0, _whole_blocks(core, rank) - len(core)))
    d = None if product.d is None else widen(product.d, (0, extra))
    return replace(product, A=widen(product.A, (0, 0, 0, extra)), B=widen(product.B, (0, extra)), R=core, d=d)


def leading(product: Factors, rank: int) -> Factors:
    """The first `rank` components: what a client of a lower rank is given. Whole blocks of a block-diagonal core."""
    core = product.R
    if core is not None:
        core = core[:rank, :rank] if core.ndim == 2 else core[: _whole_blocks(core, rank)]
    d = None if product.d is None else product.d[:rank]
    return replace(product, A=product.A[:rank], B=product.B[:, :rank], R=core, d=d)


def _whole_blocks(core: Tensor, rank: int) -> int:
    if rank % core.shape[-1]:
        raise ValueError(f"rank {rank} is not a whole number of the core's blocks of {core.shape[-1]}")
    return rank // core.shape[-1]


def difference(left: Factors, right: Factors) -> Factors:
    """left − right as one product of rank r_left + r_right."""
    return stack([left, right], [1.0, -1.0])


def distance(left: Mapping[str, Factors], right: Mapping[str, Factors]) -> float:
    """‖(A, B, R)_left − (A, B, R)_right‖_F over all layers: of the factors themselves, not of their products."""
    total = 0.0
    for name, one in left.items():
        mine, other = _with_core(one, right[name]), _with_core(right[name], one)
        total += sum(float((mine[part] - other[part]).double().square().sum()) for part in mine)
    return total**0.5


def _with_core(product: Factors, other: Factors) -> dict[str, Tensor]:
    """The parts of a product, with a core where the other has one."""
    if product.R is not None or other.R is None:
        return product.parts
    return product.parts | {"R": torch.eye(product.rank, dtype=product.A.dtype)}
