"""Client optimisers on the bank's leading axis: each client has its own momentum, clipping norm and step count.

The bank's clients are in order of falling number of steps, so the ones still training are the first `active`; a step
touches only those rows, and a client that is done keeps its values and its state.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

from clients.optimizers.clipping import clip
from clients.optimizers.lora_plus import ratios
from clients.optimizers.proximal import pull
from fedinit.config.client import ClientConfig

Settings = TypeVar("Settings", bound=ClientConfig)


class BankOptimizer(ABC, Generic[Settings]):
    """Updates leaves {name: (K, …)} in place.

    Works on all leaves side by side, a row a client, so that a step is a few operations whatever their number.

    values: (K, P), P numbers a client. `leaves` follow them after every step.
    start: (K, P), where the round began; None where no proximal term needs it.
    padding: of each client, how many of its P numbers are the zero padding of a lower rank.
    ratio: (P,), the learning rate of every number as a multiple of client.lr; None: 1 for all.
    steps: how many were taken.
    """

    def __init__(
        self,
        leaves: Mapping[str, Tensor],
        settings: Settings,
        owned: Mapping[str, Tensor] | None = None,
        step_scales: Sequence[Mapping[str, float]] = (),
    ) -> None:
        """leaves: the tensors that are trained.
        settings: the options of `client=<name>`.
        owned: {leaf: (K,) how many of its numbers are each client's own}, the rest being zero padding of a lower rank;
        None: all are.
        step_scales: per client those {leaf: number} fixed in an earlier round, for optimisers that have them.
        """
        self.leaves, self.settings = dict(leaves), settings
        self.values = _side_by_side(leaves.values())
        rows, numbers = self.values.shape
        self.padding = [0] * rows
        if owned is not None:
            self.padding = [numbers - own for own in torch.stack([*owned.values()]).sum(0).tolist()]
        self.start = self.values.clone() if settings.prox else None
        self.ratio = ratios(self.leaves, settings.lr_ratio_b).to(self.values) if settings.lr_ratio_b != 1 else None
        self.steps = 0

    def step(self, gradients: Mapping[str, Tensor], active: int) -> None:
        """One step of the first `active` clients, with gradients of the leaves' shapes (more rows are ignored)."""
        self.advance()
        self.apply(gradients, active)

    def advance(self) -> None:
        """Begin a step: count it. What a step needs that changes from one to the next is put into tensors here, since
        `apply` is recorded once on CUDA and replayed (clients/replay.py)."""
        self.steps += 1

    @torch.no_grad()
    def apply(self, gradients: Mapping[str, Tensor], active: int, moving: Tensor | None = None) -> None:
        """The step of the first `active` clients, by operations on tensors alone.

        moving: (active, 1) bool, which of them move; the others keep their values and their state. None: all.
        """
        kept = [(rows[:active], rows[:active].clone()) for rows in self.tensors()] if moving is not None else []
        gradient = _side_by_side(gradients[name][:active] for name in self.leaves)
        if self.start is not None:
            pull(gradient, self.values[:active], self.start[:active], self.settings.prox)
        if self.settings.clip_norm is not None:
            clip(gradient, self.settings.clip_norm)
        values = self.values[:active]
        self.update(values, gradient, active)
        if moving is not None:
            for rows, before in kept:  # tables (active, …), all of them
                rows.copy_(torch.where(moving, rows, before))
        rows = [leaf[:active] for leaf in self.leaves.values()]
        parts = values.split([row[0].numel() for row in rows], dim=1)
        shaped = [part.view(row.shape) for row, part in zip(rows, parts, strict=True)]
        torch._foreach_copy_(rows, shaped)  # pyright: ignore[reportPrivateImportUsage]

    @abstractmethod
    def update(self, value: Tensor, gradient: Tensor, active: int) -> None:
        """Change `value` (active, P) in place; `gradient` (active, P) may be overwritten."""

    def state(self) -> Sequence[Tensor | None]:
        """What this optimiser keeps from step to step besides the values themselves, a row a client each."""
        return (self.start,)

    def tensors(self) -> list[Tensor]:
        """All that a step reads and writes, a row a client each."""
        return [self.values, *(rows for rows in self.state() if rows is not None)]

    def untold(self) -> list[str]:
        """The attributes in which a tensor of two dimensions or more has a row a client, and `tensors` has it not. In a
        bank of one client a single row may be for all there ever are: there it counts once it was written into."""
        told, several = {id(rows) for rows in (*self.tensors(), *self.leaves.values())}, len(self.values) > 1
        return [
            name
            for name, held in vars(self).items()
            for rows in (held.values() if isinstance(held, Mapping) else held if isinstance(held, list) else [held])
            if isinstance(rows, Tensor) and rows.ndim > 1 and len(rows) == len(self.values) and id(rows) not in told
            if several or rows._version
        ]

    def state_size(self, row: int) -> int:
        """How many numbers this optimiser keeps for client `row` from step to step, without those of zero padding."""
        kept = [rows[row].numel() for rows in self.state() if rows is not None]
        return sum(numbers - self.padding[row] * (numbers == self.values.shape[1]) for numbers in kept)

    def fixed_scales(self, row: int) -> dict[str, float]:
        """The step scales {leaf: number} that client `row` has fixed; empty for an optimiser without any."""
        return {}


def _side_by_side(leaves: Iterable[Tensor]) -> Tensor:
    """(K, P) copy of leaves (K, …)."""
    return torch.cat([leaf.detach().flatten(1) for leaf in leaves], dim=1)
