"""Differential privacy (`privacy=`): a dataclass a unit of it, a client or an example."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedinit.config.checks import positive, refuse_unread, within
from fedinit.errors import InputError

# Of noise over clip: with less nothing is hidden, and squares of it underflow where ε is counted.
LEAST_NOISE, MOST_NOISE = 1e-9, 1e6
LEAST_OF_PLD = 0.3  # of which privacy loss distributions are still small enough, in time and memory
# Below, noise and clipped values would be lost in the rounding of float32.
LEAST_CLIP, MOST_CLIP = 1e-6, 1e9


@dataclass(frozen=True, kw_only=True)
class NoPrivacy:
    """`privacy=none`: nothing is clipped, no noise is drawn and nothing is counted."""

    name: Literal["none"] = "none"


@dataclass(frozen=True, kw_only=True)
class PrivacyConfig:
    """What every kind of privacy reads.

    epsilon: ε that a run may spend: it stops before a round that would pass it; null: as much as its rounds take.
    delta: δ at which ε is stated, in (0, 1).
    noise: standard deviation of the noise over the sensitivity of what it is added to; null: the least with which all
    rounds stay within `epsilon`.
    accountant: by which losses are composed, Rényi divergences or privacy loss distributions.
    """

    name: str
    epsilon: float | None = 8.0
    delta: float = 1e-5
    noise: float | None = None
    accountant: Literal["rdp", "pld"] = "rdp"

    def __post_init__(self) -> None:
        within("privacy.delta", self.delta, 0, 1, open_low=True, open_high=True)
        if self.epsilon is not None:
            positive("privacy.epsilon", self.epsilon)
        if self.noise is not None:
            within("privacy.noise", self.noise, LEAST_NOISE, MOST_NOISE)
            if self.accountant == "pld" and self.noise < LEAST_OF_PLD:
                raise InputError(
                    f"privacy.noise={self.noise}: privacy.accountant=pld counts {LEAST_OF_PLD} and more, of less its "
                    "tables do not fit into memory; use privacy.accountant=rdp"
                )
        if self.epsilon is None and self.noise is None:
            raise InputError(
                f"privacy={self.name}: neither privacy.epsilon nor privacy.noise is given; name the ε that the run may "
                "spend, from which the noise follows, or the noise itself"
            )


@dataclass(frozen=True, kw_only=True)
class ClientPrivacyConfig(PrivacyConfig):
    """`privacy=clients`: what one client has, in all, hardly changes what is released.

    noise: of the round as a whole, over the clip (`z`).
    clip: L2 norm of a client's change, of all factors that it trains and the head together, at most.
    second_clip: the same of what it sends in the second phase of a method that has one; null: as `clip`.
    clip_quantile: γ of adaptive clipping, in (0, 1): `clip` is round 1's, and then follows the norm that a share γ of
    the clients' changes stay within, by a count of them with noise. null: `clip` is every round's.
    clip_rate: η, by how much it follows: C ← C·exp(−η(share − γ)).
    count_noise: standard deviation of the noise on that count; null: a twentieth of the expected clients, or `noise`
    where that is more.
    sampling: of a round's clients: each on its own with probability `participation`, or as many of them.
    secure: the noise comes from the operating system's entropy, so that nobody who knows the seed can draw it again;
    a resumed run then is not the same to the byte. Always so in a deployment.
    """

    name: Literal["clients"] = "clients"  # pyright: ignore[reportIncompatibleVariableOverride]
    clip: float = 1.0
    second_clip: float | None = None
    clip_quantile: float | None = None
    clip_rate: float = 0.2
    count_noise: float | None = None
    sampling: Literal["poisson", "fixed"] = "poisson"
    secure: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        within("privacy.clip", self.clip, LEAST_CLIP, MOST_CLIP)
        within("privacy.second_clip", self.of_second_phase, LEAST_CLIP, MOST_CLIP)
        positive("privacy.clip_rate", self.clip_rate)
        if self.count_noise is not None:
            positive("privacy.count_noise", self.count_noise)
        if self.clip_quantile is None:
            refuse_unread("privacy", self, ("clip_rate", "count_noise"), "without privacy.clip_quantile")
        if self.clip_quantile is not None:
            within("privacy.clip_quantile", self.clip_quantile, 0, 1, open_low=True, open_high=True)
        if self.accountant == "pld" and self.sampling == "fixed":
            raise InputError(
                "privacy.accountant=pld: knows no samples of a fixed size; use privacy.sampling=poisson or "
                "privacy.accountant=rdp"
            )

    @property
    def of_second_phase(self) -> float:
        """The clip of a method's second phase."""
        return self.clip if self.second_clip is None else self.second_clip


@dataclass(frozen=True, kw_only=True)
class ExamplePrivacyConfig(PrivacyConfig):
    """`privacy=examples`: what one example of a client has hardly changes what that client releases.

    epsilon, noise: of every client by itself, over all its steps; what a client's ε is at last depends on how many
    examples it has.
    clip: L2 norm of an example's gradient, of all that is trained together, at most.
    """

    name: Literal["examples"] = "examples"  # pyright: ignore[reportIncompatibleVariableOverride]
    clip: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        within("privacy.clip", self.clip, LEAST_CLIP, MOST_CLIP)


PRIVACY: dict[str, type[PrivacyConfig | NoPrivacy]] = {
    "clients": ClientPrivacyConfig,
    "examples": ExamplePrivacyConfig,
    "none": NoPrivacy,
}
