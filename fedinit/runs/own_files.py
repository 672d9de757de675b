"""What a run's folder is made of: files that a run writes there, which nothing else is written over. Nothing here
imports torch."""

from __future__ import annotations

import os
from pathlib import Path

from fedinit.errors import InputError
from fedinit.runs import ended, lock, status
from fedinit.runs.done import DONE
from fedinit.runs.named import CONFIG
from fedinit.runs.rows import LINES, METRICS
from fedinit.runs.summary import SUMMARY
from fedinit.state.manifest import FOLDER

REPORT, MADE_OF = "report.html", "made_of.json"
SITES = "federation.json"  # of a deployment: whose run it is
FILES = {CONFIG, SUMMARY, DONE, METRICS, LINES, REPORT, ended.FILE, status.FILE, lock.NAME}
FILES |= {"clients.csv", "ledger.jsonl", MADE_OF, ".head_alone.json", "wandb-id", "mlflow-id"}
FILES |= {"diagnostics.csv", SITES}  # the first of a start that is compared
FOLDERS = {FOLDER, "adapter", "record", "tensorboard", "wandb"}


def run_of(path: Path) -> Path | None:
    """The folder of the run that this file is one of; None for a file that no run writes. A link is followed."""
    real = Path(os.path.realpath(path))
    for folder, name in zip(real.parents, (real.name, *(part.name for part in real.parents)), strict=False):
        if (name in FOLDERS or (folder == real.parent and name in FILES)) and _is_run(folder):
            return folder
    return None


def refuse_own(option: str, folder: Path) -> None:
    """Raise InputError where a folder that an option names, to be made, is or lies among what a run writes."""
    if (run := run_of(folder)) is not None:
        raise InputError(f"{option} {folder}: is among the files of the run in {run}; name another folder")


def _is_run(folder: Path) -> bool:
    """Others have a config.yaml too, but nothing else of a run's."""
    return os.path.lexists(folder / CONFIG) and any(os.path.lexists(folder / name) for name in (METRICS, MADE_OF))
