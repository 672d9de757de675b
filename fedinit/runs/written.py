"""A file that only this process writes. What it wrote is held here too, so that no edit of the file becomes its own."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from fedinit.opening import read_bytes, regular
from fedinit.runs.mending import write_anew
from fedinit.state import disk


class Written:
    """A file of UTF-8 that is begun once, and then only grows.

    Somebody may delete it, or write to it, while the run goes on: it is then put aside and written anew, and a line
    says so, before anything more is written to it. A file is looked into only where its size, its time or its place on
    the disk are not as this process left them, so that a round costs what its rows cost, however many there are before.
    """

    def __init__(self, path: Path, text: str, tell: Callable[[str], object]) -> None:
        """Write the file, over what is there. Raises OSError.

        text: what it begins with. tell: takes the line of a file that was put aside.
        """
        self.path, self._tell = path, tell
        self._parts = [text]
        disk.replace(path, text.encode())
        self._left = _marks(path)

    @property
    def text(self) -> str:
        """All that was written, whatever the file says now."""
        if len(self._parts) > 1:
            self._parts = ["".join(self._parts)]  # not held twice
        return self._parts[0]

    def append(self, text: str) -> None:
        """Write more of it, at once, so that a reader hardly ever sees half a row. Raises OSError, and the text is then
        none of what was written."""
        if _marks(self.path) != self._left:
            self.hold()
        with disk.naming(self.path), open(self.path, "ab", opener=regular) as file:
            file.write(text.encode())
        self._parts.append(text)
        self._left = _marks(self.path)

    def hold(self) -> None:
        """Put a file aside that is not, to the byte, what was written, and write it anew. Raises OSError."""
        hold(self.path, self.text, self._tell)
        self._left = _marks(self.path)


def hold(path: Path, text: str, tell: Callable[[str], object]) -> None:
    """Put a file aside that is not, to the byte, this text, and write it anew; a line of it. Raises OSError."""
    content = text.encode()
    with contextlib.suppress(OSError):
        if read_bytes(path) == content:
            return
    tell(write_anew(path, content))


def _marks(path: Path) -> tuple[int, ...] | None:
    """What is another as a rule where somebody else wrote to a file; None where there is none to look at."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
