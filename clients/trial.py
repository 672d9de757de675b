"""A trial of a run, for `preview=true`: a few images of every client, whose figures are scaled to those of the run."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from flwr.app import Message
from torch import Tensor

from clients.cohort import Cohort
from clients.evaluation import judge
from clients.site import Site
from clients.task import Task
from fedinit import wire
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
from fedinit.statistics import Request, Sampling
from fedinit.transport.local import FIRST_NODE_ID, LocalGrid

TESTED = 8  # test images of a client, or somewhat more: the bytes of an evaluation do not depend on them


@dataclass(kw_only=True)
class Question:
    """A question to clients in a trial, and what it took.

    kind: its message type.
    round: that it is of.
    clients: who was asked, by partition id.
    sampling: of a statistic, which of its images a client measures; None of other questions.
    seconds: waited for the answers.
    up, down: bytes of the answers that were read, and of the question.
    """

    kind: str
    clients: Sequence[int]
    round: int = 0
    sampling: Sampling | None = None
    seconds: float = 0.0
    up: int = 0
    down: int = 0

    def images(self, site: Site) -> int:
        """How many images the clients measure for it with what they have at this site."""
        assert self.sampling is not None
        return sum(map(self.sampling.count, site.partitions.sizes(self.clients)[0].tolist()))


class TrialGrid(LocalGrid):
    """Keeps what every question took, in their order."""

    def __init__(self, site: Site) -> None:
        """site: of the clients, as `with_few_images` makes it."""
        super().__init__(Cohort(site), len(site.partitions))
        self.asked: list[Question] = []

    def one_by_one(self, messages: Sequence[Message]) -> Iterator[Message]:
        clients = [message.metadata.dst_node_id - FIRST_NODE_ID for message in messages]
        config = wire.config(messages[0])
        round = config.get("round", 0)
        assert isinstance(round, int)
        asked = Question(kind=messages[0].metadata.message_type, clients=clients, round=round)
        if asked.kind == "query.statistics":
            asked.sampling = Request.from_json(wire.value(config, "request", str), {}, {}).sampling
        asked.down = wire.nbytes(message.content for message in messages)
        self.asked.append(asked)
        replies = super().one_by_one(messages)
        while True:
            began = time.perf_counter()
            reply = next(replies, None)
            asked.seconds += time.perf_counter() - began
            if reply is None:
                return
            asked.up += wire.nbytes([reply.content]) if reply.has_content() else 0
            yield reply


def with_few_images(site: Site, least: int = 0) -> Site:
    """The site with images for two steps of each client, and some to evaluate on.

    least: so many images a client keeps, where it has as many: with fewer it would measure no start.
    """
    few, config = copy.copy(site), site.config
    few.partitions = Partitions.of([first_images(part, config, least) for part in site.partitions])
    if isinstance(privacy := config.privacy, ExamplePrivacyConfig):  # a run of one round has no ε for the trial's two
        privacy = dataclasses.replace(privacy, epsilon=None, noise=privacy.noise or 1.0)
        few.config = config = dataclasses.replace(config, privacy=privacy)
    return few


def scaled(
    reports: Sequence[RoundReport],
    asked: Sequence[Question],
    site: Site,
    few: Site,
    trained: int,
    image: float,
    evaluated: int,
) -> Trial:
    """The figures of the trial, scaled to the run: bytes of all its rounds, of which the first sends what is sent once,
    and the others may take turns; seconds of the last, which is evaluated as the run's are.

    reports: of the round of the statistics and of the trial's own, two or three. asked: the questions in these.
    site, few: with the run's images, and with the trial's.
    trained: numbers that a client trains.
    image: seconds of a pass in which nothing is trained, an image.
    evaluated: rounds of the run with an evaluation.
    """
    config = site.config
    opening, *tried = reports
    last, (held, used) = tried[-1], memory()
    all_steps = sum(config.client.steps(len(part.train)) for part in site.partitions) * config.participation
    steps = sum(c.steps or 0 for c in last.clients)
    if not steps:  # which nobody tells of a secret sum
        steps = sum(config.client.steps(len(part.train)) for part in few.partitions) * config.participation
    measured = [one for one in asked if one.sampling is not None]
    # What the server makes of the statistics takes as long of many images as of few.
    longer = sum(one.seconds * (one.images(site) / one.images(few) - 1) for one in measured)
    tested = int(site.data.test.sum()) * config.evaluation.participation if config.evaluation.where != "none" else 0
    judged = {one.round: one for one in asked if one.kind == "evaluate"}
    # After the last round, of either, nothing is merged or drawn anew: other evaluations send something else.
    *early, late = list(judged.values()) or [Question(kind="evaluate", clients=())]
    evaluations = [*itertools.islice(itertools.cycle(early or [late]), max(evaluated - 1, 0)), late]
    sent = [(r.bytes_up, r.bytes_down, judged.get(r.round)) for r in tried]
    ups = [up - (one.up if one else 0) for up, _, one in sent]
    downs = [down - (one.down if one else 0) for _, down, one in sent]
    return Trial(
        trained=trained,
        up=_mean(ups, config.rounds),
        down=_mean(downs, config.rounds),
        judged_up=sum(one.up for one in evaluations),
        judged_down=sum(one.down for one in evaluations),
        opening_up=opening.bytes_up,
        opening_down=opening.bytes_down,
        start=opening.seconds + longer if opening.clients else 0.0,
        clients=last.phases["clients"] * all_steps / max(steps, 1),
        server=last.phases["server"],
        evaluation=image * tested * evaluated / config.rounds,
        reference=image * len(site.data) if config.has_head_alone else 0.0,
        memory=held,
        accelerator=used,
    )


def _mean(tried: Sequence[int], rounds: int) -> float:
    """The mean over the rounds of a run, of which those after the first are as the trial's, in turn."""
    first, *later = tried
    return (first + sum(itertools.islice(itertools.cycle(later), rounds - 1))) / rounds


def first_images(part: Partition, config: Config, least: int = 0) -> Partition:
    """The client with images for two steps, and `least` or more, drawn from those that it has, and a few test images
    from among all."""
    wanted = max(least, config.client.batch_size * max(1, 2 // config.client.epochs))
    order = torch.randperm(len(part.train), generator=torch_generator(config.seed, "preview", part.client))
    test = part.test[:: max(1, len(part.test) // TESTED)]
    return dataclasses.replace(part, train=part.train[order[:wanted].sort().values], test=test)


def seconds_an_image(
    site: Site, layers: Mapping[str, Factors], head: Mapping[str, Tensor], offset: Mapping[str, Tensor]
) -> float:
    """Of a pass in which nothing is trained, by a batch of the evaluation on each of the engine's lanes. It is one of
    the backbone with its adapters, whatever these are."""
    size = site.config.evaluation.batch_size
    rows = torch.arange(min(len(site.data), size * site.engine.lanes))
    key = of_tensors(offset) if offset else EMPTY
    site.engine.hold(key, offset)
    task = Task(-1, 0, rows, layers, head, frozenset(), key, work="evaluate")
    began = time.perf_counter()
    judge(site.engine, site.data, task, size)
    return (time.perf_counter() - began) / len(rows)


class RoundsKept(Observer):
    """Keeps the reports of all rounds."""

    def __init__(self) -> None:
        self.reports: list[RoundReport] = []

    def round_zero_done(self, report: RoundReport) -> None:
        self.reports.append(report)

    def round_done(self, report: RoundReport) -> None:
        self.reports.append(report)
