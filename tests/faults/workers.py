"""Tasks in worker processes that are killed in the midst of them, and given to another worker.

Each task is a message and the client's state before it, as bytes; a worker answers with the reply and the state after.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from multiprocessing.connection import Connection

from flwr.app import RecordDict
from flwr.common.serde import context_from_proto, context_to_proto, message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Context as ContextProto
from flwr.proto.message_pb2 import Message as MessageProto

from clients.cohort import Cohort
from fedinit.config.compose import compose_config
from fedinit.transport.local import LocalGrid
from strategies.server.federation import federate
from tests.faults.processes import RUN, context, site


def work(pipe: Connection) -> None:
    """A worker: it holds data and backbone, and nothing of its clients between two tasks."""
    LocalGrid(lambda deliveries: [], 1)  # tells Flower who sends, without which there are no messages
    pipe.send_bytes(b"ready")
    while True:
        try:
            message = message_from_proto(MessageProto.FromString(pipe.recv_bytes()))
        except EOFError:
            return
        state = context_from_proto(ContextProto.FromString(pipe.recv_bytes()))
        (reply,) = Cohort(site(), persistent=True)([(message, state)])
        pipe.send_bytes(message_to_proto(reply).SerializeToString())
        pipe.send_bytes(context_to_proto(state).SerializeToString())


class Worker:
    """One worker; another takes its place when it is killed."""

    def __init__(self) -> None:
        self.pipe, theirs = context().Pipe()
        self.process = context().Process(target=work, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()
        assert self.pipe.poll(60) and self.pipe.recv_bytes() == b"ready"

    def begin(self, task: tuple[bytes, bytes]) -> None:
        for part in task:
            self.pipe.send_bytes(part)

    def end(self) -> tuple[bytes, bytes]:
        assert self.pipe.poll(60), "the worker hangs"
        return self.pipe.recv_bytes(), self.pipe.recv_bytes()

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


class Handler:
    """Answers deliveries through a worker. kills: how many tasks to kill it in, each after a random share of what a
    task takes. forgetful: the second worker is not given the state before (the negative control)."""

    def __init__(self, draw: random.Random, kills: int = 0, seconds: float = 0.0, forgetful: bool = False) -> None:
        self.draw, self.kills, self.seconds, self.forgetful = draw, kills, seconds, forgetful
        self.worker, self.tally, self.took = Worker(), Counter(), []

    def __call__(self, deliveries):
        return [self.answer(*delivery) for delivery in deliveries]

    def answer(self, message, client):
        task = [message_to_proto(message).SerializeToString(), context_to_proto(client).SerializeToString()]
        if message.metadata.message_type == "train" and self.kills:
            self.kills -= 1
            self.worker.begin(task)
            time.sleep(self.draw.uniform(0, self.seconds))
            self.tally["midway"] += not self.worker.pipe.poll()
            self.worker.kill()
            self.worker = Worker()
            if self.forgetful:
                client.state = RecordDict()
                task[1] = context_to_proto(client).SerializeToString()
        began = time.monotonic()
        self.worker.begin(task)
        reply, state = self.worker.end()
        if message.metadata.message_type == "train":
            self.took.append(time.monotonic() - began)
        client.state = context_from_proto(ContextProto.FromString(state)).state
        reply = message_from_proto(MessageProto.FromString(reply))
        self.tally["replies"] += 1
        self.tally["lost"] += reply.has_error()
        return reply


def campaign(words: str, seed: int, count: int, forgetful: bool = False) -> Counter:
    """{"midway": killed before it had answered, "same", "other": whole runs by their hash, "replies", "lost"} of runs
    of these words in which `count` tasks lose their worker."""
    config, draw = compose_config([*RUN, *words.split(), "engine.clients_per_bank=1"]), random.Random(seed)
    undisturbed = Handler(draw)
    hashes = [federate(config, LocalGrid(undisturbed, 3), site().backbone).final_hash]
    undisturbed.worker.kill()
    seconds, tally = sorted(undisturbed.took)[len(undisturbed.took) // 2], Counter()
    while count > 0:
        kills = min(count, config.rounds * 3)
        count -= kills
        handler = Handler(draw, kills, seconds, forgetful)
        same = federate(config, LocalGrid(handler, 3), site().backbone).final_hash == hashes[0]
        handler.worker.kill()
        tally["same" if same else "other"] += 1
        tally += handler.tally
    return tally
