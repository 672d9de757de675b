"""The contract of a kind of adapters (`adapter=`): what its clients train, and how a bank computes with K of them.

A kind is a file: a subclass of Factors, which is one client's tensors of a layer and their algebra (what is absorbed,
cut, folded into a weight, averaged), and a subclass of Kind, which is K clients' tensors in a bank.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedinit.factors import Factors, pad

Leaves = Mapping[str, Tensor]  # {part: (K, …)}: a layer's tensors of the K clients of a bank, at one rank r


class Frozen:
    """The linear layer that adapters sit on: weight (d, k), W or W + s·O where something was merged; bias (d,)."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight, bias

    @cached_property
    def squares(self) -> Tensor:
        """(d,): ‖W_j‖² of the rows."""
        return self.weight.square().sum(1)


class Kind(ABC):
    """Stateless: what it computes with comes from the bank, as leaves."""

    # The factors of one client and layer.
    product: ClassVar[type[Factors]]
    # {what a method says it trains: what clients train of this kind}; a part that is not named here is trained itself.
    names: ClassVar[Mapping[str, str]] = MappingProxyType({})
    # What clients train in every round in which they train anything.
    beside: ClassVar[frozenset[str]] = frozenset()
    # The re-initialisers it goes with; None: all.
    reinits: ClassVar[tuple[str, ...] | None] = None
    # Whether a method works on products of rank one that the layer's update is not, but is linear in.
    rank_one: ClassVar[bool] = False
    # What stands against other methods and re-initialisers, for the refusal.
    why: ClassVar[str] = ""
    # {part: its name in an exported file, behind the layer's}, PEFT's.
    files: ClassVar[Mapping[str, str]]

    def trained(self, parts: frozenset[str]) -> frozenset[str]:
        """The parts that clients train, from those that the method names."""
        return frozenset(self.names.get(part, part) for part in parts) | (self.beside if parts else frozenset())

    def learns(self, trainable: frozenset[str]) -> bool:
        """Whether a bank that trains these parts is one of this kind, and not of plain factors into which the rest is
        absorbed."""
        return True

    def begin(self, drawn: Factors, whole: Factors, weight: Tensor, scale: float) -> Factors:
        """An initialiser's factors of a layer as clients of this kind start from them, the model being what it is.
        whole: the product that is over `weight` (d, k), with what goes into the base. scale: s."""
        return drawn

    # -- K clients in a bank -----------------------------------------------------------------------------------------

    def stack(self, products: Sequence[Factors], room: int, trainable: frozenset[str]) -> dict[str, Tensor]:
        """The clients' tensors side by side, at the highest rank among them, or `room`, padded with zeros; and what
        else of `trainable` there is in a bank alone."""
        rank = max(room, *(p.rank for p in products))
        padded = [pad(p, rank).parts for p in products]
        return {part: torch.stack([own[part] for own in padded]) for part in products[0].parts}

    @abstractmethod
    def forward(self, x: Tensor, mask: Tensor | None, frozen: Frozen, leaves: Leaves, scale: float) -> Tensor:
        """(n, t, d), the layer's outputs of the first n clients for their inputs x (n, t, k). mask: of x's shape,
        dropout on the adapters' input. scale: s."""

    def client(self, leaves: Leaves, i: int) -> Factors:
        """The factors of client i, padding included; views where they can be."""
        return self.product(**{part: leaf[i] for part, leaf in leaves.items()})

    @abstractmethod
    def parameter_count(self, part: str, rank: int, leaves: Leaves) -> int:
        """How many numbers a client of this rank has in a leaf, padding left out."""

    # -- files -------------------------------------------------------------------------------------------------------

    def peft_settings(self, ranks: Mapping[str, int], scale: float, dropout: float) -> dict[str, Any]:
        """What PEFT's configuration says of layers of these ranks."""
        rank = max(ranks.values())
        # Readers scale by alpha / r; s stays what the run had, whatever the rank of a layer.
        return {
            "peft_type": "LORA",
            "r": rank,
            "lora_alpha": scale * rank,
            "rank_pattern": {name: r for name, r in ranks.items() if r != rank},
            "alpha_pattern": {name: scale * r for name, r in ranks.items() if r != rank},
            "lora_dropout": dropout,
            "use_dora": False,
        }
