"""Files of a run's folder that are not what the run wrote: put aside, and written anew."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fedinit.config.as_yaml import to_yaml
from fedinit.config.schema import Config, to_dict
from fedinit.errors import InputError
from fedinit.opening import read_bytes
from fedinit.runs import done, lock
from fedinit.runs.configured import computed_in, configured
from fedinit.runs.done import DONE
from fedinit.runs.lock import FolderLock
from fedinit.runs.made_of import read as read_made_of
from fedinit.runs.named import CONFIG
from fedinit.runs.own_files import FILES, FOLDERS, MADE_OF
from fedinit.runs.rows import LINES, METRICS, TABLES, as_written, header_and_rows, metrics_of
from fedinit.runs.sealed import ADDED, NAMES, faults
from fedinit.runs.summary import SUMMARY, summary_of
from fedinit.state import disk
from fedinit.state.checkpoint import Checkpoints, State
from fedinit.state.manifest import FOLDER, refuse_other, written_config


def mend(folder: Path, config: Config, rounds: int) -> list[str]:
    """Write anew of a run that is done the config.yaml that says what the run did not compute with, and the tables that
    are not those of its last checkpoint; a line of each, or none.

    config: of the run. rounds: that it has.
    """
    tables, notes = _tables_to_write(folder, rounds)
    if _is_of(folder, config) and not tables:
        return notes
    lock = None
    try:
        lock = FolderLock(folder)
        tables, notes = _tables_to_write(folder, rounds)  # now that nobody else mends them
        notes += [] if _is_of(folder, config) else write_config(folder, config)
        for file, text in tables.items():
            notes.append(write_anew(file, text.encode()))
    except (InputError, OSError) as error:
        files = ", ".join(map(str, (folder / CONFIG, *tables) if not _is_of(folder, config) else tables))
        notes.append(f"{files}: not this run's, and cannot be written anew ({error})")
    finally:
        if lock is not None:
            lock.release()
    return notes


def _is_of(folder: Path, config: Config) -> bool:
    """Whether the run's folder has this configuration."""
    try:
        return configured(folder).computed() == config.computed()
    except InputError:
        return False


def _tables_to_write(folder: Path, rounds: int) -> tuple[dict[Path, str], list[str]]:
    """{table that is not as a run of so many rounds wrote it: what it had}, and a line of each that is not there and
    that no checkpoint of the run's end has; metrics.jsonl may have metrics.csv then."""
    at_end = end_of(folder, rounds)
    if at_end is None:
        why = "nor is a checkpoint of the run's end that has it; resume=never with the run's own words runs it again"
        lost = {folder / name: what for name in TABLES if name != LINES and (what := _lost(folder / name, rounds))}
        text = metrics_of(_text(folder / LINES) or "", rounds) if (metrics := folder / METRICS) in lost else None
        found = {} if text is None else {metrics: text}
        told = [f"{file}: {what}, {why}" for file, what in lost.items() if file not in found]
        told += [f"{file}: {lost[file]}; its figures are all in {LINES}, by which it is written" for file in found]
        if read_made_of(folder) is None:
            unknown = "nobody can say of which images it was, or between which levels grey was shown"
            told.append(f"{folder / MADE_OF}: cannot be read, {why}; {unknown}")
        return found, told
    kept, names = at_end.get("files", State()).facts, (*TABLES, MADE_OF)
    return {folder / name: kept[name] for name in names if name in kept and _text(folder / name) != kept[name]}, []


def _lost(table: Path, rounds: int) -> str:
    """What a table of a run of so many rounds has not, in words behind its name; empty where it is whole."""
    if not os.path.lexists(table):
        return "is not there"
    try:
        _, rows = header_and_rows(as_written(table, "replace") + "\n")
    except (OSError, csv.Error):
        return "cannot be read"
    return "" if any(row[:1] == [str(rounds)] for row in rows) else f"round {rounds} is not in it"


def _text(file: Path) -> str | None:
    try:
        return as_written(file)
    except (OSError, ValueError):
        return None


def end_of(folder: Path, rounds: int) -> Mapping[str, State] | None:
    """What the checkpoint after the last of a run's rounds has, {part: its state}; None where there is none that is
    whole, or it is of another version."""
    try:
        written = written_config(folder / FOLDER)
        loaded = Checkpoints(folder / FOLDER, written or {}).load()
    except (InputError, OSError):
        return None
    return loaded.states if written and loaded.round == rounds else None


def write_config(folder: Path, config: Config) -> list[str]:
    """Write config.yaml, also over one with other places in it. One that says what this run does not compute with is
    put aside; a line says so. Raises OSError."""
    text = to_yaml(to_dict(config))
    file, notes = folder / CONFIG, put_aside_odd(folder, [CONFIG])
    if file.exists() and read_bytes(file) != text.encode():
        computed_in(folder)  # an older format's file stays as it is
        try:
            refuse_other(configured(folder).computed(), config.computed(), CONFIG)
        except InputError:
            return [*notes, write_anew(file, text.encode())]
    disk.replace(file, text.encode())
    return notes


def put_aside_ends(folder: Path, own: Mapping[str, Any]) -> list[str]:
    """Of a folder whose run goes on: put a summary.json and a DONE.json aside that no run has written, files of the
    model that are not what DONE.json says, and tables that do not begin as the run's do; a line each says so. Raises
    OSError, and InputError for one of these that cannot be read.

    own: {name: text} of its files, by its last checkpoint, since when rows may have come.
    """
    odd = put_aside_odd(folder, sorted(FILES - {lock.NAME}), sorted(FOLDERS - {FOLDER}))
    files = [folder / DONE] if done.wrong(folder) else []
    files += [folder / SUMMARY] if os.path.lexists(folder / SUMMARY) and summary_of(folder) is None else []
    files += [folder / name for name in (*TABLES, MADE_OF) if name in own and not _goes_on(folder / name, own[name])]
    model = [(file, what == ADDED) for file, what in faults(folder)]
    return odd + [put_aside(file) for file in files] + [put_aside(file, added) for file, added in model]


def _goes_on(file: Path, text: str) -> bool:
    """Whether a file is not there, or begins with what the checkpoint has of it."""
    now = _text(file)
    return not os.path.lexists(file) or (now is not None and now.startswith(text))


def put_aside_odd(folder: Path, files: Iterable[str], folders: Iterable[str] = ()) -> list[str]:
    """Put aside what has the name of one of a run's files and is none, such as a folder or a link that leads nowhere,
    and what has that of a folder and is none; a line each. Raises OSError."""
    odd = [folder / name for name in files if os.path.lexists(folder / name) and not (folder / name).is_file()]
    odd += [folder / name for name in folders if os.path.lexists(folder / name) and not (folder / name).is_dir()]
    odd += [path for top in folders for path in (folder / top).rglob("*") if path.name in NAMES and not path.is_file()]
    return [put_aside(path, added=True) for path in odd]


def write_anew(file: Path, content: bytes) -> str:
    """Write a file of the run's, and put aside what has its name; a line of it. Raises OSError, and nothing is moved
    then."""
    aside = _aside(file)
    disk.replace(file, content, aside=aside)
    return _told_anew(file, aside)


def put_aside(file: Path, added: bool = False) -> str:
    """Make room for a file that is then written, or, `added`, is none of a run's; a line of it. Raises OSError."""
    aside = _aside(file)
    if os.path.lexists(file):
        file.replace(aside)
    return f"{file} was not this run's; it is now {aside.name}" if added else _told_anew(file, aside)


def _aside(file: Path) -> Path:
    return disk.free(file.with_name(f"{file.name}.edited"))


def _told_anew(file: Path, aside: Path) -> str:
    """aside: where what had the file's name is now, if anything had."""
    if not os.path.lexists(aside):
        return f"{file} was not there; it is written anew"
    return f"{file} was not this run's; it is written anew, and the other one is {aside.name}"
