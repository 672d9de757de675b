"""What clients minimise (`client.loss=`): a loss of every example, from a model's outputs and what they should be."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from fedinit.errors import InputError


def cross_entropy(outputs: Tensor, labels: Tensor) -> Tensor:
    """(n,) −log of the softmax at the label; outputs (n, classes), labels (n,) int64."""
    return F.cross_entropy(outputs, labels, reduction="none")


def l2(outputs: Tensor, targets: Tensor) -> Tensor:
    """(n,) ½‖ŷ − y‖²; both (n, outputs)."""
    return (outputs - targets).square().sum(-1) / 2


def l1(outputs: Tensor, targets: Tensor) -> Tensor:
    """(n,) ‖ŷ − y‖₁, which a share of wrong targets moves little; both (n, outputs)."""
    return (outputs - targets).abs().sum(-1)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"cross_entropy": cross_entropy, "l1": l1, "l2": l2}


def choose_loss(name: str, is_regression: bool) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss by name; `auto` is cross_entropy for classes and l2 for numbers. Raises InputError for a loss of the
    other kind."""
    fitting = ("l2", "l1") if is_regression else ("cross_entropy",)
    if name == "auto":
        name = fitting[0]
    if name not in fitting:
        kind = "numbers" if is_regression else "classes"
        raise InputError(f"client.loss={name}: the data's targets are {kind}; expected auto or {' or '.join(fitting)}")
    return LOSSES[name]
