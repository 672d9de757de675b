"""A trial of a run, for `preview=true`: a few images of every client, whose figures are scaled to those of the run."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from clients.site import Site
from fedinit.config.privacy import ExamplePrivacyConfig
from fedinit.config.schema import Config
from fedinit.data.shares import Partition, Partitions
from fedinit.factors import Factors
from fedinit.report.recording.recorder import memory
from fedinit.runs.observer import Observer, RoundReport
from fedinit.runs.preview import Trial
from fedinit.seeding import torch_generator
from fedinit.state.base_offset import EMPTY
from fedinit.state.digest import of_tensors


def shortened(config: Config) -> Config:
    """Two rounds of the run, without evaluation."""
    nobody = dataclasses.replace(config.evaluation, where="none", participation=1.0)
    return dataclasses.replace(config, rounds=2, evaluation=nobody)


def with_few_images(site: Site) -> Site:
    """The site with images for two steps of each client."""
    few, config = copy.copy(site), site.config
    few.partitions = Partitions.of([first_images(part, config) for part in site.partitions])
    if isinstance(privacy := config.privacy, ExamplePrivacyConfig):  # a run of one round has no ε for the trial's two
        privacy = dataclasses.replace(privacy, epsilon=None, noise=privacy.noise or 1.0)
        few.config = config = dataclasses.replace(config, privacy=privacy)
    return few


def scaled(reports: Sequence[RoundReport], site: Site, few: Site, trained: int, image: float) -> Trial:
    """The figures of the trial's last round, scaled to the run.

    reports: of the round of the statistics and of the trial's two.
    site, few: with the run's images, and with the trial's.
    trained: numbers that a client trains.
    image: seconds of a pass in which nothing is trained, an image.
    """
    config = site.config
    opening, _, last = reports
    held, used = memory()
    steps = sum(c.steps or 0 for c in last.clients)
    all_steps = sum(config.client.steps(len(part.train)) for part in site.partitions) * config.participation
    images = sum(len(part.train) for part in site.partitions) / sum(len(part.train) for part in few.partitions)
    tested = int(site.data.test.sum()) * config.evaluation.participation if config.evaluation.where != "none" else 0
    alone = config.evaluation.head_alone and "head_alone" != config.strategy.name and config.head.name != "none"
    return Trial(
        trained=trained,
        up=last.bytes_up,
        down=last.bytes_down,
        opening_up=opening.bytes_up,
        opening_down=opening.bytes_down,
        start=opening.seconds * images if opening.clients else 0.0,
        clients=last.phases["clients"] * all_steps / max(steps, 1),
        server=last.phases["server"],
        evaluation=image * tested / config.evaluation.every,
        reference=image * len(site.data) if alone else 0.0,
        memory=held,
        accelerator=used,
    )


def first_images(part: Partition, config: Config) -> Partition:
    """The client with images for two steps, drawn from those that it has."""
    wanted = config.client.batch_size * max(1, 2 // config.client.epochs)
    order = torch.randperm(len(part.train), generator=torch_generator(config.seed, "preview", part.client))
    return dataclasses.replace(part, train=part.train[order[:wanted].sort().values])


def seconds_an_image(
    site: Site, layers: Mapping[str, Factors], head: Mapping[str, Tensor], offset: Mapping[str, Tensor]
) -> float:
    """Of a pass in which nothing is trained, by one batch of the evaluation."""
    rows = torch.arange(min(len(site.data), site.config.evaluation.batch_size))
    key = of_tensors(offset) if offset else EMPTY
    began = time.perf_counter()
    site.judge(rows, layers, head, key, offset)
    return (time.perf_counter() - began) / len(rows)


class RoundsKept(Observer):
    """Keeps the reports of all rounds."""

    def __init__(self) -> None:
        self.reports: list[RoundReport] = []

    def round_zero_done(self, report: RoundReport) -> None:
        self.reports.append(report)

    def round_done(self, report: RoundReport) -> None:
        self.reports.append(report)
