"""Which of a bank's clients are mute, and why."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from clients.task import ClientFailed, Task
from fedinit.errors import machine_failed


class Failures:
    """A client that fails keeps its place in the bank and is mute from there on; its mates go on.

    mute: clients that see black images. by_client: {client: its failure} of those that failed here.
    """

    def __init__(self, tasks: Iterable[Task]) -> None:
        self.mute = {task.client for task in tasks if task.mute}
        self.by_client: dict[int, ClientFailed] = {}

    @contextmanager
    def of(self, client: int, stage: str, step: int | None = None) -> Iterator[None]:
        """What is raised within is this client's failure, at this stage; what the machine fails at is nobody's, and is
        raised."""
        try:
            yield
        except Exception as error:
            if machine_failed(error):
                raise
            self.by_client[client] = ClientFailed.of(client, stage, error, step)
            self.mute.add(client)
