"""Whether a run's folder can be written to, said of the folder that cannot be."""

from __future__ import annotations

from pathlib import Path

from fedinit.config.schema import Config
from fedinit.errors import InputError
from fedinit.pasted import pasted, resuming
from fedinit.state import disk


def refuse_unwritable(config: Config, path: Path) -> None:
    """Raise InputError where the run's folder, `path`, could not be written: before images are read for it."""
    try:
        disk.try_writing(path)
    except OSError as error:
        raise unwritable(config, path, error) from error


def unwritable(config: Config, path: Path, error: OSError) -> InputError:
    """The refusal of a run whose folder, `path`, cannot be written to, one line: of the folder itself where it is
    there, else of where it was to be made."""
    why = f"cannot write there ({error.strerror})"
    allow = f"chmod -R u+rwX {pasted(path)} lets its owner, or " if isinstance(error, PermissionError) else ""
    if config.resume not in ("auto", "never"):
        return InputError(f"{path}: {why}; {allow}go on with a copy of it elsewhere: {resuming('COPY')}")
    if path.is_dir():
        return InputError(f"{path}: {why}; {allow}give another place, output_dir=FOLDER")
    return InputError(f"output_dir={config.output_dir}: {why}; give a folder that can be written to")
