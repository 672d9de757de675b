"""Where the options of a command write to. What would lose something is refused before anything is computed."""

from __future__ import annotations

import argparse
import os
import stat
from collections.abc import Iterable, Mapping
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


def refuse_lossy(places: Mapping[str, Path | None], read: Iterable[Path] = ()) -> None:
    """Raise InputError for a file that two options name, that the command reads, or that is a run's own.

    places: {option: where it writes; None: nowhere}. read: files that the command reads.
    """
    sources = {os.path.realpath(path): path for path in read}
    taken: dict[str, str] = {}
    for option, path in places.items():
        if (
            path is None
            or path is STDOUT
            or own(path) is not None
            or stat.S_IFMT(mode_of(path)) not in (0, stat.S_IFREG)
        ):
            continue  # what is written into, such as a device, loses nothing
        real = os.path.realpath(path)
        if real in taken:
            raise InputError(f"{taken[real]} and {option}: both are to be {path}; give each a file of its own")
        if real in sources:
            raise InputError(f"{option} {path}: is what is read, {sources[real]}; name another file")
        run, name = run_of(path), os.path.basename(real)
        if run is not None and not (name == REPORT and option in ("--report", "--output")):
            raise InputError(f"{option} {path}: is a file of the run in {run}; name another file")
        taken[real] = option
