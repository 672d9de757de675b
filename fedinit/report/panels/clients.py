"""Who holds what: clients by classes, with their domains, and a few images of each."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedinit.data.reporter import counted
from fedinit.report.figures.heat import heat
from fedinit.report.markup import Cell, Markup, behind, joined, missing, table, tag
from fedinit.report.panels.panel import Panel, figure
from fedinit.report.recording import PARTITION, RECORD
from fedinit.report.runs.methods import Method
from fedinit.report.runs.reading import RecordedRun
from fedinit.said import first_ten
from fedinit.scores import judged_on

MOST_CELLS = 2500  # of the table of counts
MOST_BYTES = 400_000  # of images in one page


def panel(methods: Sequence[Method]) -> Panel:
    run = methods[0].first
    title, partition = "Who holds what", run.partition
    if partition is None:
        how = "`report=full` in a simulation records it; the server of a deployment does not see what its sites hold."
        if (run.folder / RECORD / PARTITION).exists():
            return Panel(
                "clients",
                title,
                "",
                missing("What the run recorded is damaged, so it is left out.", "It is in `record/partition.json`."),
            )
        return Panel("clients", title, "", missing("Not recorded in this run.", how))
    clients, classes = partition["clients"], partition["classes"]
    lead = counted(len(clients), "client")
    if sum(len(method.runs) for method in methods) > 1:
        lead += f" of {methods[0].label}, seed {run.seed}"
    parts: list[Markup] = [_summary(clients, judged_on(run.config["data"]))]
    if classes:
        lead += f", {counted(len(classes), 'class')}; training images of each class, by client."
        parts.insert(0, _counts(clients, classes))
    else:
        lead += "; the targets are numbers, so there are no classes."
    parts += [*_others(methods), _images(run, clients)]
    return Panel("clients", title, lead, joined(parts))


def _others(methods: Sequence[Method]) -> list[Markup]:
    """Which runs of the same seed have other clients than those shown, if any have."""
    shown = methods[0].first.partition
    odd = [
        f"{method.label}, seed {run.seed}"
        for method in methods
        for run in method.runs
        if run.seed == methods[0].first.seed and run.partition is not None and run.partition != shown
    ]
    return [tag("p", f"Otherwise shared out in {first_ten(odd)}.", class_="note")] if odd else []


def called(client: Mapping[str, Any]) -> str:
    domain = client.get("domain")
    return f"{client['client']} {'mixed' if domain is None else domain}"


def _counts(clients: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> Markup:
    values = np.array([client["train"] for client in clients], dtype=np.float64)
    empty = int((values == 0).sum())
    alt = (
        f"Training images of {counted(len(clients), 'client')} by {counted(len(classes), 'class')}, "
        f"{values.min():.0f} to {values.max():.0f}"
    )
    alt += f" in a cell, {counted(empty, 'cell')} empty."
    names = [called(client) for client in clients]
    width = 560.0 if len(classes) <= 24 else 760.0
    drawn = heat("Training images by client and class", alt, values, names, classes, ("class", "images"), width, None)
    if values.size > MOST_CELLS:
        below: Markup = missing("The table is too long for a page.", "All counts are in `record/partition.json`.")
    else:
        rows = [[name, *[Cell(n, n, "number") for n in c["train"]]] for name, c in zip(names, clients, strict=True)]
        below = behind("numbers", table(["client", *classes], rows, caption="Training images by client and class"))
    return figure("Training images by client and class", drawn, below)


def _summary(clients: Sequence[Mapping[str, Any]], judged: str) -> Markup:
    rows = []
    for client in clients:
        train = np.array(client["train"])
        most = f"{train.max() / train.sum():.0%}" if len(train) > 1 and train.sum() else ""
        held = int((train > 0).sum()) if len(train) > 1 else ""
        rows.append([called(client), int(train.sum()), int(sum(client["test"])), held, Cell(most, None, "number")])
    headers = ["client", "training images", f"{judged} images", "classes held", "largest class"]
    shown = table(headers, rows, caption="Images by client")
    return shown if len(rows) <= 12 else behind("images by client", shown)


def _images(run: RecordedRun, clients: Sequence[Mapping[str, Any]]) -> Markup:
    names, left = {client["client"]: called(client) for client in clients}, MOST_BYTES
    strips = []
    for number, content in sorted(run.samples.items()):
        left -= len(content)
        if left < 0 or number not in names:
            break
        source = "data:image/jpeg;base64," + base64.b64encode(content).decode("ascii")
        picture = tag("img", src=source, alt=f"Some training images of client {names[number]}")
        strips.append(tag("li", tag("span", names[number]), picture))
    if not strips and run.chosen("privacy"):
        return missing("No sample of the images.", "A private run's page has none.")
    if not strips:
        return missing("No sample of the images.", "`report=full` keeps one, of images that models take as bytes.")
    return joined([tag("h3", "A few of each client's training images"), tag("ul", joined(strips), class_="strips")])
