"""What a signal raises in the main thread, and what becomes of it under way."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from fedinit.stopping import Stopped, listening, signals_to_stop, standing, unbroken


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
from fedinit.stopping import listening, signals_to_stop, unbroken
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


def test_what_takes_as_long_as_it_takes_does_so_within_what_has_a_limit() -> None:
    """The control: without `limit=None` in between, the second signal ends the process."""
    code = """
import os, signal, sys, time
from fedinit.stopping import listening
with listening(cut_short="cut short"), listening(limit=None if sys.argv[1] == "none" else 60):
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    except KeyboardInterrupt:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.5)
        print("put in order", flush=True)
"""
    for limit, said in (("none", "put in order\n"), ("60", "")):
        done = subprocess.run([sys.executable, "-c", code, limit], capture_output=True, text=True)
        assert done.stdout == said


@pytest.mark.parametrize("imports", [True, False])
def test_a_signal_while_a_module_is_imported_ends_the_process_where_that_is_asked_for(imports: bool, tmp_path) -> None:
    (tmp_path / "slow_to_import.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(60)\n"
    )
    code = f"""
import sys
from fedinit.stopping import Stopped, listening
sys.path.insert(0, {str(tmp_path)!r})
with listening(cut_short="interrupted", imports={imports}):
    try:
        import slow_to_import
    except Stopped:
        print("raised")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (
        (0, "raised\n", "") if imports else (143, "", "interrupted\n")
    )


def test_another_thread_is_never_broken_into_and_shields_nobody() -> None:
    within, over = threading.Event(), threading.Event()

    def work() -> None:
        with unbroken():
            within.set()
            over.wait(60)

    thread = threading.Thread(target=work)
    thread.start()
    within.wait(60)
    with pytest.raises(Stopped), listening(limit=None):
        signal.raise_signal(signal.SIGTERM)
    over.set()
    thread.join()


class Shown:
    """A view, and the signal that comes while it is put up or taken down."""

    def __init__(self, at: str) -> None:
        self.at, self.done = at, list[str]()

    def start(self) -> None:
        self._do("start")

    def stop(self) -> None:
        self._do("stop")

    def _do(self, what: str) -> None:
        if what == self.at:
            signal.raise_signal(signal.SIGTERM)
        self.done.append(what)


@pytest.mark.parametrize("at", ["start", "stop"])
def test_a_view_that_is_put_up_is_taken_down(at: str) -> None:
    view = Shown(at)
    with pytest.raises(Stopped), listening(limit=None), standing(view):
        pass
    assert view.done == ["start", "stop"]


@pytest.mark.skipif(os.name == "nt", reason="no such terminals there")
def test_a_process_that_is_ended_at_once_gives_its_terminal_the_cursor_back() -> None:
    for term, wanted in (("xterm", True), ("dumb", False)):
        ours, theirs = os.openpty()
        code = "from fedinit.leaving import at_once; at_once(130, 'stopped')"
        done = subprocess.run([sys.executable, "-c", code], stdout=theirs, env=os.environ | {"TERM": term})
        os.write(theirs, b"|")
        assert done.returncode == 130 and (b"\x1b[?25h" in os.read(ours, 100)) == wanted
        os.close(ours), os.close(theirs)
