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
    """The linear layer that adapters sit on.

    weight: (d, k), W or W + s·O where something was merged, in the dtype that the backbone computes in. bias: (d,).
    exact: the weight in float32, before it was rounded to that dtype.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, exact: Tensor | None = None) -> None:
        self.weight, self.bias, self.exact = weight, bias, weight if exact is None else exact

    @cached_property
    def squares(self) -> Tensor:
        """(d,): ‖W_j‖² of the rows."""
        return self.exact.square().sum(1)


class Kind(ABC):
    """How a bank computes with K clients' factors of one kind.

    A kind has no state: the tensors come from the bank, as leaves.
    """

    # The factors of one client and layer.
    product: ClassVar[type[Factors]]
    # Methods speak of A, B and R. The part of this kind that clients train in place of the one a method names; a part
    # that is not a key here is trained itself.
    names: ClassVar[Mapping[str, str]] = MappingProxyType({})
    # The parts that clients train besides, in every round in which they train anything.
    beside: ClassVar[frozenset[str]] = frozenset()
    # The names of the re-initialisers that this kind goes with; None: all.
    reinits: ClassVar[tuple[str, ...] | None] = None
    # Whether `as_product` is of rank one, and the layer's update a linear function of it (VeRA's M = b dᵀ).
    rank_one: ClassVar[bool] = False
    # The reason why other methods and re-initialisers are refused, as the end of a sentence in the message.
    why: ClassVar[str] = ""
    # {part: the end of its name in an exported file}, as PEFT calls it; the layer's name goes before.
    files: ClassVar[Mapping[str, str]]

    def trained(self, parts: frozenset[str]) -> frozenset[str]:
        """The parts that clients train, from those that the method names."""
        return frozenset(self.names.get(part, part) for part in parts) | (self.beside if parts else frozenset())

    def learns(self, trainable: frozenset[str]) -> bool:
        """Whether a bank that trains these parts needs this kind; else it trains plain A and B, into which the other
        tensors are absorbed."""
        return True

    def begin(self, drawn: Factors, total: Factors, weight: Tensor, scale: float) -> Factors:
        """An initialiser's factors of a layer as factors of this kind, under which the effective weight stays the same.

        drawn: the initialiser's factors.
        total: what is added to `weight`, as one product: the drawn factors and what goes into the base.
        weight: W0 of the layer, (d, k).
        scale: s.
        """
        return drawn

    # -- K clients in a bank -----------------------------------------------------------------------------------------

    def stack(self, products: Sequence[Factors], room: int, trainable: frozenset[str]) -> dict[str, Tensor]:
        """{part: (K, …)}, the clients' tensors at one rank, the highest among them or `room`, padded with zeros.

        Parts of `trainable` that exist in a bank alone (BLOCK_SCALES) are added.
        """
        rank, first = max(room, *(p.rank for p in products)), products[0]
        if all(p is first for p in products):  # the start of a round that all share, which is copied where it is needed
            return {part: value.expand(len(products), *value.shape) for part, value in pad(first, rank).parts.items()}
        padded = [pad(p, rank).parts for p in products]
        return {part: torch.stack([parts[part] for parts in padded]) for part in products[0].parts}

    @abstractmethod
    def forward(self, x: Tensor, mask: Tensor | None, frozen: Frozen, leaves: Leaves, scale: float) -> Tensor:
        """(n, t, d), the layer's outputs of the first n clients.

        x: their inputs, (n, t, k).
        mask: of x's shape, dropout on the adapters' input; None: no dropout.
        frozen: the layer that the adapters sit on.
        leaves: of all K clients, of which the first n are used.
        scale: s.
        """

    def client(self, leaves: Leaves, i: int) -> Factors:
        """The factors of client i, padding included; views where they can be."""
        return self.product(**{part: leaf[i] for part, leaf in leaves.items()})

    def clients(self, leaves: Leaves, count: int) -> list[Factors]:
        """`client` of each of `count` clients."""
        return [self.client(leaves, i) for i in range(count)]

    @abstractmethod
    def parameter_count(self, part: str, rank: int, leaves: Leaves) -> int:
        """How many numbers a client of this rank trains in the leaf `part`, padding left out."""

    # -- files -------------------------------------------------------------------------------------------------------

    def peft_settings(self, ranks: Mapping[str, int], scale: float, dropout: float) -> dict[str, Any]:
        """The keys of PEFT's adapter_config.json that describe this kind.

        ranks: {layer: r}.
        scale: s.
        dropout: probability on the adapters' input.
        """
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
