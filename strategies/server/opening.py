"""The start of a run, as its method trains it, and what later rounds ask of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from fedinit import wire
from fedinit.adapters.kinds import KINDS
from fedinit.config.schema import Config
from fedinit.factors import Factors, stack
from fedinit.heads import create_head
from fedinit.heads.head import HeadContext
from fedinit.initializers import create_initializer
from fedinit.initializers.initializer import InitContext
from fedinit.models import Backbone, adapted_layers, shared_inputs
from fedinit.runs.observer import ClientReport, Roster
from fedinit.seeding import derive
from fedinit.state.checkpoint import State
from fedinit.state.start import StartState
from strategies.aggregator import Aggregator
from strategies.reinit import ReinitContext
from strategies.server.components import measured_groups
from strategies.server.exchange import Exchange
from strategies.server.round_zero import make_start


class Opening:
    """Makes the start of a run, or takes it from a checkpoint. Raises InputError for options that do not fit."""

    def __init__(self, config: Config, aggregator: Aggregator, backbone: Backbone) -> None:
        """
        config: of the run; its init, head and adapter are read.
        aggregator: the method that will train the start.
        backbone: whose frozen weights the start may be made of.
        """
        self.config, self.aggregator, self.backbone = config, aggregator, backbone
        self.targets = adapted_layers(backbone, config.adapter.targets, config.adapter.rank, config.adapter.last_blocks)
        self.initializer = create_initializer(config.init.name, config.init.options)
        self.initializer.fit(self.targets, config.adapter.rank)
        self.head = create_head(config.head.name, config.head.options)
        context = InitContext(
            targets=self.targets,
            rank=config.adapter.rank,
            scale=config.adapter.scale,
            seed=config.seed,
            weight=self.frozen,
        )
        if self.initializer.needs != "none":
            groups = shared_inputs(backbone, self.targets)
            context = dataclasses.replace(context, groups=groups, rows=backbone.dry_pass.rows)
        self.context = context
        self._start: StartState | None = None

    @property
    def measured(self) -> str:
        """What of the start is made of the clients' data, in words of the command line; "" where nothing is."""
        groups = measured_groups(self.initializer, self.head)
        return " ".join(f"{group}={getattr(self.config, group).name}" for group in groups)

    @property
    def start(self) -> StartState:
        """The start of round 1. Raises ValueError before there is one."""
        if self._start is None:
            raise ValueError("this run has no start yet")
        return self._start

    @property
    def reinit_context(self) -> ReinitContext:
        """What re-initialisers are given to work with. Raises ValueError before there is a start."""
        ranks = {name: factors.rank for name, factors in self.start.layers.items()}
        return ReinitContext(ranks, self.config.adapter.scale, self.draw, self.frozen)

    def make(self, exchange: Exchange, clients: Sequence[int], roster: Roster) -> list[ClientReport]:
        """Make the start, of these clients' data where it needs any; the reports of those who measured for it."""
        head = (
            self.head,
            HeadContext(classes=roster.class_names, features=self.backbone.features, seed=self.config.seed),
        )
        start, reports = make_start(exchange, clients, self.config.quorum, head, (self.initializer, self.context))
        self._start = self._completed(start)
        return reports

    def note(self, **notes: Any) -> None:
        """Add to the notes of the start, which the summary shows."""
        self._start = dataclasses.replace(self.start, notes={**self.start.notes, **notes})

    def frozen(self, name: str) -> Tensor:
        """The frozen weight of a layer, (d, k), on the CPU."""
        weight = self.backbone.module.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        return weight.detach().cpu()

    def draw(self, round: int) -> Mapping[str, Factors]:
        """{layer: factors} of the initialiser for a round: another draw, or, of one that is not random, the start's."""
        if not self.initializer.random:
            return self.start.layers
        drawn = self.initializer.plan(self.context.reseed(derive(self.config.seed, "fresh", round)))
        assert isinstance(drawn, StartState)  # what is random asks clients for nothing
        return self._adopted(drawn.layers)

    def snapshot(self) -> State:
        """The start as a checkpoint keeps it, but for what went into the base."""
        return State(wire.to_tensors(self.start.layers, self.start.head), {"notes": self.start.notes})

    def restore(self, state: State) -> None:
        """Take the start from a `snapshot`."""
        layers, head = wire.from_tensors(state.tensors)
        self._start = StartState(layers=layers, head=head, notes=state.facts["notes"])  # its merge is in the base

    def _adopted(self, layers: Mapping[str, Factors]) -> dict[str, Factors]:
        """A start as the method trains it."""
        return {name: self.aggregator.adopt(factors) for name, factors in layers.items()}

    def _completed(self, start: StartState) -> StartState:
        """What round 0 made, as the method trains it and clients of this kind of adapters start from it."""
        kind, scale = KINDS[self.config.adapter.kind], self.config.adapter.scale

        def begun(name: str, f: Factors) -> Factors:
            total = f if name not in start.merge else stack([f, start.merge[name]], [1.0, 1.0])
            return kind.begin(f, total, self.frozen(name), scale)

        layers = {name: begun(name, f) for name, f in self._adopted(start.layers).items()}
        return dataclasses.replace(start, layers=layers)
