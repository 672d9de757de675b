"""HetLoRA: zero-padded averaging of mixed ranks, weighted by the size of each client's update.

Cho et al., EMNLP 2024, arXiv 2401.06432. p_i ∝ ‖B_iA_i‖_F over all layers together, so that a client of high rank that
learned little does not dilute the others; a client of rank r_i is sent the leading r_i components. The paper's
self-pruning of ranks on the clients is left out. Biased as FedIT is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from strategies.methods.fedit import FedIT


@dataclass(frozen=True, kw_only=True)
class HetLoRA(FedIT):
    """FedIT's mean, weighted by the norms of the clients' products unless another weighting is chosen."""

    mixed_ranks: ClassVar[bool] = True

    weighting: Literal["examples", "uniform", "norm"] = "norm"
