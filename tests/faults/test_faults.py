"""The campaign of docs/reliability.md: a short form in every test run, the full one with ``-m slow -s tests/faults``.

Everything is drawn from SEEDS; the full form prints what it found.
"""

from __future__ import annotations

import functools
import random
import re
import signal

import pytest

import run_sim
from fedinit import wire
from fedinit.errors import RunFailed
from fedinit.state import digest
from strategies import create_aggregator
from tests.faults import checkpoints, processes, updates, workers
from tests.support.small import WORDS, slow

SEEDS = (0, 1, 2, 3)
STATISTICS = "init=eva init.sketch=exact init.examples=32"


@functools.cache
def played(words: str) -> updates.Played:
    return updates.Played(*words.split())


def orders(count: int) -> set[str]:
    """The hashes of aggregates of a round's replies, which came in `count` orders."""
    round, draw, found = played(updates.METHODS["lora"]), random.Random(0), set()
    for _ in range(count):
        replies = [*round.copies("train"), *round.copies("train")[:2]]  # two of them twice
        draw.shuffle(replies)
        made = create_aggregator("lora_fair").aggregate(round.admitted(replies), 1, round.strategy.state.model)
        found.add(digest.of_tensors(wire.to_tensors(made.layers, made.head)))
    return found


ORDINARY = ["lora", "dora", *slow(*sorted(updates.METHODS.keys() - {"lora", "dora"}))]


# -- the short form ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ORDINARY)
def test_no_bad_update_is_let_in_and_none_costs_the_others_theirs(method):
    tally = updates.campaign(played(updates.METHODS[method]), "train", SEEDS[0], 30)
    assert (tally["injected"], tally["let in"], tally["lost"]) == (30, 0, 0), tally


def test_without_the_gate_the_same_campaign_goes_red():
    tally = updates.campaign(played(f"{updates.METHODS['lora']} gate.enabled=false"), "train", SEEDS[0], 100)
    assert tally["let in"] > 10 and tally["lost"] > 0, tally


@pytest.mark.parametrize("method", ORDINARY)
def test_without_the_gate_what_cannot_be_summed_is_one_line(method, monkeypatch):
    """That names the client and the remedy; whatever else is let in is summed."""
    judge, ended = updates.Played.accepted, []

    def summed(self, kind, replies):
        try:
            found = judge(self, kind, replies)
        except Exception as error:
            ended.append(error)
            raise
        rule = self.strategy.method.aggregator
        rule.aggregate(self.admitted(replies), 1, self.strategy.state.model)
        return found

    monkeypatch.setattr(updates.Played, "accepted", summed)
    tally = updates.campaign(played(f"{updates.METHODS[method]} gate.enabled=false"), "train", SEEDS[0], 60)
    assert len(ended) == tally["lost"] > 2, tally
    for error in ended:
        assert isinstance(error, RunFailed) and "\n" not in str(error)
        assert re.match(r"round 2: client [012]'s update cannot be summed \((names|shape|dtype|m|w|not_)", str(error))
        assert str(error).endswith("gate.enabled=true refuses it alone, and before it whatever it may have come from")


@pytest.mark.parametrize("kind", ["query.statistics", "evaluate"])
def test_no_bad_answer_to_another_question_is_let_in(kind):
    tally = updates.campaign(played(STATISTICS), kind, SEEDS[0], 50)
    assert (tally["injected"], tally["let in"], tally["lost"]) == (50, 0, 0), tally


@pytest.mark.parametrize(
    ("kind", "check"),
    [("query.statistics", "strategies.server.gate.fault_of_format"), ("evaluate", "fedinit.scores.Accuracy.admits")],
)
def test_without_one_of_the_checks_it_is(kind, check, monkeypatch):
    """The control of the test above."""
    monkeypatch.setattr(check, lambda *_: check.endswith("admits"))
    tally = updates.campaign(played(STATISTICS), kind, SEEDS[0], 50)
    assert tally["let in"] + tally["lost"] > 0, tally


def test_a_node_that_says_of_itself_what_cannot_be_is_not_believed():
    assert updates.strange_introductions(played(STATISTICS), SEEDS[0], 50) == 0


def test_no_update_of_real_training_is_refused():
    tally = updates.honest(SEEDS[0], 24)
    assert tally.keys() == {"given"} and tally["given"] >= 24, tally


def test_orders_of_replies_give_one_hash():
    assert len(orders(40)) == 1


def test_torn_checkpoints_are_found(tmp_path):
    tally = checkpoints.torn(tmp_path)
    assert tally["bad"] == tally["same"] == 0 and tally["older"] > 15, tally


def test_flipped_bits_are_found(tmp_path):
    tally = checkpoints.flipped(tmp_path, SEEDS[0], 60)
    assert tally["bad"] == 0 and tally["older"] >= 55, tally


def test_a_full_disk_leaves_the_last_checkpoint_whole(tmp_path):
    assert checkpoints.full(tmp_path, SEEDS[0], 12) == {"said": 12, "damaged": 0}


def test_a_full_disk_ends_a_run_with_a_line_and_the_same_command_goes_on(tmp_path, capsys):
    words = [*WORDS, "client.max_steps=1", "evaluation=none"]
    assert run_sim.main([*words, f"output_dir={tmp_path / 'whole'}"]) == 0
    written = sum(file.stat().st_size for file in (tmp_path / "whole").rglob("round-*/*"))
    with checkpoints.full_after(written // 2):
        assert run_sim.main([*words, f"output_dir={tmp_path / 'full'}"]) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert run_sim.main([*words, f"output_dir={tmp_path / 'full'}"]) == 0
    assert processes.outcome(tmp_path / "full") == processes.outcome(tmp_path / "whole")


@pytest.mark.slow
def test_killed_runs_go_on_to_the_same_hash(tmp_path):
    tally = processes.campaign(tmp_path, SEEDS[0], 2)
    assert tally["same"] == 2 and not tally["codes"] and not tally["again"] and tally["stopped"] >= 1, tally


@pytest.mark.slow  # .ci/run runs these three
@pytest.mark.parametrize("words", ["strategy=flora", "strategy=fedsa_lora"])
def test_a_task_whose_worker_was_killed_gives_the_same_bytes_to_another(words):
    tally = workers.campaign(f"{words} rounds=2", SEEDS[0], 6)
    assert tally["same"] == 1 and not tally["lost"] and tally["midway"] >= 2, tally


@pytest.mark.slow
def test_without_the_state_before_it_does_not():
    """The control: a client's own factors are no part of the message."""
    tally = workers.campaign("strategy=fedsa_lora rounds=2", SEEDS[0], 6, forgetful=True)
    assert tally["other"] == 1, tally


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_runs_leave_in_time_with_their_code_and_go_on(number, tmp_path):
    tally = processes.campaign(tmp_path, SEEDS[0], 1, number)
    assert tally["same"] == 1 and not tally["codes"] and not tally["late"], tally


@pytest.mark.slow
@pytest.mark.parametrize("second", [False, True])
def test_a_process_leaves_in_time_also_in_the_midst_of_one_long_operation(second, tmp_path):
    """An SVD of half a minute, in which the main thread runs no handler. `second`: a second signal ends it at once,
    long before the limit."""
    code, seconds = processes.stopped_while_busy(tmp_path / "busy", signal.SIGTERM, 60 if second else 0.5, second)
    assert code == 143 and seconds < 10


# -- the full form -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*updates.METHODS, "query.statistics", "evaluate"])
def test_full_updates(kind):
    words, asked = (updates.METHODS[kind], "train") if kind in updates.METHODS else (STATISTICS, kind)
    tallies = [updates.campaign(played(words), asked, seed, 250) for seed in SEEDS]
    total = sum(tallies, type(tallies[0])())
    print("\nbad answers:", kind, dict(total))
    assert total["injected"] == 1000 and not total["let in"] and not total["lost"]


@pytest.mark.slow
def test_full_honest():
    tallies = [updates.honest(seed, 250) for seed in SEEDS]
    print("\ngood updates:", [dict(t) for t in tallies])
    assert all(t.keys() == {"given"} for t in tallies) and sum(t["given"] for t in tallies) >= 1000


@pytest.mark.slow
def test_full_orders():
    assert len(orders(1000)) == 1


@pytest.mark.slow
def test_full_checkpoints(tmp_path):
    torn = checkpoints.torn(tmp_path / "torn", every=512)
    bits = checkpoints.flipped(tmp_path / "bits", SEEDS[0], 500)
    disk = checkpoints.full(tmp_path / "full", SEEDS[0], 100)
    print("\ntorn:", dict(torn), "bits:", dict(bits), "full disk:", dict(disk))
    assert not torn["bad"] and not bits["bad"] and disk == {"said": 100, "damaged": 0}


@pytest.mark.slow
@pytest.mark.parametrize(("number", "count"), [(signal.SIGKILL, 50), (signal.SIGTERM, 7), (signal.SIGINT, 6)])
@pytest.mark.parametrize("seed", SEEDS)
def test_full_processes(number, count, seed, tmp_path):
    tally = processes.campaign(tmp_path, seed, count, number)
    print("\n", number, seed, dict(tally))
    assert tally["same"] == count and not tally["codes"] and not tally["late"] and not tally["again"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", ["strategy=flora", "strategy=fedsa_lora", "strategy=fedit reinit=local", "strategy=lora_fair"]
)
def test_full_workers(words):
    tally = workers.campaign(words, SEEDS[0], 50)
    print("\nkilled workers:", words, dict(tally))
    assert not tally["other"] and not tally["lost"] and tally["midway"] >= 10
