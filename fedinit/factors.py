"""Algebra of low-rank products, without ever building a d×k matrix.

Letters: d = outputs, k = inputs of a layer, r = rank, K = number of products in a sum. A sum of products
Σ w_i B_i A_i is itself one product of stacked factors, B_s = [w_1 B_1 … w_K B_K] and A_s = [A_1; …; A_K], of rank
R = Σ r_i; norms and inner products follow from R×R Gram matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from fedinit.errors import RunFailed

PANEL = 256  # wide enough for the matrix product's full speed
PARTS = ("A", "B", "R", "b", "d", "m")  # the tensors that one kind of adapter or another has; their names on the wire

Product = TypeVar("Product", bound="Factors")


@dataclass(frozen=True)
class Factors:
    """The product B @ A of a layer, without the scale α/r. A: (r, k). B: (d, r).

    Kinds of adapters with more tensors are subclasses, each in the file of its kind (fedinit/adapters/); their product
    is of all their tensors, and what they do otherwise is in the methods below. Raises ValueError when the shapes do
    not chain.
    """

    A: Tensor
    B: Tensor

    def __post_init__(self) -> None:
        if self.A.ndim != 2 or self.B.ndim != 2 or self.B.shape[1] != self.A.shape[0]:
            raise ValueError(f"factors do not chain: {self.shapes}")

    @property
    def rank(self) -> int:
        """r"""
        return self.A.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(d, k), the shape of the product."""
        return self.B.shape[0], self.A.shape[1]

    @property
    def parts(self) -> dict[str, Tensor]:
        """The tensors by name, in the order of PARTS."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @property
    def shapes(self) -> str:
        """The shapes of the parts, for messages."""
        return ", ".join(f"{name} {tuple(value.shape)}" for name, value in self.parts.items())

    def map(self: Product, change: Callable[[Tensor], Tensor]) -> Product:
        """The same kind of product with every tensor changed."""
        return replace(self, **{name: change(value) for name, value in self.parts.items()})

    def to(self: Product, target: torch.dtype | torch.device) -> Product:
        """The same factors in another dtype, or on another device."""
        return self.map(lambda value: value.to(target))

    # -- what subclasses do otherwise --------------------------------------------------------------------------------

    def absorb(self) -> Factors:
        """The same product as two factors alone; what stands between or around them is multiplied into B."""
        return self

    def at_rank(self: Product, rank: int) -> Product:
        """The first `rank` components, with zeros for those that are not there. The tensors are views of this one's
        where no zeros are needed."""
        return replace(self, A=resized(self.A, 0, rank), B=resized(self.B, 1, rank))

    def completed(self, other: Factors) -> dict[str, Tensor]:
        """The parts of `other`, and for each part that only this one has, the value that leaves `other`'s product as it
        is: for a core, the identity."""
        return other.parts

    def blank(self, like: Factors) -> Factors:
        """Factors of zeros of this kind and layer, at the rank of `like`."""
        d, k = self.shape
        return Factors(self.A.new_zeros(like.rank, k), self.B.new_zeros(d, like.rank))

    @property
    def is_zero(self) -> bool:
        """Whether the layer is as it is without an adapter, for want of a factor: before anything was trained."""
        return any(not part.any() for part in self.parts.values())

    def fold(self, weight: Tensor, scale: float) -> Tensor:
        """The effective weight (d, k) over a frozen one, W + s·BA."""
        return torch.add(weight, self.dense().to(weight.device), alpha=scale)

    # What aggregation methods work on, and back. `self` is what the round started from, or its first client's.

    def as_product(self) -> Factors:
        """The product that an aggregation method's own rule, or a re-initialiser, works on."""
        return self

    def as_products(self, clients: Sequence[Factors]) -> Sequence[Factors]:
        """`as_product` of every client of a round, in their order. Raises ValueError where clients do not share what
        this kind keeps frozen."""
        return [client.as_product() for client in clients]

    def from_product(self, product: Factors, clients: Sequence[Factors] = (), weights: Sequence[float] = ()) -> Factors:
        """Factors of this kind from a product that a method has made; the inverse of `as_product`.

        clients, weights: whose tensors beside the product are averaged, weighted so; without clients the tensors of
            this one stay.
        """
        return product

    def lift(self, product: Factors) -> Factors:
        """The update of the layer's weight, ΔW = B A (d, k), that a product of `as_product`'s form stands for."""
        return product

    def correctable2(self, average: Factors, missed: Factors) -> float:
        """‖C P_A‖², of that part of the averaging error C which a change of B can repair; P_A projects on the row space
        of Ā.

        average: Ā and B̄, the averaged factors, in float64, in the form of `as_product`.
        missed: C, the mean of the products less the product of the means, in the same form.
        """
        basis = torch.linalg.svd(average.A.cpu(), full_matrices=False)
        kept = basis.Vh[basis.S > basis.S[0] * 1e-12] if basis.S[0] > 0 else basis.Vh[:0]  # rows span rowspace(Ā)
        turned = missed.A @ kept.T.to(missed.A.device)
        return float((missed.B @ turned).square().sum())  # C Vᵀ, (d, r), whose norm is ‖C P_A‖

    def with_product(self, product: Factors) -> Factors:
        """The plain factors of another product, joined by the tensors of this one that stand beside its product (m)."""
        return product

    # ----------------------------------------------------------------------------------------------------------------

    def dense(self) -> Tensor:
        """The (d, k) product. For folding into a weight and for tests; the server never calls it."""
        f = self.absorb()
        return f.B @ f.A


def refuse_misfit(made: object, shape: tuple[int, int], who: str) -> Factors:
    """What a method or a start made of a layer, as it is. Raises RunFailed where it is no factors of the layer: a fault
    in its code.

    shape: (d, k). who: makes it, as "Mine makes of blocks.0.mlp.fc1"."""
    if not isinstance(made, Factors):
        raise RunFailed(f"{who} {type(made).__name__}, expected Factors(A, B)")
    if made.shape != shape:
        raise RunFailed(f"{who} {made.shapes}, expected A (r, {shape[1]}) and B ({shape[0]}, r)")
    return made


def at_most_full(product: Factors) -> Factors:
    """The same product at a rank of min(d, k) at most, which no map exceeds: of more, the d×k matrix and the identity.
    What stands beside it stays."""
    d, k = product.shape
    if product.rank <= min(d, k):
        return product
    plain = product.absorb()
    dense = (plain.B.double() @ plain.A.double()).to(plain.B.dtype)
    one = torch.eye(min(d, k), dtype=dense.dtype, device=dense.device)
    return product.with_product(Factors(one, dense) if k <= d else Factors(dense, one))


def resized(value: Tensor, axis: int, size: int) -> Tensor:
    """The tensor with `size` entries along an axis: the first ones, or zeros behind them."""
    missing = size - value.shape[axis]
    if missing <= 0:
        return value.narrow(axis, 0, size)
    return torch.nn.functional.pad(value, (0, 0) * (value.ndim - 1 - axis) + (0, missing))


def mean(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Σ w_i x_i in float64, summed in the given order."""
    total = tensors[0].new_zeros(tensors[0].shape, dtype=torch.float64)
    for value, weight in zip(tensors, weights, strict=True):
        total.add_(value, alpha=weight)
    return total


def stack(products: Sequence[Factors], weights: Sequence[float]) -> Factors:
    """Σ w_i B_i A_i as one product of rank Σ r_i; the weights go into B, so they may be negative."""
    parts = [p.absorb() for p in products]
    return Factors(
        torch.cat([p.A for p in parts], dim=0),
        torch.cat([w * p.B for w, p in zip(weights, parts, strict=True)], dim=1),
    )


def inner(left: Factors, right: Factors) -> float:
    """⟨B A, B′ A′⟩_F = Σ_jl [(BᵀB′) ∘ (A A′ᵀ)]_jl, or from the d×k matrices where the ranks are far above d and k."""
    left, right = left.absorb(), right.absorb()
    if dense_is_cheaper(left, min(left.rank, right.rank)):
        return float((left.dense() * right.dense()).sum())
    return float(((left.B.T @ right.B) * (left.A @ right.A.T)).sum())


def norm(product: Factors) -> float:
    """‖B A‖_F, from the upper half of the two symmetric Gram matrices, in panels of PANEL rows, or from the d×k matrix
    where the rank is far above d and k, as that of many clients' updates together is.

    Rounding can make the Gram form slightly negative near zero; that counts as zero.
    """
    product = product.absorb()
    if dense_is_cheaper(product, product.rank):
        return float(product.dense().norm())
    A, B, total = product.A, product.B, 0.0
    for low in range(0, product.rank, PANEL):
        high = min(low + PANEL, product.rank)
        panel = (B[:, low:high].T @ B[:, low:]) * (A[low:high] @ A[low:].T)  # (high − low, R − low)
        total += float(panel[:, : high - low].sum() + 2 * panel[:, high - low :].sum())
    return max(total, 0.0) ** 0.5


def dense_is_cheaper(product: Factors, rank: int) -> bool:
    """Whether a d×k product takes fewer operations to form, R·d·k, than Gram matrices of this rank R do, R²(d + k)/2 at
    the least; by a factor of two, so that nothing changes where little is won."""
    d, k = product.shape
    return rank * (d + k) >= 4 * d * k


def pad(product: Product, rank: int) -> Product:
    """The same product at a higher rank, with zero rows in A and zero columns in B (exact)."""
    if rank < product.rank:
        raise ValueError(f"cannot pad rank {product.rank} down to {rank}")
    return product if rank == product.rank else product.at_rank(rank)


def leading(product: Product, rank: int) -> Product:
    """The first `rank` components, or all there are: what a client of a lower rank is given. Whole blocks of a
    block-diagonal core."""
    return product.at_rank(min(rank, product.rank))


def difference(left: Factors, right: Factors) -> Factors:
    """left − right as one product of rank r_left + r_right."""
    return stack([left, right], [1.0, -1.0])


def distance(left: Mapping[str, Factors], right: Mapping[str, Factors]) -> float:
    """‖left − right‖_F over all tensors of all layers: of the factors themselves, not of their products.

    Where only one side has a core, the other's counts as the identity. Raises KeyError for a layer of `left` that
    `right` lacks.
    """
    total = 0.0
    for name, factors in left.items():
        parts, others = right[name].completed(factors), factors.completed(right[name])
        total += sum(float((parts[part] - others[part]).double().square().sum()) for part in parts)
    return total**0.5
