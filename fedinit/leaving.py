"""The end of a process, also in whatever operation it is: one line on stderr, and its exit code."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from typing import NoReturn

SECONDS = 1.0  # that the line may take, which nobody may be there to read
CURSOR = b"\x1b[?25h"  # shows it, where a live view had hidden it


def leave(code: int) -> NoReturn:
    """End the process with its exit code; after a signal without waiting for lanes in the midst of a bank, or for
    another signal to come in between."""
    if code > 128:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def at_once(code: int, line: str) -> NoReturn:
    """Nothing that is open is closed, nor written to its end, and nobody else is told."""
    teller = threading.Thread(target=_write, args=(line,), daemon=True)
    with contextlib.suppress(RuntimeError):  # no thread is to be had, as where the interpreter ends already
        teller.start()
        teller.join(SECONDS)
    os._exit(code)


def _write(line: str) -> None:
    with contextlib.suppress(OSError):  # the terminal may be what is gone
        os.write(2, f"{line}\n".encode())
        if os.isatty(1) and os.environ.get("TERM") not in ("dumb", "unknown"):
            os.write(1, CURSOR)
