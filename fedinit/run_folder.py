"""The run's folder: outputs/<name>/<config hash>-s<seed>/, written as the run goes.

config.yaml  the resolved configuration, which run_sim.py takes back word for word
metrics.csv  a row a round, 0 being that of the statistics, if any; clients.csv  a row a client and round
ledger.jsonl  refusals, missing replies, warnings
adapter/     the final adapter and head; summary.json; DONE.json, last of all
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from fedinit.config import Config, to_dict
from fedinit.errors import InputError
from fedinit.metrics import Observer, Roster, Round

DIAGNOSTICS = ("bias", "correctable", "cosine", "norm_ratio")
DONE = "DONE.json"


def place(config: Config) -> Path:
    """Where this configuration's run is kept."""
    return Path(config.output_dir) / config.name / f"{config.identity()}-s{config.seed}"


def finished(folder: Path) -> dict[str, Any] | None:
    """The summary of a run that is done, or None."""
    try:
        if (folder / DONE).is_file():
            return json.loads((folder / "summary.json").read_text())
    except (OSError, ValueError):
        pass
    return None


class RunFolder(Observer):
    """Creates the folder and keeps its files. An earlier run of the same configuration is moved aside to
    <folder>.1, .2, …, never overwritten. Raises InputError when the place cannot be written to."""

    def __init__(self, config: Config) -> None:
        self.path = place(config)
        try:
            if self.path.exists():
                number = 1
                while (aside := self.path.with_name(f"{self.path.name}.{number}")).exists():
                    number += 1
                self.path.rename(aside)
            self.path.mkdir(parents=True)
            OmegaConf.save(to_dict(config), self.path / "config.yaml")
        except OSError as error:
            raise InputError(f"output_dir={config.output_dir}: cannot write there ({error.strerror})") from error
        self._domains: Sequence[str] = ()

    def started(self, rounds: int, roster: Roster) -> None:
        self._domains = roster.domain_names
        self._header(
            "metrics.csv",
            ["round", "seconds", "clients", "train_loss", "accuracy", *(f"accuracy_{d}" for d in self._domains)]
            + ["bytes_up", "bytes_down", *DIAGNOSTICS, "drift_factors", "drift_product"],
        )
        self._header(
            "clients.csv",
            ["round", "client", "examples", "steps", "train_loss", "drift_factors", "drift_product", "optimizer_state"],
        )
        (self.path / "ledger.jsonl").touch()

    def round_zero_done(self, numbers: Round) -> None:
        if numbers.clients:  # a round of its own, where clients measured something
            self.round_done(numbers)

    def round_done(self, numbers: Round) -> None:
        accuracy = numbers.accuracy
        by_domain = accuracy.by_domain if accuracy else {}
        count = len(numbers.clients)
        loss = "" if numbers.train_loss is None else numbers.train_loss
        self._row(
            "metrics.csv",
            [numbers.round, f"{numbers.seconds:.3f}", count, loss, accuracy.mean if accuracy else ""]
            + [by_domain.get(d, "") for d in self._domains]
            + [numbers.bytes_up, numbers.bytes_down, *(numbers.diagnostics.get(d, "") for d in DIAGNOSTICS)]
            + [
                sum(getattr(c, key) for c in numbers.clients) / count if count else ""
                for key in ("drift_factors", "drift_product")
            ],
        )
        for c in numbers.clients:
            loss = "" if c.loss is None else c.loss
            row = [numbers.round, c.client, c.examples, c.steps, loss, c.drift_factors, c.drift_product]
            self._row("clients.csv", [*row, c.optimizer_state])

    def event(self, kind: str, facts: Mapping[str, Any]) -> None:
        with open(self.path / "ledger.jsonl", "a") as file:
            file.write(json.dumps({"kind": kind, **facts}) + "\n")

    def finished(self, summary: Mapping[str, Any]) -> None:
        write_json(self.path / "summary.json", summary)
        write_json(self.path / DONE, {"final_hash": summary["final_hash"], "rounds": summary["rounds"]})

    def _header(self, name: str, columns: Sequence[str]) -> None:
        with open(self.path / name, "w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerow(columns)

    def _row(self, name: str, values: Sequence[object]) -> None:
        with open(self.path / name, "a", newline="") as file:
            csv.writer(file, lineterminator="\n").writerow(values)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Written beside its final name and renamed, so that a reader finds it whole or not at all."""
    partial = path.with_name(path.name + ".tmp")
    with open(partial, "w") as file:
        json.dump(values, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
