"""Which starts go with which methods and heads (`init=`, `strategy=`, `head=`), from what they say of themselves."""

from __future__ import annotations

from fedinit.config import Config
from fedinit.errors import InputError
from fedinit.heads import HEADS
from fedinit.heads.head import Head
from fedinit.heads.measured import MeasuredHead
from fedinit.initializers import INITIALIZERS
from fedinit.initializers.initializer import Initializer
from strategies.aggregator import Aggregator
from strategies.choosing import Choosing


def check_start(config: Config, aggregator: Aggregator, initializer: Initializer) -> None:
    """Raises InputError, one line, for a start that the method cannot learn from or that it would break."""
    method, start = f"strategy={config.strategy.name}", f"init={config.init.name}"
    if aggregator.cores and not initializer.cores:
        cored = sorted(name for name, kind in INITIALIZERS.items() if kind.cores)
        raise InputError(
            f"{method}: trains a core between frozen factors, and {start} has none; choose one of: {', '.join(cored)}"
        )
    trained = aggregator.trainable(1) | aggregator.trainable(2)  # methods whose factors take turns do so by round
    if trained in ({"A"}, {"B"}) and initializer.zero not in ("", *trained):
        raise InputError(
            f"{start}: starts with {initializer.zero} = 0, which {method} keeps frozen, so nothing could be learned; "
            f"choose a method that trains {initializer.zero}"
        )
    if aggregator.cuts and initializer.takes_out:
        raise InputError(
            f"{start}: takes its product out of the base, and {method} drops components by their size, so the model "
            "would lose a part of its own weights; choose a start that leaves the base alone"
        )
    # Clients that choose their slots are sent the whole start, whatever their rank.
    if config.adapter.ranks is not None and initializer.indivisible and not isinstance(aggregator, Choosing):
        raise InputError(
            f"adapter.ranks: a client of a lower rank cannot start from the leading components of {start}, "
            f"{initializer.indivisible}; use another init"
        )


def check_head(config: Config, head: Head, initializer: Initializer) -> None:
    """Raises InputError, one line, for a head through which no gradient comes, where a start is made of gradients."""
    if not head.classifies and initializer.needs == "gradients":
        raise InputError(
            f"init={config.init.name}: is made of the gradients of a classifier's loss, and head=none leaves no "
            "classifier; choose an init that needs no gradients"
        )
    if head.silent and initializer.needs == "gradients":
        measured = ", ".join(sorted(name for name, kind in HEADS.items() if issubclass(kind, MeasuredHead)))
        raise InputError(
            f"init={config.init.name}: under head.init={config.head.name} every gradient is exactly zero; use one of "
            f"head.init={measured}"
        )
