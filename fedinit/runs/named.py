"""The folder that a person names as a run's: the same words for what is none, whatever the command. Nothing here
imports torch."""

from __future__ import annotations

import itertools
from pathlib import Path

from fedinit.errors import InputError
from fedinit.opening import astray, read_bytes
from fedinit.unreadable import Unreadable, is_folder, mode_of, unreadable

CONFIG = "config.yaml"
A_RUN = "give the folder of a run, as fedinit run prints it"


def refuse_no_folder(folder: Path, what: str, meant: str = A_RUN) -> None:
    """Raise InputError where there is no such folder, or nobody may look. what: the error calls it. meant: what was
    expected."""
    if is_folder(folder):
        return
    raise InputError(f"{what}: {'is a file' if mode_of(folder) else 'no such folder'}; {meant}")


def configuration(folder: Path, what: str | None = None, meant: str = A_RUN) -> bytes:
    """What config.yaml of the run in this folder holds. Raises InputError, one line, where there is none.

    what: the error calls the folder; None: by its path. meant: what was expected.
    """
    what = str(folder) if what is None else what
    refuse_no_folder(folder, what, meant)
    try:
        return read_bytes(folder / CONFIG)
    except FileNotFoundError as error:
        if wrong := astray(folder / CONFIG):
            raise Unreadable(f"{folder / CONFIG}: {wrong}; mend that, or give another") from error
        raise InputError(
            f"{what}: not the folder of a run, it has no {CONFIG}; {_runs_below(folder)}{meant}"
        ) from error
    except OSError as error:
        raise unreadable(folder / CONFIG, error) from error


def _runs_below(folder: Path) -> str:
    below = itertools.islice(sorted({*folder.glob(f"*/{CONFIG}"), *folder.glob(f"*/*/{CONFIG}")}), 4)
    runs = [str(file.parent) for file in below]
    return f"runs below it: {', '.join(runs[:3])}{', …' * (len(runs) > 3)}; " if runs else ""
