"""FedProx (Li et al., MLSys 2020, arXiv 1812.06127): μ/2·‖θ − θ_start‖² on top of a client's loss.

θ is all that the client trains, adapter and head; θ_start is where its round began; μ is `client.prox`. So
g ← g + μ(θ − θ_start).
"""

from __future__ import annotations

from torch import Tensor


def pull(gradient: Tensor, values: Tensor, start: Tensor, mu: float) -> None:
    """Add the proximal term's gradient to `gradient`, in place; all three (clients, P)."""
    gradient.add_(values - start, alpha=mu)
