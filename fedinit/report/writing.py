"""Reports as files."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from fedinit.errors import InputError
from fedinit.report.runs.reading import RecordedRun, read
from fedinit.runs.own_files import REPORT
from fedinit.state import disk

FILE = REPORT


def write_report(
    runs: Sequence[RecordedRun],
    path: Path,
    write: Callable[[Path, bytes], None] = disk.put,
    how: str = "fedinit report … --output FILE writes it elsewhere",
) -> None:
    """Write the report of these runs to a file, whole or not at all. write: how. how: what a person does where the
    place cannot be written to.

    Raises InputError for runs on different data, and for a place that cannot be written to; OSError for a full one.
    """
    from fedinit.report.page import render  # here: matplotlib takes a second to import

    write_whole(path, render(runs), how, write)


def write_whole(
    path: Path,
    content: str,
    how: str = "name a file in a folder that can be written to",
    write: Callable[[Path, bytes], None] = disk.put,
) -> None:
    """Write a text to a place that a person named, as `disk.put` does. Raises InputError, one line that ends in `how`,
    for a place that cannot be written to; OSError for one that is full, or whose reader is gone."""
    try:
        write(path, content.encode("utf-8", "backslashreplace"))
    except OSError as error:
        if error.errno in disk.NO_PLACE:
            raise
        folder = os.path.dirname(os.path.realpath(path))
        missing = isinstance(error, FileNotFoundError) and not os.path.exists(folder)
        why = f"there is no folder {folder}" if missing else error.strerror
        raise InputError(f"{path}: cannot be written ({why}); {how}") from error


def report_of_run(folder: Path, say: Callable[[str], None]) -> Path | None:
    """report.html of a run that has just ended, in its folder. Whatever goes wrong becomes one warning, and None."""
    try:
        write_report([read(folder)], folder / FILE, disk.replace)
        say(f"report: {folder / FILE}")
        return folder / FILE
    except Exception as error:  # noqa: BLE001 (a report must never make a run fail)
        say(f"warning: {folder / FILE} was not written: {' '.join(str(error).split())}")
        return None
