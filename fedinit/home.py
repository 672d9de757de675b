"""Paths that begin with ~, a user's home folder."""

from __future__ import annotations

from pathlib import Path

from fedinit.errors import InputError


def expand_home(key: str, given: str) -> Path:
    """The path, with the home folder for ~ or ~user. key: what names it. Raises InputError for a user without one,
    and for no path at all, which would be the folder that the process was started in."""
    if not given.strip():
        raise InputError(f"{key} is empty; give the path")
    try:
        return Path(given).expanduser()
    except RuntimeError as error:
        user = Path(given).parts[0]
        raise InputError(f"{key}={given}: there is no home folder {user}; give the whole path") from error
