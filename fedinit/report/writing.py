"""Reports as files."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

from fedinit.errors import InputError
from fedinit.report.runs.reading import RecordedRun, read

FILE = "report.html"


def write_report(runs: Sequence[RecordedRun], path: Path) -> None:
    """Write the report of these runs to a file, whole or not at all.

    Raises InputError for runs on different data, and for a place that cannot be written to.
    """
    from fedinit.report.page import render  # here: matplotlib takes a second to import

    write_whole(path, render(runs), "fedinit report … --output FILE writes it elsewhere")


def write_whole(path: Path, content: str, how: str = "name a file in a folder that can be written to") -> None:
    """Write a file, whole or not at all. Raises InputError, one line that ends in `how`, for a place that cannot be
    written to."""
    partial = path.with_name(f".{path.name}.tmp")
    try:
        partial.write_text(content, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); {how}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def report_of_run(folder: Path, say: Callable[[str], None]) -> Path | None:
    """report.html of a run that has just ended, in its folder. Whatever goes wrong becomes one warning, and None."""
    try:
        write_report([read(folder)], folder / FILE)
        say(f"report: {folder / FILE}")
        return folder / FILE
    except Exception as error:  # noqa: BLE001 (a report must never make a run fail)
        say(f"warning: {folder / FILE} was not written: {' '.join(str(error).split())}")
        return None
