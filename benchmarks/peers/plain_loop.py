"""A loop in plain torch, a client at a time: what a paper's own repository does."""

from __future__ import annotations

import time
from collections.abc import Callable

from benchmarks.peers.work import Model, Work, average, parts, train


def run(work: Work, told: Callable[[float], None]) -> None:
    data, model = parts(work), Model(work)
    current = {name: value.detach().clone() for name, value in model.trained().items()}
    for _ in range(work.rounds):
        updates = []
        for part in data:
            model.load(current)
            train(model, part, work)
            updates.append({name: value.detach().clone() for name, value in model.trained().items()})
        current = average(updates)
        told(time.time())
