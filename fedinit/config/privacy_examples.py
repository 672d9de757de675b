"""Differential privacy for examples (`privacy=examples`): what a client's private training reads.

Not named after the paper's σ: `noise` is the noise multiplier, the standard deviation in clips.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedinit.config.checks import positive, within
from fedinit.errors import InputError

Accounting = Literal["rdp", "pld"]


@dataclass(frozen=True, kw_only=True)
class ExamplePrivacy:
    """`privacy=examples`: every client trains by DP-SGD, and its ε is about its own examples."""

    name: Literal["examples"] = "examples"
    clip: float = 1.0  # the most an example's gradient may be long, over adapters and head together
    noise: float | None = None  # standard deviation of the noise on the sum of a step, in clips; null: from epsilon
    epsilon: float | None = 8.0  # of each client over the whole run, which its noise is made for; null: noise is given
    delta: float = 1e-5
    accounting: Accounting = "rdp"  # rdp: fast | pld: tighter, seconds a client

    def __post_init__(self) -> None:
        positive("privacy.clip", self.clip)
        within("privacy.delta", self.delta, 0, 1, open_low=True, open_high=True)
        if self.noise is not None:
            within("privacy.noise", self.noise, 0, float("inf"), open_high=True)
        if self.epsilon is not None:
            positive("privacy.epsilon", self.epsilon)
        if self.noise is not None and self.epsilon is not None:
            raise InputError(
                f"privacy.noise={self.noise}: privacy.epsilon={self.epsilon} says already how much noise there is; "
                "set one of them, and the other to null"
            )
        if self.noise is None and self.epsilon is None:
            raise InputError("privacy.noise=null: and privacy.epsilon is null too; set one of them")
