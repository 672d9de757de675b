"""The campaign of docs/reliability.md: a short form in every test run, the full one with ``-m slow -s tests/faults``.

Everything is drawn from SEEDS; the full form prints what it found.
"""

from __future__ import annotations

import random
import signal

import pytest

import run_sim
from clients.site import Site
from fedinit import digest, wire
from strategies import create_aggregator
from strategies.gate import Gate
from tests.faults import checkpoints, processes, updates
from tests.small import WORDS, small_config

SEEDS = (0, 1, 2, 3)


@pytest.fixture(scope="module")
def site() -> Site:
    return Site(small_config())


def orders(site: Site, count: int) -> set[str]:
    """The hashes of aggregates of a round's replies, which came in `count` orders."""
    round, draw, found = updates.Round(site), random.Random(0), set()
    for _ in range(count):
        replies = [*round.copies(), *round.copies()[:2]]  # two of them twice
        draw.shuffle(replies)
        accepted, _ = round.strategy._judge(replies)
        made = create_aggregator("lora_fair").aggregate([u for u, _ in accepted], 1, round.strategy.state)
        found.add(digest.of_tensors(wire.to_tensors(made.layers, made.head)))
    return found


# -- the short form ------------------------------------------------------------------------------------------------


def test_no_bad_update_is_let_in_and_none_costs_the_others_theirs(site):
    tally = updates.campaign(site, SEEDS[0], 100)
    assert (tally["injected"], tally["let in"], tally["lost"]) == (100, 0, 0), tally


def test_without_the_gate_the_same_campaign_goes_red(site):
    tally = updates.campaign(site, SEEDS[0], 100, Gate(enabled=False))
    assert tally["let in"] > 10 and tally["lost"] > 0


def test_no_update_of_real_training_is_refused():
    tally = updates.honest(SEEDS[0], 24)
    assert tally.keys() == {"given"} and tally["given"] >= 24, tally


def test_orders_of_replies_give_one_hash(site):
    assert len(orders(site, 40)) == 1


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


def test_killed_runs_go_on_to_the_same_hash(tmp_path):
    tally = processes.campaign(tmp_path, SEEDS[0], 10)
    assert tally["same"] == 10 and not tally["codes"] and tally["stopped"] >= 5, tally


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_runs_leave_in_time_with_their_code_and_go_on(number, tmp_path):
    tally = processes.campaign(tmp_path, SEEDS[0], 2, number)
    assert tally["same"] == 2 and not tally["codes"] and not tally["late"], tally


# -- the full form -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_full_updates(site):
    tallies = [updates.campaign(site, seed, 250) for seed in SEEDS]
    total = sum(tallies, type(tallies[0])())
    print("\nbad updates:", dict(sum(tallies, type(tallies[0])())), "of", sum(t["injected"] for t in tallies))
    assert sum(t["injected"] for t in tallies) == 1000 and not total["let in"] and not total["lost"]


@pytest.mark.slow
def test_full_honest():
    tallies = [updates.honest(seed, 250) for seed in SEEDS]
    print("\ngood updates:", [dict(t) for t in tallies])
    assert all(t.keys() == {"given"} for t in tallies) and sum(t["given"] for t in tallies) >= 1000


@pytest.mark.slow
def test_full_orders(site):
    assert len(orders(site, 1000)) == 1


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
    assert tally["same"] == count and not tally["codes"] and not tally["late"]
