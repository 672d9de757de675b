"""Rounds that end a run, and rounds that are asked again, in what clients' examples have spent (`privacy=examples`)."""

from __future__ import annotations

import collections
import dataclasses
import importlib

import pytest
from flwr.app import Error, Message
from flwr.app.message import make_message

from clients.cohort import Cohort
from clients.site import Site
from fedinit.config.privacy import ExamplePrivacyConfig
from fedinit.config.schema import Config
from fedinit.errors import Code, PrivacySpent, RunFailed
from fedinit.privacy.steps import SO_FAR, Steps, so_far
from fedinit.runs.observer import Observer, Roster, RoundReport
from fedinit.state.checkpoint import Part
from fedinit.transport.local import LocalGrid
from strategies.server import federation
from strategies.server.collecting import Admitted, Pending
from strategies.server.federation import federate
from strategies.server.outcome import Outcome
from strategies.server.replies import Refusal
from strategies.server.spending import REDONE, Spending
from tests.support.small import small_config

dp = pytest.importorskip("dp_accounting", reason="the [privacy] extra is not installed")
PRIVATE = ("privacy=examples", "evaluation=none", "client.batch_size=20")
FREE = ("privacy.noise=1", "privacy.epsilon=null")


class Losing(LocalGrid):
    """The updates of the named client are lost in rounds, once that it has trained: {round: how often}."""

    def __init__(self, site: Site, client: int = 0, rounds: dict[int, int] | None = None) -> None:
        super().__init__(Cohort(site), len(site.partitions))
        self.client, self.left = client, collections.Counter(rounds or {})

    def send_and_receive(self, messages, *, timeout=None) -> list[Message]:
        return [self.passed(reply) for reply in super().send_and_receive(messages, timeout=timeout)]

    def passed(self, reply: Message) -> Message:
        if reply.metadata.message_type != "train" or not reply.has_content():
            return reply
        round = reply.content["metrics"]["round"]
        if self.contexts[reply.metadata.src_node_id].node_config["partition-id"] != self.client or not self.left[round]:
            return reply
        self.left[round] -= 1
        return make_message(reply.metadata, None, Error(1001, "gone"))


class Clients(Part):
    """What a grid's clients hold, as a simulation keeps it with the run."""

    def __init__(self, grid: LocalGrid) -> None:
        self.snapshot, self.restore = grid.snapshot, grid.restore


def until_done(site: Site, folder, **lost) -> tuple[Outcome, int]:
    """What came of a run that is begun again whenever it ends too soon, and how often it was."""
    grid = Losing(site, **lost)
    for times in range(5):
        anew = Losing(site)
        anew.client, anew.left = grid.client, grid.left
        try:
            parts = {"clients": Clients(anew)}
            return federate(site.config, anew, site.backbone, checkpoints=folder, parts=parts), times
        except RunFailed:
            pass
    raise AssertionError("it does not end")


@pytest.mark.parametrize("again", ["resamples=0", "resamples=2"])
def test_a_round_that_a_simulation_asks_again_is_the_same_release(again, tmp_path) -> None:
    """Its noise is of the seed: the run ends in the same bytes, within the ε that the noise was made for."""
    site = Site(small_config(*PRIVATE, "rounds=3", "quorum=1.0", again))
    whole, _ = until_done(site, tmp_path / "whole")
    lost, times = until_done(site, tmp_path / "lost", rounds={1: 1, 2: 2, 3: 1})
    assert times == (4 if again == "resamples=0" else 0)
    assert lost.final_hash == whole.final_hash and lost.epsilon == whole.epsilon
    assert 7 < max(lost.epsilon.values()) <= 8


def test_in_a_deployment_it_is_another_and_counts_again(tmp_path, monkeypatch) -> None:
    """The control: there noise is drawn anew."""
    monkeypatch.setattr(federation, "is_remote", lambda grid: True)
    site = Site(small_config(*PRIVATE, *FREE, "rounds=2", "quorum=1.0", "resamples=0"))
    lost, _ = until_done(site, tmp_path, rounds={2: 2})
    assert lost.epsilon == pytest.approx(composed(site.config, {c.client: [len(c.train)] * 4 for c in site.partitions}))


def composed(config: Config, images: dict[int, list[int]]) -> dict[int, float]:
    """{client: ε} of a round for each number of images that it had, by dp-accounting's own composition."""
    found = {}
    for client, numbers in images.items():
        accountant = dp.rdp.RdpAccountant()
        for count, times in collections.Counter(numbers).items():
            event = dp.PoissonSampledDpEvent(config.client.batch_size / count, dp.GaussianDpEvent(1.0))
            accountant.compose(event, times * config.client.steps(count))
        found[client] = accountant.get_epsilon(1e-5)
    return found


@pytest.mark.parametrize("ended", ["robust", "second phase"])
def test_whatever_ends_a_round_it_is_counted(ended, tmp_path, monkeypatch) -> None:
    """A rule that cannot judge who is left, and a second phase that nobody answers: clients had trained by then."""
    monkeypatch.setattr(federation, "is_remote", lambda grid: True)
    words = {
        "robust": ("robust=multi_krum", "partition.clients=4", "quorum=0.2", "resamples=0"),
        "second phase": ("strategy=lora_fair", "strategy.phases=2", "quorum=1.0", "resamples=0"),
    }[ended]
    config = small_config(*PRIVATE, *FREE, "rounds=2", "partition=iid", "partition.clients=4", *words)
    site, fails = Site(config), [True]

    class Failing(LocalGrid):
        def send_and_receive(self, messages, *, timeout=None) -> list[Message]:
            replies, kind = super().send_and_receive(messages, timeout=timeout), messages[0].metadata.message_type
            if not fails or messages[0].content["config"].get("round") != 2:
                return replies
            if kind == "query.project":
                fails.clear()
                return []
            if kind == "train" and ended == "robust":
                fails.clear()
                return replies[:1]
            return replies

    def run() -> Outcome:
        return federate(config, Failing(Cohort(site), 4), site.backbone, checkpoints=tmp_path)

    with pytest.raises(RunFailed):
        run()
    images = {part.client: len(part.train) for part in site.partitions}
    assert run().epsilon == pytest.approx(composed(config, {client: [count] * 3 for client, count in images.items()}))


def spending(*words: str, drawn_anew: bool = True) -> Spending:
    return Spending(small_config(*PRIVATE, *FREE, *words), drawn_anew)


@pytest.mark.parametrize("asked", [[[239], [20]], [[20], [239]], [[20, 239], [239]], [[239, 20], [239]]])
def test_each_asking_counts_with_the_images_of_then(asked) -> None:
    """Never less than dp-accounting's composition; as if all had been with the later ones, it would be."""
    counted = spending()
    for images in asked:
        assert counted.lost({0: images})
    config = counted._config
    every = [count for images in asked for count in images]
    (oracle,), (least,) = (composed(config, {0: numbers}).values() for numbers in (every, [239] * len(every)))
    assert counted.epsilon[0] >= oracle * (1 - 1e-9) and least < 0.7 * oracle


def test_a_lost_round_of_another_privacy_is_nothing_to_keep() -> None:
    assert not Spending(small_config("evaluation=none"), drawn_anew=True).lost({0: [239]})
    assert not spending(drawn_anew=False).lost({0: [239]}) and not spending().lost({0: []})


def test_a_word_is_believed_by_the_fewest_images_of_any_asking() -> None:
    counted = spending("rounds=2")
    counted.lost({0: [20]})
    privacy = counted._config.privacy
    assert isinstance(privacy, ExamplePrivacyConfig)
    few, many = (Steps.of(n, counted._config.client, 2, privacy) for n in (20, 239))
    counted._count({0: [239]}, {0: 1e30})
    most = REDONE * 2 * max(few.a_round, many.a_round)
    assert counted.epsilon[0] == few.epsilon(most)


def test_a_number_of_images_with_which_nobody_trains_lets_no_update_in() -> None:
    """Its ε could not be counted, and it would be in none of the run's figures."""
    words = "partition=iid", "partition.clients=4", "attack=claims", "attack.count=1", "quorum=0.5", "rounds=1"
    site = Site(small_config(*PRIVATE, *FREE, *words))
    lines: list[dict] = []

    class Watching(Observer):
        def event(self, kind, facts) -> None:
            lines.append({"kind": kind, **facts})

    outcome = federate(site.config, LocalGrid(Cohort(site), 4), site.backbone, observers=[Watching()])
    (refused,) = [line for line in lines if line["kind"] == "refused"]
    assert refused["code"] == "weight" and "images no update can be: privacy.delta=1e-05" in refused["detail"]
    assert refused["client"] not in outcome.epsilon and len(outcome.epsilon) == 3
    assert outcome.accepted[refused["client"]] == 0


def test_a_limit_told_twice_takes_one_asking_off_and_none_of_one_that_trained() -> None:
    site, seen = Site(small_config(*PRIVATE, *FREE, "rounds=1", "quorum=1")), []

    class Lying(LocalGrid):
        def send_and_receive(self, messages, *, timeout=None) -> list[Message]:
            replies = super().send_and_receive(messages, timeout=timeout)
            if messages[0].metadata.message_type != "train":
                return replies
            limit = [make_message(replies[i].metadata, None, Error(Code.limit, "mine")) for i in (0, 1, 1)]
            return [limit[0], *replies[:1], *limit[1:], *replies[2:]]  # of the first an update too

    class Watching(Observer):
        def round_done(self, report: RoundReport) -> None:
            seen.append(report.asked)

    federate(site.config, Lying(Cohort(site), 3), site.backbone, observers=[Watching()])
    assert [asked.keys() for asked in seen] == [{0, 2}]


@pytest.mark.parametrize(
    "error",
    [
        ValueError,
        pytest.param(KeyboardInterrupt, marks=pytest.mark.slow),
        pytest.param(RunFailed, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(
    "place", ["strategies.server.round.advance", "strategies.server.federated_lora.evaluate_clients"]
)
def test_whatever_error_ends_a_round_it_is_counted(place, error, tmp_path, monkeypatch) -> None:
    """In the aggregation, or once the round was aggregated and is not kept yet; and counted once."""
    monkeypatch.setattr(federation, "is_remote", lambda grid: True)
    config, fails = small_config(*PRIVATE, *FREE, "rounds=2"), [True]
    module, _, name = place.rpartition(".")
    if name == "evaluate_clients":  # stands for what a server evaluates: clients answer no evaluation
        config = dataclasses.replace(config, evaluation=small_config("evaluation=clients").evaluation)
    site, plain = Site(config), getattr(importlib.import_module(module), name)

    def failing(state, *more, **words):
        if fails and (state.round == 2 or name == "advance" and state.round == 1):
            fails.clear()
            raise error("y")
        return (state, None) if name == "evaluate_clients" else plain(state, *more, **words)

    monkeypatch.setattr(place, failing)

    def run() -> Outcome:
        return federate(config, LocalGrid(Cohort(site), 3), site.backbone, checkpoints=tmp_path)

    with pytest.raises(error):
        run()
    assert run().epsilon == pytest.approx(composed(config, {p.client: [len(p.train)] * 3 for p in site.partitions}))


def test_of_a_run_of_no_such_privacy_nothing_is_kept_of_each_client() -> None:
    """Else a checkpoint of a hundred thousand, ten of them in a round, takes longer than the round."""
    config = small_config("evaluation=none")
    spending, roster = Spending(config, drawn_anew=True), Roster({3: 40, 5: 7}, ["a"], ["x"])
    spending.started(2, roster)
    assert spending.snapshot().facts == {"spent": {}, "epsilon": {}, "fewest": {}}
    assert roster.table.tolist() == [[3, 5], [40, 7]] and roster.table is roster.table


class Spent(Losing):
    """From a round on these clients say that they have no ε left, once each time that they are asked."""

    def __init__(self, site: Site, since: int, clients: set[int]) -> None:
        super().__init__(site)
        self.since, self.spent, self.said = since, clients, 0

    def passed(self, reply: Message) -> Message:
        if reply.metadata.message_type != "train" or not reply.has_content():
            return reply
        client = self.contexts[reply.metadata.src_node_id].node_config["partition-id"]
        if client not in self.spent or reply.content["metrics"]["round"] < self.since:
            return reply
        self.said += 1
        return make_message(reply.metadata, None, Error(Code.spent, "is spent"))


class Events(Observer):
    def __init__(self) -> None:
        self.found: list[tuple[str, dict]] = []

    def event(self, kind: str, facts) -> None:
        self.found.append((kind, dict(facts)))


def test_a_run_whose_clients_have_nothing_left_ends_with_the_rounds_it_has(tmp_path, monkeypatch) -> None:
    """What was asked for twice has cost twice, so that not all rounds are left: the model of those that there were is
    the run's, nobody is asked again, and who did not train has not paid."""
    monkeypatch.setattr(federation, "is_remote", lambda grid: True)
    site = Site(small_config(*PRIVATE, *FREE, "rounds=3", "resamples=2"))
    everybody, events = {c.client for c in site.partitions}, Events()
    grid = Spent(site, 2, everybody)
    parts = {"clients": Clients(grid)}
    done = federate(site.config, grid, site.backbone, observers=[events], checkpoints=tmp_path, parts=parts)
    assert done.rounds == 1 and grid.said == len(everybody)
    (early,) = [facts for kind, facts in events.found if kind == "stops_early"]
    assert (early["after_round"], early["of"]) == (1, 3) and "is spent" in early["detail"]
    assert done.epsilon == pytest.approx(composed(site.config, {c.client: [len(c.train)] for c in site.partitions}))
    whole = federate(dataclasses.replace(site.config, rounds=1), Losing(site), site.backbone)
    assert whole.final_hash == done.final_hash, "the model of the round that there was"


def test_with_nothing_left_in_the_first_round_the_run_fails(monkeypatch) -> None:
    site = Site(small_config(*PRIVATE, *FREE, "rounds=2"))
    with pytest.raises(PrivacySpent, match="round 1: .* cannot train"):
        federate(site.config, Spent(site, 1, {c.client for c in site.partitions}), site.backbone)


def test_a_run_without_such_privacy_is_not_ended_by_the_word() -> None:
    site = Site(small_config("rounds=2", "evaluation=none"))
    with pytest.raises(PrivacySpent, match="round 2"):
        federate(site.config, Spent(site, 2, {c.client for c in site.partitions}), site.backbone)


def test_what_clients_say_in_a_round_that_ends_the_run_is_counted() -> None:
    """A server that was killed in a round has lost that it was trained; nobody says it again after the end."""
    counted = spending("rounds=3")
    roster = Roster({0: 239, 1: 239, 2: 239}, ["a"], ["x"])
    counted.started(3, roster)
    counted._count({0: [239], 1: [239]}, {})
    one = counted.epsilon[0]
    privacy = counted._config.privacy
    assert isinstance(privacy, ExamplePrivacyConfig)
    steps = Steps.of(239, counted._config.client, 3, privacy)
    two, three = (steps.epsilon(n * steps.a_round) for n in (2, 3))
    # Client 0 trained again and says so; 1 has none left after a round that nobody kept; of 2 nothing was ever kept.
    assert counted.lost({0: [239]}, {0: three, 1: two, 2: one})
    assert (counted.epsilon[0], counted.epsilon[1], counted.epsilon[2]) == pytest.approx((three, two, one))
    assert one < two < three
    counted.lost({}, {1: 1e30})
    assert counted.epsilon[1] < 1e3, "a word is believed as far as it can be so"


def test_what_a_client_that_has_none_left_has_spent_is_in_its_words() -> None:
    pending = Pending()
    words = f"client 1, start: privacy.epsilon=3: is spent; {SO_FAR}2.98"
    refusals = [Refusal(1, "spent", words), Refusal(2, "spent", "is spent"), Refusal(3, "limit", words)]
    pending.hear(Admitted(refusals=refusals))
    assert pending.told == {1: 2.98}
    assert [so_far(f"{SO_FAR}{value}") for value in ("nan", "-1", "inf", "x", "")] == [None] * 5


def test_as_long_as_there_is_a_quorum_the_others_go_on(monkeypatch) -> None:
    site, events = Site(small_config(*PRIVATE, *FREE, "rounds=3", "quorum=0.3")), Events()
    done = federate(site.config, Spent(site, 2, {0}), site.backbone, observers=[events])
    assert done.rounds == 3 and not [kind for kind, _ in events.found if kind == "stops_early"]
    assert {facts["code"] for kind, facts in events.found if kind == "refused"} == {"spent"}
