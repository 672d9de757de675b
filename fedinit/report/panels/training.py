"""Accuracy and loss over rounds and over bytes."""

from __future__ import annotations

from collections.abc import Sequence

from fedinit.report.markup import joined
from fedinit.report.panels.panel import Panel, grid, legend, over_rounds, traces
from fedinit.report.runs.methods import Method
from fedinit.scores import SCORES, judged_on


def panel(methods: Sequence[Method]) -> Panel:
    score = methods[0].first.score
    title = SCORES[score].title
    name, images = title.partition(",")[0], judged_on(methods[0].first.config["data"]).capitalize()
    scores, losses = traces(methods, score), traces(methods, "train_loss")
    log = score == "recovery_error"
    figures = grid(
        over_rounds(f"{images} {name} by round", scores, title, log=log),
        over_rounds(f"{images} {name} by bytes", scores, title, by_bytes=True, log=log),
        over_rounds("Training loss by round", losses, "loss"),
        over_rounds("Training loss by bytes", losses, "loss", by_bytes=True),
    )
    seeds = max(len(method.runs) for method in methods)
    lead = "The mean over domains, and the clients' loss weighted by their images"
    lead += "; bands are one standard deviation over seeds." if seeds > 1 else "."
    return Panel("training", "Training", lead, joined([legend([m.label for m in methods]), figures]))
