"""Whether a run's clients have the images that its start is measured on (`init=`, `head=`)."""

from __future__ import annotations

from collections.abc import Mapping

from fedinit.config.schema import Config
from fedinit.errors import InputError
from fedinit.heads import create_head
from fedinit.initializers import create_initializer
from fedinit.statistics import Sampled
from strategies.server.method import needed


def refuse_few_images(config: Config, examples: Mapping[int, int]) -> None:
    """Raise InputError where there is no quorum of clients, {partition id: images}, with the images that it takes to
    measure for the start: each of the others would refuse by itself."""
    need = min(max(needed(config.quorum, len(examples)), 1), len(examples))
    for group, least in _least_images(config).items():
        able = sum(count >= least for count in examples.values())
        if able < need:
            enough, fewest = max(sorted(examples.values(), reverse=True)[need - 1], 1), max(min(examples.values()), 1)
            key, everybody = f"{group}.min_examples", f" (all have {fewest} or more)" * (fewest < enough)
            raise InputError(
                f"{key}={least}: {able} of {len(examples)} clients have as many images, and {need} or more are to "
                f"measure for {group}={getattr(config, group).name}{everybody}; set {key}={enough}, or have fewer "
                "clients"
            )


def _least_images(config: Config) -> dict[str, int]:
    """{group: how many images a client needs to measure for it}; without those for which nobody measures."""
    init = create_initializer(config.init.name, config.init.options)
    made = {"init": init, "head": create_head(config.head.name, config.head.options)}
    return {group: value.min_examples for group, value in made.items() if isinstance(value, Sampled)}
