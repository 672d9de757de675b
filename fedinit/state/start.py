"""The start of a run: what round 1 begins from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fedinit.factors import Factors


@dataclass(frozen=True, kw_only=True)
class StartState:
    """What round 0 gives, and all that the first round needs.

    layers: {layer: start factors}.
    merge: {layer: product} that goes into the base offset before round 1; with −B0A0 the model stays as it was.
    head: {key: tensor} of the classifier, where round 0 makes it; else empty.
    notes: plain values for the run's summary: what was capped, completed or replaced, and the layers' ranks.
    """

    layers: Mapping[str, Factors]
    merge: Mapping[str, Factors] = field(default_factory=dict)
    head: Mapping[str, Tensor] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)
