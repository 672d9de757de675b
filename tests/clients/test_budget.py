"""What a client spends of its examples' privacy, clients/budget.py, and that nothing else of them leaves."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import pathlib
import time

import pytest
import torch
from flwr.app import Context, Message, RecordDict

from clients.budget import spend
from clients.cohort import Cohort
from clients.limits import Keeper
from clients.site import Site
from clients.task import Job, Result, Task
from fedinit.config.client import SGDConfig
from fedinit.config.limits import Exhausted, Limited, Limits
from fedinit.config.privacy import LEAST_NOISE, ExamplePrivacyConfig
from fedinit.errors import Code, InputError, Refused, RunFailed
from fedinit.factors import Factors
from fedinit.privacy.accounting import MOST_OF_PLD, Rounds
from fedinit.privacy.steps import Spent, Steps
from fedinit.runs.observer import ClientReport, Observer, Roster, RoundReport
from fedinit.state.checkpoint import FACTS, checkpoints_in
from fedinit.transport.local import LocalGrid
from strategies.server import federation
from strategies.server.compatibility import check_method
from strategies.server.faults import fault_of_metrics
from strategies.server.federation import check_clients, federate
from strategies.server.outcome import Outcome
from strategies.server.spending import Spending
from tests.support.small import slow_unless, small_config

pytest.importorskip("dp_accounting", reason="the [privacy] extra is not installed")
WORDS = ("privacy=examples", "evaluation=none")
THREE = Roster({0: 600, 1: 600, 2: 60}, ["a"], ["x"])


@functools.cache
def site(*words: str) -> Site:
    return Site(small_config(*WORDS, *words))


def context(**node: object) -> Context:
    return Context(1, 1, {"partition-id": 0, **node}, RecordDict(), {})


def run(*words: str) -> tuple[Outcome, LocalGrid]:
    of_run = site(*words)
    grid = LocalGrid(Cohort(of_run), len(of_run.partitions))
    return federate(of_run.config, grid, of_run.backbone), grid


def test_a_run_ends_within_its_epsilon_and_the_summary_says_so() -> None:
    outcome, grid = run()
    told = outcome.summary()["privacy"]
    assert told["unit"] == "example" and told["delta"] == 1e-5 and len(told["epsilon_by_client"]) == 3
    assert 0.97 * 8 < told["epsilon"] == max(told["epsilon_by_client"].values()) <= 8
    assert all(context.state["privacy"]["steps"] == 6 for context in grid.contexts.values())


def test_the_same_seed_ends_in_the_same_bytes_on_any_bank() -> None:
    """A client trains in a bank of its own examples, whoever its mates are."""
    outcome, _ = run()
    assert run("engine.clients_per_bank=1")[0].final_hash == outcome.final_hash
    assert run("seed=1")[0].final_hash != outcome.final_hash


def test_noise_is_in_a_clients_own_components_alone() -> None:
    """Those that fill up a lower rank were noise too, by which it trained and which it did not send."""
    of_run = site("adapter.ranks=[4,1,2]", "adapter.rank=4")
    for client, rank in enumerate((4, 1, 2)):
        shapes = of_run.targets.items()
        adapter = {name: Factors(torch.randn(rank, k) / k**0.5, torch.zeros(d, rank)) for name, (d, k) in shapes}
        head = {"weight": torch.zeros(10, of_run.backbone.features), "bias": torch.zeros(10)}
        task = Task(client, 1, of_run.partitions[client].train, adapter, head, frozenset("AB"))
        worker = of_run.engine.workers[0]
        (result,) = worker.do(Job("train", "", "", (task,)))
        assert isinstance(result, Result), result
        shapes = {leaf.shape for layer in worker.bank.layers.values() for leaf in layer.leaves.values()}
        assert {min(shape[1:]) for shape in shapes} == {rank}


def test_next_to_no_noise_says_what_it_is_worth() -> None:
    outcome, _ = run("privacy.noise=1e-3", "privacy.epsilon=null")
    assert outcome.summary()["privacy"]["epsilon"] > 1e5


def test_a_second_phase_over_what_was_released_costs_nothing() -> None:
    once, twice = run()[0], run("strategy=lora_fair", "strategy.phases=2")[0]
    assert once.summary()["privacy"] == twice.summary()["privacy"] and once.final_hash != twice.final_hash


def test_no_loss_leaves_a_client() -> None:
    of_run, seen = site(), []
    cohort = Cohort(of_run)

    def listening(deliveries):
        replies = cohort(deliveries)
        seen.extend(r.content["metrics"] for r in replies if r.metadata.message_type == "train")
        return replies

    federate(of_run.config, LocalGrid(listening, len(of_run.partitions)), of_run.backbone)
    assert seen and all("loss" not in metrics and 0 < metrics["epsilon"] <= 8 for metrics in seen)


def test_epsilon_grows_by_the_round_and_a_round_too_many_is_refused() -> None:
    of_run, client, examples = site(), context(), len(site().partitions[0].train)
    privacy = of_run.config.privacy
    assert isinstance(privacy, ExamplePrivacyConfig)
    first, second = (spend(of_run, privacy, examples, client, None) for _ in range(2))
    assert 0 < first < second <= 8
    with pytest.raises(Refused, match=r"privacy.epsilon=8.0: is spent; this client has taken 6 steps"):
        spend(of_run, privacy, examples, client, None)
    given = dataclasses.replace(privacy, noise=1.0, epsilon=None)  # the noise is given, and ε is what comes of it
    rate = of_run.config.client.batch_size / examples
    anew = context()
    spent = [spend(of_run, given, examples, anew, None) for _ in range(4)]
    assert spent[-1] == Rounds(rate, "poisson", 1e-5, "rdp").epsilon(1.0, 12)


def test_a_site_counts_in_its_own_book_what_a_server_asks_again(tmp_path: pathlib.Path) -> None:
    """Its state goes back to before the round that is asked again; the book does not."""
    of_run, examples = site(), len(site().partitions[0].train)
    privacy = of_run.config.privacy
    assert isinstance(privacy, ExamplePrivacyConfig)
    for _ in range(2):
        anew = context(**{"state-dir": str(tmp_path)})
        spend(of_run, privacy, examples, anew, Keeper(of_run, Limits(), anew))
    with pytest.raises(Refused, match="is spent"):
        anew = context(**{"state-dir": str(tmp_path)})
        spend(of_run, privacy, examples, anew, Keeper(of_run, Limits(), anew))


def test_a_reply_without_epsilon_or_with_a_loss_is_not_let_in() -> None:
    """In a private run a client says its ε and no loss; in any other a loss and no ε."""
    metrics = {"steps": 3, "optimizer-state": 0, "drift-factors": 0.0, "drift-product": 0.0}
    metrics |= {"num-examples": 9, "round": 1}
    assert fault_of_metrics({**metrics, "epsilon": 1.0}, private=True) is None
    assert fault_of_metrics({**metrics, "loss": 1.0}, private=False) is None
    for private, more in ((True, {}), (True, {"epsilon": 1.0, "loss": 1.0}), (True, {"epsilon": math.nan}),
                          (False, {}), (False, {"epsilon": 1.0, "loss": 1.0})):  # fmt: skip
        assert fault_of_metrics({**metrics, **more}, private) is not None


def spending(*words: str) -> tuple[Spending, Roster, list[float]]:
    """With three clients, and ε of 0, 1, 2 … rounds of the first of them."""
    config, roster = small_config(*WORDS, *words), THREE
    assert isinstance(config.privacy, ExamplePrivacyConfig)
    steps = Steps.of(600, config.client, config.rounds, config.privacy)
    return Spending(config, drawn_anew=True), roster, [steps.epsilon(n * steps.a_round) for n in range(9)]


def told(round: int, asked: set[int], said: dict[int, float], roster: Roster = THREE) -> RoundReport:
    clients = [ClientReport(client, 9, 3, None, epsilon=epsilon) for client, epsilon in said.items()]
    images = {client: [roster.examples[client]] for client in asked}
    return RoundReport(round, 0.1, None, None, 0, 0, clients, asked=images)


def test_epsilon_is_of_who_was_asked_whatever_became_of_the_update() -> None:
    """The first client's update is refused in both rounds: what it trained on is spent all the same."""
    counted, roster, epsilon = spending()
    first = counted.of(told(1, {0, 1}, {1: epsilon[1]}), roster)
    assert first.spent == {0: epsilon[1], 1: epsilon[1]} and first.epsilon == epsilon[1]
    second = counted.of(told(2, {0}, {}), roster)
    assert second.spent == {0: epsilon[2], 1: epsilon[1]} and second.clients == [] and second.epsilon == epsilon[2]


@pytest.mark.parametrize(("word", "rounds"), [(0.0, 1), (3e38, 2 * 2), (math.nan, 1)])
def test_no_clients_word_decides_what_is_spent(word: float, rounds: int) -> None:
    """It makes ε no smaller, and no larger than that of twice the run's two rounds."""
    counted, roster, epsilon = spending("rounds=2")
    report = counted.of(told(1, {0, 1}, {0: word, 1: epsilon[1]}), roster)
    assert report.spent == {0: epsilon[rounds], 1: epsilon[1]}
    assert [client.epsilon for client in report.clients] == [epsilon[rounds], epsilon[1]]


def test_a_client_that_was_asked_again_after_a_restart_is_believed() -> None:
    counted, roster, epsilon = spending()
    assert counted.of(told(1, {0}, {0: epsilon[2]}), roster).spent == {0: epsilon[2]}
    assert counted.of(told(2, {0}, {0: epsilon[3]}), roster).spent == {0: epsilon[3]}


def test_a_run_that_goes_on_knows_what_was_spent_before() -> None:
    counted, roster, epsilon = spending()
    counted.of(told(1, {0, 1}, {0: epsilon[1], 1: epsilon[1]}), roster)
    later = spending()[0]
    later.restore(counted.snapshot())
    assert later.of(told(2, {0}, {}), roster).spent == {0: epsilon[2], 1: epsilon[1]}


def test_who_is_asked_twice_in_a_round_is_counted_twice() -> None:
    counted, roster, epsilon = spending()
    twice = dataclasses.replace(told(1, set(), {}), asked={0: [600, 600], 1: [600]})
    assert counted.of(twice, roster).spent == {0: epsilon[2], 1: epsilon[1]}


def test_who_never_answers_in_time_has_spent_as_much() -> None:

    class Late(LocalGrid):
        def send_and_receive(self, messages, *, timeout=None):
            replies = super().send_and_receive(messages, timeout=timeout)
            return [r for r in replies if r.metadata.message_type != "train" or r.metadata.src_node_id != 1000]

    seen: list[RoundReport] = []

    class Watching(Observer):
        def round_done(self, report: RoundReport) -> None:
            seen.append(report)

    of_run = site("quorum=2", "resamples=1", "rounds=1", "privacy.noise=0.8", "privacy.epsilon=null")
    federate(of_run.config, Late(Cohort(of_run), 3), of_run.backbone, observers=[Watching()])
    assert seen[-1].asked == {c: [len(of_run.partitions[c].train)] for c in range(3)} and seen[-1].spent[
        0
    ] == pytest.approx(seen[-1].spent[1], rel=0.05)


def test_one_that_registers_with_a_few_images_ends_no_run() -> None:
    """It cannot train, by its own code; the run goes on without it, and counts the others."""
    counted, _, epsilon = spending()
    few = Roster({0: 1, 1: 600}, ["a"], ["x"])
    assert counted.of(told(1, {0, 1}, {1: epsilon[1]}, few), few).spent == {1: epsilon[1]}
    given, roster, _ = spending("privacy.noise=1.2", "rounds=9")
    assert given.of(told(1, {0, 2}, {}), roster).spent.keys() == {0}, "of the third the noise would pass ε"


NUMBERS = [(100, 10_000), (64, 640), (640, 64), (100, 60), (100, 100)]


@pytest.mark.parametrize(
    ("before", "after", "noise"),
    slow_unless(
        lambda before, after, noise: noise or before == after,
        ((*numbers, noise) for numbers in NUMBERS for noise in (None, 1.0)),
    ),
)
def test_steps_of_other_numbers_of_images_are_no_less_than_their_composition(before, after, noise) -> None:
    """Held to dp-accounting's own composition of both halves; with one number it is that."""
    import dp_accounting as dp

    privacy = ExamplePrivacyConfig(epsilon=None if noise else 8.0, noise=noise)
    halves = [Steps.of(n, SGDConfig(batch_size=20, epochs=1, max_steps=3), 4, privacy) for n in (before, after)]
    spent, accountant = Spent(), dp.rdp.RdpAccountant()
    for half in halves:
        for _ in range(2):
            spent += half.spent
        event = dp.PoissonSampledDpEvent(half.rate, dp.GaussianDpEvent(half.noise))
        accountant.compose(event, 2 * half.a_round)
    composed, counted = accountant.get_epsilon(privacy.delta), spent.epsilon(privacy)
    assert counted >= composed * (1 - 1e-9)
    if before == after:
        assert counted == pytest.approx(composed, rel=1e-9)
    else:  # the control: as if all had been the later ones, as it was
        later = halves[1].epsilon(2 * halves[0].a_round + 2 * halves[1].a_round)
        assert counted > composed or later > composed


def test_a_client_whose_images_change_counts_the_dearest_steps() -> None:
    kept, privacy = context(), ExamplePrivacyConfig(epsilon=None, noise=1.0)
    of_run = site("privacy.noise=1", "privacy.epsilon=null")
    first = spend(of_run, privacy, 60, kept, None)
    second = spend(of_run, privacy, 600, kept, None)
    client, rounds = of_run.config.client, of_run.config.rounds
    few, many = (Steps.of(n, client, rounds, privacy) for n in (60, 600))
    assert first == few.epsilon(few.a_round) and second == few.epsilon(few.a_round + many.a_round)


@pytest.mark.parametrize("restarted", [True, False])
def test_a_client_that_had_fewer_images_in_a_round_that_ended_the_run_is_believed(restarted: bool) -> None:
    """That round is in no checkpoint; what the client registered with before it is."""
    words = "privacy.noise=1", "privacy.epsilon=null", "client.max_steps=50", "client.epochs=20", "rounds=2"
    before, after = Roster({0: 40, 1: 600}, ["a"], ["x"]), Roster({0: 240, 1: 600}, ["a"], ["x"])
    counted = spending(*words)[0]
    if restarted:  # the control: without the run's past its word is cut down to what 240 images can cost
        counted.started(2, before)
    later = spending(*words)[0]
    later.restore(counted.snapshot())
    later.started(2, after)
    privacy = small_config(*WORDS, *words).privacy
    assert isinstance(privacy, ExamplePrivacyConfig)
    own = Spent(2 * 40, 20 / 40, 1.0).epsilon(privacy)
    found = later.of(told(1, {0, 1}, {0: own}, after), after).spent[0]
    assert found == own if restarted else found < 0.5 * own
    most = later.of(told(2, {0, 1}, {0: math.inf}, after), after).spent[0]
    assert most == Spent(2 * 2 * 50, 20 / 40 if restarted else 20 / 240, 1.0).epsilon(privacy)


def test_a_client_that_comes_back_with_fewer_images_in_mid_run_is_counted_by_them() -> None:
    counted, roster, epsilon = spending()
    counted.of(told(1, {0, 1}, {0: epsilon[1], 1: epsilon[1]}), roster)
    privacy, few = counted._config.privacy, dataclasses.replace(roster, examples={**roster.examples, 0: 60})
    assert isinstance(privacy, ExamplePrivacyConfig)
    steps = [Steps.of(n, counted._config.client, counted._config.rounds, privacy).spent for n in (600, 60)]
    assert counted.of(told(2, {0}, {}, few), few).spent[0] == sum(steps, Spent()).epsilon(privacy) > epsilon[2]


def test_images_that_a_run_went_on_with_are_kept_though_its_next_round_is_lost(tmp_path, monkeypatch) -> None:
    """Resumed with fewer, and ended by the next round; resumed with more: what it says of the lost round counts."""
    monkeypatch.setattr(federation, "is_remote", lambda grid: True)
    of_run = site("rounds=3", "quorum=1", "resamples=0", "privacy.noise=1", "privacy.epsilon=null")

    class Ending(LocalGrid):
        """Client 0 says how many images it has; a round of `ends` gets no reply."""

        def __init__(self, examples: int, ends: int) -> None:
            super().__init__(Cohort(of_run), 3)
            self.examples, self.ends = examples, ends

        def holdings(self, nodes):
            return {}

        def send_and_receive(self, messages, *, timeout=None):
            replies = super().send_and_receive(messages, timeout=timeout)
            for reply in replies:
                if reply.metadata.message_type == "query.describe" and reply.metadata.src_node_id == 1000:
                    reply.content["config"]["num-examples"] = self.examples
            lost = messages[0].metadata.message_type == "train" and messages[0].content["config"]["round"] == self.ends
            return [] if lost else replies

    def goes_on(examples: int, ends: int) -> Outcome:
        return federate(of_run.config, Ending(examples, ends), of_run.backbone, checkpoints=tmp_path)

    for examples, ends in ((239, 2), (40, 2)):
        with pytest.raises(RunFailed):
            goes_on(examples, ends)
    last = checkpoints_in(tmp_path)[0]
    kept = json.loads((last / FACTS).read_text())["parts"]["spending"]["facts"]
    assert last.name == "round-000001" and kept["fewest"]["0"] == 40
    rounds = [Steps.of(n, of_run.config.client, 3, of_run.config.privacy).spent for n in (239, 239, 40)]  # pyright: ignore[reportArgumentType]
    assert kept["spent"]["0"] == vars(sum(rounds, Spent())), "the rounds that ended the run are spent too"


@pytest.mark.parametrize("epsilon", ["1e-6", "1e-4"])
def test_an_epsilon_that_no_noise_gives_is_told_before_anybody_is_asked(epsilon) -> None:
    config = small_config(*WORDS, f"privacy.epsilon={epsilon}", "privacy.delta=1e-12", "rounds=2")
    with pytest.raises(InputError, match=f"privacy.epsilon={float(epsilon)}: no noise keeps .* releases within it"):
        check_clients(config, {0: 100, 1: 60, 2: 60})


def test_loss_distributions_make_no_more_of_a_run_than_renyis_divergences() -> None:
    """Of very small shares they would: and ε fell where their place was taken."""
    few = Rounds(1e-4, "poisson", 1e-5, "pld")
    renyi = dataclasses.replace(few, accountant="rdp")
    values = [few.epsilon(30.0, n) for n in (MOST_OF_PLD - 1, MOST_OF_PLD, MOST_OF_PLD + 1)]
    assert values == sorted(values) and values[1] <= renyi.epsilon(30.0, MOST_OF_PLD)


def test_a_round_that_a_site_refuses_is_not_in_its_book(tmp_path, caplog) -> None:
    """Neither for the run's ε nor for its own; the site's log says both figures."""
    of_run = site("privacy.noise=1", "privacy.epsilon=null")
    anew = Context(1, 1, {"partition-id": 0, "state-dir": str(tmp_path)}, RecordDict(), {})
    privacy = of_run.config.privacy
    assert isinstance(privacy, ExamplePrivacyConfig)
    steps = Steps.of(60, of_run.config.client, of_run.config.rounds, privacy)
    one, two = (steps.epsilon(n * steps.a_round) for n in (1, 2))
    keeper = Keeper(of_run, Limits(max_epsilon=(one + two) / 2), anew)
    assert spend(of_run, privacy, 60, anew, keeper) == one
    for _ in range(3):
        with pytest.raises(Exhausted, match="a round more takes the run's ε above this site's max-epsilon"):
            spend(of_run, privacy, 60, anew, keeper)
    assert Exhausted.code == Code.spent, "of which a run ends with the rounds that it has"
    ((counts,),) = [[*json.loads((tmp_path / "answers-client-0.json").read_text())["runs"].values()]]
    assert counts["steps"] == steps.a_round
    assert f"max-epsilon={keeper.limits.max_epsilon:g}: a round more takes the run's ε to {two:.3g}" in caplog.text
    wider = Keeper(of_run, Limits(max_epsilon=9 * two), anew)
    assert spend(of_run, privacy, 60, anew, wider) == two


def test_as_many_steps_as_anybody_may_register_for_are_counted_in_a_moment() -> None:
    """Of 2⁴⁰ images loss distributions have no end; Rényi's ε, which is no less, takes their place."""
    began, many = time.perf_counter(), 2 * 2**40 // 20
    epsilon = Rounds(20 / 2**40, "poisson", 1e-5, "pld").epsilon(1.0, many)
    assert epsilon == Rounds(20 / 2**40, "poisson", 1e-5, "rdp").epsilon(1.0, many) < math.inf
    assert Rounds(0.01, "poisson", 1e-5, "pld").noise(8.0, 10**9) > 1
    assert time.perf_counter() - began < 30
    few = Rounds(0.01, "poisson", 1e-5, "pld")
    assert few.epsilon(1.0, 1000) < dataclasses.replace(few, accountant="rdp").epsilon(1.0, 1000)


@pytest.mark.parametrize("noise", ["1e-7", "1e-4", "0.29"])
def test_noise_that_loss_distributions_have_no_room_for_is_refused(noise) -> None:
    with pytest.raises(InputError, match=r"privacy.accountant=pld counts 0.3 and more, .* use privacy.accountant=rdp"):
        small_config(*WORDS, "privacy.epsilon=null", f"privacy.noise={noise}", "privacy.accountant=pld")
    assert Rounds(0.1, "poisson", 1e-5, "pld").epsilon(float(noise), 10) == math.inf
    assert small_config(*WORDS, "privacy.epsilon=null", f"privacy.noise={noise}").privacy.noise == float(noise)


def test_a_run_of_another_privacy_counts_nothing() -> None:
    config, report = small_config("evaluation=none"), told(1, {0}, {0: 3.0})
    assert Spending(config, drawn_anew=True).of(report, Roster({0: 9}, ["a"], ["x"])) is report


def test_a_refused_update_is_counted_in_the_summary() -> None:
    class Refusing(LocalGrid):
        def send_and_receive(self, messages, *, timeout=None):
            replies = super().send_and_receive(messages, timeout=timeout)
            for reply in replies:
                said = reply.content.get("metrics", {})
                client = self.contexts[reply.metadata.src_node_id].node_config["partition-id"]
                if reply.metadata.message_type == "train" and client == 0 and said.get("round") == 2:
                    said["round"] = 7
            return replies

    of_run = site("quorum=1")
    outcome = federate(of_run.config, Refusing(Cohort(of_run), 3), of_run.backbone)
    by_client = outcome.summary()["privacy"]["epsilon_by_client"]
    assert outcome.accepted[0] == 1 and outcome.accepted[1] == 2
    assert by_client["0"] == pytest.approx(by_client["1"], rel=0.1) and by_client["0"] > 0.9 * 8


@pytest.mark.parametrize("noise", ["1e-155", "1e-10", "1e7"])
def test_noise_that_no_accountant_can_count_is_refused(noise: str) -> None:
    """Squares of 1e-155 underflow, and dp-accounting made 0 of it: the least ε of all."""
    with pytest.raises(InputError, match=r"privacy.noise=.*: expected a number in \[1e-09, 1000000.0\]"):
        small_config(*WORDS, "privacy.epsilon=null", f"privacy.noise={noise}")
    assert Rounds(0.1, "poisson", 1e-5, "rdp").epsilon(1e-155, 10) == math.inf
    assert Rounds(0.1, "fixed", 1e-5, "rdp").epsilon(1e-155, 10) == math.inf


@pytest.mark.parametrize("share", [0.1, 1.0])
def test_the_least_noise_is_counted_as_next_to_nothing(share) -> None:
    assert Rounds(share, "poisson", 1e-5, "rdp").epsilon(LEAST_NOISE, 10) > 1e6


@pytest.mark.parametrize("words", [
    ["init=lora_ga", "head=ncm"], ["init=eva"], ["head=ridge"], ["evaluation=clients"], ["diagnostics=init"],
    ["client=sgd_sai", "client.gsnr_scope=global_once"], ["strategy=lora_a2"],
], ids=lambda words: words[0])  # fmt: skip
def test_what_would_leave_without_noise_is_refused_in_one_line(words: list[str]) -> None:
    with pytest.raises(InputError, match="examples|images|noise") as raised:
        check_method(small_config(*WORDS, *words))
    assert "\n" not in str(raised.value)
    check_method(small_config(*words))  # it is privacy that does not go with it


@pytest.mark.parametrize("kind", ["query.statistics", "evaluate"])
def test_what_has_no_noise_is_not_answered(kind: str) -> None:
    asked: list[Message] = []
    of_run = Site(small_config("init=lora_ga", "head=ncm", "evaluation=clients", "rounds=1"))
    cohort = Cohort(of_run)

    def listening(deliveries):
        asked.extend(message for message, _ in deliveries if message.metadata.message_type == kind)
        return cohort(deliveries)

    federate(of_run.config, LocalGrid(listening, len(of_run.partitions)), of_run.backbone)
    private = Cohort(Site(dataclasses.replace(of_run.config, privacy=ExamplePrivacyConfig())))
    (reply,) = private([(asked[0], context())])
    assert reply.has_error() and "privacy=examples: this client answers no statistics" in reply.error.reason


def begin(*words: str) -> None:
    """As a run does before it has a folder."""
    of_run = Site(small_config(*WORDS, *words))
    check_clients(of_run.config, {part.client: len(part.train) for part in of_run.partitions})


def test_a_client_with_fewer_examples_than_a_batch_is_one_line_before_the_run() -> None:
    with pytest.raises(InputError, match=r"client.batch_size=100000: .* a client has \d+; use \d+ or less"):
        begin("client.batch_size=100000")


def test_noise_that_epsilon_does_not_allow_is_one_line_before_the_run() -> None:
    line = r"privacy.noise=0.3: 6 steps of a client with \d+ examples spend an ε of [\d.]+, above privacy.epsilon=8.0"
    with pytest.raises(InputError, match=line):
        begin("privacy.noise=0.3", "client.batch_size=100")


@pytest.mark.parametrize("words, line", [
    (["privacy.clip=0"], r"privacy.clip=0.0: expected a number in \[1e-06, 1000000000.0\]"),
    (["privacy.delta=1"], r"privacy.delta=1.0: expected a number in \(0, 1\)"),
    (["privacy.epsilon=-1"], r"privacy.epsilon=-1.0: expected a number in \(0, inf\)"),
    (["privacy.epsilon=null"], r"privacy=examples: neither privacy.epsilon nor privacy.noise is given"),
    (["privacy.noise=-1", "privacy.epsilon=null"], r"privacy.noise=-1.0: expected a number in \[1e-09, 1000000.0\]"),
    (["privacy.accountant=zcdp"], r"privacy.accountant=zcdp"),
    (["privacy.sigma=1"], r"privacy.sigma"),
])  # fmt: skip
def test_an_option_that_is_none_is_one_line(words: list[str], line: str) -> None:
    with pytest.raises(InputError, match=line) as raised:
        small_config(*WORDS, *words)
    assert "\n" not in str(raised.value)


def test_a_site_may_train_with_privacy_alone_whatever_the_server_says() -> None:
    of_run = site()
    keeper = Keeper(of_run, Limits(max_epsilon=4.0), context())
    keeper.check_privacy(4.0, 1e-5, 100)
    with pytest.raises(Limited, match="this site trains with privacy=examples alone, .* the run has no such ε$"):
        keeper.check_privacy(math.inf, 1.0, 100)
    with pytest.raises(Limited, match="takes the run's ε above this site's max-epsilon; ask for less"):
        keeper.check_privacy(4.1, 1e-5, 100)
    with pytest.raises(Limited, match="privacy.delta=0.5: with max-epsilon this site trains at one over its images"):
        keeper.check_privacy(1.0, 0.5, 100)
    Keeper(of_run, Limits(), context()).check_privacy(math.inf, 1.0, 100)  # a site without the limit


@pytest.mark.parametrize(("quorum", "ends"), [("1.0", True), ("3", True), ("2", False)])
def test_what_too_many_clients_for_a_quorum_cannot_have_is_told_before_anybody_is_asked(quorum, ends) -> None:
    """δ, like a batch, is a client's own matter; where the rest are enough, the run begins."""
    config = small_config(*WORDS, "privacy.delta=0.01", f"quorum={quorum}")
    with pytest.raises(InputError, match="privacy.delta=0.01: expected less than one over a client's 100 im") if ends \
            else contextlib.nullcontext():  # fmt: skip
        check_clients(config, {0: 60, 1: 60, 2: 100})
    with pytest.raises(InputError, match="privacy.delta=0.5: expected less than one over the 3 clients"):
        check_clients(small_config("privacy=clients", "privacy.delta=0.5", "strategy=fedit"), {0: 60, 1: 60, 2: 60})


def test_a_site_that_did_not_train_by_its_own_limit_has_spent_nothing() -> None:
    """It says so itself; of one whose update was lost or refused nobody knows, and it counts."""
    of_run, seen = Site(small_config("evaluation=none", "rounds=1", "quorum=1", *WORDS)), []
    cohort = Cohort(of_run, deployed=True)

    def handler(deliveries):
        for _, to in deliveries:
            to.node_config.update({"max-epsilon": 0.5 if to.node_config["partition-id"] == 1 else 9})
        return cohort(deliveries)

    class Watching(Observer):
        def round_done(self, report: RoundReport) -> None:
            seen.append(report)

    outcome = federate(of_run.config, LocalGrid(handler, 3), of_run.backbone, observers=[Watching()])
    assert outcome.accepted == {0: 1, 1: 0, 2: 1}
    assert seen[-1].asked.keys() == {0, 2} and seen[-1].spent.keys() == {0, 2}
    assert outcome.summary()["privacy"]["epsilon_by_client"].keys() == {"0", "2"}


@pytest.mark.parametrize("words, code", [((), Code.limit), (WORDS, None)])
def test_the_limit_is_asked_before_a_deployed_client_trains(words: tuple[str, ...], code: Code | None) -> None:
    of_run = Site(small_config("evaluation=none", "rounds=1", *words))
    cohort, seen = Cohort(of_run, deployed=True), []

    def handler(deliveries):
        for _, to in deliveries:
            to.node_config.update({"max-epsilon": 9})
        replies = cohort(deliveries)
        seen.extend(reply for reply in replies if reply.metadata.message_type == "train")
        return replies

    with contextlib.suppress(RunFailed):
        federate(of_run.config, LocalGrid(handler, len(of_run.partitions)), of_run.backbone)
    assert seen and {reply.error.code if reply.has_error() else None for reply in seen} == {code}


def test_a_delta_that_tells_all_about_an_example_is_refused() -> None:
    of_run = site()
    privacy = of_run.config.privacy
    assert isinstance(privacy, ExamplePrivacyConfig)
    loose = dataclasses.replace(privacy, delta=0.01)
    with pytest.raises(InputError, match="privacy.delta=0.01: expected less than one over a client's 100 images"):
        spend(of_run, loose, 100, context(), None)
    assert spend(of_run, dataclasses.replace(privacy, delta=0.0099), 100, context(), None) > 0
