"""A run's folder as a value, as far as the run came. Nothing here imports torch."""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from fedinit.config.bundled import title
from fedinit.config.groups import LOADER
from fedinit.errors import InputError
from fedinit.opening import read_bytes
from fedinit.report.recording import LAYERS, PARTITION, PROVENANCE, RECORD, SAMPLES, SPECTRA, TIMING
from fedinit.report.runs.holdings import holdings
from fedinit.runs.done import done_of
from fedinit.runs.named import A_RUN, CONFIG, configuration
from fedinit.runs.own_files import MADE_OF
from fedinit.runs.rows import LINES, METRICS, as_written, header_and_rows, of_lines
from fedinit.state.manifest import FOLDER, last_facts
from fedinit.unreadable import unreadable

HEAD_ALONE = ".head_alone.json"
LARGEST = 3.5e38
NOT_A_RUN = f"{A_RUN}, or a folder of several"


@dataclass(frozen=True)
class Table:
    """A CSV file. rows: of as many texts as there are columns; a line that was cut short is none."""

    columns: tuple[str, ...] = ()
    rows: Sequence[Sequence[str]] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def texts(self, column: str) -> list[str]:
        """A column as it is written; empty where there is none of that name."""
        if column not in self.columns:
            return []
        at = self.columns.index(column)
        return [row[at] for row in self.rows]

    def numbers(self, column: str) -> np.ndarray:
        """(rows,) float64, NaN for what is no number and for a column that is not there."""
        if column not in self.columns:
            return np.full(len(self.rows), np.nan)
        return np.array([number_of(value) for value in self.texts(column)], dtype=np.float64)


@dataclass(frozen=True)
class RecordedRun:
    """A run as its files have it.

    folder: where it is.
    config: config.yaml, as plain values.
    summary: of a run that is done; None of one that is not.
    """

    folder: Path
    config: Mapping[str, Any]
    summary: Mapping[str, Any] | None

    @property
    def seed(self) -> int:
        return int(self.config["seed"])

    @property
    def rounds(self) -> int:
        """How many it is to have; of one that ended early, since its ε was spent, how many it has."""
        ended = (self.summary or {}).get("rounds")
        planned = int(self.config["rounds"])
        return ended if isinstance(ended, int) and 0 < ended < planned else planned

    @property
    def reached(self) -> int:
        """The last round that it completed; 0 before its first."""
        return int(max(self.metrics.numbers("round"), default=0))

    @property
    def metrics(self) -> Table:
        """A row a round: of metrics.csv, or of metrics.jsonl where that has more of them."""
        return self._metrics[0]

    @cached_property
    def _metrics(self) -> tuple[Table, str]:
        """With what is to be said of it."""
        table, lines = _table(path := self.folder / METRICS), _lines(self.folder / LINES)
        if len(lines) > len(table):
            has = f"has {len(table) or 'no'} whole rounds" if path.exists() else "is gone"
            return lines, f"its {METRICS} {has}, so its figures are those of {LINES}, which has {len(lines)}"
        if self.summary is not None and self.rounds and not len(table):
            return table, f"neither its {METRICS} nor its {LINES} has a round; resume=never with its words runs it anew"
        return table, ""

    @property
    def remark(self) -> str:
        """What is wrong with its figures by round, as half a sentence; "" where nothing is."""
        return self._metrics[1] or self._not_the_last

    @property
    def _not_the_last(self) -> str:
        """That the last figures of a run that is done are of an earlier round; "" where they are not."""
        rounds, scores = self.metrics.numbers("round"), self.metrics.numbers(self.score)
        scored = rounds[np.isfinite(scores) & np.isfinite(rounds)]
        if self.summary is None or not len(scored) or not self.rounds or int(scored[-1]) >= self.rounds:
            return ""
        return f"its figures are of round {int(scored[-1])} of {self.rounds}, the last that has a score"

    @cached_property
    def head_alone(self) -> Mapping[str, Any]:
        """The figures of its reference, which comes before it; empty where there is none, or it is not done."""
        values = _json(self.folder / HEAD_ALONE) if self.summary is None else self.summary.get("head_alone")
        return values if isinstance(values, Mapping) else {}

    @cached_property
    def clients(self) -> Table:
        """A row a client and round."""
        return _table(self.folder / "clients.csv")

    @cached_property
    def diagnostics(self) -> Table:
        """Of a start, docs/diagnostics.md."""
        return _table(self.folder / "diagnostics.csv")

    @cached_property
    def timing(self) -> Table:
        return _table(self.folder / RECORD / TIMING)

    @cached_property
    def layers(self) -> Table:
        """Aggregation bias, a row a layer and round."""
        return _table(self.folder / RECORD / LAYERS, "layer")

    @cached_property
    def spectra(self) -> Table:
        """A row a layer and evaluated round."""
        return _table(self.folder / RECORD / SPECTRA, "layer", "singular_values")

    @cached_property
    def partition(self) -> Mapping[str, Any] | None:
        """Who holds what; None where it was not recorded, or is damaged."""
        return holdings(_json(self.folder / RECORD / PARTITION))

    @cached_property
    def made_of(self) -> tuple[str, str, str]:
        """(digest of its images, digest of its backbone's file, between which levels deep grey was shown), each ""
        where it has none of its own or says none. Of its last checkpoint, where its own file does not say."""
        values = self._made_of
        images, levels = values.get("images"), values.get("levels")
        digest = images.get("digest") if isinstance(images, Mapping) else None
        grey = json.dumps(levels, sort_keys=True) if isinstance(levels, Mapping) and levels else ""
        return str(digest or ""), str(values.get("checkpoint") or ""), grey

    @property
    def code(self) -> Mapping[str, Any]:
        """{package: digest} of the code that it was begun by; empty where it does not say."""
        code = self._made_of.get("code")
        return code if isinstance(code, Mapping) else {}

    @cached_property
    def _made_of(self) -> Mapping[str, Any]:
        values = _json(self.folder / MADE_OF)
        if not isinstance(values, Mapping):
            with contextlib.suppress(InputError, ValueError, TypeError):
                values = json.loads(last_facts(self.folder / FOLDER, "files").get(MADE_OF, ""))
        return values if isinstance(values, Mapping) else {}

    @cached_property
    def provenance(self) -> Mapping[str, Any]:
        """Command, versions, machine; empty where it was not recorded."""
        values = _json(self.folder / RECORD / PROVENANCE)
        return values if isinstance(values, Mapping) else {}

    @cached_property
    def ledger(self) -> list[Mapping[str, Any]]:
        """Its events in their order; what is no JSON is an event of the kind "unreadable line"."""
        lines = _text(self.folder / "ledger.jsonl").splitlines()
        return [_event(line) for line in lines if line.strip()]

    @cached_property
    def samples(self) -> dict[int, bytes]:
        """{client: a few of its training images side by side, a JPEG}."""
        found = (self.folder / RECORD / SAMPLES).glob("*.jpg")
        return {int(path.stem): read_bytes(path) for path in sorted(found) if _is_round(path.stem) and path.is_file()}

    @property
    def score(self) -> str:
        """What it is judged by: the column of metrics.csv before those by domain."""
        return "recovery_error" if "recovery_error" in self.metrics.columns else "accuracy"

    @property
    def domains(self) -> tuple[str, ...]:
        """In the order of metrics.csv; none before the run has written its header."""
        prefix = f"{self.score}_"
        return tuple(name[len(prefix) :] for name in self.metrics.columns if name.startswith(prefix))

    @cached_property
    def evaluated(self) -> bool:
        """Whether a round of it has a score, so that it can be compared."""
        return bool(np.isfinite(self.metrics.numbers(self.score)).any())

    @property
    def judged(self) -> bool:
        """Whether its configuration has it evaluated at all."""
        settings = self.config.get("evaluation")
        return not isinstance(settings, Mapping) or settings.get("where") != "none"

    @property
    def name(self) -> str:
        """Of its method."""
        return str(self.config["strategy"]["name"])

    def chosen(self, group: str) -> str:
        """What it has of a group that can be left out, such as privacy; empty for none."""
        values = self.config.get(group)
        name = str(values.get("name", "")) if isinstance(values, Mapping) else ""
        return "" if name == "none" else name

    @property
    def model(self) -> str:
        """What its model is called."""
        model = self.config["model"]
        return title(str(model["name"]), model.get("checkpoint"))


def read(folder: Path) -> RecordedRun:
    """The run in this folder. Raises InputError, one line, for one that holds none or cannot be read."""
    content = configuration(folder, meant=NOT_A_RUN)
    try:
        config = yaml.load(content.decode("utf-8", "replace"), LOADER)
    except yaml.YAMLError as error:
        raise InputError(f"{folder}: not the folder of a run; its {CONFIG} is no YAML; {NOT_A_RUN}") from error
    if not is_configuration(config):
        raise InputError(f"{folder}: not the folder of a run; its {CONFIG} is of something else; {NOT_A_RUN}")
    summary = _json(folder / "summary.json") if done_of(folder) is not None else None
    return RecordedRun(folder, config, summary if isinstance(summary, Mapping) and "score" in summary else None)


def is_configuration(values: object) -> bool:
    """Whether these values are a run's: what a report cannot do without is there."""
    if not isinstance(values, Mapping):
        return False
    if any(not isinstance(values.get(group, {}), Mapping) for group in ("adapter", "partition")):
        return False
    chosen = [values.get(group) for group in ("strategy", "data", "model")]
    named = all(isinstance(choice, Mapping) and isinstance(choice.get("name"), str) for choice in chosen)
    return named and all(type(values.get(key)) is int for key in ("seed", "rounds"))


def _text(path: Path) -> str:
    """What a file says; "" where it is not there. Raises InputError where it cannot be read."""
    try:
        return as_written(path, "replace")
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        raise unreadable(path, error) from error


def _table(path: Path, *needed: str) -> Table:
    """A table of a row a round, or a row of something in a round; none without the `needed` columns. A row that was cut
    short, or is of no round, is left out."""
    try:
        header, rows = header_and_rows(_text(path).replace("\0", ""))
    except csv.Error:
        return Table()
    if not {"round", *needed} <= set(header):
        return Table()
    at = header.index("round")
    return Table(tuple(header), [row for row in rows if len(row) == len(header) and _is_round(row[at])])


def _lines(path: Path) -> Table:
    """The table of metrics.csv by the lines of JSON beside it."""
    header, rows = of_lines(_text(path))
    if "round" not in header:
        return Table()
    at = header.index("round")
    return Table(tuple(header), [row for row in rows if _is_round(row[at])])


def _json(path: Path) -> Any:
    """None for what is not there, or is no JSON."""
    try:
        return json.loads(_text(path))
    except (ValueError, RecursionError):
        return None


def _event(line: str) -> Mapping[str, Any]:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        event = None
    return event if isinstance(event, Mapping) else {"kind": "unreadable line", "text": line[:200]}


def number_of(value: Any) -> float:
    """NaN for a text that is none, and for what is not finite or beyond single precision: damage, which no sum or axis
    can hold."""
    try:
        number = float(value)
    except (ValueError, TypeError, OverflowError):
        return float("nan")
    return number if abs(number) <= LARGEST else float("nan")


def _is_round(text: str) -> bool:
    """A number of a round or a client: digits, and few enough for one."""
    return text.isascii() and text.isdecimal() and len(text) <= 9
