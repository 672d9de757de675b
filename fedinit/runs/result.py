"""A run's folder as an object: what it computed, how it went, and the model that came of it."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
import re
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from safetensors import SafetensorError
from torch import nn

from fedinit.adapters.bank import Bank
from fedinit.config.schema import Config
from fedinit.config.site import EMBEDDED
from fedinit.data.decoding import GreyRange, Windows
from fedinit.data.file_source import FileSource
from fedinit.data.reporter import counted
from fedinit.data.source import DecodedSource
from fedinit.errors import InputError
from fedinit.home import expand_home
from fedinit.models import Backbone, build_backbone
from fedinit.models.head import with_head
from fedinit.models.input_spec import TakesImages
from fedinit.opening import read_text
from fedinit.pasted import pasted
from fedinit.runs import export, made_of, sealed
from fedinit.runs import folder as run_folder
from fedinit.runs.configured import configured
from fedinit.runs.done import DONE, wrong
from fedinit.runs.rows import LINES, METRICS, as_written, header_and_rows, of_lines
from fedinit.runs.summary import SUMMARY
from fedinit.runs.table import print_summary
from fedinit.said import printable
from fedinit.scores import SCORES, without
from fedinit.unreadable import is_file, mode_of, unreadable

# What a file that is of another shape makes a reader raise.
DAMAGE = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, csv.Error, SafetensorError)
WIDTH = 1000  # columns: no table is cut to the width of whoever reads it


def load(folder: str | PathLike[str], checkpoint: str | None = None) -> Run:
    """The run that is kept in a folder, done or not. Raises InputError for a folder that no run was begun in.

    checkpoint: the backbone's file, where it lies elsewhere now; None: where the run had it.
    """
    return Run(folder, checkpoint)


class Run:
    """A run in its folder. What is read from it is read when asked for, so a run that goes on can be watched.

    folder: where it is. config: what it was begun with.
    """

    folder: Path
    config: Config

    def __init__(self, folder: str | PathLike[str], checkpoint: str | None = None) -> None:
        """
        folder: of a run, as `run_sim.py` prints it and `Run.folder` has it.
        checkpoint: the backbone's file, where it lies elsewhere now; None: where the run had it.

        Raises InputError, one line, for one that no run was begun in.
        """
        self.folder, self._checkpoint = Path(folder), checkpoint
        self.config = configured(self.folder, str(folder))

    @property
    def done(self) -> bool:
        """Whether it ran to its end."""
        return run_folder.finished(self.folder) is not None

    @property
    def summary(self) -> dict[str, Any]:
        """The figures of summary.json: the score by domain and on average, bytes, seconds, final_hash. Raises
        InputError for a run that is not done."""
        return self._finished()

    @property
    def metrics(self) -> dict[str, np.ndarray]:
        """The columns of metrics.csv by name, a row a round: int64 where all are whole numbers, else float64 with NaN
        where there is none. As far as the run came; empty before its first. Of metrics.jsonl, where that has more."""
        table, lines = self._table(METRICS), self._table(LINES)
        return self._columns(lines if len(lines[1]) > len(table[1]) else table, METRICS)

    @property
    def clients(self) -> dict[str, np.ndarray]:
        """The columns of clients.csv by name, a row a client and round, as `metrics` has them."""
        return self._columns(self._table("clients.csv"), "clients.csv")

    @property
    def class_names(self) -> tuple[str, ...]:
        """What the model's outputs stand for, in their order. Raises InputError for a run that is not done."""
        self._finished()
        with self._reading(file := self.folder / export.ONE / export.CLASSES):
            sealed.refuse_changed(self.folder, file)
            kept = json.loads(read_text(file))
            names = kept.get("classes") if isinstance(kept, dict) else None
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise InputError(
                    f'{file}: not what a run writes, {{"classes": [a name, …]}}; it was changed since; {self._mended()}'
                )
            return tuple(names)

    def table(self) -> Table:
        """The table that the run ended with, as text. Raises InputError for a run that is not done."""
        console = Console(file=io.StringIO(), width=WIDTH, force_terminal=False, force_jupyter=False)
        with console.capture() as captured:
            print_summary(console, self.summary, str(self.folder), self.config)
        return Table(captured.get())

    def model(self, client: int | None = None) -> nn.Module:
        """The timm model that the run ended with, a new one each time: the adapter folded into the weights of its
        layers, W0 + s·(O + B A), and the head, where there is one, as its classifier, or behind it where timm's is
        more than a linear layer. In eval mode, on the CPU, without gradients.

        client: whose model, by number, of a method whose clients keep factors of their own (fedsa_lora): each has one
            of its own there, and no other exists. None: that of all clients.

        ``run.model()(images)`` takes (n, channels, height, width), uint8 from 0 to 255, or floats that are normalised
        already, and gives logits (n, classes), in the order of `class_names`.
        Raises InputError for a run that is not done, files of the model that are not what the run wrote, a client where
        all have one model or none where each has its own, or a checkpoint of the backbone that is not there any more.
        """
        with self._reading(folder := self.adapter(client)):
            layers, head, offset = export.load_adapter(folder)
        backbone = self.backbone()
        scale = self.config.adapter.scale
        module = backbone.module
        bank = Bank(backbone, {name: factors.shape for name, factors in layers.items()}, scale)
        frozen = {name: layer.weight for name, layer in bank.layers.items()}
        bank.rebase({name: torch.add(frozen[name], merged, alpha=scale) for name, merged in offset.items()})
        bank.fold(layers, head)
        folded = {f"{name}.weight": layer.folded for name, layer in bank.layers.items() if layer.folded is not None}
        module.load_state_dict({**module.state_dict(), **folded})
        if head:
            self._refuse_other_classes(head)
            module = with_head(backbone, head)
        module.register_forward_pre_hook(TakesImages(backbone.input))
        return module.eval().requires_grad_(False)

    def _refuse_other_classes(self, head: Mapping[str, torch.Tensor]) -> None:
        """Raise InputError where the head has another number of outputs than there are class names."""
        names, outputs = len(self.class_names), len(head.get("weight", ()))
        if names != outputs and not self.config.data.is_regression:
            raise InputError(
                f"{self.folder / export.ONE / export.CLASSES}: names {counted(names, 'class')}, and the head has "
                f"{counted(outputs, 'output')}; one of the two was changed since the run"
            )

    @property
    def grey_range(self) -> GreyRange | Windows:
        """Between which levels the model is shown grey with more than 8 bits: `data.grey_range`, and where that is
        "auto" the levels that were measured; "auto" of a run that kept none. Of images in no files "full", as they are
        read; of those that are drawn, which have no such grey, no levels."""
        data = self.config.data
        if not isinstance(data, FileSource):
            return "full" if isinstance(data, DecodedSource) else {}
        chosen = data.grey_range
        kept = made_of.read(self.folder) if chosen == "auto" else None
        return chosen if kept is None or kept.levels is None else kept.levels

    def backbone(self) -> Backbone:
        """The frozen model that the run began with, a new one each time. Raises InputError where its file is not there
        any more, or is another than the run's."""
        model, kept = self.config.model, made_of.read(self.folder)
        if self._checkpoint is not None:
            self._refuse_file(self._checkpoint)
            model = dataclasses.replace(model, checkpoint=self._checkpoint)
        if kept is not None and re.fullmatch("[0-9a-f]{64}", kept.made_of.checkpoint or ""):
            model = dataclasses.replace(model, sha256=kept.made_of.checkpoint)
        file = model.checkpoint
        if file and not file.startswith(EMBEDDED) and not expand_home("model.checkpoint", file).is_file():
            raise InputError(
                f"{self.folder}: the file of its backbone, {file}, is not there; name it, --checkpoint FILE, in Python "
                "load(folder, checkpoint=FILE)"
            )
        return build_backbone(model)

    def _refuse_file(self, file: str) -> None:
        """Raise InputError for a file of the backbone that is not there, or where the run has none."""
        told, model = f"--checkpoint {pasted(file)}", self.config.model
        if (model.checkpoint or "").startswith(EMBEDDED):
            raise InputError(f"{told}: the backbone of this run, {model.title}, is inside the package; leave it out")
        if not is_file(expand_home("--checkpoint", file)):
            raise InputError(
                f"{told}: no such file; give the file of the run's backbone, {model.checkpoint or model.name}"
            )

    @property
    def clients_with_models(self) -> range:
        """The clients that have a model of their own; empty where all have one. Raises InputError for a run that is not
        done."""
        return range(self.summary["clients"] if self._finished().get("adapter") == export.PERSONAL else 0)

    @property
    def clients_by_model(self) -> list[list[int]]:
        """These clients, a list a model: each by itself, and last all those of whom no update counted, which have one.
        Raises InputError for a run that is not done."""
        rest = sealed.untrained(self.folder, clients := self.clients_with_models)
        return [*([client] for client in sorted({*clients} - {*rest})), *([rest] if rest else [])]

    def adapter(self, client: int | None = None) -> Path:
        """The folder of the adapter of all clients, or of one. Raises InputError where there is none, or where it is
        not what the run wrote."""
        folder = self._adapter(client)
        with self._reading(self.folder / DONE):
            sealed.refuse_changed(self.folder, folder)
        return folder

    def _adapter(self, client: int | None) -> Path:
        where, method = self._finished().get("adapter", export.ONE), f"strategy={self.config.strategy.name}"
        if where == export.SHARED:
            raise InputError(
                f"{self.folder}: {method} has a model a client, and each client's own factors are at its site, which "
                "has its adapter in its state-dir"
            )
        if where == export.ONE:
            if client is not None:
                raise InputError(f"client={client}: {method} has one model for all clients; ask for model()")
            return self.folder / where
        clients = self.summary["clients"]
        if client is None or not 0 <= client < clients:
            asked = "model()" if client is None else f"client={client}"
            raise InputError(f"{asked}: {method} has a model a client; ask for model(client=0) to {clients - 1}")
        rest = sealed.untrained(self.folder, [client])
        return self.folder / export.UNTRAINED if rest else export.folder_of(self.folder, client)

    def _finished(self) -> dict[str, Any]:
        """The summary. Raises InputError for a run that is not done."""
        from fedinit.runs.hints import anew, way_on

        done = run_folder.finished(self.folder)
        if done is None and (why := wrong(self.folder)):
            raise InputError(f"{self.folder}: its {DONE} {why}, not what a run writes; {anew(self.folder)}")
        if done is None and is_file(self.folder / DONE):
            why = "is not what a run writes" if mode_of(self.folder / SUMMARY) else "is not there"
            raise InputError(f"{self.folder}: its {SUMMARY} {why}; {anew(self.folder)}")
        if done is None:
            last_round = max(self.metrics.get("round", ()), default=0)
            raise InputError(
                f"{self.folder}: this run is not done, it came to round {last_round} of {self.config.rounds}; "
                f"{way_on(self.folder)}"
            )
        return done

    def _table(self, name: str) -> tuple[list[str], list[list[str]]]:
        """A table's header and rows; a last row that is being written, or was cut short, is left out."""
        path = self.folder / name
        with self._reading(path):
            text = as_written(path) if mode_of(path) else ""
            return of_lines(text) if name == LINES else header_and_rows(text)

    def _columns(self, table: tuple[list[str], list[list[str]]], name: str) -> dict[str, np.ndarray]:
        """A table's columns by name. name: the file's, which errors name."""
        with self._reading(self.folder / name):
            header, rows = table
            return {name: _column([row[i] for row in rows]) for i, name in enumerate(header)}

    @contextlib.contextmanager
    def _reading(self, path: Path) -> Iterator[None]:
        """Within, what is wrong with a file of the run becomes an InputError of one line."""
        try:
            yield
        except InputError:
            raise
        except PermissionError as e:
            raise unreadable(Path(e.filename or path), e) from e
        except DAMAGE as e:
            why = " ".join(str(e).split())
            raise InputError(
                f"{path}: not what a run writes ({type(e).__name__}: {why}); it was changed since; {self._mended()}"
            ) from e

    def _mended(self) -> str:
        """What a person does about a file of the run that is not what it wrote, after a semicolon."""
        from fedinit.runs.hints import anew

        remove = f"remove {DONE}, and " if is_file(self.folder / DONE) else ""
        return anew(self.folder, before=f"put back what the run wrote, or {remove}")

    def __repr__(self) -> str:
        what = f"{self.config.strategy.name} on {self.config.data.name}, {self.config.model.title}"
        if not self.done:
            return f"Run({str(self.folder)!r}): {what}, not done"
        summary = self.summary
        score = SCORES[summary["score"]]
        figure = summary[score.name]
        scored = "" if figure is None else f", {score.title} {score.show(figure)}"
        scored += f"; not scored: {printable(without(missing))}" if (missing := summary.get("not_scored")) else ""
        return f"Run({str(self.folder)!r}): {what}, {counted(summary['rounds'], 'round')}{scored}"


class Table(str):
    """Text that shows itself as it is where a notebook or the interpreter shows a value."""

    def __repr__(self) -> str:
        return str(self)


def _column(cells: list[str]) -> np.ndarray:
    try:
        return np.array([int(cell) for cell in cells], dtype=np.int64)
    except ValueError:
        return np.array([float(cell or "nan") for cell in cells])
