"""Min-max: as far from the honest mean as two honest clients are from each other, and no farther from anybody.

Shejwalkar and Houmansadr, NDSS 2021: μ + γ∇, with γ the largest for which max_i ‖μ + γ∇ − U_i‖ ≤ max_ij ‖U_i − U_j‖.
The authors search γ by halving; here it is the least root of a quadratic a client. Distances are those of the tensors
that are sent, as the attacker has them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clients.attacks.contract import Attack, Change, Seen
from fedinit.config.attack import MinMaxConfig


class MinMax(Attack[MinMaxConfig]):
    """direction: of ∇: ``std``: −σ by coordinate; ``unit``: −μ/‖μ‖; ``sign``: −sign(μ)."""

    def forge(self, seen: Seen) -> Change:
        mean, deviation = seen.moments()
        names = sorted(mean)

        def flat(change: Change) -> Tensor:
            return torch.cat([change[name].flatten() for name in names])

        center = flat(mean)
        away = {"std": -flat(deviation), "unit": -center, "sign": -center.sign()}[self.settings.direction]
        honest = torch.stack([flat(change) for change in seen.honest or [seen.own]])
        forged = center + farthest(center, away, honest) * away
        parts = forged.split([mean[name].numel() for name in names])
        return {name: part.view_as(mean[name]) for name, part in zip(names, parts, strict=True)}


def farthest(center: Tensor, away: Tensor, honest: Tensor) -> float:
    """The largest γ ≥ 0 with ‖center + γ·away − U_i‖ ≤ max ‖U_j − U_l‖ for all i; 0 where there is no way to go.

    center, away: (n,). honest: U, (K, n).
    """
    length2 = float(away @ away)
    if not length2:
        return 0.0
    room = float(torch.cdist(honest, honest, compute_mode="donot_use_mm_for_euclid_dist").max()) ** 2
    gaps = center - honest  # (K, n)
    half = gaps @ away
    return (
        float((-half + (half.square() + length2 * (room - gaps.square().sum(1))).clamp(min=0).sqrt()).min()) / length2
    )
