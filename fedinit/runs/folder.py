"""The run's folder: outputs/<name>/<config hash>-s<seed>/, written as the run goes.

config.yaml  the resolved configuration, which run_sim.py takes back word for word
made_of.json what lies in the files that it is made of, images and backbone, by digest
metrics.csv  a row a round, 0 being that of the statistics, if any; clients.csv  a row a client and round
metrics.jsonl the same as metrics.csv, an object a line, with null where there is no figure
ledger.jsonl  refusals, missing replies, warnings; the engine of every start
.head_alone.json  what the reference run scored, which comes before it, until the run is done
checkpoints/ the last three states of the run, and of its reference run
adapter/     the final adapter and head; summary.json; DONE.json, with the sha256 of these, last of all

The folder is locked while a process writes to it. The tables' rows belong to checkpoints: a run that goes on from one
begins with the rows it had then, and what was not written by the run is put aside. The ledger only grows.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fedinit.adapters.kinds import KINDS
from fedinit.config.privacy import ClientPrivacyConfig
from fedinit.config.schema import Config
from fedinit.errors import InputError, is_lacking, machine_failed
from fedinit.opening import make_folder, regular
from fedinit.runs.configured import computed_in, configured
from fedinit.runs.done import DONE, HASH, KEY, done_of
from fedinit.runs.export import SHARED
from fedinit.runs.lock import FolderLock
from fedinit.runs.made_of import MADE_OF, MadeOf, beside, of_other_code, with_levels
from fedinit.runs.made_of import read as read_made_of
from fedinit.runs.mending import end_of, put_aside_ends, write_config
from fedinit.runs.named import refuse_no_folder
from fedinit.runs.observer import ClientReport, Observer, Roster, RoundReport
from fedinit.runs.rows import LINES, METRICS, as_written, header_and_rows
from fedinit.runs.sealed import digests, faults
from fedinit.runs.summary import SUMMARY, summary_of
from fedinit.runs.writable import refuse_unwritable, unwritable
from fedinit.runs.written import Written, hold
from fedinit.said import csv_row
from fedinit.state import disk
from fedinit.state.checkpoint import State
from fedinit.state.manifest import FOLDER, checkpoints_in, last_facts, refuse_other

RESUMED = "expected auto, never or the folder of a run, as fedinit run prints it"
DIAGNOSTICS = ("bias", "correctable", "cosine", "norm_ratio")


class Located(NamedTuple):
    """Where a run is kept, and what it is made of."""

    path: Path
    made_of: MadeOf


def locate(config: Config) -> Located:
    """Where this configuration's run is kept, by the files as they are now: its own place under output_dir, or the
    folder that `resume` names. A run that is done and named needs its files no more, and they are not looked at.

    Raises InputError for a folder that is not there, is a symbolic link, or belongs to another configuration, other
    images or another backbone, and for files that cannot be read.
    """
    named = config.resume not in ("auto", "never")
    if named:
        path = Path(config.resume)
        refuse_no_folder(path, f"resume={config.resume}", RESUMED)
        made_of = MadeOf() if finished(path) else MadeOf.of(config)
    else:
        made_of = MadeOf.of(config)
        path = Path(config.output_dir) / config.name / f"{config.identity(made_of.digest)}-s{config.seed}"
    for link in (path, path / FOLDER):
        if link.is_symlink():
            raise InputError(f"{link}: is a symbolic link; a run is only kept in a folder of its own")
    if named:
        written = computed_in(path) or configured(path).computed()
        advice = (
            f"; resume={config.resume} alone goes on with it, or beside words of how it is run (engine=…, "
            "engine.lanes=…, report=…); any other word needs all of the run's own"
        )
        refuse_other(written, config.computed(), f"resume={config.resume}", advice)
        kept = read_made_of(path)
        if kept is not None and not finished(path) and (changes := made_of.changes(kept.made_of)):
            raise InputError(f"resume={config.resume}: this run was begun with other files: {changes}")
    return Located(path, made_of)


def place(config: Config) -> Path:
    """Where this configuration's run is kept. Raises InputError as `locate` does."""
    return locate(config).path


def finished(folder: Path) -> dict[str, Any] | None:
    """The summary of a run that is done, or None; also where DONE.json is not what a run writes. Raises InputError
    where it cannot be read."""
    return None if done_of(folder) is None else summary_of(folder)


def written_anew(config: Config, folder: Path, done: Mapping[str, Any]) -> Located | None:
    """Where a run that is done goes on from the checkpoint of its end, since files of its model are not what it wrote,
    which are then written anew; None where it is only to be shown: where all are, or this cannot be.

    config: of the run. done: its summary.
    """
    try:
        shared = done.get("adapter") == SHARED  # of a deployment, whose clients' own factors are not here
        if shared or not any(faults(folder)) or end_of(folder, done["rounds"]) is None:
            return None
        refuse_unwritable(config, folder)
        made_of, kept = MadeOf.of(config), read_made_of(folder)
    except InputError:
        return None
    return Located(folder, made_of) if kept is None or not made_of.changes(kept.made_of) else None


class RunDone(Exception):
    """Another process ended the run in the meantime: it is only to be shown. summary: its figures."""

    def __init__(self, summary: Mapping[str, Any]) -> None:
        super().__init__()
        self.summary = summary


class RunFolder(Observer):
    """Creates the folder, or opens one whose run goes on, and keeps its files.

    An earlier run of the same configuration that does not go on is moved aside to <folder>.1, .2, …, never overwritten.
    `close` it at the end.
    """

    def __init__(
        self,
        config: Config,
        located: Located | None = None,
        anew: bool = False,
        tell: Callable[[str], object] = print,
    ) -> None:
        """
        config: what is to be run.
        located: where; None: as `locate` says now.
        anew: move a run that is there aside, done or not, as resume=never does.
        tell: takes a line each about what is found there, now or as the run goes on, and is another's.

        Raises InputError when the place cannot be written to, is in use by another process, or is named by `resume` and
        holds no checkpoint; RunDone where another process ended the run in the meantime, unless resume=never.
        """
        self.path, made_of = located or locate(config)
        self._tell = tell
        self._lock: FolderLock | None = None
        self._domains: Sequence[str] = ()
        self._columns: Sequence[str] = ()
        # Whether clients.csv says what each client counted for.
        self._weights = config.robust.name != "none" or config.attack.name != "none"
        self._epsilon = config.privacy.name == "examples"  # whether it says what each client's privacy is
        # Only with magnitudes are the weights that count no product of factors.
        self._diagnostics = DIAGNOSTICS + (("effective_bias",) if "m" in KINDS[config.adapter.kind].beside else ())
        if isinstance(config.privacy, ClientPrivacyConfig):
            self._diagnostics += ("epsilon",) if config.privacy.clip_quantile is None else ("epsilon", "clip")
        self._restored: Mapping[str, str] = {}  # {name: text}, of the checkpoint that the run goes on from
        self._files: dict[str, Written] = {}  # which a checkpoint has, by name
        try:
            make_folder(self.path)
            self._lock = FolderLock(self.path)
            anew = anew or config.resume == "never"
            summary = None if anew else finished(self.path)
            if summary is not None and not any(faults(self.path)):  # by another process, while this one read its data
                raise RunDone(summary)
            checkpoints_in(self.path / FOLDER)  # refuses a folder of them that cannot be read
            begun = any((self.path / FOLDER).rglob("round-*"))
            if anew or not begun:
                if config.resume not in ("auto", "never"):
                    raise InputError(f"resume={config.resume}: there is no checkpoint in it to go on from")
                self._make_way(begun, anew)
            (self.path / FOLDER).mkdir(parents=True, exist_ok=True)
            if self._lock is None:
                self._lock = FolderLock(self.path)
            own = last_facts(self.path / FOLDER, "files") if begun and not anew else {}
            for note in write_config(self.path, config) + put_aside_ends(self.path, own):
                tell(note)
            made_of.save(self.path, config, begun and not anew)
            self._made_of = as_written(self.path / MADE_OF)  # before anybody edits it
            if other := beside(self.path, config, made_of):
                tell(other)
            if code := of_other_code(self.path):
                tell(f"{self.path}: was begun by {code}; resume=never begins it anew")
        except OSError as error:
            self.close()
            if is_lacking(error):  # what is there may be whole
                raise
            raise unwritable(config, self.path, error) from error
        except BaseException:
            self.close()
            raise

    def _make_way(self, begun: bool, asked: bool) -> None:
        """Move the folder aside, unless it is of a run that never came to a checkpoint or a round. asked: by a person;
        else a note says so."""
        table = self.path / METRICS
        try:
            _, rounds = header_and_rows(as_written(table, "replace") + "\n" if os.path.lexists(table) else "")
            if not begun and all(row[:1] == ["0"] for row in rounds) and not os.path.lexists(self.path / DONE):
                return
        except (csv.Error, OSError) as error:  # of a damaged one, which is moved aside
            if machine_failed(error):
                raise
        if self._lock is not None:
            self._lock.move_folder(aside := disk.free(self.path))
            self._lock = None
            if not asked:
                self._tell(
                    f"the run that was in {self.path} cannot go on, for want of a checkpoint, nor be shown; it is now "
                    f"{aside.name}, and this one begins anew"
                )

    def close(self) -> None:
        """Give up the lock, so that another process may write to the folder. Nothing happens without one."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def keep_levels(self, levels: Mapping[str, Sequence[float]] | None) -> None:
        """Of a run that knows none yet, keep these, as `Dataset` has them. Raises OSError."""
        if levels is not None and (text := with_levels(self._made_of, levels)) is not None:
            disk.replace(self.path / MADE_OF, text.encode())
            self._made_of = text

    def snapshot(self) -> State:
        return State(facts={name: file.text for name, file in self._files.items()})

    def restore(self, state: State) -> None:
        self._restored = state.facts

    def started(self, rounds: int, roster: Roster) -> None:
        self._domains = roster.domain_names
        self._columns = [
            *("round", "seconds", "clients", "train_loss", roster.score),
            *(f"{roster.score}_{d}" for d in self._domains),
            *("bytes_up", "bytes_down", *self._diagnostics, "drift_factors", "drift_product"),
        ]
        clients = [
            *("round", "client", "examples", "steps", "train_loss", "drift_factors", "drift_product"),
            *("optimizer_state", *["weight"] * self._weights, *["epsilon"] * self._epsilon),
        ]
        begun = {METRICS: csv_row(self._columns), "clients.csv": csv_row(clients), LINES: ""}
        texts = {**begun, MADE_OF: self._made_of, **self._restored}
        hold(self.path / MADE_OF, texts[MADE_OF], self._tell)
        for name, text in texts.items():
            self._files[name] = Written(self.path / name, text, self._tell)
        self._restored = {}  # the files hold it now, and more of it with every round
        (self.path / "ledger.jsonl").touch()

    def round_zero_done(self, report: RoundReport) -> None:
        if report.clients:  # a round of its own, where clients measured something
            self.round_done(report)

    def round_done(self, report: RoundReport) -> None:
        score = report.score
        by_domain = score.by_domain if score else {}
        count = len(report.clients)
        loss = "" if report.train_loss is None else report.train_loss
        row = [report.round, f"{report.seconds:.3f}", count, loss, score.mean if score else ""]
        row += [by_domain.get(d, "") for d in self._domains]
        row += [report.bytes_up, report.bytes_down, *(report.diagnostics.get(d, "") for d in self._diagnostics)]
        row += ["" if drift is None else drift for drift in (report.drift_factors, report.drift_product)]
        self._files[METRICS].append(csv_row(row))
        figures = {**dict(zip(self._columns, row, strict=True)), "seconds": round(report.seconds, 3)}
        line = json.dumps({name: None if value == "" else value for name, value in figures.items()})
        self._files[LINES].append(line + "\n")
        self._files["clients.csv"].append("".join(self._of_client(report.round, c) for c in report.clients))

    def _of_client(self, round: int, c: ClientReport) -> str:
        """Its row of clients.csv."""
        row = [round, c.client, c.examples, c.steps, c.loss, c.drift_factors, c.drift_product]
        row += [c.optimizer_state, *[c.weight] * self._weights, *[c.epsilon] * self._epsilon]
        return csv_row(["" if value is None else value for value in row])

    def event(self, kind: str, facts: Mapping[str, Any]) -> None:
        ledger = self.path / "ledger.jsonl"
        with disk.naming(ledger), open(ledger, "a+b", opener=regular) as file:
            if file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
                file.write(b"\n")  # after a line that a crash cut short
            file.write(json.dumps({"kind": kind, **facts}).encode() + b"\n")

    def finished(self, summary: Mapping[str, Any]) -> None:
        for file in self._files.values():
            file.hold()
        disk.replace_json(self.path / SUMMARY, summary)
        said = {key: summary[key] for key in (HASH, "rounds")}
        disk.replace_json(self.path / DONE, said | {KEY: digests(self.path)})
