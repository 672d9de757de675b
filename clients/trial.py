"""A trial of a run, for `preview=true`: a few steps of every client in memory, of which only figures are kept."""

from __future__ import annotations

import copy
import dataclasses
import time
from pathlib import Path

import torch

from clients.cohort import Cohort
from clients.site import Site
from fedinit.config.schema import Config
from fedinit.data.partition import Partition
from fedinit.errors import InputError, RunFailed
from fedinit.report.recording.recorder import memory
from fedinit.runs import folder as run_folder
from fedinit.runs.observer import Observer, RoundReport
from fedinit.runs.preview import Preview, Trial
from fedinit.seeding import torch_generator
from fedinit.state.base_offset import EMPTY
from fedinit.state.checkpoint import FOLDER
from fedinit.state.digest import of_tensors
from fedinit.transport.local import LocalGrid
from strategies.server.federation import check_clients, federate
from strategies.server.outcome import Outcome


def previewed(config: Config, site: Site, folder: Path) -> Preview:
    """What the run would be: who holds what, and what a trial of two steps a client, which leaves nothing, measures."""
    check_clients(config, {part.client: len(part.train) for part in site.partitions})
    there = run_folder.finished(folder) is not None
    begun = any((folder / FOLDER).rglob("round-*"))
    state = "is there, and done" if there else "is there, and goes on" if begun else "would be made"
    facts = config, f"{folder}, which {state}", site.backbone, site.targets, site.data, site.partitions
    try:
        return Preview(*facts, trial_of(config, site))
    except (InputError, RunFailed) as error:
        return Preview(*facts, None, str(error))


def trial_of(config: Config, site: Site) -> Trial:
    """Two rounds of the run in memory, with a few images of each client: figures of the second, scaled to the run."""
    short = dataclasses.replace(config, rounds=2, evaluation=dataclasses.replace(config.evaluation, where="none"))
    few = copy.copy(site)
    few.partitions = tuple(_first_images(part, config) for part in site.partitions)
    watched = RoundsKept()
    outcome = federate(short, LocalGrid(Cohort(few), len(few.partitions)), site.backbone, observers=[watched])
    opening, _, last = watched.reports
    steps = sum(c.steps for c in last.clients)
    all_steps = sum(_steps(len(part.train), config) for part in site.partitions) * config.participation
    images = sum(len(part.train) for part in site.partitions) / sum(len(part.train) for part in few.partitions)
    forward = _seconds_an_image(site, outcome)
    tested = int(site.data.test.sum()) if config.evaluation.where != "none" else 0
    alone = config.evaluation.head_alone and "head_alone" != config.strategy.name and config.head.name != "none"
    return Trial(
        trained=outcome.trainable,
        up=last.bytes_up,
        down=last.bytes_down,
        opening_up=opening.bytes_up,
        opening_down=opening.bytes_down,
        start=opening.seconds * images if opening.clients else 0.0,
        clients=last.phases["clients"] * all_steps / max(steps, 1),
        server=last.phases["server"],
        evaluation=forward * tested / config.evaluation.every,
        reference=forward * len(site.data) if alone else 0.0,
        memory=memory()[0],
        accelerator=memory()[1],
    )


def _first_images(part: Partition, config: Config) -> Partition:
    """The client with images for two steps, drawn from those that it has."""
    wanted = config.client.batch_size * max(1, 2 // config.client.epochs)
    order = torch.randperm(len(part.train), generator=torch_generator(config.seed, "preview", part.client))
    return dataclasses.replace(part, train=part.train[order[:wanted].sort().values])


def _steps(images: int, config: Config) -> int:
    """That a client with so many images takes in a round."""
    steps = config.client.epochs * -(-images // config.client.batch_size)
    return steps if config.client.max_steps is None else min(steps, config.client.max_steps)


def _seconds_an_image(site: Site, outcome: Outcome) -> float:
    """Of a pass in which nothing is trained, by one batch of the evaluation."""
    rows = torch.arange(min(len(site.data), site.config.evaluation.batch_size))
    model = outcome.aggregate
    offset = outcome.offset
    key = of_tensors(offset) if offset else EMPTY
    began = time.perf_counter()
    site.judge(rows, model.layers, model.head, key, offset)
    return (time.perf_counter() - began) / len(rows)


class RoundsKept(Observer):
    """Keeps the reports of all rounds."""

    def __init__(self) -> None:
        self.reports: list[RoundReport] = []

    def round_zero_done(self, report: RoundReport) -> None:
        self.reports.append(report)

    def round_done(self, report: RoundReport) -> None:
        self.reports.append(report)
