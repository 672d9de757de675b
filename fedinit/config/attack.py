"""Bad clients of a simulation (`attack=`): a dataclass an attack, whose deeds are in clients/attacks/."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from fedinit.config.checks import at_least, positive, within
from fedinit.errors import InputError
from fedinit.scores import MAX_EXAMPLES
from fedinit.seeding import numpy_generator


@dataclass(frozen=True, kw_only=True)
class AttackConfig:
    """What every attack reads: who attacks, in every round in which it takes part."""

    name: str
    count: int = 1  # how many clients, drawn from the seed, where `clients` names none
    clients: tuple[int, ...] | None = None  # which, by partition id

    def __post_init__(self) -> None:
        at_least("attack.count", self.count, 1)
        if self.clients is None:
            return
        said = f"attack.clients=[{','.join(map(str, self.clients))}]"
        for client in self.clients:
            at_least("attack.clients", client, 0)
        if len(set(self.clients)) < len(self.clients):
            raise InputError(f"{said}: names a client twice")
        if self.count not in (1, len(self.clients)):
            raise InputError(f"attack.count={self.count}: {said} says who attacks; leave one of the two out")

    def attackers(self, partitions: int, seed: int) -> frozenset[int]:
        """The partition ids of the bad ones among so many clients. Raises InputError where there are not as many, or
        nobody honest would be left."""
        if self.clients is not None:
            chosen = frozenset(self.clients)
            if not chosen or max(chosen) >= partitions:
                said = f"attack.clients=[{','.join(map(str, self.clients))}]"
                raise InputError(f"{said}: expected one or more of the partition ids 0 to {partitions - 1}")
        else:
            count = min(self.count, partitions)
            draw = numpy_generator(seed, "attack")
            chosen = frozenset(int(client) for client in draw.choice(partitions, size=count, replace=False))
        if len(chosen) == partitions:
            raise InputError(f"attack={self.name}: all of the {partitions} clients would attack; leave one honest")
        return chosen


@dataclass(frozen=True, kw_only=True)
class NoAttack:
    """`attack=none`: all clients are honest."""

    name: Literal["none"] = "none"


@dataclass(frozen=True, kw_only=True)
class FactorConfig(AttackConfig):
    """An attack of a chosen strength."""

    factor: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("attack.factor", self.factor)


@dataclass(frozen=True, kw_only=True)
class SignFlipConfig(FactorConfig):
    """`attack=sign_flip`: −factor times the own change."""

    name: Literal["sign_flip"] = "sign_flip"


@dataclass(frozen=True, kw_only=True)
class ScaledConfig(FactorConfig):
    """`attack=scaled`: factor times the own change."""

    name: Literal["scaled"] = "scaled"
    factor: float = 9.0


@dataclass(frozen=True, kw_only=True)
class GaussianConfig(FactorConfig):
    """`attack=gaussian`: noise, factor times as long as the own change, tensor by tensor."""

    name: Literal["gaussian"] = "gaussian"


@dataclass(frozen=True, kw_only=True)
class HeadOnlyConfig(FactorConfig):
    """`attack=head_only`: the adapters' own change, and −factor times the head's."""

    name: Literal["head_only"] = "head_only"
    factor: float = 9.0


@dataclass(frozen=True, kw_only=True)
class LabelFlipConfig(AttackConfig):
    """`attack=label_flip`: trained on class C − 1 − c in place of c."""

    name: Literal["label_flip"] = "label_flip"


@dataclass(frozen=True, kw_only=True)
class AlieConfig(AttackConfig):
    """`attack=alie`: the honest mean less z standard deviations."""

    name: Literal["alie"] = "alie"
    z: float | None = 1.5  # null: the most that hides among a majority, by the paper's formula

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.z is not None:
            within("attack.z", self.z, -math.inf, math.inf, open_low=True, open_high=True)


@dataclass(frozen=True, kw_only=True)
class IpmConfig(AttackConfig):
    """`attack=ipm`: −epsilon times the honest mean."""

    name: Literal["ipm"] = "ipm"
    epsilon: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("attack.epsilon", self.epsilon)


@dataclass(frozen=True, kw_only=True)
class MinMaxConfig(AttackConfig):
    """`attack=minmax`: as far from the honest mean as stays within the honest ones' distances."""

    name: Literal["minmax"] = "minmax"
    direction: Literal["std", "unit", "sign"] = "std"


@dataclass(frozen=True, kw_only=True)
class ClaimsConfig(FactorConfig):
    """`attack=claims`: a sign flip that claims to come from many examples."""

    name: Literal["claims"] = "claims"
    examples: int = MAX_EXAMPLES
    register: bool = True  # says so already when it registers; false: with its updates alone

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("attack.examples", self.examples, 1)


ATTACKS: dict[str, type[AttackConfig | NoAttack]] = {
    "alie": AlieConfig,
    "claims": ClaimsConfig,
    "gaussian": GaussianConfig,
    "head_only": HeadOnlyConfig,
    "ipm": IpmConfig,
    "label_flip": LabelFlipConfig,
    "minmax": MinMaxConfig,
    "none": NoAttack,
    "scaled": ScaledConfig,
    "sign_flip": SignFlipConfig,
}
