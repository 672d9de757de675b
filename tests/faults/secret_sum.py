"""One site of four that answers whatever it likes at some stage of a secret sum; the other three are honest.

Clients are live here, since what honest ones answer at a stage follows from all answers to the one before; what they
would have trained is made up. Whatever comes, the round ends: with the mean of those that are left, the honest three
among them, or with a sum that is refused for a reason, in one line.
"""

from __future__ import annotations

import random
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable

import torch
from flwr.app import Message, RecordDict

from clients import secagg
from clients.cohort import Cohort
from clients.site import Site
from fedinit import wire
from fedinit.config.secure_aggregation import SecAggConfig
from fedinit.secagg.fixed_point import FixedPoint
from fedinit.secagg.messages import QUERY
from fedinit.transport.local import LocalGrid
from strategies.server.collecting import Admitted
from strategies.server.secure_sum import collect_sum
from tests.faults.hostile import BYTES, SECONDS, mutate
from tests.support.serving import exchange_over, method_of, registered
from tests.support.small import small_config

STAGES = ("keys", "shares", "train", "unmask")
SECURE = SecAggConfig()
POINT = FixedPoint(SECURE.clip, SECURE.bits)
CLIENTS = 4
Change = Callable[[str, int, Message], None]


class SecretSum:
    """Round 1 of four clients, as often as is wanted."""

    def __init__(self) -> None:
        self.site = Site(small_config("partition=iid", f"partition.clients={CLIENTS}"))
        self.cohort = Cohort(self.site)
        self.state = registered(self.site)[1]
        start = wire.to_tensors(self.state.model.layers, self.state.model.head)
        self.trained = {
            client: {name: value + 0.01 * torch.randn(value.shape, generator=torch.manual_seed(client)).to(value)
                     for name, value in start.items()}
            for client in range(CLIENTS)
        }  # fmt: skip
        self.grid = LocalGrid(self._answers, CLIENTS)
        self.exchange = exchange_over(self.grid)
        self.exchange.register_clients(self.site.backbone.digest, -1)
        self.exchange.emit = lambda kind, facts: self.ledger.append((kind, dict(facts)))
        self.ledger: list[tuple[str, dict]] = []
        self.change: Change = lambda stage, client, reply: None

    def round(self, change: Change) -> Admitted:
        """What the server makes of the round; `change` spoils replies in place."""
        self.ledger.clear()
        self.change = change
        for context in self.grid.contexts.values():  # who has unmasked a sum of the round unmasks no other of it
            context.state = RecordDict()
        return collect_sum(self.state, method_of(secure=SECURE), self.exchange)[1]

    def off_by(self, admitted: Admitted) -> float:
        """How far the mean is from that of the clients that it is said to be of, at the most."""
        (update,) = admitted.updates
        mean = wire.to_tensors(update.layers, update.head)
        exact = {
            name: sum(self.trained[client][name].double() * share for client, share in admitted.shares.items())
            for name in mean
        }
        return max(float((mean[name] - exact[name]).abs().max()) for name in mean)

    def _answers(self, deliveries):
        replies = []
        for message, context in deliveries:
            kind, client = message.metadata.message_type, context.node_config["partition-id"]
            if kind == "query.describe":
                replies += self.cohort([(message, context)])
                continue
            stage = str(wire.config(message)["stage"]) if kind == QUERY else kind
            try:
                reply = Message(self._content(message, context, client), reply_to=message)
            except ValueError as error:  # the spoilt one's own, of what came back to it
                assert client in self.spoilt, error
                continue
            self.change(stage, client, reply)
            replies.append(reply)
        return replies

    spoilt: tuple[int, ...] = ()

    def _content(self, message, context, client):
        if message.metadata.message_type == QUERY:
            return secagg.answer(message, context, client)
        examples, tensors = self.exchange.examples[client], self.trained[client]
        return secagg.masked(message, context, client, POINT, examples, 0, tensors, 1.0)


def campaign(sums: SecretSum, seed: int, count: int, measured: bool = True) -> Counter:
    """What `count` spoilt answers came to: {"refused", "let in", "sum refused", "slow", "large", "others lost"}."""
    tally: Counter = Counter()
    began = time.process_time()
    assert sums.off_by(sums.round(lambda stage, client, reply: None)) < 1e-6, "an honest sum is wrong"
    honest = time.process_time() - began
    for i in range(count):
        draw = random.Random(f"hostile/secagg/{seed}/{i}")
        bad, at = draw.randrange(CLIENTS), draw.choice(STAGES)
        sums.spoilt, faults, spent = (bad,), [], []

        def spoil(stage, client, reply, draw=draw, bad=bad, at=at, faults=faults, spent=spent):
            if (stage, client) != (at, bad):
                return
            before, node = time.process_time(), reply.metadata.src_node_id
            faults.append(mutate(reply, draw))
            reply.metadata.__dict__["_src_node_id"] = node  # a forged sender is found before: pulling.py
            spent.append(time.process_time() - before)
            if measured:
                tracemalloc.start()

        began = time.process_time()
        try:
            admitted = sums.round(spoil)
        except Exception as error:
            raise AssertionError(f"answer {i} of seed {seed} ({at}: {faults}) ends a run: {error!r}") from error
        # Tracing slows the honest clients' work by a factor of its own: time is judged without it, on the same answers.
        tally["slow"] += not measured and time.process_time() - began - sum(spent) > 2 * honest + SECONDS
        if measured:
            tally["large"] += tracemalloc.get_traced_memory()[1] > BYTES
            tracemalloc.stop()
        why = [facts["detail"] for kind, facts in sums.ledger if kind == "sum_refused"]
        named = {facts["client"] for kind, facts in sums.ledger if kind == "refused"} - {-1}
        tally["others lost"] += not named <= {bad}
        if not admitted.updates:
            assert len(why) == 1 and "\n" not in why[0], (at, faults, why)
            tally["sum refused"] += 1
            continue
        tally["others lost"] += not set(admitted.shares) >= set(range(CLIENTS)) - {bad}
        off = sums.off_by(admitted)
        assert off < 1e-6 or bad in admitted.shares, (at, faults, off)
        tally["let in" if off > 1e-6 else "refused"] += 1
    return tally
