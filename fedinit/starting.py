"""While a command is still being imported: Ctrl-C, SIGTERM and SIGHUP are a line and their code, and no traceback of a
library, since nothing has begun that could be lost; and no garbage is looked for, since what is imported stays: a third
of the time.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import signal
import threading
from collections.abc import Iterator

from fedinit.leaving import at_once

# Python's own handlers.
USUAL = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
if hasattr(signal, "SIGHUP"):  # Windows has none
    USUAL[signal.SIGHUP] = signal.SIG_DFL


def begin() -> None:
    """From here to `end`, such a signal ends the process, but outside the main thread, or where it is ignored or has a
    handler of somebody else's."""
    gc.disable()
    if threading.current_thread() is threading.main_thread():
        for number, usual in USUAL.items():
            if signal.getsignal(number) == usual:
                signal.signal(number, _stop)


def end() -> None:
    """Let Ctrl-C be a KeyboardInterrupt again, which the command takes, and the others the end. Garbage is looked for
    in what is made from now on: the half million objects that modules are would be most of each search. When the
    process ends it is looked for no more, which takes a second."""
    _collected()
    atexit.register(gc.freeze)
    for number, usual in USUAL.items():
        if signal.getsignal(number) is _stop:
            signal.signal(number, usual)


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """`begin` and `end` around a block, of garbage alone."""
    gc.disable()
    try:
        yield
    finally:
        _collected()


@contextlib.contextmanager
def imports() -> Iterator[None]:
    """`begin` and `end` around a block."""
    begin()
    try:
        yield
    finally:
        end()


def _collected() -> None:
    gc.freeze()
    gc.enable()


def _stop(number: int, frame: object) -> None:
    at_once(128 + number, "stopped; nothing had begun")  # an exception would pass through whatever is being imported
