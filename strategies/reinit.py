"""What clients start a round from, given what the server made of the round before (`reinit=`).

Law: re-initialising never changes the effective model. With base W0′ and start factors (A_start, B_start),
W0′ + s·B_start A_start = W0 + s·(B_global A_global).

average  LoRA-FAIR's own choice: every client starts from the global factors; the base stays W0.
local    a client that took part before starts from its own last factors, kept in its Flower state; the difference
         B_global A_global − B_own A_own is put into its base as factors for that round, so the law holds client by
         client. The drift this brings is measured by each client and shown in the metrics.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from fedinit.config import build
from fedinit.errors import choose


@dataclass(frozen=True, kw_only=True)
class Reinit:
    """A choice of start. `own_factors`: clients start from their own last factors, not from the ones they are sent."""

    own_factors: ClassVar[bool]


@dataclass(frozen=True, kw_only=True)
class Average(Reinit):
    own_factors: ClassVar[bool] = False


@dataclass(frozen=True, kw_only=True)
class Local(Reinit):
    own_factors: ClassVar[bool] = True


REINITS: dict[str, type[Reinit]] = {"average": Average, "local": Local}


def create_reinit(name: str, options: Mapping[str, Any] | None = None) -> Reinit:
    """A re-initialiser by name. Raises InputError for an unknown name or option."""
    return build(REINITS[choose("reinit", name, REINITS)], options or {}, "reinit")
