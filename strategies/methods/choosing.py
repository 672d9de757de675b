"""Methods whose clients choose what they train: a number of slots of the trained factor, by a rule of their own data.

What is not chosen stays as it was sent, so a client's factors are whole for the server, which completes the reply from
the start; an exact method stays exact. Clients of lower rank have fewer slots to choose, of the whole adapter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from fedinit.adapters.kinds import LORA_ALONE
from fedinit.config.checks import at_least, refuse_unread
from strategies.aggregator import Aggregator


@dataclass(frozen=True, kw_only=True)
class Choosing(Aggregator):
    """A method whose clients choose the slots that they train.

    choice: by the size of a gradient step, by the size of the slots as they are, or at random.
    probe: how many batches the gradient is taken over, before a round's training.
    """

    mixed_ranks: ClassVar[bool] = True
    kinds: ClassVar[tuple[str, ...]] = LORA_ALONE

    choice: Literal["gradient", "weight", "random"] = "gradient"
    probe: int = 1

    def __post_init__(self) -> None:
        at_least("strategy.probe", self.probe, 1)
        if self.choice != "gradient":
            refuse_unread("strategy", self, ("probe",), f"with strategy.choice={self.choice}, but with gradient")

    def portion(self, rank: int, largest: int) -> float:
        """The share of all slots, in (0, 1], that a client of this rank trains, where `largest` is the highest rank."""
        return rank / largest
