"""The lock of a run's folder: one process at a time writes to it. It ends with its process, however that ends."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from filelock import FileLock, Timeout

from fedinit.errors import FolderBusy
from fedinit.state.disk import WINDOWS

EVERY = 1.0  # seconds between two looks at a lock that another process holds
NAME = ".lock"  # in the folder, while it is held


def wait(folder: Path) -> None:
    """Return when no process holds the lock of this folder any more."""
    # One that is not held is gone, but for a process that was killed: only then is it tried, for whoever tries has it.
    while (folder / NAME).exists():
        try:
            FolderLock(folder).release()
        except FolderBusy:
            time.sleep(EVERY)
        except OSError:  # the folder is gone in the meantime
            return


class FolderLock:
    """A folder that this process alone writes to, from the moment the lock is constructed until `release`."""

    def __init__(self, folder: Path) -> None:
        """folder: one that is there. Raises FolderBusy where another process holds it, OSError where none can."""
        self._file = folder / NAME
        self._lock = FileLock(self._file, timeout=0, thread_local=False)
        try:
            self._lock.acquire()
        except Timeout as error:
            raise FolderBusy(folder) from error

    def release(self) -> None:
        """Let another process have the folder, and leave nothing of the lock in it."""
        if self._lock.is_locked:
            with contextlib.suppress(OSError):  # Windows removes no open file; there filelock does, once it is closed
                self._file.unlink()
            self._lock.release()

    def move_folder(self, aside: Path) -> None:
        """Give the folder another name, and release it. Raises OSError, and the folder stays where it is."""
        folder = self._file.parent
        if WINDOWS:  # no folder is renamed there while a file in it is open, be it by this process or another
            self.release()
            folder.rename(aside)
        else:
            folder.rename(aside)
            self._file = aside / NAME
            self.release()
