"""The summed cross-entropy of a head for several gains, factors on its logits, and how many predictions are right,
which no gain changes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fedinit.statistics.statistic import Statistic

GAINS = 1000  # of a request; a head's temperature is found among some tens
ROUNDING = 1e-3  # of a loss, by that of logits


@dataclass(frozen=True)
class Losses(Statistic):
    """How well a head does on a client's examples.

    count: the examples.
    correct: those whose class has the largest logit.
    losses: (gains,), the cross-entropy summed over the examples, for each gain.

    request.head: weight (C, D) and bias (C,).
    request.options["scales"]: the gains, at most GAINS finite numbers that the logits are multiplied by.
    """

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"count": (), "correct": (), "losses": (len(self.gains),)}

    @property
    def gains(self) -> list[float]:
        """The request's. Raises ValueError for what is no list of such numbers."""
        gains = self.request.options["scales"]
        numbers = isinstance(gains, list) and all(type(gain) in (int, float) and math.isfinite(gain) for gain in gains)
        if not numbers or not 1 <= len(gains) <= GAINS:
            raise ValueError(f"{self.layer}: expected 1 to {GAINS} finite gains")
        return [float(gain) for gain in gains]

    def measure(self, values: Tensor, other: Tensor | None = None) -> dict[str, Tensor]:
        labels = self.beside(other).to(values.device)
        logits = F.linear(values, self.request.head["weight"].to(values), self.request.head["bias"].to(values))
        return {
            "count": torch.tensor(len(values), dtype=torch.float64),
            "correct": (logits.argmax(1) == labels).sum(dtype=torch.float64),
            "losses": torch.stack([F.cross_entropy(gain * logits, labels, reduction="sum") for gain in self.gains]),
        }

    def fault(self, sums: Mapping[str, Tensor], examples: int) -> str:
        if said := super().fault(sums, examples):
            return said
        images, correct, losses = self.images(sums, examples)[0], float(sums["correct"]), sums["losses"].double()
        off, beside = (6 * self.slack(key, sums, examples) for key in ("correct", "losses"))
        each = correct * examples / images  # right answers, where they are a client's mean
        if not -off <= correct <= images + off or not (off or abs(each - round(each)) <= 1e-6):
            return f"{self.layer}: {correct:g} right answers of {examples}"
        weight, bias = self.request.head["weight"].double(), self.request.head["bias"].double()
        # Of two logits no difference is larger, of features as long as any are.
        widest = 2 * float((weight - weight.mean(0)).norm(dim=1).max())
        gap = widest * self.energy(1.0) ** 0.5 + float(bias.max() - bias.min())
        gains, classes = losses.new_tensor(self.gains), len(bias)
        most = images * (math.log(classes) + gains.abs() * gap)
        least = images * torch.log1p((classes - 1) * torch.exp(-gains.abs() * gap))
        # A wrong answer's class has half at most, or a gain below 0; with noise nobody knows how many are wrong.
        wrong = 0.0 if off else (images - correct) * math.log(2)
        least = torch.where(gains >= 0, least.clamp(min=wrong), least)
        beside = beside + ROUNDING * (losses.abs() + images * math.log(classes))
        fits = bool(((losses <= most + beside) & (losses >= least - beside)).all())
        if not fits or not (self.request.sampling.noise or self._is_convex(losses, images)):
            return f"{self.layer}: losses that this head has on no {examples} images"
        return ""

    def _is_convex(self, losses: Tensor, images: float) -> bool:
        """Whether the losses are convex in the gain, as −g·a_y + log Σ exp(g·a) is, from `images`·log C at none; up to
        the rounding of the logits in float32."""
        start = images * math.log(len(self.request.head["bias"]))
        gains, order = torch.tensor([0.0, *self.gains], dtype=torch.float64).sort()
        values = torch.cat([losses.new_tensor([start]), losses])[order]
        off, width = ROUNDING * (values + start), gains.diff()
        kept = width > 0  # one gain twice
        slopes, unsure = (values.diff() / width)[kept], ((off[1:] + off[:-1]) / width)[kept]
        return bool((slopes.diff() >= -(unsure[1:] + unsure[:-1])).all())

    def sensitivity(self, clip: float, rows: int) -> dict[str, float]:
        """A loss is at most log C plus the largest difference of two logits, max ‖w_a − w_b‖·clip + |b_a − b_b|."""
        weight, bias = self.request.head["weight"].double(), self.request.head["bias"].double()
        gap = float((torch.cdist(weight, weight) * clip + (bias[:, None] - bias).abs()).max())
        most = [math.log(len(bias)) + abs(gain) * gap for gain in self.gains]
        return {"correct": 1.0, "losses": math.hypot(*most)}
