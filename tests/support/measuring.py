"""Statistics of clients as they would be in float64 throughout: what an initialiser's law is held to.

Clients collect in float32, which hides what a law says below 1e-7; here backbone, sums and all are doubled, and the
clients' own code (clients.statistics.SOURCES, Statistic.measure) does the rest.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from clients import batches
from clients.statistics import SOURCES
from fedinit.adapters.bank import Bank
from fedinit.data.dataset import Dataset
from fedinit.initializers import INITIALIZERS, create_initializer
from fedinit.initializers.initializer import InitContext, Initializer
from fedinit.initializers.measured import Measured
from fedinit.models import Backbone, select_targets, shared_inputs
from fedinit.state.start import StartState
from fedinit.statistics import Request, Statistics, add_up, create_statistics, shapes_of

Ask = Callable[[Request], Statistics]


def create(name: str, **options: object) -> Initializer:
    """An initialiser that refuses no client for its size."""
    if issubclass(INITIALIZERS[name], Measured):
        options = {"min_examples": 1, "examples": None, **options}
    return create_initializer(name, options)


def setting_of(
    backbone: Backbone, rank: int, *, scale: float = 2.0, seed: int = 0, head: Mapping[str, Tensor] | None = None
) -> InitContext:
    """Of the backbone's default targets."""
    targets = select_targets(backbone.module, None, rank)
    return InitContext(
        targets=targets,
        rank=rank,
        scale=scale,
        seed=seed,
        weight=lambda name: backbone.module.get_submodule(name).weight.detach(),
        groups=shared_inputs(backbone, targets),
        head=head or {},
    )


def asking(backbone: Backbone, targets: Mapping, data: Dataset, clients: Sequence[Tensor], size: int = 16) -> Ask:
    """Answers a request with the sum over clients that have these examples (n_i,), in the given order."""
    double = dataclasses.replace(backbone, module=copy.deepcopy(backbone.module).double())
    bank = Bank(double, targets, scale=1.0)

    def one(request: Request, examples: Tensor) -> Statistics:
        statistics = create_statistics(request)
        sums = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes_of(request).items()}
        bank.bare()
        for part in examples.split(size) if len(examples) else ():
            images = batches.normalise(data.images[part], backbone.input, torch.device("cpu")).double()

            def see(layer: str, values: Tensor, labels: Tensor | None = None) -> None:
                values = values.flatten(0, -2) if request.source == "inputs" else values
                for key, value in statistics[layer].measure(values, labels).items():
                    sums[f"{layer}/{key}"] += value

            SOURCES[request.source](bank, request, images, data.labels[part], see)
        return Statistics(len(examples), sums)

    def ask(request: Request) -> Statistics:
        request = dataclasses.replace(
            request,
            head={key: value.double() for key, value in request.head.items()},
            tensors={key: value.double() for key, value in request.tensors.items()},
        )
        return add_up([one(request, examples) for examples in clients])

    return ask


def begun(initializer: Initializer, setting: InitContext, ask: Ask) -> StartState:
    """The start that these clients' statistics give."""
    return initializer.run(setting, ask)
