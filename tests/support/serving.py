"""The server's side of one round, taken apart: a method, the way to the clients, and a state to go on from."""

from __future__ import annotations

import torch
from flwr.app import Message
from flwr.serverapp import Grid

from clients.cohort import Cohort
from clients.site import Site
from fedinit import wire
from fedinit.factors import Factors
from fedinit.runs.observer import Roster
from fedinit.state.start import StartState
from fedinit.statistics import Request
from fedinit.transport.local import LocalGrid
from strategies import create_aggregator
from strategies.reinit import ReinitContext, create_reinit
from strategies.server.exchange import Exchange
from strategies.server.method import Method
from strategies.server.state import ServerState


def method_of(name: str = "fedit", seed: int = 0, **options) -> Method:
    """A method with averaged starts; options as of Method."""
    return Method(
        aggregator=create_aggregator(name),
        reinit=create_reinit("average"),
        context=ReinitContext(ranks={}, scale=1.0, draw=dict, frozen=torch.empty),
        seed=seed,
        **options,
    )


def exchange_over(grid: Grid, timeout: float = 3600.0) -> Exchange:
    """With nobody told of what happens."""
    return Exchange(grid, timeout=timeout, emit=lambda kind, facts: None)


def registered(site: Site) -> tuple[Exchange, ServerState]:
    """The site's clients, and a start of rank 4 with A of ones and B = 0."""
    exchange = exchange_over(LocalGrid(Cohort(site), len(site.partitions)))
    facts = exchange.register_clients(site.backbone.digest, -1)
    roster = Roster({c: f.examples for c, f in facts.items()}, site.data.class_names, site.data.domain_names)
    layers = {n: Factors(torch.ones(4, k), torch.zeros(d, 4)) for n, (d, k) in site.targets.items()}
    head = {"weight": torch.zeros(10, 24), "bias": torch.zeros(10)}
    return exchange, ServerState.begun(StartState(layers=layers, head=head), roster, {})


def request_of(message: Message) -> Request:
    """The question of round 0 that a message asks, with the tensors and the head that go with it."""
    content = message.content
    state = wire.decode(content[wire.STATE])
    head = {name.removeprefix(wire.HEAD): value for name, value in state.items() if name.startswith(wire.HEAD)}
    return Request.from_json(str(content[wire.CONFIG]["request"]), wire.decode(content[wire.ASKED]), head)
