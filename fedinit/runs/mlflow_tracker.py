"""`logger=mlflow`: MLflow, at MLFLOW_TRACKING_URI, or in a folder mlruns beside the runs' own where that is not set."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from fedinit.config.dotted import dotted
from fedinit.opening import read_text
from fedinit.runs.tracker import Tracker, group_of, shown_address
from fedinit.state import disk

ID_FILE = "mlflow-id"  # in the run's folder: which run it is there
SETTINGS = {  # where the environment does not say otherwise
    "MLFLOW_ALLOW_FILE_STORE": "true",  # which newer versions ask for
    # A server that is not there costs a run some ten seconds, not the four minutes of MLflow's own seven tries.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",  # seconds
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
}
LONGEST = 500  # characters of a parameter that MLflow takes


class MlflowTracker(Tracker):
    """Sends every round's figures to MLflow, by a client of its own, so that no other run of the process is touched."""

    name: ClassVar[str] = "mlflow"
    client: Any
    identity: str

    def begin(self) -> None:
        from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]

        beside = (Path(self.config.output_dir).absolute() / "mlruns").as_uri()
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        uri = os.environ.get("MLFLOW_TRACKING_URI") or beside
        if uri.startswith(("http://", "https://")):
            self.say(f"mlflow: waiting for {shown_address(uri)}")
        self.client = MlflowClient(uri)
        kept = self.folder / ID_FILE
        if kept.is_file():
            self.identity = read_text(kept)
            self.client.set_terminated(self.identity, "RUNNING")
            return
        project = self.config.logger.project
        known = self.client.get_experiment_by_name(project)
        experiment = known.experiment_id if known is not None else self.client.create_experiment(project)
        tags = {"group": group_of(self.folder), "folder": str(self.folder)}
        run = self.client.create_run(experiment, run_name=self.folder.name, tags=tags)
        self.identity = run.info.run_id
        disk.replace(kept, self.identity.encode())
        for name, value in dotted(self.values):
            self.client.log_param(self.identity, name, str(value)[:LONGEST])

    def log(self, values: Mapping[str, float], round: int) -> None:
        for name, value in values.items():
            self.client.log_metric(self.identity, _name(name), value, step=round)

    def conclude(self, figures: Mapping[str, int | float | str]) -> None:
        for name, value in figures.items():
            self.client.set_tag(self.identity, name, str(value))

    def keep(self, report: Path) -> None:
        self.client.log_artifact(self.identity, str(report))

    def end(self, code: int) -> None:
        self.client.set_terminated(self.identity, "FAILED" if code else "FINISHED")


def _name(figure: str) -> str:
    """What the figure is called there, "accuracy.photo" for accuracy/photo: in MLflow's folders a slash makes a folder,
    which cannot be beside the file of "accuracy" itself, and most other signs are refused."""
    return re.sub(r"[^\w. -]", lambda sign: f"_{ord(sign[0]):x}_", figure.replace("/", "."))
