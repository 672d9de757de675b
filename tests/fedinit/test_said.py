"""Words of others are printed as one line, without control characters, and cut."""

from __future__ import annotations

import math

import pytest

from fedinit.errors import RunFailed
from fedinit.said import LONGEST, SAID, said, upwards
from strategies.server.audience import Audience
from strategies.server.replies import Refusal
from tests.support.ledger import Ledger

ESCAPE = "\x1b[31m\x1b[2J\n\x9b2J\u202e\ud800"


def plain(text: str, most: int = SAID) -> bool:
    return 0 < len(text) <= most and text.isprintable()


@pytest.mark.parametrize("text", ["", "words", "a " * 249 + "bc", "…"])
def test_what_is_plain_and_short_stays_as_it_is(text):
    assert said(text) == text


@pytest.mark.parametrize("text", [ESCAPE, f"a{ESCAPE}b", "x" * 501, " " * 10**6 + "x", ESCAPE * 10**5, "x\x1b" * 300])
def test_what_is_not_is_one_printable_line_of_a_length(text):
    line = said(text)
    assert plain(line)
    assert (line[-1] == "…") == (len(text) > SAID)


def test_every_way_to_the_screen_and_to_the_ledger_goes_by_it():
    """A refusal, the end of a run, a line of the ledger, and what a run waits for."""
    text = f"{ESCAPE}" + "y" * 10**5
    assert plain(Refusal(1, "client_error", text).detail) and plain(str(RunFailed(text)), LONGEST)
    ledger = Ledger()
    audience = Audience([ledger])
    audience.event("node_refused", {"round": 1, "detail": text})
    audience.waiting(text)
    ((_, facts),) = ledger.lines
    assert facts["round"] == 1 and plain(str(facts["detail"]), LONGEST) and plain(ledger.heard[0], LONGEST)


@pytest.mark.parametrize(
    ("value", "said"),
    [(7.992441, "8"), (7.99, "7.99"), (8.0, "8"), (0.1, "0.1"), (0.30000000000000004, "0.301"), (123.41, "124")]
    + [(1234.5, "1.24e+03"), (1e-9, "1e-09"), (0.0, "0"), (math.inf, "inf")],
)
def test_a_bound_is_never_said_to_be_less(value, said):
    assert upwards(value) == said and float(upwards(value)) >= value
