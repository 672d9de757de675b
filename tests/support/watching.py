"""What is noted of a run as it goes: by observers, by the grid that carries its messages, by its cohort."""

from __future__ import annotations

import torch

from clients.cohort import Cohort
from clients.site import Site
from fedinit import wire
from fedinit.runs.observer import Observer
from fedinit.transport.local import LocalGrid


class Rounds(Observer):
    """What is reported of each round."""

    def __init__(self):
        self.seen = []

    def round_done(self, numbers):
        self.seen.append(numbers)


class Watch(Observer):
    """What is reported of round 0 and of each round, and what went wrong with which client."""

    def __init__(self):
        self.zero, self.rounds, self.events = [], [], []

    def round_zero_done(self, numbers):
        self.zero.append(numbers)

    def round_done(self, numbers):
        self.rounds.append(numbers)

    def event(self, kind, facts):
        self.events.append((kind, facts["round"], facts["client"], facts["code"]))


class Weights(Observer):
    """O + B_global A_global of every layer after each round, in float64."""

    def __init__(self, site: Site):
        self.site, self.after = site, {}

    def model(self, round, tensors):
        layers, _ = wire.from_tensors({n: t for n, t in tensors.items() if not n.startswith("offset/")})
        self.after[round] = {
            name: f.to(torch.float64).dense() + tensors.get(f"offset/{name}", torch.zeros(f.shape))
            for name, f in layers.items()
        }


class Tasks(Cohort):
    """Keeps, by round and client, what each client trains from: O, its own part of the base, and its factors."""

    def __init__(self, site: Site):
        super().__init__(site)
        self.seen = {}

    def answers(self, tasks):
        for t in tasks:
            if t.work == "train":
                self.seen[t.round, t.client] = (self.bases.known[t.base], dict(t.offset), dict(t.adapter))
        return super().answers(tasks)


class SentTensors(LocalGrid):
    """Keeps the tensors of each training message and of its reply, {round: [(down, up)]}."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.rounds: dict[int, list[tuple[dict, dict]]] = {}

    def send_and_receive(self, messages, *, timeout=None):
        replies = super().send_and_receive(messages, timeout=timeout)
        for m, r in zip(messages, replies, strict=True):
            if m.metadata.message_type == "train":
                both = (wire.decode(m.content["state"]), wire.decode(r.content["state"]))
                self.rounds.setdefault(m.content["config"]["round"], []).append(both)
        return replies


def numbers(tensors: dict[str, torch.Tensor], part: str) -> int:
    """How many numbers these tensors hold of a part of the adapters: A, B or R."""
    return sum(t.numel() for name, t in tensors.items() if name.endswith(f"/{part}"))


class Absent(LocalGrid):
    """Client 0 is not there in some rounds; notes how each client is brought up to date, and in how many bytes."""

    def __init__(self, *args, missing=(), **options):
        super().__init__(*args, **options)
        self.missing, self.updates = missing, {}

    def send_and_receive(self, messages, *, timeout=None):
        kept = []
        for m in messages:
            if m.metadata.message_type != "train":
                kept.append(m)
                continue
            client = self.contexts[m.metadata.dst_node_id].node_config["partition-id"]
            round = m.content["config"]["round"]
            if client == 0 and round in self.missing:
                continue
            kept.append(m)
            sent = wire.decode(m.content["base"]) if "base" in m.content else {}
            versions = len({name.partition("/")[0] for name in sent})
            size = sum(t.numel() * t.element_size() for t in sent.values())
            self.updates[round, client] = m.content["config"]["base-update"], versions, size
        return super().send_and_receive(kept, timeout=timeout)
