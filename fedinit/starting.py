"""While a command is still being imported: Ctrl-C is one line and 130, and no traceback of a library, since nothing has
begun that could be lost; and no garbage is looked for, since what is imported stays: a third of the time.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import signal
import threading
from collections.abc import Iterator


def begin() -> None:
    """From here to `end`, Ctrl-C ends the process, but outside the main thread, or where it is ignored."""
    gc.disable()
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, _stop)


def end() -> None:
    """Let Ctrl-C be a KeyboardInterrupt again, which the command takes. Garbage is looked for in what is made from now
    on: the half million objects that modules are would be most of each search. When the process ends it is looked for
    no more, which takes a second."""
    _collected()
    atexit.register(gc.freeze)
    if signal.getsignal(signal.SIGINT) is _stop:
        signal.signal(signal.SIGINT, signal.default_int_handler)


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
    with contextlib.suppress(OSError):  # the terminal may be what is gone
        os.write(2, b"stopped; nothing had begun\n")
    os._exit(130)  # an exception would pass through whatever is being imported
