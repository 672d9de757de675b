"""Files of a run's folder that are not what the run wrote: put aside, and written anew."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

from omegaconf import OmegaConf

from fedinit.config.schema import Config, to_dict
from fedinit.errors import InputError
from fedinit.opening import read_bytes
from fedinit.runs import done
from fedinit.runs.configured import computed_in, configured
from fedinit.runs.done import DONE
from fedinit.runs.lock import FolderLock
from fedinit.runs.named import CONFIG
from fedinit.runs.stopping import unbroken
from fedinit.runs.summary import SUMMARY, summary_of
from fedinit.state import disk
from fedinit.state.manifest import refuse_other


def mend(folder: Path, config: Config) -> list[str]:
    """Write the config.yaml of a run that is done anew where it says what the run did not compute with; a line of it,
    or none."""
    lock = None
    try:
        if configured(folder).computed() == config.computed():
            return []
    except InputError:
        pass
    try:
        lock = FolderLock(folder)
        return write_config(folder, config)
    except (InputError, OSError) as error:
        return [f"{folder / CONFIG} is not this run's, and cannot be written anew ({error})"]
    finally:
        if lock is not None:
            lock.release()


def write_config(folder: Path, config: Config) -> list[str]:
    """Write config.yaml, also over one with other places in it. One that says what this run does not compute with is
    put aside; a line says so. Raises OSError."""
    with unbroken():  # OmegaConf's own clean-up would replace the interrupt by another error
        text = OmegaConf.to_yaml(OmegaConf.create(to_dict(config)))
    file, notes = folder / CONFIG, []
    if file.exists() and read_bytes(file) != text.encode():
        computed_in(folder)  # an older format's file stays as it is
        try:
            refuse_other(configured(folder).computed(), config.computed(), CONFIG)
        except InputError:
            notes.append(_put_aside(file))
    disk.replace(file, text.encode())
    return notes


def put_aside_ends(folder: Path) -> list[str]:
    """Of a folder whose run goes on: put a summary.json and a DONE.json aside that no run has written; a line each says
    so. Raises OSError."""
    files = [folder / DONE] if done.wrong(folder) else []
    files += [folder / SUMMARY] if os.path.lexists(folder / SUMMARY) and summary_of(folder) is None else []
    return [_put_aside(file) for file in files]


def _put_aside(file: Path) -> str:
    file.replace(aside := free(file.with_name(f"{file.name}.edited")))
    return f"{file} was not this run's; it is written anew, and the other one is {aside.name}"


def free(path: Path) -> Path:
    """The path with the first of .1, .2, … behind it that nothing has yet."""
    return next(p for n in itertools.count(1) if not (p := path.with_name(f"{path.name}.{n}")).exists())
