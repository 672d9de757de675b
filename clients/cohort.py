"""Answers a list of messages: many clients trained in one pass. A client alone is a list of one.

The simulation hands over all of a round's messages; a deployed ClientApp hands over its one. There is no other
implementation of anything a client does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from flwr.app import ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.common.constant import ErrorCode
from torch import Tensor

from clients import guard
from clients.evaluation import sums_record
from clients.selection import Choice, trained_part
from clients.site import Site, is_zero
from clients.state import rounds as own
from clients.state.base_offset import Bases, held_key
from clients.statistics import measure
from clients.training import ClientFailed, Result, StepFailed, Task, train_bank
from fedinit import slots, wire
from fedinit.adapters.bank import Bank
from fedinit.config.client import SGDSaIConfig
from fedinit.errors import InputError
from fedinit.factors import PARTS, Factors, difference, distance, norm
from fedinit.state import digest
from fedinit.state.base_offset import EMPTY
from fedinit.state.digest import of_tensors
from fedinit.statistics import Request, create_statistics, pack

HELD = "held"  # in Context.state: factors this client was sent once and keeps (frozen ones)

Delivery = tuple[Message, Context]


@dataclass(frozen=True)
class Asked:
    """What a client is to measure: on the bare backbone, or with this adapter over the base of this key, and gradients
    of the `trainable` factors."""

    request: Request
    adapter: Mapping[str, Factors] | None = None
    trainable: frozenset[str] = frozenset()
    base: str = EMPTY


class Cohort:
    """Callable on a list of (message, context); returns one reply each, in the same order.

    A client's task and its state before make its reply and its state after. The state after is there with the reply,
    or not at all: an Error leaves the Context as it was, so a task that failed, or whose process died, can be given
    again.
    """

    def __init__(self, site: Site, persistent: bool = False, deployed: bool = False) -> None:
        """persistent: clients keep their base in their Context, for when the next message meets a new process.
        deployed: the server is another's, so noise is drawn with a secret of the client's or not at all."""
        self.site, self.bases, self.deployed = site, Bases(persistent), deployed

    def __call__(self, deliveries: Sequence[Delivery]) -> list[Message]:
        # Records are replaced whole, never changed in place, so that a shallow copy is a state of its own.
        drafts = [(m, Context(c.run_id, c.node_id, c.node_config, RecordDict({**c.state}), c.run_config))
                  for m, c in deliveries]  # fmt: skip
        replies = self._replies(drafts)
        for reply, (_, draft), (_, context) in zip(replies, drafts, deliveries, strict=True):
            if not reply.has_error():
                context.state = draft.state
        return replies

    def _replies(self, deliveries: Sequence[Delivery]) -> list[Message]:
        replies: dict[int, Message] = {}
        work = {
            "query.describe": self._describe,
            "query.statistics": self._statistics,
            "train": self._train,
            "evaluate": self._evaluate,
        }
        for kind, answer in work.items():
            mine = [i for i, (m, _) in enumerate(deliveries) if m.metadata.message_type == kind]
            answers = answer([deliveries[i] for i in mine]) if mine else []
            replies.update(zip(mine, answers, strict=True))
        unknown = [m.metadata.message_type for i, (m, _) in enumerate(deliveries) if i not in replies]
        if unknown:
            raise ValueError(f"no answer for messages of type {unknown[0]!r}")
        return [replies[i] for i in range(len(deliveries))]

    def _attempt(self, work, message: Message, context: Context, stage: str):
        """What `work` makes of the message, or the Error that answers it: the other clients' round goes on."""
        try:
            return work(message, context)
        except Exception as error:  # noqa: BLE001 (what a server may send is anything)
            return _error(message, str(ClientFailed(context.node_config.get("partition-id", -1), stage, error)))

    def _answered(self, work, message: Message, context: Context, stage: str) -> Message:
        made = self._attempt(work, message, context, stage)
        return made if isinstance(made, Message) else Message(made, reply_to=message)

    def _describe(self, deliveries: Sequence[Delivery]) -> list[Message]:
        """Who a client is: its partition and how many there are, examples, classes, domains, hash of its backbone; and
        what it holds from rounds before, by hash, for a server that was started again."""

        def answer(message: Message, context: Context) -> RecordDict:
            guard.check(message, self.site)
            part = self.site.partition(_partition_id(context))
            held = wire.decode(context.state[HELD]) if HELD in context.state else {}
            facts = {
                "partition-id": part.client,
                "num-partitions": len(self.site.partitions),
                "num-examples": len(part.train),
                "num-test-examples": len(part.test),
                "classes": list(self.site.data.class_names),
                "domains": list(self.site.data.domain_names),
                "score": self.site.score.name,
                "backbone": self.site.backbone.digest,
                "held": list(held),
                "held-digests": [of_tensors({name: tensor}) for name, tensor in held.items()],
                "own-rounds": list(own.held(context, own.FACTORS)),
                "base-key": held_key(context),
            }
            return RecordDict({wire.CONFIG: ConfigRecord(facts)})

        return [self._answered(answer, m, c, "describe") for m, c in deliveries]

    def _statistics(self, deliveries: Sequence[Delivery]) -> list[Message]:
        """What round 0 asks for, a client a lane: measured on the bare backbone, or at the start that is sent along."""
        site, replies = self.site, {}
        asked = {i: self._attempt(self._asked, m, c, "statistics") for i, (m, c) in enumerate(deliveries)}
        sizes = {"gradients": site.config.client.batch_size}  # a backward pass holds what training holds

        def answer(bank: Bank, place: int, context: Context) -> RecordDict:
            question, part = asked[place], site.partition(_partition_id(context))
            secret = _secret(context)
            if question.adapter is None:
                bank.bare()
            else:
                bank.load([question.adapter], [question.request.head], question.trainable)
            size = sizes.get(question.request.source, site.config.evaluation.batch_size)
            found = measure(bank, question.request, part.train, part.client, site.data, site.lanes.input, size, secret)
            metrics = MetricRecord({"num-examples": found.examples, "round": 0})
            packed = pack(create_statistics(question.request), found.sums)
            return RecordDict({wire.STATE: wire.encode(packed), wire.METRICS: metrics})

        def work(bank: Bank, place: int) -> Message:
            return self._answered(lambda m, c: answer(bank, place, c), *deliveries[place], "statistics")

        for key in sorted({a.base for a in asked.values() if isinstance(a, Asked)}):
            places = [i for i, a in asked.items() if isinstance(a, Asked) and a.base == key]
            site.lanes.set_base(key, self.bases.known[key])
            replies |= dict(zip(places, site.lanes.map(work, places), strict=True))
        return [replies.get(i, a) for i, a in asked.items()]

    def _asked(self, message: Message, context: Context) -> Asked:
        guard.check(message, self.site)
        config, sent = message.content[wire.CONFIG], wire.decode(message.content[wire.STATE])
        tensors = wire.decode(message.content[wire.ASKED])
        if "trainable" not in config:
            head = {name[len(wire.HEAD) :]: value for name, value in sent.items()}
            return Asked(self._secured(Request.from_json(str(config["request"]), tensors, head), context))
        adapter, head = self._received(message, context)
        request, base = Request.from_json(str(config["request"]), tensors, head), self.bases.receive(message, context)
        return Asked(self._secured(request, context), adapter, frozenset(config["trainable"]), base)

    def _secured(self, request: Request, context: Context) -> Request:
        """Raises InputError for noise that the server could draw again, and take off."""
        if self.deployed and request.sampling.noise and not _secret(context):
            raise InputError(
                "the run asks for noise, and this site has no secret to draw it with: start the node with "
                "--node-config 'noise-secret=\"…\"'"
            )
        return request

    def _train(self, deliveries: Sequence[Delivery]) -> list[Message]:
        made: list[Task | Message] = [self._attempt(self._task, m, c, "start") for m, c in deliveries]
        # Banks are made of all who were asked: one that fails keeps its place, so that its mates' rounding is the same.
        places = [t if isinstance(t, Task) else self._place(m, c) for t, (m, c) in zip(made, deliveries, strict=True)]
        results = self._results([place for place in places if place is not None])
        replies = []
        for task, (message, context) in zip(made, deliveries, strict=True):
            if isinstance(task, Task):
                result = results[task.client]
                if isinstance(result, ClientFailed):
                    replies.append(_error(message, str(result)))
                else:
                    made = partial(self._reply, task, result)
                    replies.append(self._answered(made, message, context, "reply"))
            else:
                replies.append(task)
        return replies

    def _place(self, message: Message, context: Context) -> Task | None:
        """The place in a bank of a client whose task could not be made; None when not even that is known of it."""
        try:
            config, part = message.content[wire.CONFIG], self.site.partition(_partition_id(context))
            sent = message.content[wire.STATE].items()
            ranks = {n[:-2]: array.shape[n[-1] == "B"] for n, array in sent if n[-2:] in ("/A", "/B")}
            blank = {
                name: Factors(torch.zeros(ranks[name], k), torch.zeros(d, ranks[name]))
                for name, (d, k) in self.site.targets.items()
                if name in ranks
            }
            key, round = str(config["base-key"]), int(config["round"])
            return Task(part.client, round, part.train, blank, {}, frozenset(), key, mute=True)
        except Exception:  # noqa: BLE001 (its failure is answered already)
            return None

    def _results(self, tasks: Sequence[Task]) -> dict[int, Result | ClientFailed]:
        """{client: what training gave}; clients over the same base are trained in banks together."""
        site, made = self.site, {}
        for key in sorted({t.base for t in tasks if not t.mute}):
            members = [t for t in tasks if t.base == key]
            working = [t for t in members if not t.mute]
            members = [t.stand_in(working[0]) if t.mute else t for t in members]
            site.lanes.set_base(key, self.bases.known[key])
            # Without any adapter in play the backbone's features are constants, computed once for all rounds.
            still = site.config.client.augment == "none" and key == EMPTY and all(_is_still(t) for t in working)
            features = site.features if still else None

            def train(bank: Bank, part: Sequence[Task], features: Tensor | None) -> list[Result | ClientFailed]:
                seed, settings = site.config.seed, site.config.client
                return train_bank(bank, part, site.data, site.lanes.input, settings, seed, features)

            def work(bank: Bank, part: Sequence[Task], features: Tensor | None = features):
                try:
                    return train(bank, part, features)
                except Exception:  # noqa: BLE001 (somebody's; each is tried with the others mute, at the same rounding)
                    return [alone(bank, part, i, features) for i in range(len(part))]

            def alone(bank: Bank, part: Sequence[Task], i: int, features: Tensor | None) -> Result | ClientFailed:
                try:
                    like = part[i]
                    return train(bank, [t if t is like else t.stand_in(like) for t in part], features)[i]
                except Exception as error:  # noqa: BLE001 (this client's)
                    step = error.step if isinstance(error, StepFailed) else None
                    return ClientFailed(part[i].client, "train", error if step is None else error.__cause__, step)

            banks = split_evenly(members, site.config.engine.clients_per_bank)
            results = [r for bank in site.lanes.map(work, banks) for r in bank]
            made |= dict(zip([t.client for t in members], results, strict=True))
        return made

    def _task(self, message: Message, context: Context) -> Task:
        """The message as a task: what was sent, completed by what this client holds."""
        guard.check(message, self.site)
        config = message.content[wire.CONFIG]
        part = self.site.partition(_partition_id(context))
        adapter, head = self._received(message, context)
        offset: Mapping[str, Factors] = {}
        drift = 0.0
        mine = _own_factors(message, context) if config["own-factors"] else None
        if mine is not None:
            drift = distance(mine, adapter)
            # The base takes up what the start leaves out, so the client still starts from the global model.
            adapter, offset = mine, {name: difference(adapter[name], mine[name]) for name in adapter}
        return Task(
            client=part.client,
            round=int(config["round"]),
            examples=part.train,
            adapter=adapter,
            head=head,
            trainable=frozenset(config["trainable"]),
            base=self.bases.receive(message, context),
            offset=offset,
            scales=_scales(message, context, adapter, head),
            choice=Choice(config["slots"], config["choice"], config["probe"]) if "slots" in config else None,
            notes={"drift-factors": drift, "drift-product": sum(norm(o) ** 2 for o in offset.values()) ** 0.5},
        )

    def _received(self, message: Message, context: Context) -> tuple[dict[str, Factors], dict[str, Tensor]]:
        tensors = wire.decode(message.content[wire.STATE])
        held = wire.decode(context.state[HELD]) if HELD in context.state else {}
        keep = {f"/{part}" for part in message.content[wire.CONFIG]["keep"]}
        held |= {name: value for name, value in tensors.items() if name[-2:] in keep and not name.startswith(wire.HEAD)}
        if held:
            context.state[HELD] = wire.encode(held)
        complete = held | tensors
        names = {f"{layer}/{part}" for layer in self.site.targets for part in ("A", "B")}
        absent = sorted(names - complete.keys())
        if absent:
            raise LookupError(f"factor {absent[0]} was neither sent nor is held by this client")
        names |= {f"{layer}/{part}" for layer in self.site.targets for part in PARTS}
        whole = {k: v for k, v in complete.items() if k in names or k.startswith(wire.HEAD)}
        if digest.of_tensors(whole) != message.content[wire.CONFIG]["start-digest"]:
            raise LookupError("the start that this client put together is not the one the server made")
        layers, head = wire.from_tensors(whole)
        return _with_personal({layer: layers[layer] for layer in self.site.targets}, message, context), head

    def _reply(self, task: Task, result: Result, message: Message, context: Context) -> RecordDict:
        config, made = message.content[wire.CONFIG], {}
        if config["own-factors"] or config["personal"]:
            made[own.FACTORS] = wire.encode(wire.to_tensors(result.adapter, {}))
        own_client = self.site.config.client
        if result.scales and isinstance(own_client, SGDSaIConfig) and own_client.gsnr_scope != "per_round":
            made[own.SCALES] = MetricRecord({**task.scales, **result.scales})
        own.keep(message, context, made)
        trained = {
            name: value
            for name, value in wire.to_tensors(result.adapter, result.head).items()
            if name.startswith(wire.HEAD) or name[-1] in task.trainable.difference(config["personal"])
        }
        if result.chosen is not None:
            trained = slots.pack(trained, trained_part(task), result.chosen)
        metrics = {
            "num-examples": len(task.examples),
            "round": task.round,
            "loss": result.loss,
            "steps": result.steps,
            "optimizer-state": result.state,
            **task.notes,
        }
        return RecordDict({wire.STATE: wire.encode(trained), wire.METRICS: MetricRecord(metrics)})

    def _evaluate(self, deliveries: Sequence[Delivery]) -> list[Message]:
        """The sums of the score over a client's own test split, to be merged."""

        def answer(message: Message, context: Context) -> RecordDict:
            guard.check(message, self.site)
            part = self.site.partition(_partition_id(context))
            adapter, head = self._received(message, context)
            key = self.bases.receive(message, context)
            sums = self.site.judge(part.test, adapter, head, key, self.bases.known[key])
            record = sums_record(sums, self.site.score)
            record["round"] = int(message.content[wire.CONFIG]["round"])
            return RecordDict({wire.METRICS: record})

        return [self._answered(answer, m, c, "evaluate") for m, c in deliveries]


def split_evenly(items: Sequence[Task], size: int) -> list[list[Task]]:
    """Consecutive groups of at most `size`, as equal as can be: six in fours is 3 + 3, not 4 + 2."""
    count = -(-len(items) // size)
    bounds = [round(i * len(items) / count) for i in range(count + 1)] if count else [0]
    return [list(items[a:b]) for a, b in zip(bounds, bounds[1:], strict=False)]


def _with_personal(layers: dict[str, Factors], message: Message, context: Context) -> dict[str, Factors]:
    """The factors with the ones this client keeps to itself in their place, once it has any."""
    personal = message.content[wire.CONFIG]["personal"]
    mine = _own_factors(message, context) if personal else None
    if mine is None:
        return layers
    return {n: dataclasses.replace(f, **{p: getattr(mine[n], p) for p in personal}) for n, f in layers.items()}


def _own_factors(message: Message, context: Context) -> dict[str, Factors] | None:
    """What this client ended the round of its last accepted update with; None where it has nothing of its own."""
    record = own.recall(message, context, own.FACTORS)
    return None if record is None else wire.from_tensors(wire.decode(record))[0]


def _scales(
    message: Message, context: Context, adapter: Mapping[str, Factors], head: Mapping[str, Tensor]
) -> dict[str, float]:
    """The step scales that are fixed already: this client's own, and before them those of the server, a number a
    trained tensor in the order of the names, 0 where it has none."""
    fixed = dict(own.recall(message, context, own.SCALES) or {})
    config = message.content[wire.CONFIG]
    if "scales" not in config:
        return fixed
    names = wire.trained_names(adapter, head, frozenset(config["trainable"]))
    given = zip(names, config["scales"], strict=True)
    return fixed | {name: scale for name, scale in given if scale}


def _is_still(task: Task) -> bool:
    return not task.trainable and not task.offset and is_zero(task.adapter)


def _partition_id(context: Context) -> int:
    given = context.node_config.get("partition-id")
    if type(given) is not int:
        what = "this node has no partition-id" if given is None else f"partition-id={given}: expected a whole number"
        raise InputError(f"{what}; start it with --node-config 'partition-id=0 …'")
    return given


def _secret(context: Context) -> str:
    return str(context.node_config.get("noise-secret", ""))


def _error(message: Message, reason: str) -> Message:
    return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)
