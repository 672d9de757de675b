"""SIGTERM and Ctrl-C: a run leaves within LIMIT seconds, and the same command goes on from its last checkpoint."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterable, Iterator

LIMIT = 8.0  # seconds until the process ends anyhow, in whatever operation it is
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(KeyboardInterrupt):
    """Raised in the main thread by a signal. code: the exit code that a shell expects, 143, 130 or 129."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.code = 128 + number


_shielded = 0
_waiting: Stopped | None = None


@contextlib.contextmanager
def listening(signals: Iterable[int] = SIGNALS, limit: float | None = LIMIT) -> Iterator[None]:
    """Within, the first of the signals raises Stopped; a second one, or `limit` seconds, end the process at once. With
    no limit they do not: what is to be ended first takes its own time. Does nothing outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    first: list[Stopped] = []
    timers: list[threading.Timer] = []

    def stop(number: int, frame: object) -> None:
        global _waiting
        stopped = Stopped(number)
        if first and limit is None:
            return
        if first:
            os._exit(stopped.code)
        first.append(stopped)
        if limit is not None:
            timers.append(threading.Timer(limit, os._exit, [stopped.code]))
            timers[0].daemon = True
            timers[0].start()
        if _shielded:
            _waiting = stopped
        else:
            raise stopped

    before = {number: signal.signal(number, stop) for number in signals}
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def unbroken() -> Iterator[None]:
    """A block that a signal does not break into; it takes effect at its end."""
    global _shielded, _waiting
    _shielded += 1
    try:
        yield
    finally:
        _shielded -= 1
        if _waiting is not None and not _shielded:
            stopped, _waiting = _waiting, None
            raise stopped
