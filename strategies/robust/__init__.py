"""Rules against bad clients, one a file (`robust=`): what each client's change of the model counts for.

A rule sees the inner products of the clients' changes (geometry.py) and answers with weights (contract.py), so any rule
goes with any aggregation method that the server knows the products of.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedinit.config.build import NOTHING, create
from strategies.robust.bounded import Bounded
from strategies.robust.centered_clipping import CenteredClipping
from strategies.robust.contract import Robust
from strategies.robust.geometric_median import GeometricMedian
from strategies.robust.multi_krum import MultiKrum
from strategies.robust.trust import Trust


@dataclass(frozen=True, kw_only=True)
class NoRule:
    """Every client counts with its own p_i."""


ROBUST: dict[str, type[Robust | NoRule]] = {
    "bounded": Bounded,
    "centered_clipping": CenteredClipping,
    "geometric_median": GeometricMedian,
    "multi_krum": MultiKrum,
    "none": NoRule,
    "trust": Trust,
}


def create_robust(name: str, options: Mapping[str, Any] = NOTHING) -> Robust | None:
    """A rule by name, None for `none`. Raises InputError for an unknown name or option."""
    rule = create("robust", ROBUST, name, options)
    return rule if isinstance(rule, Robust) else None
