"""The bad clients among a cohort: their results are forged after training, and their claims on the way out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from flwr.app import ConfigRecord, Message, MetricRecord
from torch import Tensor

from clients.attacks import ATTACKS
from clients.attacks.contract import Change, Seen, refuse_unsendable
from clients.site import Site
from clients.task import Answer, Result, Task
from fedinit import wire
from fedinit.config.attack import AttackConfig, ClaimsConfig
from fedinit.seeding import torch_generator


class Attackers:
    """Who attacks in a run, and how. clients: their partition ids."""

    def __init__(self, site: Site, settings: AttackConfig) -> None:
        self.settings, self.seed = settings, site.config.seed
        self.clients = settings.attackers(len(site.partitions), site.config.seed)
        self.attack = ATTACKS[settings.name](settings)

    def forged(self, tasks: Sequence[Task], answers: Sequence[Sequence[Answer]]) -> list[list[Answer]]:
        """The answers, those of attackers' trainings forged. They know the honest ones that are answered with them."""
        trained = [
            (task, answer[0])
            for task, answer in zip(tasks, answers, strict=True)
            if task.work == "train" and answer and isinstance(answer[0], Result)
        ]
        changes = {task.client: change_of(task, result) for task, result in trained}
        honest = [changes[client] for client in sorted(changes.keys() - self.clients)]
        count = len(changes.keys() & self.clients)

        def send(task: Task, answer: Sequence[Answer]) -> list[Answer]:
            if task.client not in self.clients or task.client not in changes or not isinstance(answer[0], Result):
                return list(answer)
            draw = torch_generator(self.seed, "attack", task.round, task.client)
            own = changes[task.client]
            change = refuse_unsendable(self.attack.forge(Seen(own, honest, count, draw)), own, self.attack)
            return [sending(task, answer[0], change)]

        return [send(task, answer) for task, answer in zip(tasks, answers, strict=True)]

    @property
    def lie_in_introductions(self) -> bool:
        """Whether they claim what is not so already where clients say who they are."""
        return isinstance(self.settings, ClaimsConfig) and self.settings.register

    def claim(self, reply: Message, client: int) -> None:
        """Put what an attacker claims into its reply; nothing for who claims nothing."""
        if not isinstance(self.settings, ClaimsConfig) or client not in self.clients or reply.has_error():
            return
        kind = reply.metadata.message_type
        name = {"train": wire.METRICS, "query.describe": wire.CONFIG if self.settings.register else ""}.get(kind)
        record = reply.content.get(name or "")
        if isinstance(record, (ConfigRecord, MetricRecord)):
            record["num-examples"] = self.settings.examples


def change_of(task: Task, result: Result) -> Change:
    """What a training changed of every tensor that it trained, in float64."""
    start, end = wire.to_tensors(task.adapter, task.head), wire.to_tensors(result.adapter, result.head)
    trained = wire.trained_names(result.adapter, result.head, task.trainable)
    return {name: end[name].double() - start[name].double() for name in trained}


def sending(task: Task, result: Result, change: Change) -> Result:
    """The result as if this had been the change."""
    start, end = wire.to_tensors(task.adapter, task.head), wire.to_tensors(result.adapter, result.head)

    def moved(name: str, by: Tensor) -> Tensor:
        return (start[name].double() + by).to(end[name].dtype)

    adapter, head = wire.from_tensors(end | {name: moved(name, by) for name, by in change.items()})
    return replace(result, adapter=adapter, head=head)
