"""The contract of a rule against bad clients: inner products in, weights out.

Letters: U_i is what client i changed, from what it started from, of the whole model (geometry.py); p_i is its weight
without a rule, Σ p_i = 1; w_i is its weight with one. The rest, 1 − Σ w_i, is the weight of what the round started
from, whose change is zero: a scale factor c_i ≤ 1 on a client's change is w_i = p_i c_i, since

    Σ p_i (P_0 + c_i U_i) = Σ p_i c_i P_i + (1 − Σ p_i c_i) P_0,     P_i = P_0 + U_i,

so a rule that clips needs no more of an aggregation method than one that only weighs: the method averages, stacks or
corrects the clients' models and that of the start, each with its weight.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedinit.errors import RunFailed, kind_of

SLACK = 1e-6  # of a sum of weights: a rule may compute in float32


@dataclass(frozen=True)
class Changes:
    """What the clients of a round changed, as far as lengths and angles go.

    clients: their partition ids, rising. weights: p_i, in the same order. gram: ⟨U_i, U_j⟩, (K, K), float64.
    """

    clients: Sequence[int]
    weights: Sequence[float]
    gram: Tensor

    @property
    def shares(self) -> Tensor:
        """p, (K,), in float64."""
        return torch.tensor(self.weights, dtype=torch.float64)

    @property
    def norms(self) -> Tensor:
        """‖U_i‖, (K,)."""
        return self.gram.diagonal().clamp(min=0).sqrt()

    @property
    def median_norm(self) -> float:
        """The lower median of ‖U_i‖: an honest client's or less as long as fewer than half are bad."""
        return float(self.norms.median())

    def distances(self, center: Tensor) -> Tensor:
        """‖U_i − v‖, (K,), from the combination v = Σ_j a_j U_j; center: a, (K,)."""
        squares = self.gram.diagonal() - 2 * (self.gram @ center) + center @ self.gram @ center
        return squares.clamp(min=0).sqrt()

    def between(self) -> Tensor:
        """‖U_i − U_j‖², (K, K)."""
        squares = self.gram.diagonal()
        return (squares[:, None] + squares - 2 * self.gram).clamp(min=0)


@dataclass(frozen=True, kw_only=True)
class Robust(ABC):
    """A rule. Its fields are its options, with the same names in conf/robust/<name>.yaml.

    Laws: w_i ≥ 0 and Σ w_i ≤ 1; a rule is a function of inner products alone, so what leaves the clients' products as
    they are changes no weight; another order of the clients is the same order of their weights.
    """

    @abstractmethod
    def weigh(self, changes: Changes) -> Tensor:
        """w, (K,), in the order of the clients."""

    def lacks(self) -> str:
        """What the rule cannot do without and was not given; empty where it has all."""
        return ""

    def fault(self, clients: Sequence[int]) -> str:
        """Why the rule cannot judge the updates of these clients, partition ids; empty where it can."""
        return ""


def shrink(lengths: Tensor, limit: float) -> Tensor:
    """min(1, limit/length), (K,); 1 for a length of zero."""
    return torch.where(lengths > limit, limit / lengths.clamp(min=1e-300), 1.0)


def refuse_misjudged(weights: object, count: int, rule: Robust) -> Tensor:
    """A rule's weights of so many clients, as they are. Raises RunFailed where they are none: a fault in its code."""
    who = f"{type(rule).__name__} weighs {count} clients as"
    if not isinstance(weights, Tensor) or weights.shape != (count,):
        raise RunFailed(f"{who} {kind_of(weights)}, expected a tensor ({count},)")
    if not bool((weights >= 0).all()) or float(weights.double().sum()) > 1 + SLACK:  # NaN is neither
        told = ", ".join(f"{weight:.4g}" for weight in weights.tolist()[:10])
        raise RunFailed(f"{who} {told}, expected none below 0 and a sum of 1 or less")
    return weights
