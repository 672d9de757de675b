"""The files of a run's final model, held to what the run wrote: their sha256 stand in DONE.json.

Whoever reads the model, to predict, to judge or to export it, says the run's figures and hash beside it, so it must be
the run's. That guards against files that were mixed up, cut short or edited, not against who also edits DONE.json.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from fedinit.errors import InputError
from fedinit.opening import read_bytes
from fedinit.runs import export
from fedinit.runs.done import DONE, KEY, done_of
from fedinit.runs.hints import anew
from fedinit.state import digest
from fedinit.unreadable import mode_of, unreadable

NAMES = (export.ADAPTER, export.SETTINGS, export.UNMERGED, export.HEAD, export.OFFSET, export.CLASSES)
ADDED = "the run wrote no such file; take it away"


def digests(folder: Path) -> dict[str, str]:
    """{path in the run's folder: sha256} of all that its final model is read from. Raises OSError."""
    return {file.relative_to(folder).as_posix(): digest.of_file(file) for file in _in(folder)}


def untrained(folder: Path, clients: Iterable[int]) -> list[int]:
    """Those of the clients whom the run in `folder`, of a method whose clients keep factors to themselves, wrote no
    adapter of their own; none in a run of before those shared one."""
    names = (done_of(folder) or {}).get(KEY, ())
    if f"{export.UNTRAINED}/{export.SETTINGS}" not in names:
        return []
    own = {name.rpartition("/")[0] for name in names}
    return [client for client in clients if export.folder_of(Path(), client).as_posix() not in own]


def refuse_changed(folder: Path, adapter: Path | None = None) -> None:
    """Raise InputError, one line, where a file of this adapter of the run is missing, was added, or holds other bytes
    than the run wrote, or cannot be read. A run of before these were kept is taken as it is.

    folder: of the run. adapter: of all clients or of one, a folder in it, or one file of it; None: all that there are.
    """
    files = None if adapter is None else [adapter] if adapter.name in NAMES else [adapter / name for name in NAMES]
    for file, what in faults(folder, files):
        way = anew(folder, "writes the model of its last checkpoint", f"or remove {DONE}, and ")
        raise InputError(f"{file}: {what}{', ' if way.startswith('or') else '; '}{way}")


def faults(folder: Path, files: Iterable[Path] | None = None) -> Iterator[tuple[Path, str]]:
    """Those of the files that are not as the run in `folder` wrote them, by its DONE.json, with what is the matter in
    words behind the name; None: of all that its final model is read from. Raises InputError where one cannot be read.
    """
    kept = (done_of(folder) or {}).get(KEY)
    if kept is None:
        return
    for file in sorted({*_in(folder), *(folder / name for name in kept)}) if files is None else files:
        there, was = mode_of(file) != 0, kept.get(file.relative_to(folder).as_posix())
        if there and was is None:
            yield file, ADDED
        elif was is not None and not there:
            yield file, "is not there, and the run wrote it; put it back"
        elif there and not os.path.isfile(file):
            yield file, _unread(file)
        elif there and _digest(file) != was:
            yield file, "is not what the run wrote, by its sha256; put that back"


def _in(folder: Path) -> list[Path]:
    return sorted(file for file in (folder / export.ONE).rglob("*") if file.name in NAMES and not file.is_dir())


def _unread(file: Path) -> str:
    """Why what is no file cannot be read, in words behind its name."""
    try:
        read_bytes(file)
    except OSError as error:
        return str(unreadable(file, error)).removeprefix(f"{file}: ")
    return "is not what the run wrote; put that back"


def _digest(file: Path) -> str:
    try:
        return digest.of_file(file)
    except OSError as error:
        raise unreadable(file, error) from error
