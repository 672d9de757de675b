"""Who is which client, before a run begins: what nodes say, in which order, and what of it is taken."""

from __future__ import annotations

import pytest

from fedinit.errors import RunFailed
from fedinit.transport.introduction import Introduction
from fedinit.transport.local import LocalGrid
from strategies.server.exchange import Exchange
from strategies.server.meeting import Meeting

TWICE = "partition-id {} is given to two nodes; each needs one of its own"


def says(client: int, backbone: str = "b") -> Introduction:
    return Introduction(client, 4, 10, 10, ["0", "1"], ["plain"], "accuracy", backbone, {}, [], "")


def registered(monkeypatch: pytest.MonkeyPatch, *greetings: dict[int, Introduction | str]):
    """{client: node}, and what the ledger says, of nodes that say so one greeting after the other; all stay online."""
    ledger: list[str] = []
    exchange = Exchange(
        LocalGrid(lambda pairs: [], 9), timeout=5.0, emit=lambda kind, facts: ledger.append(str(facts["detail"]))
    )
    left = list(greetings)
    monkeypatch.setattr(exchange, "_hello", lambda *_: left.pop(0) if left else {})
    monkeypatch.setattr("strategies.server.exchange.time.sleep", lambda _: None)
    exchange.register_clients("b", -1, Meeting(quorum=1, clients=4))
    return exchange.by_client, sorted(ledger)


def test_whoever_was_first_keeps_its_place(monkeypatch):
    found = registered(monkeypatch, {1000: says(0)}, {1001: says(0), 1002: says(2), 1003: says(3)})
    assert found == ({0: 1000, 2: 1002, 3: 1003}, ["node 1001: " + TWICE.format(0)])


def test_of_two_at_once_neither_has_it_whatever_their_order(monkeypatch):
    told = [f"node {node}: {TWICE.format(0)}" for node in (1000, 1001)]
    for pair in ([1000, 1001], [1001, 1000]):
        both = {node: says(0) for node in pair}
        assert registered(monkeypatch, both, {1002: says(2), 1003: says(3)}) == ({2: 1002, 3: 1003}, told)


def test_who_comes_again_is_held_to_the_other_one_still(monkeypatch):
    """Or an impostor would be the client by being started once more."""
    both = {1000: says(0), 1001: says(0)}
    found = registered(monkeypatch, {**both, 1002: says(2)}, {1001: says(0)}, {1003: says(3)})
    assert found[0] == {2: 1002, 3: 1003}


def test_who_comes_again_as_itself_keeps_its_place(monkeypatch):
    found = registered(monkeypatch, {1000: says(0), 1002: says(2)}, {1000: says(0), 1001: says(0)}, {1003: says(3)})
    assert found == ({0: 1000, 2: 1002, 3: 1003}, ["node 1001: " + TWICE.format(0)])


def test_who_comes_again_as_another_is_one_client_and_not_two(monkeypatch):
    """As a site whose partition-id was put right."""
    found = registered(monkeypatch, {1000: says(0)}, {1000: says(1), 1002: says(2)}, {1001: says(0), 1003: says(3)})
    assert found == ({0: 1001, 1: 1000, 2: 1002, 3: 1003}, [])


def test_who_comes_again_and_does_not_fit_has_no_place(monkeypatch):
    later = {1000: says(0, "another"), 1001: says(1), 1002: says(2), 1003: says(3)}
    by_client, told = registered(monkeypatch, {1000: says(0)}, later)
    assert by_client == {1: 1001, 2: 1002, 3: 1003} and len(told) == 1 and "another backbone" in told[0]


def test_an_error_without_words_is_one(monkeypatch):
    found = registered(monkeypatch, {1000: "", 1001: says(1), 1002: says(2), 1003: says(3)})
    assert found == ({1: 1001, 2: 1002, 3: 1003}, ["node 1000: an error without words"])


def test_where_too_few_are_left_the_run_says_why(monkeypatch):
    with pytest.raises(RunFailed, match=TWICE.format(0)):
        registered(monkeypatch, {node: says(0) for node in (1000, 1001, 1002, 1003)})
