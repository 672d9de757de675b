"""Rules about settings that do not always go together, and those of them that the configuration alone decides.

The whole table is strategies/server/compatibility.py, which knows the methods; a client checks what is here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from fedinit.config.schema import Config
from fedinit.errors import InputError
from fedinit.losses import LOSSES

Judged = TypeVar("Judged")


@dataclass(frozen=True)
class Objection:
    """what: the setting that is wrong, key=value. why: the reason, which names the other. instead: what goes."""

    what: str
    why: str
    instead: str = ""

    def __str__(self) -> str:
        return f"{self.what}: {self.why}" + (f"; {self.instead}" if self.instead else "")


@dataclass(frozen=True)
class Rule(Generic[Judged]):
    """about: the settings it compares, by key. judge: its objection, None where they go together."""

    about: tuple[str, ...]
    judge: Callable[[Judged], Objection | None]


def objections(judged: Judged, rules: Iterable[Rule[Judged]]) -> Iterable[Objection]:
    """What the rules object to, in their order."""
    return (found for rule in rules if (found := rule.judge(judged)) is not None)


def named(names: Iterable[str], lead: str = "choose one of") -> str:
    """What there is to choose from, for the end of an objection."""
    return f"{lead}: {', '.join(names)}"


def refuse(judged: Judged, rules: Iterable[Rule[Judged]]) -> None:
    """Raises InputError, one line, for the first objection."""
    for objection in objections(judged, rules):
        raise InputError(str(objection))


def _the_loss_fits_the_targets(c: Config) -> Objection | None:
    fitting = [name for name in LOSSES if (name == "cross_entropy") != c.data.is_regression]
    if c.client.loss in ("auto", *fitting):
        return None
    targets = "numbers" if c.data.is_regression else "classes"
    instead = f"expected auto or {' or '.join(sorted(fitting, reverse=True))}"
    return Objection(f"client.loss={c.client.loss}", f"the data's targets are {targets}", instead)


def _the_head_fits_the_targets(c: Config) -> Objection | None:
    if not c.data.is_regression or c.head.name == "none":
        return None
    return Objection(f"head={c.head.name}", f"data={c.data.name} is about the model's output", "use head=none")


def _there_are_images_to_augment(c: Config) -> Objection | None:
    if not c.data.is_regression or c.client.augment == "none":
        return None
    return Objection(f"client.augment={c.client.augment}", f"data={c.data.name} has no images", "use none")


def _kept_images_stay_as_they_are(c: Config) -> Objection | None:
    if not c.engine.prefix_cache or c.client.augment == "none":
        return None
    why = "what is kept is of one image, and augmentation makes another every time"
    return Objection(
        "engine.prefix_cache=true", f"{why} (client.augment={c.client.augment})", "use client.augment=none"
    )


def _the_probe_goes_through_all_blocks(c: Config) -> Objection | None:
    if not c.engine.prefix_cache or c.diagnostics.name == "none":
        return None
    why = f"diagnostics={c.diagnostics.name} looks at what every block does, and the kept ones are passed over"
    return Objection("engine.prefix_cache=true", why, "use diagnostics=none")


def _there_are_labels_to_flip(c: Config) -> Objection | None:
    if not c.data.is_regression or c.attack.name != "label_flip":
        return None
    return Objection("attack=label_flip", f"data={c.data.name} has no classes", "use another attack")


def _updates_of_one_shape(c: Config) -> Objection | None:
    if c.adapter.ranks is None or c.secure_aggregation.name == "none":
        return None
    return Objection("adapter.ranks", "updates of several shapes have no one secret sum", "use one adapter.rank")


def _attacks_are_on_what_is_open(c: Config) -> Objection | None:
    if c.attack.name == "none" or c.secure_aggregation.name == "none":
        return None
    why = "forges what leaves a client, which is masked with secure_aggregation=secagg"
    return Objection(f"attack={c.attack.name}", why, "use attack=none")


CONFIG_RULES: Sequence[Rule[Config]] = (
    Rule(("data", "client.loss"), _the_loss_fits_the_targets),
    Rule(("data", "head"), _the_head_fits_the_targets),
    Rule(("data", "client.augment"), _there_are_images_to_augment),
    Rule(("data", "attack"), _there_are_labels_to_flip),
    Rule(("engine.prefix_cache", "client.augment"), _kept_images_stay_as_they_are),
    Rule(("engine.prefix_cache", "diagnostics"), _the_probe_goes_through_all_blocks),
    Rule(("adapter.ranks", "secure_aggregation"), _updates_of_one_shape),
    Rule(("attack", "secure_aggregation"), _attacks_are_on_what_is_open),
)
