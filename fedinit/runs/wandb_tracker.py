"""`logger=wandb`, `logger=wandb_offline`: Weights & Biases. Runs of one configuration are a group, whatever their seed;
one that goes on is the same one there; its report is an artefact of it."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from fedinit.opening import read_text
from fedinit.runs.tracker import Tracker, group_of, shown_address
from fedinit.state import disk

HOST = "https://api.wandb.ai"
TIMEOUT = 10  # seconds, where the environment does not say otherwise: a server that is not there costs no more
ID_FILE = "wandb-id"  # in the run's folder: which run it is there, also for whoever goes on with it


class WandbTracker(Tracker):
    """Sends every round's figures to wandb."""

    name: ClassVar[str] = "wandb"
    offline: ClassVar[bool] = False  # whether it writes into the run's folder alone
    run: Any = None

    def begin(self) -> None:
        import wandb  # here, since it takes a second to import and most runs do not use it

        kept = self.folder / ID_FILE
        if not kept.is_file():
            disk.replace(kept, secrets.token_hex(8).encode())
        if not self.offline:
            self.say(f"wandb: waiting for {shown_address(os.environ.get('WANDB_BASE_URL') or HOST)}")
        settings: dict[str, Any] = {"silent": True}
        if "WANDB_INIT_TIMEOUT" not in os.environ:
            settings["init_timeout"] = TIMEOUT
        self.run = wandb.init(
            id=read_text(kept),
            # A run that goes on is the same one there; offline each part has a folder, and the id joins them.
            resume=None if self.offline else "allow",
            project=self.config.logger.project,
            entity=self.config.logger.entity,
            name=self.folder.name,
            group=group_of(self.folder),
            job_type=self.config.strategy.name,
            dir=str(self.folder),
            config=self.values,
            mode="offline" if self.offline else "online",
            settings=wandb.Settings(**settings),
        )

    def log(self, values: Mapping[str, float], round: int) -> None:
        self.run.log(dict(values), step=round)

    def conclude(self, figures: Mapping[str, int | float | str]) -> None:
        self.run.summary.update(dict(figures))

    def keep(self, report: Path) -> None:
        import wandb

        artifact = wandb.Artifact(f"report-{self.folder.name}", type="report")
        artifact.add_file(str(report))
        self.run.log_artifact(artifact)

    def end(self, code: int) -> None:
        self.run.finish(**({"exit_code": code} if code else {}))


class OfflineWandbTracker(WandbTracker):
    """Writes them into the run's folder, for `wandb sync`."""

    offline: ClassVar[bool] = True
