"""Where the options of a command write to. What would lose something is refused before anything is computed."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from fedinit.errors import InputError
from fedinit.opening import own
from fedinit.runs.own_files import REPORT, run_of
from fedinit.unreadable import mode_of

STDOUT = Path("-")  # what an option has that is to be written there; compared by `is`, for ./- is a file


def text_place(text: str) -> Path:
    """Of an option, where to write text: a file, or STDOUT for ``-``. A file of that name is ``./-``."""
    return STDOUT if text == "-" else _named(text)


def own_place(text: str) -> Path:
    """Of an option, the file or folder to make, which standard output cannot be."""
    if text == "-":
        raise argparse.ArgumentTypeError("-: this is not written to standard output; of a file of that name say ./-")
    return _named(text)


def _named(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("'': expected a name")
    return Path(text)


def refuse_lossy(places: Mapping[str, Path | None], read: Iterable[Path] = (), runs: Iterable[Path] = ()) -> None:
    """Raise InputError for a file that two options name, that the command reads, or that is a run's own, by whatever
    name: a link, or another name of the file itself.

    places: {option: where it writes; None: nowhere}. read: files that the command reads, and folders of such files.
    runs: folders of runs, or with runs below.
    """
    read, runs = list(read), list(runs)
    sources = {os.path.realpath(path): path for path in read}
    taken: dict[str | tuple[int, int], str] = {}
    for option, path in places.items():
        if (
            path is None
            or path is STDOUT
            or own(path) is not None
            or stat.S_IFMT(mode_of(path)) not in (0, stat.S_IFREG)
        ):
            continue  # what is written into, such as a device, loses nothing
        real = os.path.realpath(path)
        names = {real, _identity(path)} - {None}
        if before := next((taken[name] for name in names if name in taken), None):
            raise InputError(f"{before} and {option}: both are to be {path}; give each a file of its own")
        if source := sources.get(real) or _other_name(path, read):
            raise InputError(f"{option} {path}: is what is read, {source}; name another file")
        for name in filter(None, (path, _other_name(path, runs, of_runs=True))):
            is_report = os.path.basename(os.path.realpath(name)) == REPORT
            if (run := run_of(name)) is not None and not (is_report and option in ("--report", "--output")):
                raise InputError(f"{option} {path}: is a file of the run in {run}; name another file")
        taken |= dict.fromkeys(names, option)


def _identity(path: Path) -> tuple[int, int] | None:
    """What two names of one file have in common; None where there is none yet."""
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_dev, status.st_ino


def _other_name(path: Path, tops: Sequence[Path], of_runs: bool = False) -> Path | None:
    """Another name, among those files or below those folders, of the file at the path; None without one. Folders are
    gone through only for a file that has several names. of_runs: only what a run writes counts."""
    identity = _identity(path)
    if identity is None or os.stat(path).st_nlink < 2:
        return None
    real = os.path.realpath(path)
    below = (Path(folder, name) for top in tops for folder, _, names in os.walk(top) for name in names)
    for other in itertools.chain(tops, below):
        with contextlib.suppress(OSError):
            if _identity(other) == identity and os.path.realpath(other) != real and (not of_runs or run_of(other)):
                return other
    return None
