"""Who was left out, in lines for those who did not watch the run."""

from __future__ import annotations

import pytest

from fedinit.report.runs.left_out import as_it_comes, left_out


def test_everybody_whose_work_is_missing_is_named_once():
    entries = [
        {"kind": "refused", "round": 1, "client": 1, "code": "limit", "detail": "this site sends no update"},
        {"kind": "refused", "round": 2, "client": 1, "code": "limit", "detail": "this site sends no update"},
        {"kind": "evaluation_failed", "round": 2, "client": 0, "detail": "its limit"},
        {"kind": "node_refused", "round": 1, "detail": "node 7: another backbone"},
        {"kind": "sum_refused", "round": 2, "clients": [0, 1], "detail": "2 clients are left"},
        {"kind": "began_without", "round": 1, "clients": [1]},
        {"kind": "resumed", "round": 2},
    ]
    assert left_out(entries) == [
        "client 1: its update did not count in 2 rounds, first in round 1: this site sends no update",
        "client 0: it was not evaluated in 1 round, first in round 2: its limit",
        "a node was not used, before round 1: node 7: another backbone",
        "nobody's update counted, and the model stayed as it was, in 1 round, first in round 2: 2 clients are left",
        "the run began without client 1, before round 1",
    ]


def test_what_became_of_a_round_that_is_done_again_is_not_the_runs():
    """But who was not there to begin with was not, and what was lost before is."""
    lost = [{"kind": "refused", "round": r, "client": 1, "detail": "nothing came in time"} for r in (1, 2, 3)]
    begun = [{"kind": "node_refused", "round": 2, "detail": "node 7: another"}, {"kind": "resumed", "round": 1}]
    assert left_out([*lost, *begun]) == [
        "client 1: its update did not count in 1 round, first in round 1: nothing came in time",
        "a node was not used, before round 2: node 7: another",
    ]
    assert left_out([*lost[1:], *begun[1:]]) == []
    (again,) = left_out([*lost[1:], *begun[1:], lost[2]])
    assert again.startswith("client 1: its update did not count in 1 round, first in round 3")


def test_a_run_that_ended_early_says_so_once_and_first():
    early = {"kind": "stops_early", "after_round": 1, "of": 3, "detail": "2 clients cannot train"}
    lost = {"kind": "refused", "round": 2, "client": 1, "code": "spent", "detail": "is spent"}
    first, other = left_out([early, lost, {"kind": "resumed", "round": 1}, lost, {**early, "after_round": 2}])
    assert first == "the run ends after round 2 of 3: 2 clients cannot train" and other.startswith("client 1")


def test_who_did_not_unmask_is_in_the_sum():
    entry = {"kind": "not_unmasked", "round": 1, "client": 3, "code": "no_reply", "detail": "nothing came in time"}
    assert left_out([entry]) == []
    assert "did not help to unmask the sum, in which its update is" in as_it_comes(entry)


def test_where_nobody_is_missing_nothing_is_said():
    assert left_out([]) == []
    assert left_out([{"kind": "resumed", "round": 1}]) == []


@pytest.mark.parametrize(("entry", "line"), [
    ({"kind": "refused", "round": 2, "client": 1, "detail": "nothing came in time"},
     "round 2: client 1: its update did not count: nothing came in time"),
    ({"kind": "node_refused", "round": 1, "detail": "node 7: another\nbackbone"},
     "before round 1 a node was not used: node 7: another"),
    ({"kind": "sum_refused", "round": 2, "clients": [0], "detail": "one is left"},
     "round 2: nobody's update counted, and the model stayed as it was: one is left"),
    ({"kind": "began_without", "round": 3, "clients": [*range(12)]},
     "the run began without clients 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, …, before round 3"),
    ({"kind": "resampled", "round": 2, "attempt": 1, "usable": 2, "clients": [4, 5]},
     "round 2: 2 updates count so far, clients 4, 5 are asked as well"),
    ({"kind": "client_back", "round": 2, "client": 1}, "round 2: client 1: is there again"),
    ({"kind": "other_code", "round": 1, "clients": [0, 2], "detail": "they compute by other code"},
     "round 1, clients 0, 2: they compute by other code"),
    ({"kind": "resumed", "round": 1}, ""),
    ({"kind": "stops_early", "after_round": 1, "of": 3, "detail": "2 clients cannot train"},
     "the run ends after round 1 of 3: 2 clients cannot train"),
])  # fmt: skip
def test_an_event_is_told_as_it_comes(entry, line):
    assert as_it_comes(entry) == line
