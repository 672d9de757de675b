"""Standard output and standard error of a command, where nobody reads them any more, where their disk is full, and
where they cannot show a character."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
import threading
from collections.abc import Callable
from typing import Any, TextIO

CLOSED = 141  # 128 + SIGPIPE, as a shell has it of a program whose reader has gone
# Of a pipe, and of a terminal that was closed; Windows has EINVAL for a pipe.
GONE = {errno.EPIPE, errno.EIO, *([errno.EINVAL] if os.name == "nt" else [])}


class OutputLost(BaseException):
    """Standard output takes no more. It passes through what catches Exception, as Ctrl-C does."""


class _Guarded(io.RawIOBase):
    """What a stream's bytes go through.

    lost: why they cannot be written, once that is so. silent: they are dropped then, and nothing is raised.
    wanted: they were asked for all the same, and the exit code says that they were not read.
    """

    def __init__(self, inner: Any, silent: bool) -> None:
        super().__init__()
        self._inner, self.silent, self.wanted = inner, silent, False
        self.name = getattr(inner, "name", None)
        self.lost: OSError | None = None

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._inner.fileno()

    def isatty(self) -> bool:
        return self._inner.isatty()

    def write(self, data: Any, /) -> int | None:
        if self.lost is None:
            try:
                return self._inner.write(data)
            except BlockingIOError:
                raise
            except OSError as error:
                self.lost = error
        # Another thread's error would end nothing; the main one finds the stream lost when it writes.
        if not self.silent and threading.current_thread() is threading.main_thread():
            raise OutputLost from self.lost
        return len(data)


class _Closed(_Guarded):
    """A standard output that was closed before the process began. What is printed is gone, and whatever else the
    command writes is written; that it is gone is told at the end, but where `silent`."""

    def write(self, data: Any, /) -> int:
        if not self.silent:
            self.lost = self.lost or OSError(errno.EBADF, os.strerror(errno.EBADF))
        return len(data)


class _AtOnce(io.BufferedWriter):
    """Without a buffer, as PYTHONUNBUFFERED=1 has it."""

    def write(self, data: Any, /) -> int:
        written = super().write(data)
        self.flush()
        return written


_output: _Guarded | None = None


def goes_on_without() -> None:
    """From here on what is done is worth more than what is printed: a lost standard output does not end it."""
    if _output is not None:
        _output.silent = True


def writes_files() -> None:
    """Files are asked for besides: they are written though nothing more can be printed, which the exit code tells."""
    if _output is not None and not isinstance(_output, _Closed):  # which ends nothing as it is
        _output.silent = _output.wanted = True


def prints_beside() -> None:
    """What is printed is not what was asked for, such as the name of a file that is: nothing is said of a standard
    output that was closed before."""
    if isinstance(_output, _Closed):
        _output.silent = True


def ended(command: Callable[[], int]) -> int:
    """Run the command, the process's last, with guarded streams; the exit code, CLOSED where nobody read to the end.

    A standard output whose disk is full, or that was closed before, is one line on standard error, and 1. What a
    stream's encoding lacks is replaced. Ctrl-C, once nothing takes it any more, is 130.
    """
    try:
        return _ended(command)
    except KeyboardInterrupt:
        return 130


def _ended(command: Callable[[], int]) -> int:
    global _output
    _output, errors = _guard("stdout", silent=False), _guard("stderr", silent=True)
    code, cut = 0, False
    try:
        code = command()
        sys.stdout.flush()
    except OutputLost:
        cut = True
    finally:  # what is still in a buffer is written when the process ends
        goes_on_without()
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        lost, cut, _output = _output and _output.lost, cut or (_output is not None and _output.wanted), None
    if lost is not None and lost.errno in GONE:
        code = CLOSED if cut else code
    elif lost is not None and lost.errno == errno.EBADF:
        print("failed: standard output is closed, and what was printed is gone", file=sys.stderr)
        code = code or 1
    elif lost is not None:
        print(f"failed: standard output: {lost.strerror or lost}", file=sys.stderr)
        code = code or 1
    if errors is not None:
        sys.stderr.flush()
    return code


def _guard(name: str, silent: bool) -> _Guarded | None:
    """Put a guarded stream in the place of the process's own; None where that is no file."""
    stream: TextIO | None = getattr(sys, name)
    if stream is None and name == "stdout":  # closed before the process began
        # Its number stays taken, so that no other file gets it, and nothing can be written there.
        nowhere = open(os.devnull, "rb", buffering=0)  # noqa: SIM115
        closed = _Closed(nowhere, silent)
        sys.stdout = io.TextIOWrapper(io.BufferedWriter(closed), "utf-8", "backslashreplace")
        return closed
    if stream is None:
        setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        return None
    buffer: Any = getattr(stream, "buffer", None)
    if buffer is None:
        return None
    raw = getattr(buffer, "raw", buffer)
    guarded = _Guarded(raw, silent)
    writer = io.BufferedWriter(guarded) if raw is not buffer else _AtOnce(guarded)
    through = bool(getattr(stream, "write_through", False)) or raw is buffer
    lines = bool(getattr(stream, "line_buffering", False))
    made = io.TextIOWrapper(writer, stream.encoding, _replacing(stream), line_buffering=lines, write_through=through)
    setattr(sys, name, made)
    return guarded


def _replacing(stream: TextIO) -> str:
    """The stream's way with characters that its encoding lacks, where that raises nothing."""
    utf8 = stream.encoding.lower().replace("_", "-") in ("utf-8", "utf8")
    if stream.errors not in ("strict", "surrogateescape") or (utf8 and stream.errors != "strict"):
        return stream.errors or "replace"
    return "backslashreplace" if utf8 else "replace"  # UTF-8 lacks no character, but half of one in a file's name
