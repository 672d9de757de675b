"""SIGTERM, Ctrl-C, SIGHUP: a command ends in order within LIMIT seconds, and a run goes on from its last checkpoint."""

from __future__ import annotations

import contextlib
import select
import signal
import socket
import threading
import time
from collections.abc import Container, Iterable, Iterator, Sequence
from types import FrameType
from typing import Protocol

from fedinit.leaving import at_once

LIMIT = 8.0  # seconds until the process ends anyhow, in whatever operation it is
CUT_SHORT = (
    "stopped in the midst of a step; the last whole checkpoint, where there was one, is kept, and the same command "
    "goes on from it"
)


class Stopped(KeyboardInterrupt):
    """Raised in the main thread by a signal. code: the exit code that a shell expects, 143, 130 or 129."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.code = 128 + number


class View(Protocol):
    """What rich shows and takes away: Live, Progress."""

    def start(self) -> None: ...
    def stop(self) -> None: ...


_shielded = 0
_waiting: Stopped | None = None


def signals_to_stop() -> Sequence[int]:
    """Those that end a process; SIGHUP, which a terminal sends when it is closed, is none under nohup."""
    usual, hangup = [signal.SIGTERM, signal.SIGINT], getattr(signal, "SIGHUP", None)  # Windows has none
    return usual if hangup is None or signal.getsignal(hangup) == signal.SIG_IGN else [*usual, hangup]


@contextlib.contextmanager
def listening(
    signals: Iterable[int] | None = None,
    limit: float | None = LIMIT,
    cut_short: str = CUT_SHORT,
    imports: bool = True,
) -> Iterator[None]:
    """Within, the first of the signals raises Stopped in the main thread; a second one, or `limit` seconds, end the
    process at once. Outside the main thread it does nothing.

    signals: their numbers; None: `signals_to_stop`.
    limit: seconds; None: neither a second signal nor time ends the process, since what has to be ended first takes as
        long as it takes, also within another `listening` that has one.
    cut_short: the line of a process that is ended at once.
    imports: False where a module may be imported in the midst of things, and a signal is to end the process at once
        there: an exception would pass through whatever library is being imported, of which torch aborts.

    Python runs a signal's handler between two operations of the main thread, and one of these may take minutes. So a
    thread watches the pipe that the signal itself writes its number to, and ends the process when its time is over. It
    needs the interpreter for that, which torch and numpy leave free while they compute.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    stopped: Stopped | None = None

    def stop(number: int, frame: FrameType | None) -> None:
        global _waiting
        nonlocal stopped
        if stopped is not None:
            return  # where there is a limit, the watcher ends the process
        if not imports and not _shielded and _importing(frame):
            at_once(128 + number, cut_short)
        stopped = Stopped(number)
        if not _shielded:
            raise stopped
        _waiting = stopped

    signals = frozenset(signals_to_stop() if signals is None else signals)
    with _unwatched() if limit is None else _watched(signals, limit, cut_short):
        before = {number: signal.signal(number, stop) for number in signals}
        try:
            yield
        except KeyboardInterrupt as interrupt:  # a library in C may have made a plain one of it, as Ray does
            if stopped is None or isinstance(interrupt, Stopped):
                raise
            raise stopped from interrupt
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _importing(frame: FrameType | None) -> bool:
    """Whether a module is being imported where the frame is."""
    while frame is not None and frame.f_globals.get("__name__") != "importlib._bootstrap":
        frame = frame.f_back
    return frame is not None


@contextlib.contextmanager
def _unwatched() -> Iterator[None]:
    """Within, no thread is told of a signal."""
    former = signal.set_wakeup_fd(-1)
    try:
        yield
    finally:
        signal.set_wakeup_fd(former)


@contextlib.contextmanager
def _watched(signals: Container[int], limit: float, cut_short: str) -> Iterator[None]:
    """Within, a thread is told of every signal when it comes."""
    inlet, outlet = socket.socketpair()  # Windows waits for sockets alone
    outlet.setblocking(False)
    watcher = threading.Thread(target=_watch, args=(inlet, signals, limit, cut_short), name="signals", daemon=True)
    watcher.start()
    former = signal.set_wakeup_fd(outlet.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(former)
        outlet.close()  # the watcher's end of file
        watcher.join()


def _watch(inlet: socket.socket, signals: Container[int], limit: float, cut_short: str) -> None:
    """End the process at the second of the signals that comes through the socket, or `limit` seconds after the first;
    return at its end."""
    code, deadline = 0, None
    while select.select([inlet], [], [], None if deadline is None else max(deadline - time.monotonic(), 0))[0]:
        number = inlet.recv(1)
        if not number:
            inlet.close()
            return
        if number[0] in signals:
            if code:
                at_once(code, cut_short)
            code, deadline = 128 + number[0], time.monotonic() + limit
    at_once(code, cut_short)


@contextlib.contextmanager
def unbroken() -> Iterator[None]:
    """A block that a signal does not break into; it takes effect at its end. In the main thread, which alone it breaks
    into."""
    global _shielded, _waiting
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _shielded += 1
    try:
        yield
    finally:
        _shielded -= 1
        if _waiting is not None and not _shielded:
            stopped, _waiting = _waiting, None
            raise stopped


@contextlib.contextmanager
def standing(view: View) -> Iterator[None]:
    """Within, the view of rich's is up; a signal breaks neither into its start nor into its end, of which half leaves
    a terminal without a cursor and what cannot be stopped."""
    up = False
    try:
        with unbroken():
            view.start()
            up = True
        yield
    finally:
        with unbroken():
            if up:
                view.stop()
