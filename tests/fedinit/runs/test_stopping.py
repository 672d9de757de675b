"""What a signal raises in the main thread, and what becomes of it under way."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time

import pytest

from fedinit.runs.stopping import Stopped, listening, signals_to_stop, unbroken


def interrupted(number: int) -> None:
    """As by a library in C, which lets Python's handlers run, and makes a plain interrupt of whatever they raise."""
    try:
        signal.raise_signal(number)
    except KeyboardInterrupt:
        raise KeyboardInterrupt from None


@pytest.mark.parametrize("number", [*signals_to_stop()])
def test_what_a_library_makes_of_a_signal_has_its_code(number: int) -> None:
    with pytest.raises(Stopped) as caught, listening(limit=None):
        interrupted(number)
    assert caught.value.code == 128 + number
    with pytest.raises(KeyboardInterrupt) as plain, listening(limit=None):  # the control: no signal was there
        raise KeyboardInterrupt
    assert plain.type is KeyboardInterrupt


def test_a_signal_waits_for_the_end_of_a_block_that_is_not_broken_into() -> None:
    passed = []
    with pytest.raises(Stopped) as caught, listening(limit=None):
        with unbroken():
            signal.raise_signal(signal.SIGTERM)
            passed.append("the block")
        passed.append("what comes behind it")
    assert passed == ["the block"] and caught.value.code == 143
    with contextlib.suppress(Stopped), listening(limit=None):  # the control
        signal.raise_signal(signal.SIGTERM)
        passed.append("the block")
    assert passed == ["the block"]


@pytest.mark.parametrize("again", [True, False])
def test_a_step_that_is_cut_short_is_told(again: bool) -> None:
    """The watcher's end, by its time or a second signal, says what is kept; a step that ends in time raises."""
    code = f"""
import signal, sys, time
from fedinit.runs.stopping import listening, signals_to_stop, unbroken
with listening(limit={60.0 if again else 0.5}), unbroken():
    print("within", flush=True)
    time.sleep(float(sys.argv[1]))
"""
    for seconds, told in ((50, "stopped in the midst of a step"), (0.1, "Stopped: SIGTERM")):
        with subprocess.Popen(
            [sys.executable, "-c", code, str(seconds)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None and process.stderr is not None and process.stdout.readline()
            process.send_signal(signal.SIGTERM)
            if again and seconds == 50:
                time.sleep(0.5)  # else the kernel makes one of both
                process.send_signal(signal.SIGTERM)
            said = process.stderr.read()
        assert told in said
        assert (process.returncode == 143) == (seconds == 50)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has none")
def test_a_terminal_that_is_closed_stops_what_is_not_under_nohup() -> None:
    usual = signal.getsignal(signal.SIGHUP)
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        assert signal.SIGHUP not in signals_to_stop()
        with listening(limit=None):
            signal.raise_signal(signal.SIGHUP)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with pytest.raises(Stopped) as caught, listening(limit=None):
            signal.raise_signal(signal.SIGHUP)
        assert caught.value.code == 129
    finally:
        signal.signal(signal.SIGHUP, usual)
