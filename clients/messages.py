"""From messages to values: what a server sent, completed by what the client holds, as a task."""

from __future__ import annotations

import functools
import math
import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from torch import Tensor

from clients import budget, guard, secagg
from clients.guard import Guard, Received
from clients.limits import Keeper
from clients.replies import description, projection, refusal
from clients.site import Site, client_of
from clients.starts import Starts, of_last_accepted
from clients.state import rounds
from clients.state.base_offset import Bases
from clients.task import ClientFailed, SlotChoice, Task
from fedinit import wire
from fedinit.adapters.core import BLOCK_SCALES
from fedinit.config.limits import Limits
from fedinit.config.privacy import ExamplePrivacyConfig
from fedinit.config.site import noise_secret
from fedinit.errors import InputError, Refused, machine_failed
from fedinit.factors import PARTS, Factors, difference, distance, norm
from fedinit.said import upwards
from fedinit.secagg.messages import QUERY
from fedinit.state import digest
from fedinit.state.base_offset import EMPTY, RECORD
from fedinit.statistics import Request

# Message types, and the stage at which a message of this type may fail before there is a task.
STAGES = {
    "query.describe": "describe",
    "query.statistics": "statistics",
    "query.project": "reply",
    QUERY: "secagg",
    "train": "start",
    "evaluate": "evaluate",
}


@dataclass(frozen=True)
class Decoded:
    """What a message comes to.

    task: what is to be done for it, None for nothing; of a training that cannot begin, its mute place in the bank.
    reply: the answer, where it is known without doing anything.
    """

    task: Task | None
    reply: Message | None = None


class Decoder:
    """Reads messages for the clients of a site."""

    def __init__(self, site: Site, bases: Bases, deployed: bool) -> None:
        """bases: the base offsets of the clients, which messages bring up to date.
        deployed: the server is another's: noise is drawn with a secret of the client's or not at all, and what leaves
        of an error is a code and what the server knows."""
        self.site, self.bases, self.deployed = site, bases, deployed
        self._guard = Guard(site)

    @functools.cached_property
    def _starts(self) -> Starts:
        return Starts(self.site)

    def decode(self, message: Message, context: Context) -> Decoded:
        """The message as a task, or as the reply that it has already; whatever goes wrong is a reply too, but for what
        a simulation's machine fails at, which is raised.

        Changes the Context: the client keeps what it was sent.
        """
        message_type = message.metadata.message_type
        try:
            keeper = self._keeper(context)
            if message_type == QUERY:  # which asks nothing of the site's images and backbone: they may be unread yet
                guard.check_records(message)
                answer = secagg.answer(message, context, client_of(context), keeper)
                return Decoded(None, Message(answer, reply_to=message))
            received = self._guard.check(message)
            if keeper is not None:
                keeper.check_partition(self.site.partition_of(context).train)
            if message_type == "query.describe":
                return Decoded(None, Message(description(self.site, context), reply_to=message))
            if message_type == "query.project":  # of what this client released, and of nothing else that it has
                return Decoded(None, Message(self._projection(message, received, context), reply_to=message))
            if message_type != "train" and isinstance(self.site.config.privacy, ExamplePrivacyConfig):
                raise Refused(
                    "privacy=examples: this client answers no statistics and no evaluation, which have no noise"
                )
            read = {"query.statistics": self._measurement, "train": self._training, "evaluate": self._evaluation}
            return Decoded(read[message_type](message, received, context))
        except Exception as error:  # what a server may send is anything
            if machine_failed(error) and not self.deployed:
                raise
            given = context.node_config.get("partition-id", -1)
            failed = ClientFailed.of(given if isinstance(given, int) else -1, STAGES[message_type], error)
            place = self._place(message, context) if message_type == "train" else None
            return Decoded(place, refusal(message, failed, self.deployed))

    def _training(self, message: Message, received: Received, context: Context) -> Task:
        config, part = wire.config(message), self.site.partition_of(context)
        adapter, head = self._start(message, received, context)
        offset: Mapping[str, Factors] = {}
        drift = drift_product = 0.0
        trainable, round = wire.words(config, "trainable"), wire.value(config, "round", int)
        if not set(trainable) <= {*PARTS, BLOCK_SCALES} or round < 1:
            raise Refused(f"the server asked to train {trainable} in round {round}")
        own_factors = of_last_accepted(message, context) if config["own-factors"] else None
        if own_factors is not None:
            apart = {name: difference(adapter[name], own_factors[name]) for name in adapter}
            drift, drift_product = distance(own_factors, adapter), sum(norm(o) ** 2 for o in apart.values()) ** 0.5
            # On the global model the base takes up what the start leaves out.
            adapter, offset = own_factors, apart if config.get("on-global", False) else {}
        notes, secret, privacy = {"drift-factors": drift, "drift-product": drift_product}, "", self.site.config.privacy
        keeper = self._keeper(context)
        if keeper is not None:
            keeper.check_masked()
            keeper.check_batches(part.train)
        if isinstance(privacy, ExamplePrivacyConfig):
            # Drawn anew each time: noise that was there before could be taken off by asking again.
            secret = secrets.token_hex(32) if self.deployed else ""
            notes["epsilon"] = budget.spend(
                self.site, privacy, len(part.train), context, keeper, None if self.deployed else round
            )
            if self.deployed:
                spent = f"ε {upwards(notes['epsilon'])} at δ {privacy.delta:g} of this run, with this round"
                print(f"client {part.client}, round {round}: {spent}", file=sys.stderr)
        elif keeper is not None:
            keeper.check_privacy(math.inf, 1.0, len(part.train))
        base = self.bases.receive(message, received[RECORD], context)
        if self._masks:
            secagg.begin(message, context, part.client, keeper, self._start_digest(config, base, keeper))
        return Task(
            client=part.client,
            round=round,
            examples=part.train,
            adapter=adapter,
            head=head,
            trainable=frozenset(trainable),
            base=base,
            offset=offset,
            step_scales=_step_scales(message, context, adapter, head),
            choice=_slot_choice(message),
            personal=frozenset(wire.words(config, "personal")),
            notes=notes,
            secret=secret,
        )

    def _evaluation(self, message: Message, received: Received, context: Context) -> Task:
        part = self.site.partition_of(context)
        adapter, head = self._start(message, received, context)
        if (keeper := self._keeper(context)) is not None:
            keeper.evaluate(part.test)
        base, round = (
            self.bases.receive(message, received[RECORD], context),
            wire.value(wire.config(message), "round", int),
        )
        return Task(part.client, round, part.test, adapter, head, frozenset(), base, work="evaluate")

    def _projection(self, message: Message, received: Received, context: Context) -> RecordDict:
        """The answer to the second phase of a round, masked where its update was. Raises Refused where this client
        made no update in it."""
        round, part = wire.value(wire.config(message), "round", int), self.site.partition_of(context)
        update = rounds.recall(context, rounds.UPDATE, round, ArrayRecord)
        if update is None:
            raise Refused(f"the server asked for the second phase of round {round}, of which this client has no update")
        trained = wire.decode(update)
        means, factors = wire.from_tensors(received[wire.STATE])[0], wire.from_tensors(trained)[0]
        if means.keys() != factors.keys():
            raise Refused("the server asked for the second phase of other layers than this client has trained")
        means_digest, made = digest.of_tensors(received[wire.STATE]), digest.of_tensors(trained)
        if (keeper := self._keeper(context)) is not None:
            keeper.check_masked()
            keeper.project(round, made, means_digest)
        if self._masks:
            secagg.begin(message, context, part.client, keeper, made, means_digest)
        task = Task(part.client, round, part.train, means, {}, frozenset())
        return projection(self.site, task, factors, message, context)

    def _measurement(self, message: Message, received: Received, context: Context) -> Task:
        """On the bare backbone; or, where trained factors are named, at the start that is sent along.

        Raises Refused for noise that the server could draw again, and take off.
        """
        config, part = wire.config(message), self.site.partition_of(context)
        adapter, trainable, base = {}, frozenset(), EMPTY
        if "trainable" in config:
            adapter, head = self._start(message, received, context)
            trainable, base = (
                frozenset(wire.words(config, "trainable")),
                self.bases.receive(message, received[RECORD], context),
            )
        else:
            head = {name[len(wire.HEAD) :]: value for name, value in received[wire.STATE].items()}
        try:
            request = Request.from_json(wire.value(config, "request", str), received[wire.ASKED], head)
        except InputError as error:  # of the server's words alone
            raise Refused(f"the server asked for statistics with {error}") from error
        except Exception as error:  # text from outside: whatever reading it raises
            if machine_failed(error):
                raise
            raise Refused("the server asked for statistics by a text that is no request") from error
        guard.check_request(request, self.site, "trainable" in config)
        secret = noise_secret(context.node_config)
        if self.deployed and request.sampling.noise and not secret:
            raise Refused(
                "the run asks for noise, and this site has no secret to draw it with: start the node with "
                "--node-config 'noise-secret-file=\"…\"'"
            )
        examples, keeper = part.train, self._keeper(context)
        if keeper is not None:
            request, examples = keeper.measure(request, part.train)
        return Task(
            client=part.client,
            round=0,
            examples=examples,
            adapter=adapter,
            head=head,
            trainable=trainable,
            base=base,
            work="measure",
            request=request,
            secret=secret,
        )

    def _keeper(self, context: Context) -> Keeper | None:
        """Of this client's own limits; None where it has none, as on a machine that is the server's too."""
        limits = Limits.of(context.node_config) if self.deployed else None
        return None if limits is None else Keeper(self.site, limits, context)

    @property
    def _masks(self) -> bool:
        """Whether updates leave this site masked."""
        return self.site.config.secure_aggregation.name != "none"

    def _start_digest(self, config: ConfigRecord, base: str, keeper: Keeper | None) -> str:
        """A digest of what is trained from: adapters and head, which `_start` has compared with what the message says
        that they are, and the base, whose key may be any that the server made up."""
        start = str(config["start-digest"])
        strict = keeper is not None and keeper.limits.require_secure_aggregation and base != EMPTY
        return digest.of_tensors(self.bases.known[base]) + start if strict else start

    def _check_own(self, context: Context) -> None:
        """Raise Refused for a message about factors that this client keeps to itself, where updates are masked: its
        score and its statistics are not, and no method of sums leaves a client any."""
        keeper = self._keeper(context)
        if self._masks or (keeper is not None and keeper.limits.require_secure_aggregation):
            raise Refused("the server asked for a client's own factors, where updates are masked (secure_aggregation)")

    def _start(
        self, message: Message, received: Received, context: Context
    ) -> tuple[dict[str, Factors], dict[str, Tensor]]:
        """The adapter and head that the message is about (`Starts.of`)."""
        config = wire.config(message)
        if wire.words(config, "personal") or config.get("own-factors", False):
            self._check_own(context)
        return self._starts.of(message, received[wire.STATE], context)

    def _place(self, message: Message, context: Context) -> Task | None:
        """The place in a bank of a client whose task could not be made; None when not even that is known of it.

        Banks are made of all who were asked: one that fails keeps its place, so that its mates' rounding is the same.
        """
        try:
            config, part = wire.config(message), self.site.partition_of(context)
            sent = wire.arrays(message).items()
            ranks = {n[:-2]: array.shape[n[-1] == "B"] for n, array in sent if n[-2:] in ("/A", "/B")}
            blank = {
                name: Factors(torch.zeros(ranks[name], k), torch.zeros(d, ranks[name]))
                for name, (d, k) in self.site.targets.items()
                if name in ranks
            }
            base, round = wire.value(config, "base-key", str), wire.value(config, "round", int)
            return Task(part.client, round, part.train, blank, {}, frozenset(), base, mute=True)
        except Exception:  # noqa: BLE001 (its failure is answered already)
            return None


def _slot_choice(message: Message) -> SlotChoice | None:
    """How many slots the client may train, and by which rule; None where the method trains them all."""
    config = wire.config(message)
    if "slots" not in config:
        return None
    budget, probe = (wire.value(config, key, int) for key in ("slots", "probe"))
    return SlotChoice(budget, wire.value(config, "choice", str), probe)


def _step_scales(
    message: Message, context: Context, adapter: Mapping[str, Factors], head: Mapping[str, Tensor]
) -> dict[str, float]:
    """{leaf: step scale} of those that are fixed already. Where the server fixed one, it takes the place of this
    client's own; the message has a number a trained tensor, in the order of the names, 0 where the server has none."""
    config = wire.config(message)
    own_scales = rounds.recall(context, rounds.SCALES, rounds.accepted(message), MetricRecord)
    fixed: dict[str, float] = {name: scale for name, scale in (own_scales or {}).items() if not isinstance(scale, list)}
    if "scales" not in config:
        return fixed
    names = wire.trained_names(adapter, head, frozenset(wire.words(config, "trainable")))
    given = zip(names, wire.value(config, "scales", list), strict=True)
    return fixed | {name: float(scale) for name, scale in given if scale}
