"""`secure_aggregation=`: whether the server sees clients' updates, or their sum alone (docs/secure_aggregation.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedinit.config.checks import positive, within
from fedinit.errors import InputError


@dataclass(frozen=True, kw_only=True)
class NoSecureAggregation:
    """`secure_aggregation=none`."""

    name: Literal["none"] = "none"


@dataclass(frozen=True, kw_only=True)
class SecAggConfig:
    """`secure_aggregation=secagg`: the sum by Bonawitz et al. 2017, every client a neighbour of every other."""

    name: Literal["secagg"] = "secagg"
    threshold: float = 0.6  # share of a round's clients that must be left, and that give a secret back
    clip: float = 64.0  # values of an update are cut off at plus and minus this
    bits: int = 32  # of a value with its sign; a value is rounded to a multiple of clip / 2^(bits - 1)

    def __post_init__(self) -> None:
        within("secure_aggregation.threshold", self.threshold, 0.5, 1, open_low=True)
        positive("secure_aggregation.clip", self.clip)
        if not 8 <= self.bits <= 48:
            raise InputError(f"secure_aggregation.bits={self.bits}: expected 8 to 48")


SECURE_AGGREGATIONS: dict[str, type[NoSecureAggregation | SecAggConfig]] = {
    "none": NoSecureAggregation,
    "secagg": SecAggConfig,
}
