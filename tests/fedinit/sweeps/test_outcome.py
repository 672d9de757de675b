"""What comes of one run of a sweep."""

from __future__ import annotations

import threading

from rich.console import Console

from fedinit.config.compose import compose_config
from fedinit.runs import lock
from fedinit.runs.lock import FolderLock
from fedinit.sweeps.outcome import Outcome, attempt

CONSOLE = Console(quiet=True)


def test_a_run_that_another_process_is_at_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "EVERY", 0.02)
    held, asked = FolderLock(tmp_path), []

    def simulate(config, console):
        asked.append(config)
        if len(asked) == 1:
            threading.Timer(0.2, held.release).start()
        FolderLock(tmp_path).release()
        return {"folder": str(tmp_path), "done_before": True}

    outcome = attempt("seed=0", compose_config([]), simulate, CONSOLE)
    assert not outcome.why and outcome.line == "seed=0: done by another process" and len(asked) == 2
    assert outcome.seconds >= 0.2
    again = attempt("seed=0", compose_config([]), simulate, CONSOLE)
    assert again.line == "seed=0: was done"  # the control


def test_one_that_was_left_by_it_is_gone_on_with(tmp_path):
    """Its process was killed: the lock is there, and nobody holds it. Or the folder was moved aside."""
    (tmp_path / lock.NAME).touch()
    lock.wait(tmp_path)
    assert not (tmp_path / lock.NAME).exists()
    lock.wait(tmp_path / "absent")


def test_another_error_is_a_failure_at_once():
    def simulate(config, console):
        raise ValueError("x")

    assert attempt("seed=0", compose_config([]), simulate, CONSOLE).why == "run failed: ValueError: x"


def test_its_line_says_by_what_other_code_a_run_was_begun():
    done = {"score": "accuracy", "accuracy": 50.0, "done_before": True, "other_code": ""}
    assert Outcome("seed=0", done).line == "seed=0: accuracy 50.0 %, was done"
    line = Outcome("seed=0", {**done, "other_code": "other code than is here now (strategies)"}).line
    assert line.endswith(", was done, begun by other code than is here now (strategies), resume=never begins it anew")


def test_its_line_says_what_the_average_is_without():
    figures = {"score": "accuracy", "accuracy": 38.64}
    said = Outcome("seed=0", {**figures, "not_scored": ["plain", "thick"]}, seconds=5.3).line
    assert said == "seed=0: accuracy 38.6 %, 5.3 s; not scored: plain, thick; the average is without them"
    assert Outcome("seed=0", figures, seconds=5.3).line == "seed=0: accuracy 38.6 %, 5.3 s"  # the control
