"""A run's model, written in a format: checked by its reader first, whole or not at all, and over no files but its
own."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from fedinit.errors import InputError, choose, first_line
from fedinit.exports import FORMATS
from fedinit.exports.card import card
from fedinit.exports.contract import Format, absent
from fedinit.exports.portable import Portable
from fedinit.opening import make_folder, read_bytes
from fedinit.pasted import pasted
from fedinit.runs.own_files import refuse_own
from fedinit.runs.result import Run
from fedinit.state import disk

CONFIG, CARD = "config.json", "README.md"
PARTIAL = ".partial-"  # folders of what is not checked yet
TOLERANCE = 1e-5  # between the logits of the run's model and of the reader, where these are of the order of one


@dataclass(frozen=True)
class Exported:
    """folder: what was written. files: their names. size: bytes of all of them.
    difference: the largest, between the logits of the run's model and those of the format's reader; None: it is not
    installed, `untried` says which."""

    folder: Path
    files: tuple[str, ...]
    size: int
    difference: float | None
    untried: tuple[str, ...]


def export(run: Run, format: str, folder: Path | None = None, client: int | None = None) -> list[Exported]:
    """Write the model that a run ended with, or, of a method whose clients have models of their own, each of them once.

    format: a key of FORMATS.
    folder: to be made; None: export/<format> in the run's. Of clients' models it holds one a client, client-<n>,
        and client-untrained, that of all of whom no update counted.
    client: only this one's.

    Raises InputError for a run that is not done, a format that the model cannot be written in, and a folder that cannot
    be written, holds what is no export, or is among what a run writes into its own.
    """
    written = _format(format)
    if folder is not None:
        refuse_own("--output", folder)
    place = run.folder / "export" / format if folder is None else folder
    if client is None and run.clients_with_models:
        firsts = [clients[0] for clients in run.clients_by_model]
        return [_export(run, written, place / run.adapter(each).name, each) for each in firsts]
    inside = f"client-{client}" if client is not None and folder is None else ""
    return [_export(run, written, place / inside, client)]


def reader(format: str) -> str:
    """What reads the format back."""
    return _format(format).reader


def _format(name: str) -> Format:
    module, _, of = FORMATS[choose("--format", name, FORMATS)].partition(":")
    return getattr(importlib.import_module(module), of)()


def _export(run: Run, written: Format, folder: Path, client: int | None) -> Exported:
    if folder.is_symlink() and not folder.exists():
        raise InputError(
            f"{folder}: is a link that leads nowhere, to {os.readlink(folder)}; name another with --output"
        )
    if folder.exists() and not _is_export(folder, written.name):
        inside = "" if client is None else f"client-{client}"
        is_of_clients = inside and _is_export(folder / inside, written.name)
        how = (
            f"--output {pasted(folder / inside)} is this client's"
            if is_of_clients
            else "name a new folder with --output"
        )
        raise InputError(f"{folder}: is there, and is no {written.name} export; {how}")
    model = Portable.of(run, client)
    written.refuse(model)
    expected = model.logits()
    files = {**written.files(model), CARD: card(model, written).encode(), CONFIG: _config(model, written.name)}
    untried, difference = absent(written.reads_with), None
    if not untried:
        _import(written.reads_with)
    with _writing(folder):
        make_folder(folder)
        for leftover in folder.glob(f"{PARTIAL}*"):  # of one that was killed
            shutil.rmtree(leftover)
        with tempfile.TemporaryDirectory(dir=folder, prefix=PARTIAL) as partial:
            for name, content in files.items():
                (Path(partial) / name).write_bytes(content)
            if not untried:
                difference = _compare(written, Path(partial), model, expected)
            # Until the last file is there the folder says of itself that it is not to be read, and what looks at no
            # config.json finds no files of two models.
            disk.replace_json(folder / CONFIG, {"fedinit": {"format": written.name, "unfinished": True}})
            for name in {*written.at_times, *files} - {CONFIG}:
                (folder / name).unlink(missing_ok=True)
            for name in sorted(files, key=lambda name: name == CONFIG):
                os.replace(Path(partial) / name, folder / name)
    return Exported(folder, tuple(files), sum(map(len, files.values())), difference, tuple(untried))


def _import(packages: Sequence[str]) -> None:
    """Before there is a folder that a signal would leave: while a module is imported it ends the process at once."""
    for package in packages:
        with contextlib.suppress(Exception):  # which is said when it is to read
            importlib.import_module(package)


def _compare(written: Format, folder: Path, model: Portable, expected: Tensor) -> float:
    """The largest difference of logits. Raises InputError where the reader fails, or makes others of the files."""
    try:
        difference = float((written.read(folder, model) - expected).abs().max())
        size = float(expected.abs().max())
    except Exception as error:  # whatever a reader raises
        raise InputError(
            f"--format {written.name}: what was written cannot be read back ({type(error).__name__}: "
            f"{first_line(error)}); nothing is left of it"
        ) from error
    if not difference <= TOLERANCE * max(1.0, size):
        raise InputError(
            f"--format {written.name}: its reader gives other logits than the run's model, by {difference:.1e}; "
            "nothing is left of it; use --format merged"
        )
    return difference


def _config(model: Portable, format: str) -> bytes:
    values = model.config()
    values["fedinit"]["format"] = format
    return (json.dumps(values, indent=2) + "\n").encode()


def _is_export(folder: Path, format: str) -> bool:
    """Whether a folder is empty but for what a killed process left, or holds what was exported in this format."""
    try:
        if all(path.name.startswith((PARTIAL, f"{CONFIG}.tmp")) for path in folder.iterdir()):
            return True
        return json.loads(read_bytes(folder / CONFIG))["fedinit"]["format"] == format
    except (OSError, ValueError, TypeError, LookupError):
        return False


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Within, a folder that cannot be written is an InputError of one line."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be written ({error.strerror or error}); name another folder with --output"
        ) from error
