"""Where a prepared set may go: not where its archives are, nor where no folder can be."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from fedinit.data.archives import files_of
from fedinit.data.official import Official
from fedinit.errors import InputError
from fedinit.opening import astray, kind
from fedinit.unreadable import mode_of

RECORD = ".prepared.json"  # in the folder: what it was made of; a name that no run reads


def refuse_no_folder(place: Path) -> None:
    """Raise InputError for a place that is a link to nowhere, a pipe, a socket or a device."""
    if wrong := astray(place):
        raise InputError(f"--to {place}: {wrong}; make that folder, or give another --to")
    mode = mode_of(place)
    if mode and not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
        raise InputError(f"--to {place}: {kind(mode)}, not a folder; give another")


def refuse_what_is_read(place: Path, official: Official, given: Sequence[Path]) -> None:
    """Raise InputError for a place that is one of the files and folders given, holds one, or holds one of the files in
    those: to make room there would delete it. So would, nearly, what is there already in a folder that is given.

    Raises InputError for what is given and is no archive, too.
    """
    if not os.path.lexists(place):
        return
    real = Path(os.path.realpath(place))
    for path in (*given, *files_of(official, given)):
        if any(real in (name, *name.parents) for name in _names(path)) or _is_one(place, path):
            raise InputError(f"--to {place}: is what is read; give another")
    is_ours = os.path.lexists(place / RECORD) or (place.is_dir() and not any(place.iterdir()))
    for folder in () if is_ours else given:
        if Path(os.path.realpath(folder)) in real.parents:
            raise InputError(f"--to {place}: is there already, among what is read in {folder}; give another")


def _names(path: Path) -> tuple[Path, Path]:
    """Where a path is, and where it leads."""
    return Path(os.path.realpath(path.parent), path.name), Path(os.path.realpath(path))


def _is_one(place: Path, other: Path) -> bool:
    """Whether they are one file, by whatever names."""
    try:
        return os.path.samefile(place, other)
    except FileNotFoundError:
        return False
