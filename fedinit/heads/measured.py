"""What heads have in common that are made from the clients' pooled features: exact sums, classes that nobody has, and
the scale of the logits.

A head is found up to the scale of its logits, which classification does not depend on and cross-entropy does: ridge
regression's logits differ by less than one, and those of class means by the square of whatever unit the features have.
So a head is first put into a unit of its own, in which, at the mean of a class, its logit is 1 above another class's on
average. Then it is multiplied by the factor that minimises the cross-entropy of the clients' examples, summed by them
over a fixed grid of factors (temperature scaling, Guo et al. 2017, arXiv 1706.04599, on the training images), with a
parabola through the best three. The grid ends at 32 nats, so that classes that are separated perfectly do not saturate
the softmax. `scale` sets the factor by hand and saves the second pass.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor

from fedinit.config.checks import positive
from fedinit.errors import InputError
from fedinit.heads.head import Head, HeadContext, HeadState
from fedinit.statistics import Request, Sampled, Statistics
from fedinit.statistics.gram import unpack

LAYER = "head"
SCALES = tuple(2.0 ** (step / 2) for step in range(-4, 11))  # ¼ … 32


@dataclass(frozen=True)
class Rows:
    """The rows of a head in float64, one for each of m classes: weight (m, D), bias (m,)."""

    weight: Tensor
    bias: Tensor

    def times(self, factor: float) -> Rows:
        """The rows of logits that are `factor` times as large."""
        return Rows(self.weight * factor, self.bias * factor)

    @property
    def joined(self) -> Tensor:
        """(m, D + 1), the weights with the bias as the last column."""
        return torch.cat([self.weight, self.bias[:, None]], dim=1)


@dataclass(frozen=True)
class KnownClasses:
    """What the clients measured of the m classes that somebody has examples of, in float64.

    counts: (m,), examples of each class.
    means: (m, D), mean features of each class.
    moment: (D, D), Σ z zᵀ over all examples; None where it was not asked for.
    """

    counts: Tensor
    means: Tensor
    moment: Tensor | None = None

    @property
    def mean(self) -> Tensor:
        """(D,), the mean features of all examples."""
        return self.counts @ self.means / self.counts.sum()

    @property
    def scatter(self) -> Tensor:
        """(D, D), Σ (z − z̄)(z − z̄)ᵀ over all examples. Raises ValueError where the moment was not asked for."""
        if self.moment is None:
            raise ValueError("a head that is made of the second moment must ask for it")
        return self.moment - self.counts.sum() * torch.outer(self.mean, self.mean)


@dataclass(frozen=True, kw_only=True)
class MeasuredHead(Head, Sampled):
    """A head from the clients' pooled features.

    examples, weighting, min_examples, clip, noise: as in `Sampling`; rows are pooled features.
    lam: the ridge on whatever is inverted, in units of its mean eigenvalue.
    scale: the mean difference of the right and a wrong class's logit at the class means; ``auto``: the one with the
        least cross-entropy, which takes a second pass.
    """

    examples: int | None = None
    lam: float = 0.01
    scale: float | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        self.sampling.check("head")
        positive("head.lam", self.lam)
        if self.scale != "auto":
            positive("head.scale", self.scale)
        if self.noise and self.weighting == "uniform":
            raise InputError(
                "head.weighting=uniform: with head.noise, whether a class has examples could not be told; "
                "use head.weighting=samples, or head.noise=0"
            )

    @property
    def needs_moment(self) -> bool:
        """Whether the features' second moment is asked for, besides the sums of each class."""
        return False

    @abstractmethod
    def rows(self, known: KnownClasses) -> Rows:
        """The head's rows for the classes that somebody has, in their order, up to the scale of the logits."""

    def fill(self, rows: Rows, known: KnownClasses, missing: Sequence[int], context: HeadContext) -> tuple[Tensor, str]:
        """((len(missing), D + 1), weights and bias of the classes that nobody has; a note on how they were made).

        rows: of the classes that somebody has.
        known: what was measured of those.
        missing: indices of the others among all classes.
        """
        return rows.joined.mean(0).expand(len(missing), -1), "the mean of the other rows"

    def plan(self, context: HeadContext) -> Request:
        return self._ask(context, "class_moments" if self.needs_moment else "class_sums")

    def step(self, context: HeadContext, asked: Request, statistics: Statistics) -> Request | HeadState:
        """Raises InputError where the clients' examples do not make a classifier."""
        sums = statistics.of(LAYER)
        if "losses" in sums:
            return self._finish(asked, sums)
        known, seen = self._known_classes(sums, context)
        rows = self.rows(known)
        rows = rows.times(1 / self._gap(rows, known))
        joined = torch.empty(len(context.classes), context.features + 1, dtype=torch.float64)
        missing = [i for i in range(len(context.classes)) if i not in set(seen.tolist())]
        joined[seen] = rows.joined
        notes: dict[str, Any] = {}
        if missing:
            joined[missing], how = self.fill(rows, known, missing, context)
            notes["missing"] = {context.classes[i]: how for i in missing}
        if self.scale != "auto":
            return HeadState(tensors=_tensors(joined * self.scale), notes={"scale": self.scale, **notes})
        return self._ask(context, "losses", _tensors(joined), scales=list(SCALES), notes=notes)

    def _ask(
        self, context: HeadContext, statistic: str, head: Mapping[str, Tensor] = MappingProxyType({}), **options: Any
    ) -> Request:
        return Request(
            source="features",
            layers={LAYER: statistic},
            shapes={LAYER: context.shape},
            seed=context.seed,
            sampling=self.sampling,
            options=options,
            head=head,
        )

    def _known_classes(self, sums: Mapping[str, Tensor], context: HeadContext) -> tuple[KnownClasses, Tensor]:
        """(what was measured of the classes that somebody has, their indices (m,) among all classes). Raises InputError
        for fewer than two of them."""
        counts = sums["counts"].double()
        # Noise makes a count of its own.
        seen = (counts >= 1 if self.noise else counts > 0).nonzero().flatten()
        if len(seen) < 2:
            raise InputError(
                f"head.init={self._name}: the clients' examples are of {len(seen)} of {len(counts)} classes, and it "
                "takes two or more; use head.init=random"
            )
        known = KnownClasses(counts[seen], sums["sums"].double()[seen] / counts[seen, None])
        if not self.needs_moment:
            return known, seen
        return replace(known, moment=unpack(sums["gram"].double(), context.features)), seen

    def _gap(self, rows: Rows, known: KnownClasses) -> float:
        """The mean over pairs of classes a ≠ b of logit a less logit b at the mean of a."""
        logits = known.means @ rows.weight.T + rows.bias
        m = len(logits)
        gap = float((m * logits.trace() - logits.sum()) / (m * (m - 1)))
        if not gap > 0:
            raise InputError(f"head.init={self._name}: the features' class means do not differ; use head.init=random")
        return gap

    def _finish(self, asked: Request, sums: Mapping[str, Tensor]) -> HeadState:
        losses, count = sums["losses"].double(), float(sums["count"])
        factor = best_scale(asked.options["scales"], losses.tolist())
        notes = {
            "scale": factor,
            "loss": float(losses.min()) / count,
            "accuracy": 100 * float(sums["correct"]) / count,
            **asked.options["notes"],
        }
        return HeadState(tensors={key: value * factor for key, value in asked.head.items()}, notes=notes)

    @property
    def _name(self) -> str:
        return type(self).__name__.lower()


def best_scale(gains: Sequence[float], losses: Sequence[float]) -> float:
    """The gain at which the loss is least: the lowest point of a parabola in log gain through the best gain and its
    neighbours; the best gain itself where it is the first or the last.

    gains: rising, each the same multiple of the one before.
    losses: one a gain.
    """
    best = min(range(len(losses)), key=losses.__getitem__)
    if best in (0, len(losses) - 1):
        return gains[best]
    left, middle, right = losses[best - 1 : best + 2]
    curvature = left - 2 * middle + right
    shift = 0.5 * (left - right) / curvature if curvature > 0 else 0.0
    return gains[best] * (gains[best + 1] / gains[best]) ** shift


def _tensors(joined: Tensor) -> dict[str, Tensor]:
    return {"weight": joined[:, :-1].float().contiguous(), "bias": joined[:, -1].float().contiguous()}
