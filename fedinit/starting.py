"""Ctrl-C while a command is still being imported, which takes seconds: one line and 130, and no traceback of a library.

Nothing has begun then that could be lost.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator


def begin() -> None:
    """From here to `end`, Ctrl-C ends the process. Outside the main thread, or where it is ignored, nothing changes."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, _stop)


def end() -> None:
    """Let Ctrl-C be a KeyboardInterrupt again, which the command takes."""
    if signal.getsignal(signal.SIGINT) is _stop:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def imports() -> Iterator[None]:
    """`begin` and `end` around a block."""
    begin()
    try:
        yield
    finally:
        end()


def _stop(number: int, frame: object) -> None:
    with contextlib.suppress(OSError):  # the terminal may be what is gone
        os.write(2, b"stopped; nothing had begun\n")
    os._exit(130)  # an exception would pass through whatever is being imported
