"""Weights & Biases, if wanted. Whatever goes wrong there becomes one warning, and the run goes on without it."""

from __future__ import annotations

import netrc
import os
import secrets
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from fedinit.config.schema import Config, to_dict
from fedinit.runs.observer import Observer, RoundReport
from fedinit.state import disk

HOST = "api.wandb.ai"
ID_FILE = "wandb-id"  # in the run's folder: which run it is there, also for whoever goes on with it


def create_tracker(config: Config, folder: Path, console: Console) -> Observer | None:
    """The tracker that `logger=` asks for, or None.

    ``auto`` tracks online where a key exists, and else not at all; ``wandb`` writes offline, with a warning, where
    there is no key; ``wandb_offline`` needs none and writes into the run's folder.
    """
    mode = config.logger.name
    if mode == "auto":
        mode = "wandb" if _has_key() else "none"
    if mode == "none":
        return None
    if mode == "wandb" and not _has_key():
        console.print("warning: logger=wandb, but there is no key (WANDB_API_KEY); writing offline", style="yellow")
        mode = "wandb_offline"
    return WandbTracker(config, folder, console, offline=mode == "wandb_offline")


class WandbTracker(Observer):
    """Sends every round's figures to wandb."""

    def __init__(self, config: Config, folder: Path, console: Console, *, offline: bool) -> None:
        """
        config: the run's, which wandb is told whole; its `logger` says the project and the entity.
        folder: of the run, which names it there, and which wandb writes into.
        console: where a warning goes.
        offline: write into the folder alone.
        """
        self.console, self.run = console, None
        values = to_dict(config)
        kept = folder / ID_FILE

        def begin() -> None:
            import wandb  # here, since it takes a second to import and most runs do not use it

            if not kept.is_file():
                disk.replace(kept, secrets.token_hex(8).encode())
            identity = kept.read_text(encoding="utf-8")
            self.run = wandb.init(
                id=identity,
                # A run that goes on is the same one there; offline each part has a folder, and the id joins them.
                resume=None if offline else "allow",
                project=config.logger.project,
                entity=config.logger.entity,
                name=folder.name,
                dir=str(folder),
                config=values,
                mode="offline" if offline else "online",
                settings=wandb.Settings(silent=True, init_timeout=30),
            )

        self._try(begin)

    def round_zero_done(self, report: RoundReport) -> None:
        if report.clients:  # a round of its own, where clients measured something
            self.round_done(report)

    def round_done(self, report: RoundReport) -> None:
        values: dict[str, Any] = {
            **({} if report.train_loss is None else {"train_loss": report.train_loss}),
            "bytes_up": report.bytes_up,
            "bytes_down": report.bytes_down,
            **report.diagnostics,
        }
        if report.score is not None:
            values[report.score.name] = report.score.mean
            values |= {f"{report.score.name}/{name}": value for name, value in report.score.by_domain.items()}
        self._try(lambda: self.run and self.run.log(values, step=report.round))

    def finished(self, summary: Mapping[str, Any]) -> None:
        def end() -> None:
            if self.run is not None:
                self.run.summary.update({k: v for k, v in summary.items() if isinstance(v, (int, float, str))})
                self.run.finish()
            self.run = None

        self._try(end)

    def close(self) -> None:
        """End what `finished` did not, as the run that a signal or an error ended: what it logged is kept."""
        if self.run is not None:
            stopped = sys.exc_info()[1]
            self._try(lambda: self.run and self.run.finish(exit_code=getattr(stopped, "code", 1)))
            self.run = None

    def _try(self, work: Callable[[], Any]) -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001 (tracking must never stop a run)
            self.run = None
            self.console.print(f"warning: wandb is off for this run: {error}", style="yellow", markup=False)


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators(HOST) is not None
    except (OSError, netrc.NetrcParseError):
        return False
