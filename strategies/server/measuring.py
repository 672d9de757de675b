"""Which of a run's clients measure its start (`init=`, `head=`), and whether they have the images for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedinit.config.schema import Config
from fedinit.errors import InputError
from fedinit.heads import create_head
from fedinit.initializers import create_initializer
from strategies.server.components import fixes_scales, measured_groups
from strategies.server.method import drawn, needed


def who_measure(config: Config, clients: Sequence[int]) -> list[int]:
    """The clients that measure the start, in order: a function of the seed alone. clients: all, in order."""
    return drawn(clients, config.start_participation, config.seed, "sampling", 0)


def told(measuring: Sequence[int], clients: Sequence[int]) -> str:
    """How many of the clients measure, in words that an object follows."""
    if len(clients) == 1:
        return "the client measures"
    if len(measuring) == len(clients):
        return f"all {len(clients):,} clients measure"
    return f"{len(measuring):,} of {len(clients):,} clients measure{'s' * (len(measuring) == 1)}"


def refuse_few_images(config: Config, examples: Mapping[int, int]) -> None:
    """Raise InputError where of the clients that measure the start there is no quorum, or none with the images that it
    takes: each of the others would refuse by itself. examples: {partition id: images} of all clients."""
    groups = measured_groups(
        create_initializer(config.init.name, config.init.options), create_head(config.head.name, config.head.options)
    )
    if not groups and not fixes_scales(config):
        return
    clients = who_measure(config, sorted(examples))
    need = max(needed(config.quorum, len(clients)), 1)
    if need > len(clients):
        raise InputError(
            f"start_participation={config.start_participation:g}: {len(clients)} of {len(examples)} clients would "
            f"measure the start, and quorum={config.quorum} wants as many answers; have more of them, or a lower quorum"
        )
    who = f"{len(clients)} clients" if len(clients) == len(examples) else f"the {len(clients)} clients that measure"
    examples = {client: examples[client] for client in clients}
    for group, made in groups.items():
        least = made.min_examples
        able = sum(count >= least for count in examples.values())
        if able < need:
            enough, fewest = max(sorted(examples.values(), reverse=True)[need - 1], 1), max(min(examples.values()), 1)
            key, everybody = f"{group}.min_examples", f" (all have {fewest} or more)" * (fewest < enough)
            raise InputError(
                f"{key}={least}: {able} of {who} have as many images, and {need} or more are to "
                f"measure for {group}={getattr(config, group).name}{everybody}; set {key}={enough}, or have fewer "
                "clients"
            )
