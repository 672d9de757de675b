"""The messages that go to clients: each one's start, less what it holds already, and what of the base it lacks.

Every function takes the state and returns it as it is once the messages have gone, beside the messages: a list, not a
generator, since Flower's HttpGrid reads it twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from flwr.app import ConfigRecord, Message, RecordDict
from torch import Tensor

from fedinit import wire
from fedinit.factors import at_most_full
from fedinit.message_limit import Limit
from fedinit.state import base_offset, digest
from fedinit.statistics import Request, create_statistics, wire_format
from strategies.aggregator import Aggregate
from strategies.methods.choosing import Choosing
from strategies.server.exchange import Exchange
from strategies.server.gate import Expected
from strategies.server.method import Method
from strategies.server.replies import Asked
from strategies.server.state import ServerState

Settings = Mapping[str, Any]
NOTHING: Settings = MappingProxyType({})


def for_training(
    state: ServerState, method: Method, exchange: Exchange, clients: Sequence[int], extra: Settings = NOTHING
) -> tuple[ServerState, list[Message], dict[int, Expected]]:
    """A message a client: its start factors, less the frozen ones it holds, and the head; and {node id: what its update
    must hold}.

    clients: who is asked, by partition id. extra: settings that go into every message.
    """
    round = state.round + 1
    trainable, returned = method.trainable(round), method.returned(state.model, round)
    settings = {**_factor_settings(state, method, round, trainable), "own-factors": method.reinit.own_factors, **extra}
    if method.aggregator.two_phase:
        settings["second-phase"] = True
    clip = None if method.privacy is None else method.privacy.at(state.clip).clips["first"]
    if method.privacy is not None and method.privacy.adaptive is not None:
        settings["clip"] = clip
    if method.reinit.on_global:
        settings["on-global"] = True
    if state.step_scales:
        names = wire.trained_names(state.model.layers, state.model.head, trainable)
        settings["scales"] = [state.step_scales.get(name, 0.0) for name in names]
    starts = method.starts_of(clients, state.model)
    budgets, by_client = method.budgets(clients, round, state.model), _start_digests(starts)
    if isinstance(method.aggregator, Choosing):
        for client, budget in budgets.items():
            by_client[client] |= {"slots": budget, "choice": method.aggregator.choice, "probe": method.aggregator.probe}
    state, messages = _messages(state, exchange, "train", starts, returned, settings, by_client)
    whole = None if method.client is None else replace(method.client, max_steps=None)  # epochs, which bound the steps
    limits: dict[tuple[int, int], Limit] = {}  # by the start's identity, and how many slots
    expected = {}
    for (client, start), message in zip(starts.items(), messages, strict=True):
        examples, about = state.roster.examples.get(client), (id(start), budgets.get(client, 0))
        if about not in limits:
            limits[about] = _limit({name: start[name] for name in returned}, about[1])
        expected[exchange.by_client[client]] = Expected(
            client,
            round,
            run=exchange.run_id,
            message=message,
            sent=start,
            trained=returned,
            slots=budgets.get(client),
            limit=limits[about],
            examples=examples,
            clip=clip,
            steps=None if examples is None or whole is None else whole.steps(examples),
        )
    return state, messages, expected


def for_evaluation(
    state: ServerState, method: Method, exchange: Exchange, extra: Settings = NOTHING
) -> tuple[ServerState, list[Message], dict[int, Asked]]:
    """A message with the global factors and head to every client that evaluates; and {node id: what it was
    asked}. extra: settings that go into every message.

    Factors of more than a map's own rank, as all clients' side by side have after a last round, go as the d×k matrix:
    clients take no larger ones."""
    settings = {"round": state.round, "keep": [], "personal": sorted(method.aggregator.personal), **extra}
    clients = method.evaluators(state.round, sorted(c for c, images in exchange.tests.items() if images))
    layers = {name: at_most_full(factors) for name, factors in state.model.layers.items()}
    tensors = wire.to_tensors(layers, state.model.head)
    starts: dict[int, Mapping[str, Tensor]] = dict.fromkeys(clients, tensors)
    by_client = dict.fromkeys(clients, {"start-digest": digest.of_tensors(tensors)})
    state, messages = _messages(state, exchange, "evaluate", starts, frozenset(tensors), settings, by_client)
    rows = Limit(rest=2**16 + 64 * len(state.roster.domain_names))
    return state, messages, asked(exchange, clients, messages, state.round, rows)


def for_statistics(
    state: ServerState,
    method: Method,
    exchange: Exchange,
    clients: Sequence[int],
    trainable: frozenset[str],
    request: Request,
) -> tuple[ServerState, list[Message], dict[int, Asked]]:
    """A question of round 0 to these clients, which are given the start and what of the base they lack, as in training;
    and {node id: what it was asked}.

    trainable: the factors that are trained in some round; the others clients keep.
    """
    starts = method.starts_of(clients, state.model)
    passing = frozenset(wire.trained_names(state.model.layers, state.model.head, trainable))
    settings = {**_factor_settings(state, method, 0, trainable), "request": request.to_json()}
    by_client = _start_digests(starts)
    state, messages = _messages(state, exchange, "query.statistics", starts, passing, settings, by_client)
    for message in messages:
        message.content[wire.ASKED] = wire.encode({})
    return state, messages, asked(exchange, clients, messages, 0, answer_limit(request))


def for_projection(
    method: Method, exchange: Exchange, means: Aggregate, clients: Sequence[int], round: int
) -> tuple[list[Message], dict[int, Asked]]:
    """The second phase's question: the means of the first, to each of the clients whose updates they are made of; and
    {node id: what it was asked}."""
    tensors = {f"{n}/{part}": f.parts[part] for n, f in means.layers.items() for part in ("A", "B")}
    config = ConfigRecord({"backbone": exchange.backbone_digest, "round": round})
    content = RecordDict({wire.STATE: wire.encode(tensors), wire.CONFIG: config})
    messages = [Message(wire.clone(content), exchange.by_client[client], "query.project") for client in clients]
    limit = Limit.of({wire.image_name(n): (tuple(f.B.shape), f.B.dtype) for n, f in means.layers.items()})
    return messages, asked(exchange, clients, messages, round, limit)


def asked(
    exchange: Exchange, clients: Sequence[int], messages: Sequence[Message], round: int, limit: Limit
) -> dict[int, Asked]:
    """{node id: what its client was asked}, as replies are matched to it. messages: one a client, in their order.
    limit: what a reply may hold."""
    pairs = zip(clients, messages, strict=True)
    about = {"run": exchange.run_id, "limit": limit}
    return {exchange.by_client[c]: Asked(c, round, message=message, **about) for c, message in pairs}


def answer_limit(request: Request) -> Limit:
    """What an answer to a request may hold."""
    return Limit.of(wire_format(create_statistics(request)))


def _limit(returned: Mapping[str, Tensor], slots: int) -> Limit:
    """What an update may hold. slots: as many may be chosen, their places beside them."""
    whole = Limit.of({name: (tuple(value.shape), value.dtype) for name, value in returned.items()})
    return Limit(whole.values + slots * 8 + 256 * len(returned), whole.rest + 1024 * len(returned))


def _factor_settings(state: ServerState, method: Method, round: int, trainable: frozenset[str]) -> dict[str, object]:
    """What a message says of the factors in it: the round, which are trained, kept by the client, and personal."""
    parts = {part for factors in state.model.layers.values() for part in factors.parts}
    personal = method.aggregator.personal
    return {
        "round": round,
        "trainable": sorted(trainable),
        "keep": sorted(({"A", "B", "R", *parts} - trainable) | personal),
        "personal": sorted(personal),
    }


def _start_digests(starts: Mapping[int, Mapping[str, Tensor]]) -> dict[int, dict[str, str | int]]:
    """{client: its setting "start-digest"}; those of clients with one start are made once."""
    digests = {key: digest.of_tensors(start) for key, start in {id(start): start for start in starts.values()}.items()}
    return {client: {"start-digest": digests[id(start)]} for client, start in starts.items()}


def _messages(
    state: ServerState,
    exchange: Exchange,
    message_type: str,
    starts: Mapping[int, Mapping[str, Tensor]],
    passing: frozenset[str],
    settings: Settings,
    by_client: Mapping[int, Settings],
) -> tuple[ServerState, list[Message]]:
    """The state once they have gone, and a message a client: the tensors of its start that it does not hold yet, and
    what of the base it lacks.

    starts, passing: as in ServerState.lacking.
    settings: for all clients. by_client: {client: settings for it alone}.
    """
    sent, lacking = state.lacking(starts, passing)
    messages, encoder = [], wire.Encoder()
    common = ConfigRecord({**settings, "backbone": exchange.backbone_digest, "base-key": state.base.key})
    for client, tensors in lacking.items():
        mirror = state.mirror(client)
        merges, how = state.base.catch_up(mirror.base_version)
        # What a client remembers it goes on with from that round, not from one that was refused.
        own = {"accepted": mirror.accepted, "base-update": how, **by_client.get(client, {})}
        content = wire.of_records({wire.STATE: encoder.encode(tensors), wire.CONFIG: wire.extended(common, own)})
        if merges:
            content[base_offset.RECORD] = encoder.encode(merges)
        messages.append(Message(content, exchange.by_client[client], message_type))
    return sent, messages
