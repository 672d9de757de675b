"""Answers a list of messages: many clients trained in one pass. A client alone is a list of one.

The simulation hands over all of a round's messages; a deployed ClientApp hands over its one. There is no other
implementation of anything a client does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import torch
from flwr.app import Context, Message

from clients import secagg
from clients.attacks.attackers import Attackers
from clients.engine.hardware import clients_device
from clients.engine.plan import plan
from clients.evaluation import split
from clients.limits import BOOK
from clients.messages import STAGES, Decoder
from clients.replies import encode
from clients.site import Site
from clients.state.base_offset import Bases
from clients.task import Answer, Task
from fedinit import wire
from fedinit.config.attack import NoAttack

Delivery = tuple[Message, Context]


class Cohort:
    """Callable on a list of (message, context); returns one reply each, in the same order.

    A client's task and its state before make its reply and its state after. The state after is there with the reply,
    or not at all: an Error leaves the Context as it was, so a task that failed, or whose process died, can be given
    again. It is another part of a secret sum that cannot: the keys of one are gone with an Error.
    """

    def __init__(self, site: Site, persistent: bool = False, deployed: bool = False) -> None:
        """site: what this process holds for its clients.
        persistent: clients keep their base in their Context, for when the next message meets a new process.
        deployed: the server is another's: noise is drawn with a secret of the client's or not at all, and what leaves
        of an error is a code and what the server knows."""
        self.site, self.bases = site, Bases(persistent)
        self.decoder = Decoder(site, self.bases, deployed)
        attack = site.config.attack
        self.attackers = None if isinstance(attack, NoAttack) else Attackers(site, attack)

    @cached_property
    def device(self) -> torch.device:
        """The first that its clients train on, as a simulation's server asks."""
        return clients_device(self.site.config.engine)

    def __call__(self, deliveries: Sequence[Delivery]) -> list[Message]:
        return list(self.one_by_one(deliveries))

    def one_by_one(self, deliveries: Sequence[Delivery]) -> Iterator[Message]:
        """The replies, in the order of the messages, each as soon as it is there."""
        unknown = [name for m, _ in deliveries if (name := m.metadata.message_type) not in STAGES]
        if unknown:
            raise ValueError(f"no answer for messages of type {unknown[0]!r}")
        # Records are replaced whole, never changed in place, so that a shallow copy is a state of its own.
        drafts = [(m, Context(c.run_id, c.node_id, c.node_config, wire.of_records(c.state), c.run_config))
                  for m, c in deliveries]  # fmt: skip
        for message, draft in drafts:
            if message.metadata.message_type not in secagg.STAGES:
                secagg.forget(draft)
        for reply, (_, draft), (_, context) in zip(self._kept(drafts, deliveries), drafts, deliveries, strict=True):
            if not reply.has_error():
                context.state = draft.state
            else:
                secagg.forget(context)  # the server counts it as lost, and so do the others
                if BOOK in draft.state:  # what was answered, or refused since it told something, counts all the same
                    context.state[BOOK] = draft.state[BOOK]
            yield reply

    def _kept(self, drafts: Sequence[Delivery], deliveries: Sequence[Delivery]) -> Iterator[Message]:
        """The replies; what is raised in place of one leaves no client the keys of a secret sum either."""
        try:
            yield from self._replies(drafts)
        except Exception:
            for _, context in deliveries:
                secagg.forget(context)
            raise

    def holdings(self, clients: Sequence[int]) -> list[tuple[int, int]]:
        """(training, test images) of each of these clients, who hold nothing from rounds before, where that is all in
        which what they say of themselves differs: none of them may claim what is not so."""
        parts = self.site.partitions
        lies = self.attackers is not None and self.attackers.lie_in_introductions
        if lies or any(type(i) is not int or not 0 <= i < len(parts) for i in clients):
            return []  # where one has no such number, its node says for itself
        return list(zip(*(sizes.tolist() for sizes in parts.sizes(clients)), strict=True))

    def _replies(self, deliveries: Sequence[Delivery]) -> Iterator[Message]:
        decoded = [self.decoder.decode(message, context) for message, context in deliveries]
        tasks = [entry.task for entry in decoded if entry.task is not None]
        answers = self.answers(tasks)
        if self.attackers is not None:  # who know all the others' answers
            answers = iter(self.attackers.forged(tasks, list(answers)))
        for entry, (message, context) in zip(decoded, deliveries, strict=True):
            of_task = [] if entry.task is None else next(answers)
            reply = entry.reply
            if reply is None:
                assert entry.task is not None  # one of the two is there
                reply = encode(self.site, entry.task, of_task, message, context, self.decoder.deployed)
            if self.attackers is not None:
                self.attackers.claim(reply, self.site.partition_of(context).client)
            yield reply

    def answers(self, tasks: Sequence[Task]) -> Iterator[list[Answer]]:
        """Each task's answers, in the order of the tasks and as soon as they are there: one a batch of an evaluation,
        one of any other work, none of a mute task."""
        size = self.site.config.evaluation.batch_size
        parts = [split(task, size) for task in self.site.with_features(tasks)]
        most = self.site.config.engine.clients_per_bank
        assert most != "auto"  # a Site has its configuration resolved
        jobs = plan([part for task in parts for part in task], most)
        for base in dict.fromkeys(job.base for job in jobs):
            self.site.engine.hold(base, self.bases.known[base])
        done = zip(jobs, self.site.engine.run(jobs), strict=True)
        there: dict[int, Answer] = {}
        for task in parts:
            wanted = [id(part) for part in task if not part.mute]
            while not there.keys() >= set(wanted):
                job, answers = next(done)
                there |= {id(part): answer for part, answer in zip(job.tasks, answers, strict=True)}
            yield [there.pop(part) for part in wanted]
        for _ in done:  # of mute tasks alone
            pass
