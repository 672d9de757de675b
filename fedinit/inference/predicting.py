"""What a run's model says of pictures: a class each, and the probabilities of all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import torch
from rich.table import Table
from torch import nn

from fedinit.data.decoding import Window, Windows
from fedinit.errors import InputError
from fedinit.inference import pictures
from fedinit.models import InputSpec
from fedinit.runs.result import Run
from fedinit.said import csv_row, no_formula, printable
from fedinit.telling import cell

BATCH = 64  # pictures at a time


@dataclass(frozen=True)
class Prediction:
    """path: of the picture. why: it could not be read, or empty.
    probabilities: (classes,), in the order of the run's class names; empty where it could not."""

    path: Path
    probabilities: Sequence[float]
    why: str = ""

    def best(self, names: Sequence[str], count: int) -> list[tuple[str, float]]:
        """The `count` likeliest classes with their probabilities."""
        order = sorted(range(len(names)), key=lambda i: -self.probabilities[i])
        return [(names[i], self.probabilities[i]) for i in order[:count]]


def predict(
    run: Run, paths: Sequence[Path], client: int | None = None, grey: Window | None = None
) -> Iterator[Prediction]:
    """The predictions of these pictures, in their order.

    paths: of files, and of folders of files.
    client: whose model, where each has one of its own.
    grey: the levels shown black and white, of grey with more than 8 bits; None: as in the run.

    Raises InputError for a run without classes or that is not done, and for a folder without pictures.
    """
    if run.config.data.is_regression:
        raise InputError(f"{run.folder}: data={run.config.data.name} has no classes to predict, and takes no pictures")
    model, spec, files = run.model(client), run.backbone().input, pictures.named(paths)
    window = pictures.window_of(run.config, files, run.grey_range if grey is None else grey)
    return _predictions(model, [files[i : i + BATCH] for i in range(0, len(files), BATCH)], spec, window)


def _predictions(
    model: nn.Module, batches: Sequence[Sequence[Path]], spec: InputSpec, window: Window | Windows | None
) -> Iterator[Prediction]:
    for paths in batches:
        read = pictures.read(paths, spec, window)
        probabilities = []
        if read.paths:
            with torch.inference_mode():
                probabilities = model(read.images).softmax(-1).tolist()
        said = dict(zip(read.paths, probabilities, strict=True))
        why = dict(read.unread)
        for path in paths:
            yield Prediction(path, said[path]) if path in said else Prediction(path, (), why[path])


def table(predictions: Sequence[Prediction], names: Sequence[str], top: int) -> Table:
    """For a terminal: a row a picture, its likeliest classes with their probabilities."""
    shown = Table()
    shown.add_column("picture", overflow="fold")
    for place in range(min(top, len(names))):
        shown.add_column("class" if place == 0 else f"{place + 1}.")
        shown.add_column("%", justify="right")
    for prediction in predictions:
        cells = []
        for name, probability in prediction.best(names, top):
            cells += [cell(name), f"{100 * probability:.1f}"]
        shown.add_row(cell(str(prediction.path)), *cells)
    return shown


def write_csv(file: TextIO, predictions: Iterator[Prediction], names: Sequence[str]) -> list[Prediction]:
    """A row a picture: path, class, probability, and the probability of every class. Returns those that could not be
    read, which have no row.

    A program finds names as they are, quoted as RFC 4180 says; a terminal, which does what control characters say, is
    given none. Nor does a cell begin like a formula, which a spreadsheet would compute.
    """
    shown = printable if file.isatty() else _in_utf8
    file.write(csv_row(["picture", "class", "probability", *(shown(f"p_{name}") for name in names)]))
    unread = []
    for prediction in predictions:
        if prediction.why:
            unread.append(prediction)
            continue
        ((name, probability),) = prediction.best(names, 1)
        figures = [f"{p:.6g}" for p in (probability, *prediction.probabilities)]
        path = str(prediction.path)
        place = shown(path if no_formula(path) == path else f"./{path}")
        file.write(csv_row([place, no_formula(shown(name)), *figures]))
    return unread


def _in_utf8(name: str) -> str:
    """The name, with what is no UTF-8 in a file's as \\x.. ."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
