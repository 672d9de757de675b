"""The Gaussian mechanism on sums over clients, with a denominator that does not depend on who answered; and the clip
that follows a quantile of the clients' changes."""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fedinit.config.privacy import LEAST_CLIP, MOST_CLIP
from fedinit.draws import normal_of
from fedinit.errors import InputError
from fedinit.norms import rounded_off
from fedinit.privacy.accounting import Rounds
from fedinit.seeding import numpy_generator, torch_generator

Phase = Literal["first", "second"]
LARGEST = 600.0  # exponent, whose exp times any clip is a number still
INSIDE = 1 - 1e-3  # of the clip: what was clipped to it is as long up to rounding, and not within


@dataclass(frozen=True, kw_only=True)
class AdaptiveClip:
    """A clip that follows the norm that a share γ of the changes stay within (Andrew et al., NeurIPS 2021, arXiv
    1905.03871).

    quantile: γ. rate: η. noise: σ_b, the standard deviation of the noise on the count of who is within.
    """

    quantile: float
    rate: float
    noise: float

    def noise_of_updates(self, noise: float) -> float:
        """z_Δ = (z⁻² − (2σ_b)⁻²)^(−1/2), what the sum of updates needs for both releases together to be one with z; a
        client moves the count, each in it as ±1/2, by 1/2. Raises InputError where the count alone tells more."""
        if not 2 * self.noise > noise:
            raise InputError(
                f"privacy.count_noise={self.noise:g}: the count alone then tells more than a round with a noise of "
                f"{noise:g} may; use more than {noise / 2:g}"
            )
        return (noise**-2 - (2 * self.noise) ** -2) ** -0.5

    def next(self, clip: float, share: float) -> float:
        """C·exp(−η(b̃ − γ)), within what a clip may be: noise moves b̃ by anything. share: b̃."""
        grown = clip * math.exp(min(-self.rate * (share - self.quantile), LARGEST))
        return min(max(grown, LEAST_CLIP), MOST_CLIP)


@dataclass(frozen=True, kw_only=True)
class ClientMechanism:
    """What privacy=clients does at the server, in every round alike (McMahan et al., ICLR 2018, arXiv 1710.06963).

    clips: {phase: L2 norm of a client's change in it at most}; a method that asks once has the first alone.
    noise: z, the standard deviation of the round's noise over the clip. Of several phases each has z√phases, which
    together tell as much as one with z would: Σ 1/z_i² = 1/z².
    expected: of the round's clients, q·N: what sums are divided by, whoever answers.
    costs: of a round. sampling as in Rounds.
    adaptive: how the clip of the first phase goes on, from `clips` in round 1; None: it stays.
    seed: of the run; what it gives can be drawn again by who knows it. secure: the operating system's entropy instead.
    """

    clips: Mapping[Phase, float]
    noise: float
    expected: float
    costs: Rounds
    seed: int
    secure: bool
    adaptive: AdaptiveClip | None = None

    def at(self, clip: float) -> ClientMechanism:
        """The mechanism of a round whose clip has come to this; 0: it is the first."""
        return replace(self, clips={**self.clips, "first": clip}) if clip else self

    def deviation(self, phase: Phase) -> float:
        """Standard deviation of the noise on every entry of a phase's mean: z√phases · clip / (q·N), and z_Δ in place
        of z where the clip adapts."""
        noise = self.noise if self.adaptive is None else self.adaptive.noise_of_updates(self.noise)
        return noise * math.sqrt(len(self.clips)) * self.clips[phase] / self.expected

    def next_clip(self, known: Mapping[str, Tensor], answers: Sequence[Mapping[str, Tensor]], round: int) -> float:
        """The next round's clip, by the share of clients whose change is within this one's, with noise:
        b̃ = 1/2 + (Σ(b_i − 1/2) + N(0, σ_b²))/(q·N). Without `adaptive` it is this round's. Arguments as of
        `release`."""
        clip = self.clips["first"]
        if self.adaptive is None:
            return clip
        lengths = [
            sum(float((x[n].double() - s.double()).square().sum()) for n, s in known.items()) ** 0.5 for x in answers
        ]
        # What was clipped is shorter by what rounding may add, of a small clip most of it: a clip so small that
        # nobody can be told to be within it grows.
        inside = min(INSIDE * clip, clip - 3 * rounded_off(known, clip, torch.float32))
        count = sum((length <= inside) - 0.5 for length in lengths)
        noise = float(self._normal(torch.Size([1]), "first", round, "/count")) * self.adaptive.noise
        return self.adaptive.next(clip, 0.5 + (count + noise) / self.expected)

    def release(
        self, known: Mapping[str, Tensor], answers: Sequence[Mapping[str, Tensor]], phase: Phase, round: int
    ) -> dict[str, Tensor]:
        """s + Σ(x_i − s)/(q·N) + N(0, deviation²) for every tensor, in float64.

        known: {name: s}, as clients clip against. answers: {name: x_i} of each client, clipped, in client order. All on
        one device; noise is drawn on the CPU.
        """
        released = {}
        for name in sorted(known):
            start = known[name].double()
            total = torch.zeros_like(start)
            for answer in answers:
                total += answer[name].double() - start
            noise = self._normal(start.shape, phase, round, name) * self.deviation(phase)
            released[name] = start + total / self.expected + noise.to(start.device)
        return released

    def sample(self, round: int, clients: Sequence[int]) -> list[int]:
        """The clients of a round, in order: each on its own with probability q, perhaps none; or as many as q·N."""
        draw = np.random.default_rng(secrets.randbits(256)) if self.secure else numpy_generator(
            self.seed, "privacy.sampling", round
        )  # fmt: skip
        if self.costs.sampling == "poisson":
            return [
                client for client, u in zip(clients, draw.random(len(clients)), strict=True) if u < self.costs.share
            ]
        return sorted(int(client) for client in draw.choice(clients, size=round_of(self.expected), replace=False))

    def epsilon(self, rounds: int) -> float:
        """ε of so many rounds, at the stated δ."""
        return self.costs.epsilon(self.noise, rounds)

    def affordable(self, rounds: int, epsilon: float | None) -> int:
        """How many of so many rounds stay within ε; all of them where there is no limit."""
        if epsilon is None:
            return rounds
        low, high = 0, rounds
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.epsilon(middle) <= epsilon else (low, middle - 1)
        return low

    def _normal(self, shape: torch.Size, phase: Phase, round: int, name: str) -> Tensor:
        """Standard normal numbers in float64."""
        if not self.secure:
            draw = torch_generator(self.seed, "privacy.noise", phase, round, name)
            return torch.randn(shape, generator=draw, dtype=torch.float64)
        return normal_of(np.frombuffer(os.urandom(8 * math.prod(shape)), np.uint64)).reshape(shape)


def round_of(expected: float) -> int:
    """A number of clients that is whole up to rounding."""
    return int(expected + 0.5)
