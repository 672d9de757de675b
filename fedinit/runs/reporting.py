"""A run's way out: its folder, its tracker, its final files, its table and its report, the same for every way of
running it."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from fedinit.config.schema import Config
from fedinit.data.dataset import Dataset
from fedinit.data.shares import Partition
from fedinit.errors import InputError
from fedinit.report.recording.holdings import record_holdings
from fedinit.report.recording.recorder import Recorder
from fedinit.report.runs.reading import HEAD_ALONE
from fedinit.report.writing import report_of_run
from fedinit.runs import ended, made_of, status
from fedinit.runs.done import DONE
from fedinit.runs.export import FinalModel, export
from fedinit.runs.folder import Located, RunFolder
from fedinit.runs.mending import mend
from fedinit.runs.observer import Observer
from fedinit.runs.own_files import REPORT
from fedinit.runs.sealed import refuse_changed
from fedinit.runs.table import print_summary
from fedinit.runs.tracking import create_tracker
from fedinit.runs.writable import unwritable
from fedinit.state import disk
from fedinit.state.checkpoint import Part
from fedinit.state.manifest import FOLDER
from fedinit.telling import announce, tell


@dataclass(frozen=True)
class OpenRun:
    """A run that is being written.

    config: what is run.
    folder: where it is written.
    observers: to be told of every round; the folder is one of them, the tracker another.
    console: where its table goes.
    """

    config: Config
    folder: RunFolder
    observers: Sequence[Observer]
    console: Console

    def checkpoints(self, reference: str | None = None) -> Path:
        """The folder of this run's checkpoints, or of those of a reference run of this name beside it."""
        return self.folder.path / FOLDER / (reference or "")

    @property
    def parts(self) -> dict[str, Part]:
        """What its checkpoints keep of its files, by name."""
        parts: dict[str, Part] = {"files": self.folder}
        for observer in self.observers:
            if isinstance(observer, Recorder):
                parts["record"] = observer
        return parts

    def hold_to(self, data: Dataset) -> None:
        """Raise InputError where the pixels would be others than when the run began (`made_of.hold_to`); of one that
        begins, keep between which levels they are."""
        try:
            made_of.hold_to(self.folder.path, data.levels)
            self.folder.keep_levels(data.levels)
        except OSError as error:
            raise unwritable(self.config, self.folder.path, error) from error

    def record_holdings(self, data: Dataset, partitions: Sequence[Partition]) -> None:
        """Note who holds what, for the report of a simulation, which knows it. What goes wrong becomes one warning."""
        if self.config.report != "none":
            # Of a private run its folder holds none: what it tells is meant to be the model.
            images = self.config.report == "full" and self.config.privacy.name == "none"
            try:
                record_holdings(self.folder.path, data, partitions, self.config.seed, images)
            except Exception as error:  # noqa: BLE001 (a report must never stop a run)
                announce(self.console, f"warning: who holds what is not recorded for the report: {error}")

    def keep_reference(self, head_alone: Mapping[str, Any] | None) -> None:
        """Note what the reference scored, for comparisons of a run that is not done; None: there is no reference."""
        if head_alone is not None:
            disk.replace_json(self.folder.path / HEAD_ALONE, head_alone)

    def finish(self, model: FinalModel, summary: Mapping[str, Any]) -> dict[str, Any]:
        """Write the adapters, tell the observers, who write the summary, print the table, and write the report.

        model: what the run ended with.
        summary: the figures of the run.

        Returns the figures, joined by what ran, where, and where in the folder the adapters are.
        """
        figures = {
            **summary,
            "adapter": export(self.folder.path, model, self.config),
            **({"untrained": model.untrained} if model.untrained else {}),
            "strategy": self.config.strategy.name,
            "data": self.config.data.name,
            "model": self.config.model.title,
            "folder": str(self.folder.path),
        }
        for observer in self.observers:
            observer.finished(figures)
        with contextlib.suppress(OSError):  # the summary has it now
            (self.folder.path / HEAD_ALONE).unlink(missing_ok=True)
        print_summary(self.console, figures, str(self.folder.path), self.config)
        if self.config.report != "none":
            report = report_of_run(self.folder.path, partial(announce, self.console))
            if report is not None:
                for observer in self.observers:
                    observer.reported(report)
        return figures

    def close(self) -> None:
        """Close the tracker, which keeps what it was told, and then the folder, however the run ended, and note there
        what ended it before its end."""
        status.remove(self.folder.path)
        if not os.path.lexists(self.folder.path / DONE):
            ended.note(self.folder.path, sys.exc_info()[1])
        for observer in reversed(self.observers):
            observer.close()


def show_done(done: Mapping[str, Any], config: Config, folder: Path, console: Console) -> dict[str, Any]:
    """Print the table of a run that is done, and write its report where none is there, as where a signal came before it
    was; returns its summary, with the folder as it is now, `done_before`, and `other_code`: by what it was begun, where
    that is other than here now.

    done: its summary. config: what was asked for, which the run's config.yaml is mended by.
    """
    console.print("this run is done; resume=never runs it again", highlight=False)
    code = made_of.of_other_code(folder)
    if code:
        tell(console, f"it was begun by {code}", "yellow")
    for note in mend(folder, config, done["rounds"]):
        tell(console, note, "yellow")
    whole = True
    try:
        refuse_changed(folder)
    except InputError as damaged:  # the table is the summary's
        whole = False
        tell(console, f"warning: {damaged}", "yellow")
    print_summary(console, done, str(folder), config)
    if os.path.lexists(folder / REPORT):
        announce(console, f"report: {folder / REPORT}")
    elif whole and config.report != "none":
        report_of_run(folder, partial(announce, console))
    return {**done, "folder": str(folder), "done_before": True, "other_code": code}


def open_run(config: Config, console: Console, located: Located, anew: bool = False) -> OpenRun:
    """Make the run's folder, or open it where the run goes on, and start tracking, as `logger=` says.

    console: where warnings and the final table go.
    located: where the run is kept, and what it is made of.
    anew: move a run that is there aside, done or not, as resume=never does.

    Raises InputError when the folder cannot be written, RunDone where another process ended the run in the meantime.
    """
    folder = RunFolder(config, located, anew, partial(tell, console, style="yellow"))
    try:
        ended.forget(folder.path)
        observers: list[Observer] = [folder]
        tracker = create_tracker(config, folder.path, console)
        if tracker is not None:
            observers.append(tracker)
        if config.report != "none":
            by_layer = bool(config.strategy.options.get("diagnostics", True))
            observers.append(Recorder(folder.path, partial(announce, console), by_layer))
        return OpenRun(config, folder, observers, console)
    except BaseException:
        folder.close()
        raise
