"""How far an exchange is: said now and then, never at its end, and nothing of the replies changes."""

from __future__ import annotations

import pytest

from strategies.server import counting


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that it is, to be set."""
    now = [0.0]
    monkeypatch.setattr(counting.time, "monotonic", lambda: now[0])
    return now


def heard(clock: list[float], seconds: float, total: int) -> list[str]:
    """What is said of so many replies, one every so many seconds."""
    said: list[str] = []
    replies = list(range(total))
    passed = []
    for reply in counting.aloud(replies, total, 3, said.append):
        passed.append(reply)
        clock[0] += seconds
    assert passed == replies
    return said


def test_a_short_exchange_says_nothing(clock: list[float]) -> None:
    assert heard(clock, 0.001, 1000) == []


def test_a_long_one_says_how_far_it_is_after_half_a_minute_and_then_half_as_often_each_time(clock: list[float]) -> None:
    counts = [30, 90, 210, 450, 930]
    assert heard(clock, 1.0, 1000) == [f"round 3: {count:,} of 1,000 clients have answered" for count in counts]


def test_the_last_reply_is_no_news(clock: list[float]) -> None:
    assert heard(clock, 60.0, 1) == []


def test_what_comes_before_training_is_round_0(clock: list[float]) -> None:
    said: list[str] = []
    for _ in counting.aloud(iter("ab"), 2, -1, said.append):
        clock[0] += 60
    assert said == ["round 0: 1 of 2 clients have answered"]
