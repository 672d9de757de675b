"""A core between frozen factors: ΔW = s·B R A with R trained, what `adapter=lora` is under methods that train cores.

    y = x Wᵀ + bias + s · ((x Aᵀ) Rᵀ) Bᵀ          A: (r, k)  R: (r, r), or h blocks (h, r/h, r/h)  B: (d, r)

LoRA-XS (Bałazy et al. 2024, arXiv 2405.17604); with h blocks, each multiplied by a scale of its own that is trained
beside it, the heads of Ravan (Raje et al., NeurIPS 2025, arXiv 2506.05568). In a bank R is (K, h, r/h, r/h), one full
core being h = 1, and the blocks' scales (K, h); they start at one and are multiplied into R in the end. Padding is as
in LoRA: with zero rows of A and zero columns of B around it, what pads R has no gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from fedinit.adapters.adapted import Adapted
from fedinit.adapters.contract import Frozen, Kind, Leaves
from fedinit.adapters.lora import LoRA
from fedinit.factors import Factors, resized

BLOCK_SCALES = "scales"  # what messages call the blocks' scales, which are trained beside R and never sent


@dataclass(frozen=True)
class CoreFactors(Factors):
    """The product B @ R @ A. R: the core, (r, r); or (h, r/h, r/h), the h blocks of one that is block diagonal."""

    R: Tensor

    def __post_init__(self) -> None:
        super().__post_init__()
        square = self.R.ndim in (2, 3) and self.R.shape[-1] == self.R.shape[-2]
        if not square or self.R.shape[:-1].numel() != self.rank:  # (r,) or (h, r/h)
            raise ValueError(f"factors do not chain: {self.shapes}")

    @property
    def blocks(self) -> Tensor:
        """The core as blocks (h, r/h, r/h); one that is not block diagonal is one block."""
        return self.R if self.R.ndim == 3 else self.R[None]

    def absorb(self) -> Factors:
        """R multiplied into B."""
        blocks = self.blocks
        wide = self.B.unflatten(1, blocks.shape[:2]).transpose(0, 1) @ blocks  # (h, d, r/h)
        return Factors(self.A, wide.transpose(0, 1).reshape(self.B.shape))

    def at_rank(self, rank: int) -> CoreFactors:
        """As in `Factors`, in whole blocks. Raises ValueError for a rank that is not a whole number of them."""
        if self.R.ndim == 2:
            core = resized(resized(self.R, 0, rank), 1, rank)
        elif rank % self.R.shape[-1]:
            raise ValueError(f"rank {rank} is not a whole number of the core's blocks of {self.R.shape[-1]}")
        else:
            core = resized(self.R, 0, rank // self.R.shape[-1])
        return replace(self, A=resized(self.A, 0, rank), B=resized(self.B, 1, rank), R=core)

    def completed(self, other: Factors) -> dict[str, Tensor]:
        parts = other.parts
        return (
            parts if "R" in parts else parts | {"R": torch.eye(other.rank, dtype=other.A.dtype, device=other.A.device)}
        )

    def blank(self, like: Factors) -> Factors:
        source = like if isinstance(like, CoreFactors) else self
        plain = super().blank(source)
        return CoreFactors(plain.A, plain.B, torch.zeros_like(source.R))


@dataclass(frozen=True)
class Core(LoRA):
    """Trains R between frozen A and B; a core that does not learn is absorbed into B.

    full: the clients' cores are (r, r) matrices; False: h blocks (h, r/h, r/h).
    """

    product: ClassVar[type[Factors]] = CoreFactors

    full: bool = True

    def learns(self, trainable: frozenset[str]) -> bool:
        return "R" in trainable

    def stack(self, products: Sequence[Factors], room: int, trainable: frozenset[str]) -> dict[str, Tensor]:
        leaves = super().stack(products, room, trainable)
        if self.full:
            leaves["R"] = leaves["R"][:, None]
        if BLOCK_SCALES in trainable:
            leaves[BLOCK_SCALES] = torch.ones(leaves["R"].shape[:2], dtype=leaves["R"].dtype)
        return leaves

    def forward(self, x: Tensor, mask: Tensor | None, frozen: Frozen, leaves: Leaves, scale: float) -> Tensor:
        n = len(x)
        A, B, R = leaves["A"][:n], leaves["B"][:n], scaled(leaves)[:n]
        return Adapted.apply(x, mask, frozen.weight, frozen.bias, A, B, R, scale)

    def client(self, leaves: Leaves, i: int) -> Factors:
        blocks = scaled(leaves)[i]
        return CoreFactors(leaves["A"][i], leaves["B"][i], blocks[0] if self.full else blocks)

    clients = Kind.clients  # one by one, by the `client` above; LoRA's takes the leaves as they are

    def parameter_count(self, part: str, rank: int, leaves: Leaves) -> int:
        if part in ("A", "B"):
            return super().parameter_count(part, rank, leaves)
        width = rank if self.full else leaves["R"].shape[-1]
        return rank * width if part == "R" else rank // width


def scaled(leaves: Leaves) -> Tensor:
    """(K, h, r/h, r/h), what stands between A and B: R, each block times its scale where these are trained."""
    return leaves["R"] * leaves[BLOCK_SCALES][..., None, None] if BLOCK_SCALES in leaves else leaves["R"]
