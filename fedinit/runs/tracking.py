"""The tracker that `logger=` asks for, beside the tables that every run keeps (fedinit/runs/folder.py)."""

from __future__ import annotations

import netrc
import os
from pathlib import Path

from rich.console import Console

from fedinit.config.schema import Config
from fedinit.runs.observer import Observer

HOST = "api.wandb.ai"


def create_tracker(config: Config, folder: Path, console: Console) -> Observer | None:
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
    if mode == "tensorboard":
        from fedinit.runs.tensorboard_tracker import TensorboardTracker

        return TensorboardTracker(config, folder, console)
    if mode == "mlflow":
        from fedinit.runs.mlflow_tracker import MlflowTracker

        return MlflowTracker(config, folder, console)
    if mode == "wandb" and not _has_key():
        console.print("warning: logger=wandb, but there is no key (WANDB_API_KEY); writing offline", style="yellow")
        mode = "wandb_offline"
    from fedinit.runs.wandb_tracker import WandbTracker

    return WandbTracker(config, folder, console, offline=mode == "wandb_offline")


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators(HOST) is not None
    except (OSError, netrc.NetrcParseError):
        return False
