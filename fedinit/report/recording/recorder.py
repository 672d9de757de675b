"""The observer that keeps what a report needs and no other file of the run has. Whatever goes wrong with it becomes one
warning, and the run goes on without it."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedinit import wire
from fedinit.data.reporter import counted
from fedinit.diagnostics.regime import effective_rank, stable_rank
from fedinit.factors import Factors
from fedinit.report.recording import LAYERS, PROVENANCE, RECORD, SPECTRA, TIMING
from fedinit.report.recording.provenance import provenance
from fedinit.runs.mending import put_aside, put_aside_odd
from fedinit.runs.observer import Observer, Roster, RoundReport
from fedinit.runs.rows import as_written, header_and_rows
from fedinit.runs.written import Written
from fedinit.spectra import spectrum
from fedinit.state import disk
from fedinit.state.base_offset import NAME
from fedinit.state.checkpoint import State

COLUMNS = {
    TIMING: ("round", "seconds", "clients", "server", "evaluation", "memory", "accelerator_memory"),
    LAYERS: ("round", "layer", "bias", "correctable", "cosine", "norm_ratio"),
    SPECTRA: ("round", "layer", "effective_rank", "stable_rank", "norm", "singular_values"),
}
KEPT_VALUES = 32  # singular values of a layer, the largest


class Recorder(Observer):
    """Writes <run>/record/. A run that goes on from a checkpoint keeps the rows up to it, which has their numbers, so
    that a line can say which are gone, and not the rows: those of many layers would make every checkpoint larger."""

    def __init__(self, run: Path, warn: Callable[[str], None], layers: bool = True) -> None:
        """
        run: the run's folder.
        warn: takes a line each of what is not as it was written, and the one warning.
        layers: whether figures by layer are wanted, `strategy.diagnostics`.
        """
        self.folder, self.warn, self.layers = run / RECORD, warn, layers
        self.on, self.rounds = True, 0
        self.files: dict[str, Written] = {}
        self.numbers: dict[str, int] = {}  # of rows, by table

    def snapshot(self) -> State:
        return State(facts=dict(self.numbers))

    def restore(self, state: State) -> None:
        self.numbers = dict(state.facts)

    def started(self, rounds: int, roster: Roster) -> None:
        def begin() -> None:
            self.folder.mkdir(parents=True, exist_ok=True)
            for odd in put_aside_odd(self.folder, [*COLUMNS, PROVENANCE]):  # what cannot be ends it, and all is there
                self.warn(odd)
            disk.replace_json(self.folder / PROVENANCE, provenance())

        self.rounds = rounds
        self._try(begin)

    def round_zero_done(self, report: RoundReport) -> None:
        self._try(lambda: self._begin({name: [] for name in COLUMNS}))

    def resumed(self, round: int) -> None:
        def keep() -> None:
            there = {name: _rows(self.folder / name, len(columns)) for name, columns in COLUMNS.items()}
            kept = {n: [row for row in rows if row[0].isdigit() and int(row[0]) <= round] for n, rows in there.items()}
            for name, rows in kept.items():
                if len(rows) != (had := self.numbers.get(name, len(rows))):
                    what = put_aside(self.folder / name)
                    self.warn(f"{what}; of its {counted(had, 'row')} up to round {round}, {len(rows):,} could be read")
            self._begin(kept)

        self._try(keep)

    def round_done(self, report: RoundReport) -> None:
        self._try(lambda: self._note_round(report))

    def model(self, round: int, tensors: Mapping[str, Tensor]) -> None:
        if self.layers and round > 0:
            self._try(lambda: self._note_spectra(round, tensors))

    def finished(self, summary: Mapping[str, Any]) -> None:
        self._try(lambda: [file.hold() for file in self.files.values()])

    def _note_round(self, report: RoundReport) -> None:
        phases = [f"{report.phases.get(phase, 0.0):.3f}" for phase in ("clients", "server", "evaluation")]
        self._append(TIMING, [[report.round, f"{report.seconds:.3f}", *phases, *memory()]])
        rows = [[report.round, layer, *_shown(f)] for layer, f in report.by_layer.items() if self.layers]
        self._append(LAYERS, rows)

    def _note_spectra(self, round: int, tensors: Mapping[str, Tensor]) -> None:
        offset = {name[len(NAME) :]: value for name, value in tensors.items() if name.startswith(NAME)}
        if offset and round < self.rounds:
            return  # no product of few factors any more: once, at the end, is what the time is worth
        layers, _ = wire.from_tensors({n: v for n, v in tensors.items() if not n.startswith(NAME)})
        rows = []
        for name, factors in layers.items():
            values = singular_values(factors, offset.get(name))
            size = float(values.square().sum()) ** 0.5
            listed = " ".join(f"{value:.5g}" for value in values[:KEPT_VALUES].tolist())
            rows.append([round, name, f"{effective_rank(values):.5g}", f"{stable_rank(values):.5g}", f"{size:.6g}"])
            rows[-1].append(listed)
        self._append(SPECTRA, rows)

    def _begin(self, tables: Mapping[str, Sequence[Sequence[object]]]) -> None:
        """Write the tables, {name: its rows}, over what is there."""
        for name, rows in tables.items():
            self.files[name] = Written(self.folder / name, _text([COLUMNS[name], *rows]), self.warn)
            self.numbers[name] = len(rows)

    def _append(self, name: str, rows: Sequence[Sequence[object]]) -> None:
        self.files[name].append(_text(rows))
        self.numbers[name] += len(rows)

    def _try(self, work: Callable[[], Any]) -> None:
        try:
            if self.on:
                work()
        except Exception as error:  # noqa: BLE001 (a report must never stop a run)
            self.on = False
            self.warn(f"warning: {self.folder}: no more is recorded for the report: {error}")


def singular_values(factors: Factors, offset: Tensor | None = None) -> Tensor:
    """(q,) falling, in float64, of what a layer's frozen weight has got so far, O + B A, without the scale.

    factors: B A. offset: O (d, k), what was merged into the base; None: nothing.
    """
    if offset is None:
        return spectrum(factors).S
    return torch.linalg.svdvals(factors.absorb().to(torch.float64).dense() + offset.double())


def memory() -> tuple[int | None, int | None]:
    """Bytes that this process holds now, None where the system does not say it as Linux does, and the most that tensors
    held on an accelerator, None without one."""
    try:
        with open("/proc/self/statm", encoding="utf-8") as file:
            resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        resident = None
    devices = range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)
    return resident, max(map(torch.cuda.max_memory_allocated, devices), default=None)


def _shown(figures: Mapping[str, float]) -> list[str]:
    # All digits: what a method repaired is a difference of these that is as small as the bias squared.
    return [f"{figures[name]:.17g}" for name in COLUMNS[LAYERS][2:]]


def _text(rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _rows(path: Path, width: int) -> list[list[str]]:
    """The rows of a table that are whole, without its header; none where it is not there, or is no table."""
    try:
        _, rows = header_and_rows(as_written(path, "replace") if path.is_file() else "")
    except csv.Error:
        return []
    return [row for row in rows if len(row) == width]
