"""What is there and cannot be read, told as that: not as something that is missing, empty or of another kind."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from fedinit.errors import InputError
from fedinit.opening import astray, kind
from fedinit.pasted import pasted


class Unreadable(InputError):
    """Something is there, and cannot be read."""


def unreadable(path: Path, error: OSError) -> Unreadable:
    """The refusal of a path that cannot be read, one line: which file or folder forbids it, and what to do."""
    if isinstance(error, PermissionError):
        return _denied(path)
    why = (error.strerror or str(error)).lower()
    return Unreadable(f"{path}: cannot be read ({why}); mend that, or give another")


def _denied(path: Path) -> Unreadable:
    closed = _closed(path)
    return Unreadable(
        f"{closed}: cannot be read (permission denied); chmod -R u+rX {pasted(closed)} lets its owner read it, others "
        "ask the owner"
    )


def mode_of(path: Path) -> int:
    """The path's mode, 0 where nothing is there. Raises InputError where that cannot be told.

    Path.exists and its like say of what is in a folder that forbids it, as of Python 3.14, that it is not there.
    """
    try:
        return os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return 0
    except ValueError:  # a name that no file can have
        return 0
    except OSError as error:
        raise unreadable(path, error) from error


def is_file(path: Path) -> bool:
    """Whether a file is there. Raises InputError where that cannot be told."""
    return stat.S_ISREG(mode_of(path))


def is_folder(path: Path) -> bool:
    """Whether a folder is there. Raises InputError where that cannot be told."""
    return stat.S_ISDIR(mode_of(path))


def no_file(path: Path, folders: bool = False) -> str:
    """What is wrong with what is there, in words behind its name, where it is no file, nor, with `folders`, a folder;
    empty where it is one, and where nothing is. Raises InputError where that cannot be told."""
    if wrong := astray(path):
        return wrong
    mode = mode_of(path)
    fits = not mode or stat.S_ISREG(mode) or (folders and stat.S_ISDIR(mode))
    return "" if fits else f"{kind(mode)}, not a file"


def _closed(path: Path) -> Path:
    """What forbids it: the topmost folder that lets nobody through to the path, or the path itself."""
    for part in (*reversed(path.parents), path):
        try:
            os.stat(part)
        except PermissionError:
            return part.parent
        except OSError:
            break
    return path
