"""Who was left out, in lines for those who did not watch the run."""

from __future__ import annotations

from fedinit.report.runs.left_out import left_out


def test_everybody_whose_work_is_missing_is_named_once():
    entries = [
        {"kind": "refused", "round": 1, "client": 1, "code": "limit", "detail": "this site sends no update"},
        {"kind": "refused", "round": 2, "client": 1, "code": "limit", "detail": "this site sends no update"},
        {"kind": "evaluation_failed", "round": 2, "client": 0, "detail": "its limit"},
        {"kind": "node_refused", "round": 1, "detail": "node 7: another backbone"},
        {"kind": "sum_refused", "round": 2, "clients": [0, 1], "detail": "2 clients are left"},
        {"kind": "resumed", "round": 1},
    ]
    assert left_out(entries) == [
        "client 1: its update did not count in 2 rounds, first in round 1: this site sends no update",
        "client 0: it was not evaluated in 1 round, first in round 2: its limit",
        "not used in 1 round, first in round 1: node 7: another backbone",
        "nobody's update counted, and the model stayed as it was, in 1 round, first in round 2: 2 clients are left",
    ]


def test_where_nobody_is_missing_nothing_is_said():
    assert left_out([]) == []
    assert left_out([{"kind": "resumed", "round": 1}]) == []
