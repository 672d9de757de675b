"""What a site lets a server learn of its images, by its own --node-config: no server sets these, or sees more than that
one of them refused it. They are on in a deployment without being asked for."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from fedinit.errors import Code, InputError, Refused, choose

# Those of fedinit.statistics.STATISTICS, which is torch's to import.
STATISTICS = ("class_moments", "class_sums", "gradient", "gradient_range", "gradient_rows", "gram", "losses")
STATISTICS += ("nystrom", "total")
OFF = "limits"  # the setting that takes all of them off, "off": on one's own machine


class Limited(Refused):
    """What a server asks for is more than the site gives. The message names the limit, not
    what it is set to, and nothing of the images."""

    code = Code.limit


class Exhausted(Limited):
    """A round more of training takes a run's ε above what the site gives; nothing was trained."""

    code = Code.spent


class Cut(Limited):
    """What is asked for is about few images, or about such that differ from those before by a few. The refusal tells
    that it is, though not how few.

    images: a word for the set that was asked about; the same set refused again tells nothing new.
    """

    def __init__(self, message: str, images: str) -> None:
        super().__init__(message)
        self.images = images


@dataclass(frozen=True, kw_only=True)
class Limits:
    """A site's limits; a setting of --node-config each, with - for _.

    statistics: names of fedinit.statistics.STATISTICS that are answered, separated by commas; "all", or "none".
    min_images: distinct images that a statistic is over at the least, and that training and an update are on. The sets
        that answers are over cut the site's images into cells, of which none is smaller than this.
    min_test_images: the same of an evaluation, for each domain.
    min_class_images: the same of a class, in statistics with a sum for each class; a class without images is none.
    tokens: "all": a statistic is over all rows of its images; "any": over as many as the run says.
    max_clip: a statistic needs a clip, of this at the most; inf: it needs none.
    min_noise: a statistic needs noise, of this at the least; n answers of the noise σ count as one of σ/√n, and all
        together keep to it; 0: it needs none.
    answers_per_run, answers: to questions for statistics, in a run and in all.
    evaluations_per_run, evaluations: the same of evaluations.
    max_epsilon: training needs privacy=examples, to this ε at the most in a run, at a δ of one over its images or
        less, and no statistic and no evaluation is answered; inf: it needs none.
    require_secure_aggregation: no update leaves that is not masked: training needs secure_aggregation=secagg.
    refusals: of sets of images that are a few, or differ from earlier ones by a few, in all: each tells that they do.
        After so many nothing is answered any more.
    projections_per_round: different questions of a round's second phase that are answered; the same one is again.
    """

    statistics: str = "all"
    min_images: int = 16
    min_test_images: int = 8
    min_class_images: int = 4
    tokens: Literal["all", "any"] = "all"
    max_clip: float = math.inf
    min_noise: float = 0.0
    answers_per_run: int = 20
    answers: int = 1000
    evaluations_per_run: int = 200
    evaluations: int = 1000
    max_epsilon: float = math.inf
    require_secure_aggregation: bool = False
    projections_per_round: int = 1
    refusals: int = 100

    @staticmethod
    def of(node_config: Mapping[str, object]) -> Limits | None:
        """A site's limits; None where it took them off. Raises InputError for a value that is none."""
        if OFF in node_config:
            choose(f"--node-config {OFF}", node_config[OFF], ["off"])
            return None
        given = {}
        for field in dataclasses.fields(Limits):
            key = field.name.replace("_", "-")
            if key in node_config:
                given[field.name] = _value(key, node_config[key], field.default)
        return Limits(**given)

    def __str__(self) -> str:
        """All of them, as they are set, on one line."""
        values = dataclasses.asdict(self)
        said = {key: str(value).lower() if isinstance(value, bool) else value for key, value in values.items()}
        return " ".join(f"{key.replace('_', '-')}={value}" for key, value in said.items())

    def answers_to(self, statistic: str) -> bool:
        """Whether a statistic of this name is answered."""
        return self.statistics == "all" or statistic in self.statistics.split(",")


KEYS = tuple(field.name.replace("_", "-") for field in dataclasses.fields(Limits))


def _value(key: str, given: object, default: object) -> object:
    what = f"--node-config {key}={given}"
    if isinstance(default, str):
        words = str(given).replace(" ", "")
        if key == "tokens":
            choose(f"--node-config {key}", words, ["all", "any"])
        else:
            for word in words.split(","):
                choose(f"--node-config {key}", word, ["all", "none", *STATISTICS])
            if "," in words and {"all", "none"} & {*words.split(",")}:
                raise InputError(f"{what}: expected all or none alone, or the names of those that are answered")
        return words
    if isinstance(default, bool):
        if not isinstance(given, bool):
            raise InputError(f"{what}: expected true or false")
        return given
    whole = isinstance(default, int)
    if isinstance(given, bool) or not isinstance(given, int if whole else (int, float)) or not given >= 0:  # type: ignore[operator]
        raise InputError(f"{what}: expected a {'whole ' if whole else ''}number of 0 or more")
    return given if whole else float(given)  # type: ignore[arg-type]
