"""What an adapter reads (`adapter=`): a dataclass a kind. What a kind computes is in fedinit/adapters/."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from fedinit.config.checks import at_least, positive, within
from fedinit.errors import InputError

BLOCKS = "last:<number>, such as last:4, or null for all blocks"  # what the key takes


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """What every kind reads."""

    kind: str
    rank: int
    dropout: float = 0.0  # on the adapter's input, while training
    targets: tuple[str, ...] | None = None  # patterns of layer names; null: the default of this kind of model
    # "last:4": of the targets those in the last four blocks that have any; null: all
    blocks: str | None = field(default=None, metadata={"expected": BLOCKS})

    def __post_init__(self) -> None:
        at_least("adapter.rank", self.rank, 1)
        within("adapter.dropout", self.dropout, 0, 1, open_high=True)
        if self.targets is not None and not self.targets:
            raise InputError("adapter.targets=[]: expected one pattern or more, or null for the model's default")
        if self.blocks is not None and not re.fullmatch(r"last:[1-9][0-9]{0,3}", self.blocks):
            raise InputError(f"adapter.blocks={self.blocks}: expected {BLOCKS}")

    @property
    def last_blocks(self) -> int | None:
        """In how many blocks, the last ones, adapters are; None: in all."""
        return None if self.blocks is None else int(self.blocks.removeprefix("last:"))


@dataclass(frozen=True, kw_only=True)
class ProductConfig(AdapterConfig):
    """What the kinds read whose update is s·B A.

    rank: r of the global adapter.
    ranks: of the clients, a list that is dealt in turn, or a rule; null: all have `rank`.
    alpha: α of the scale s.
    scaling: ``standard`` is s = α/r, ``rslora`` is s = α/√r.
    """

    rank: int = 8
    ranks: tuple[int, ...] | Literal["by_examples", "halving"] | None = None
    alpha: float = 16.0
    scaling: Literal["standard", "rslora"] = "standard"

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("adapter.alpha", self.alpha)
        if not isinstance(self.ranks, tuple):
            return
        for rank in self.ranks:
            at_least("adapter.ranks", rank, 1)
        if max(self.ranks, default=0) != self.rank:
            raise InputError(
                f"adapter.ranks={list(self.ranks)}: the largest must be adapter.rank={self.rank}, the rank of the "
                "global adapter"
            )

    @property
    def scale(self) -> float:
        """s, what every product of factors is multiplied by, the same at all ranks: alpha/rank, or alpha/√rank
        (rsLoRA, arXiv 2312.03732)."""
        return self.alpha / (self.rank if self.scaling == "standard" else self.rank**0.5)


@dataclass(frozen=True, kw_only=True)
class LoRAConfig(ProductConfig):
    """`adapter=lora`."""

    kind: Literal["lora"] = "lora"


@dataclass(frozen=True, kw_only=True)
class DoRAConfig(ProductConfig):
    """`adapter=dora`."""

    kind: Literal["dora"] = "dora"


@dataclass(frozen=True, kw_only=True)
class VeRAConfig(AdapterConfig):
    """`adapter=vera`, which has no scale (s = 1) and one rank for all clients."""

    ranks: ClassVar[None] = None
    scale: ClassVar[float] = 1.0

    kind: Literal["vera"] = "vera"
    rank: int = 64


ADAPTERS: dict[str, type[ProductConfig | VeRAConfig]] = {"dora": DoRAConfig, "lora": LoRAConfig, "vera": VeRAConfig}


def plain_lora(adapter: ProductConfig | VeRAConfig) -> LoRAConfig:
    """adapter=lora of the same rank in the same layers, with the same scale where the kind has one."""
    shared = {"rank": adapter.rank, "dropout": adapter.dropout, "targets": adapter.targets}
    shared["blocks"] = adapter.blocks
    if isinstance(adapter, VeRAConfig):
        return LoRAConfig(**shared)
    return LoRAConfig(**shared, ranks=adapter.ranks, alpha=adapter.alpha, scaling=adapter.scaling)
