"""The live view: what it says of a run, on a terminal of any kind, by a clock that the test turns."""

from __future__ import annotations

import io
import signal

import pytest
from rich.console import Console

from fedinit.runs.observer import ClientReport, Roster, RoundReport
from fedinit.runs.progress import ProgressObserver
from fedinit.runs.view import Round, View, chosen, clock, cohort, sparkline
from fedinit.scores import Accuracy
from fedinit.stopping import Stopped, listening


def round_of(number: int, **changes) -> Round:
    values = {"seconds": 10.0, "clients": [0, 2], "count": 2, "loss": 0.5, "bytes_up": 10**6, "bytes_down": 2 * 10**6}
    return Round(number=number, **(values | {"scores": {"photo": 60.0 + number, "sketch": 40.0}} | changes))


def drawn(view: View, **options) -> str:
    console = Console(file=io.StringIO(), width=100, force_terminal=True, no_color=True, **options)
    with console.capture() as captured:
        console.print(view)
    return captured.get()


def test_it_shows_rounds_cohort_scores_bytes_and_the_time_left():
    now = [0.0]
    view = View("lora_fair on pacs", rounds=5, total=4, clock=lambda: now[0])
    assert view.left is None and "0/5" in drawn(view) and "4 clients" in drawn(view)
    for number in (1, 2, 3):
        view.add(round_of(number))
    now[0] = 4.0
    text = drawn(view)
    for told in ("lora_fair on pacs", "3/5", "0:16 left", "2 of 4 clients (0, 2)", "loss 0.500", "after round 3"):
        assert told in text, told
    assert "sent 3.0 MB up, 6.0 MB down" in text and "took 10.0 s" in text and "round 4 for 0:04" in text
    rows = {line.split()[0].lstrip("\x1b[1m"): line for line in text.splitlines() if "▁" in line}
    assert "63.0" in rows["photo"] and "+1.0" in rows["photo"] and "▁▅█" in rows["photo"]
    assert (
        "40.0" in rows["sketch"]
        and "+0.0" in rows["sketch"]
        and "51.5" in next(v for k, v in rows.items() if "avera" in k)
    )
    now[0] = 1000.0
    assert view.left == 10.0, "a round that takes longer than the last ones is not the other rounds' time"


@pytest.mark.parametrize(("before", "change"), [("sketch", "+1.0"), ("cartoon", "")])
def test_an_average_is_set_beside_those_of_the_same_domains_alone(before, change):
    view = View("fedit", rounds=3)
    view.add(round_of(1, scores={"photo": 10.0, before: 20.0}))
    view.add(round_of(2, scores={"photo": 80.0, "cartoon": 90.0}))
    view.add(round_of(3, scores={"photo": 12.0, "sketch": 20.0}))
    row = next(line for line in drawn(view).splitlines() if "average" in line)
    assert "16.0" in row and "-" not in row and ("+" in row) == bool(change) and change in row


def test_the_last_rounds_foretell_the_time_and_a_done_run_has_none_left():
    view = View("", rounds=8, clock=lambda: 0.0)
    for number, seconds in enumerate([100.0, 2.0, 2.0, 2.0, 2.0, 2.0], 1):
        view.add(round_of(number, seconds=seconds))
    assert view.left == 4.0
    for number in (7, 8):
        view.add(round_of(number))
    assert "left" not in drawn(view) and "8/8" in drawn(view)


def test_what_takes_long_is_said_and_goes_with_the_next_round():
    view = View("fedit", rounds=2, total=3, doing="clients measure the start, init=eva")
    assert "clients measure the start, init=eva; 3 clients" in drawn(view)
    view.add(round_of(1, scores={}))
    assert "measure" not in drawn(view) and "average" not in drawn(view)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], ""),
        ([5.0], "▁"),
        ([1.0, 1.0], "▁▁"),
        ([0.0, 7.0], "▁█"),
        ([0.0, float("nan"), 7.0], "▁ █"),
        ([float("nan")], ""),
    ],
)
def test_sparklines(values, expected):
    assert sparkline(values) == expected


def test_a_terminal_without_unicode_gets_none():
    view = View("fedit", rounds=2)
    view.add(round_of(1))
    console = Console(file=io.TextIOWrapper(io.BytesIO(), encoding="ascii"), width=100, force_terminal=True)
    console.print(view)
    console.file.seek(0)
    assert "40.0" in console.file.read()


def test_of_many_domains_the_worst_and_the_best_have_rows():
    scores = {f"d{i}": float(i) for i in range(40)}
    view = View("", rounds=2)
    view.add(round_of(1, scores=scores))
    text = drawn(view)
    assert len(chosen(scores)) == 13 and "d0 " in text and "d39" in text and "d20" not in text and "… 28 more" in text
    view.add(round_of(2, scores={"[red]a[/red]\x1b[31m": 3.0}))
    assert "[red]a[/red]" in drawn(view) and "\x1b[31m" not in drawn(view), "names are text"


def test_times_and_cohorts():
    assert [clock(s) for s in (0.2, 9.4, 754, 3723)] == ["0:00", "0:09", "12:34", "1:02:03"]
    assert cohort(round_of(1, count=2), 2) == "2 of 2 clients"
    assert cohort(round_of(1, clients=list(range(13)), count=13), 50) == "13 of 50 clients"


def test_the_observer_draws_on_a_terminal_and_writes_lines_elsewhere():
    roster = Roster(examples={0: 5, 1: 5}, class_names=["a", "b"], domain_names=["x"])
    clients = [ClientReport(0, 5, 1, 0.25), ClientReport(1, 5, 1, 0.75)]
    report = RoundReport(1, 2.0, 0.5, Accuracy({"x": 1}, {"x": 2}), 10, 20, clients)
    texts = {}
    for terminal in (True, False):
        console = Console(file=io.StringIO(), width=100, force_terminal=terminal, no_color=True)
        observer = ProgressObserver(console, "fedit")
        observer.started(1, roster)
        observer.doing("clients measure the start, init=eva")
        observer.round_done(report)
        observer.close()
        texts[terminal] = console.file.getvalue()
    assert "50.0" in texts[True] and "1/1" in texts[True] and "clients measure the start" in texts[True]
    assert texts[False].splitlines() == [
        "fedit: 1 round, 2 clients",
        "fedit: clients measure the start, init=eva",
        "fedit: round 1/1, 2 clients, loss 0.500, accuracy 50.0 %, 2.0 s",
    ]


def test_a_warning_is_one_line_in_a_pipe():
    out = io.StringIO()
    observer = ProgressObserver(Console(file=out, width=80), "run")
    observer.event("node_refused", {"round": 1, "detail": "x " * 100})
    observer.waiting("waiting " * 30)
    assert len(out.getvalue().splitlines()) == 2


def test_what_befell_thousands_is_a_few_lines():
    """One of each of five clients, and how many more; another kind, or another round, has its own."""
    out = io.StringIO()
    observer = ProgressObserver(Console(file=out, width=200), "run")
    for client in range(1000):
        observer.event("refused", {"round": 1, "client": client, "detail": "not_finite"})
    observer.event("evaluation_failed", {"round": 1, "client": 3, "detail": "x"})
    for _ in range(7):
        observer.event("node_refused", {"round": 1, "detail": "a node, of which each may have its own reason"})
    observer.close()
    lines = out.getvalue().splitlines()
    assert [line.split(",")[1] for line in lines[:5]] == [f" client {i}" for i in range(5)]
    assert sum(line.startswith("node refused") for line in lines) == 7
    assert lines[-1] == "refused: 995 more clients in round 1; ledger.jsonl has all of them" and len(lines) == 14
    observer.event("refused", {"round": 2, "client": 0, "detail": "not_finite"})
    observer.close()
    assert len(out.getvalue().splitlines()) == 15


class Interrupting(io.StringIO):
    """A terminal's file at which Ctrl-C comes while the first line is being written out."""

    def flush(self) -> None:
        if not self.closed and self.tell() and not getattr(self, "interrupted", False):
            self.interrupted = True
            signal.raise_signal(signal.SIGINT)
        super().flush()


def test_a_line_that_is_interrupted_is_there_once():
    file = Interrupting()
    console = Console(file=file, width=80)
    with listening(limit=None), pytest.raises(Stopped):
        ProgressObserver(console, "fedit").waiting("round 1/3")
    ProgressObserver(console, "fedit").waiting("stopped")
    assert file.interrupted and file.getvalue().splitlines() == ["fedit: round 1/3", "fedit: stopped"]


@pytest.mark.parametrize("at_its_end", [False, True])
def test_a_live_view_that_is_interrupted_as_it_is_put_up_or_taken_down_leaves_the_terminal_in_order(at_its_end):
    """Half a start of rich's cannot be stopped, and half a stop leaves no cursor."""
    file = Interrupting()
    file.interrupted = at_its_end
    observer = ProgressObserver(Console(file=file, width=80, force_terminal=True), "fedit")
    with listening(limit=None), pytest.raises(Stopped):
        try:
            observer.started(3, Roster(examples={0: 5}, class_names=["a"], domain_names=["x"]))
            file.interrupted = False
        finally:
            observer.close()
    assert file.interrupted
    assert file.getvalue().count("\x1b[?25l") == file.getvalue().count("\x1b[?25h") == 1
