"""What a model is judged by: two sums over its test examples, which merge by addition."""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

AVERAGE, AMONG_ITS_NAME = "average", "average over domains"
MAX_EXAMPLES = 2**40  # beyond any data set; above it the float64 weights would lose digits


@dataclass(frozen=True)
class Score(ABC):
    """What a model is judged by: two sums over the test examples of each domain, which merge by addition.

    part, whole: {domain: sum}, in the order of the domains.

    Of the class:
    name: as in tables.
    title: for people, with the unit.
    wire: what the two sums are called in a message.
    counts_examples: whether `whole` is a number of examples.
    """

    part: Mapping[str, float]
    whole: Mapping[str, float]

    name: ClassVar[str]
    title: ClassVar[str]
    wire: ClassVar[tuple[str, str]]
    counts_examples: ClassVar[bool] = False

    @staticmethod
    @abstractmethod
    def value(part: float, whole: float) -> float:
        """The figure that the two sums of one domain make."""

    @staticmethod
    @abstractmethod
    def admits(part: object, whole: object) -> bool:
        """Whether these values, which came from outside, can be the two sums of one example or more: types too."""

    @staticmethod
    @abstractmethod
    def show(value: float) -> str:
        """A figure for people, in the unit of the title."""

    @property
    def by_domain(self) -> dict[str, float]:
        """{domain: figure}, in the order of the domains."""
        return {name: self.value(self.part[name], self.whole[name]) for name in self.whole}

    @property
    def mean(self) -> float:
        """The mean over domains, so that a large domain counts no more than a small one."""
        values = self.by_domain.values()
        return sum(values) / len(values)

    def __str__(self) -> str:
        name, _, unit = self.title.partition(", ")
        return f"{name} {self.show(self.mean)} {unit}".rstrip()


@dataclass(frozen=True)
class Accuracy(Score):
    """Percent of the test images whose class has the largest logit: part counts those, whole the images."""

    name = "accuracy"
    title = "accuracy, %"
    wire = ("correct", "num-examples")
    counts_examples = True

    @staticmethod
    def value(part: float, whole: float) -> float:
        return 100 * part / whole

    @staticmethod
    def admits(part: object, whole: object) -> bool:
        return type(part) is int and type(whole) is int and 0 <= part <= whole and 1 <= whole <= MAX_EXAMPLES

    @staticmethod
    def show(value: float) -> str:
        return f"{value:.1f}"


@dataclass(frozen=True)
class RecoveryError(Score):
    """‖ŷ − y‖/‖y‖ over the test examples, from Σ‖ŷ − y‖² and Σ‖y‖². Where these are a whole orthogonal set of
    measurements of a matrix it is ‖W − X*‖/‖X*‖ of the effective weight W."""

    name = "recovery_error"
    title = "recovery error"
    wire = ("squared-error", "squared-norm")

    @staticmethod
    def value(part: float, whole: float) -> float:
        return (part / whole) ** 0.5

    @staticmethod
    def admits(part: object, whole: object) -> bool:
        return type(part) is float and type(whole) is float and 0 <= part < math.inf and 0 < whole < math.inf

    @staticmethod
    def show(value: float) -> str:
        return f"{value:.1e}"


def without(domains: Sequence[str]) -> str:
    """``thick; the average is without it``: of the domains, one or more, that nobody scored."""
    return f"{', '.join(domains)}; the average is without {'it' if len(domains) == 1 else 'them'}"


def judged_on(data: object) -> str:
    """Of which images a run's figures are, ``test`` or ``validation``, where settings are chosen by them.

    data: what the configuration has of it, an object or plain values.
    """
    said = data.get if isinstance(data, Mapping) else functools.partial(getattr, data)
    held = said("validation_fraction", None) is not None or said("evaluate_on", "") == "val"
    return "validation" if held else "test"


SCORES: dict[str, type[Score]] = {kind.name: kind for kind in (Accuracy, RecoveryError)}


def average_among(domains: Collection[str]) -> str:
    """What a table of these domains calls their average: another name where a domain has it."""
    return AMONG_ITS_NAME if AVERAGE in domains else AVERAGE
