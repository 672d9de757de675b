"""The tracker that `logger=` asks for, beside the tables that every run keeps (fedinit/runs/folder.py)."""

from __future__ import annotations

import netrc
import os
import pkgutil
from pathlib import Path

from rich.console import Console

from fedinit.config.schema import LOGGERS, Config
from fedinit.runs.tracker import Tracker

HOST = "api.wandb.ai"


def create_tracker(config: Config, folder: Path, console: Console) -> Tracker | None:
    """The tracker that `logger=` asks for, or None.

    ``auto`` tracks online where a wandb key exists, and else not at all; ``wandb`` writes offline, with a warning,
    where there is no key; ``wandb_offline`` needs none and writes into the run's folder; ``tensorboard`` does too;
    ``mlflow`` writes where MLFLOW_TRACKING_URI says.
    """
    mode = config.logger.name
    if mode == "auto":
        mode = "wandb" if _has_key() else "none"
    if mode == "none":
        return None
    if mode == "wandb" and not _has_key():
        console.print("warning: logger=wandb, but there is no key (WANDB_API_KEY); writing offline", style="yellow")
        mode = "wandb_offline"
    tracker: type[Tracker] = pkgutil.resolve_name(LOGGERS[mode])
    return tracker(config, folder, console)


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators(HOST) is not None
    except (OSError, netrc.NetrcParseError):
        return False
