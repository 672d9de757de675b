"""FedSA-LoRA: A is averaged, each client keeps a B of its own.

Guo et al., ICLR 2025, arXiv 2410.01463. A learns what is common, B what is the client's; only A (and the head) travels.
There is no global model, so accuracy is what each client reaches with its own B (`evaluation=clients`), which stays in
its Flower state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fedinit.adapters.kinds import LORA_ALONE
from fedinit.errors import InputError
from fedinit.factors import Factors, mean
from strategies.aggregator import Aggregator


@dataclass(frozen=True, kw_only=True)
class FedSALoRA(Aggregator):
    """The mean of A; B stays what the round started from, and each client keeps its own."""

    kinds: ClassVar[tuple[str, ...]] = LORA_ALONE
    personal: ClassVar[frozenset[str]] = frozenset({"B"})
    reinits: ClassVar[tuple[str, ...]] = ("average",)
    why: ClassVar[str] = "whose clients keep a factor of their own"

    diagnostics: bool = False  # the products are not known to the server

    def __post_init__(self) -> None:
        if self.weighting == "norm":
            raise InputError(
                "weighting=norm: fedsa_lora's server sees no B, so no product to take the norm of; choose one of: "
                "auto, examples, uniform"
            )

    def sums(self, round: int) -> tuple[str, ...]:
        return ("A",)

    def merge(self, products: Sequence[Factors], weights: Sequence[float], start: Factors | None) -> Factors:
        B = (products[0] if start is None else start).B
        return Factors(mean([p.A for p in products], weights), B.double())
