"""Which starts go with which methods and heads (`init=`, `strategy=`, `head=`), from what they say of themselves."""

from __future__ import annotations

from fedinit.adapters.kinds import KINDS
from fedinit.config.client import SGDSaIConfig
from fedinit.config.schema import Choice, Config
from fedinit.errors import InputError
from fedinit.heads import HEADS, create_head
from fedinit.heads.head import Head
from fedinit.heads.measured import MeasuredHead
from fedinit.initializers import INITIALIZERS, create_initializer
from fedinit.initializers.initializer import Initializer
from strategies import AGGREGATORS, create_aggregator
from strategies.aggregator import Aggregator
from strategies.methods.choosing import Choosing
from strategies.reinit import Reinit, create_reinit
from strategies.server_opt import create_server_optimizer


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


def check_method(config: Config) -> None:
    """Build the method once, so that a wrong option is found before any data is read. Raises InputError."""
    aggregator = aggregator_of(config, config.strategy)
    reinit_of(config, aggregator)
    aggregator.check(config.adapter.rank)
    if config.diagnostics.name != "none" and aggregator.personal:
        raise InputError(
            f"diagnostics={config.diagnostics.name}: with strategy={config.strategy.name} every client keeps a factor "
            "of its own and there is no global model to look at; use diagnostics=none"
        )
    if config.diagnostics.name != "none" and config.adapter.kind != "lora":
        raise InputError(
            f"diagnostics={config.diagnostics.name}: its kernels and ranks are those of adapter=lora; with "
            f"adapter={config.adapter.kind} use diagnostics=none"
        )
    if config.head.name == "none" and config.strategy.name == "head_alone":
        raise InputError("strategy=head_alone: trains the head alone, and head=none has none; choose another strategy")
    if aggregator.personal and config.evaluation.where == "server":
        raise InputError(
            f"evaluation=server: with strategy={config.strategy.name} every client keeps a factor of its own and there "
            "is no global model to evaluate; use evaluation=clients"
        )
    initializer = create_initializer(config.init.name, config.init.options)
    initializer.check(config.adapter.rank)
    _check_kind(config, aggregator, initializer)
    check_start(config, aggregator, initializer)
    check_head(config, create_head(config.head.name, config.head.options), initializer)
    if create_server_optimizer(config.server_opt.name, config.server_opt.options) is not None:
        if aggregator.unmoved:
            fitting = sorted(name for name, method in AGGREGATORS.items() if not method.unmoved)
            raise InputError(
                f"server_opt={config.server_opt.name}: does not go with strategy={config.strategy.name}, "
                f"{aggregator.unmoved}; these go: {', '.join(fitting)}"
            )
        if config.reinit.name not in ("auto", "average"):
            raise InputError(
                f"server_opt={config.server_opt.name}: needs clients that start from the global factors; "
                f"got reinit={config.reinit.name}, choose one of: auto, average"
            )
    if fixes_scales(config) and (isinstance(aggregator, Choosing) or config.adapter.ranks is not None):
        who = f"strategy={config.strategy.name}" if isinstance(aggregator, Choosing) else "adapter.ranks"
        raise InputError(
            f"client.gsnr_scope=global_once: with {who} clients train blocks of different sizes, which have no one "
            "scale; use client_once or per_round"
        )
    if config.adapter.ranks is None:
        return
    if not aggregator.mixed_ranks:
        mixed = sorted(name for name, kind in AGGREGATORS.items() if kind.mixed_ranks)
        raise InputError(
            f"adapter.ranks: {config.strategy.name} has one rank for all clients; these take any: {', '.join(mixed)}"
        )
    if config.reinit.name == "pissa":
        raise InputError(
            "adapter.ranks: reinit=pissa takes W0's own components out of the base, which a client of a "
            "lower rank would then lack; use another reinit"
        )


def _check_kind(config: Config, aggregator: Aggregator, initializer: Initializer) -> None:
    """Raise InputError where method, start or settings do not go with the kind of adapters."""
    name, kind = config.adapter.kind, KINDS[config.adapter.kind]
    if why := aggregator.objection(name):
        fitting = sorted(n for n, method in AGGREGATORS.items() if name in method.kinds)
        raise InputError(
            f"adapter={name}: does not go with strategy={config.strategy.name}: {why}; these go: {', '.join(fitting)}"
        )
    if name not in initializer.kinds:
        fitting = sorted(n for n, start in INITIALIZERS.items() if name in start.kinds)
        raise InputError(
            f"adapter={name}: init={config.init.name} makes no start for it; choose one of: {', '.join(fitting)}"
        )
    if config.client.lr_ratio_b != 1 and ("B" in kind.names or "B" not in trained_parts(config)):
        what = f"adapter={name}" if "B" in kind.names else f"strategy={config.strategy.name}"
        raise InputError(f"client.lr_ratio_b={config.client.lr_ratio_b}: {what} trains no B; use 1")


def fixes_scales(config: Config) -> bool:
    return isinstance(config.client, SGDSaIConfig) and config.client.gsnr_scope == "global_once"


def trained_parts(config: Config, *rounds: int) -> frozenset[str]:
    """The factors that clients train in any of the rounds; in one round or another, where none is given."""
    aggregator = aggregator_of(config, config.strategy)
    return frozenset().union(*map(aggregator.trainable, rounds or (1, 2)))


def aggregator_of(config: Config, chosen: Choice) -> Aggregator:
    weighting = {} if config.weighting == "auto" else {"weighting": config.weighting}
    return create_aggregator(chosen.name, **weighting, **chosen.options)


def reinit_of(config: Config, aggregator: Aggregator) -> Reinit:
    """The configured re-initialiser; `auto` is the method's own. Raises InputError for a pair that makes no sense."""
    name = aggregator.reinits[0] if config.reinit.name == "auto" else config.reinit.name
    made = create_reinit(name, config.reinit.options)
    kind = KINDS[config.adapter.kind]
    if kind.reinits is not None and name not in kind.reinits:
        raise InputError(
            f"reinit={name}: does not go with adapter={config.adapter.kind}, {kind.why}; "
            f"choose one of: {', '.join(kind.reinits)}"
        )
    if name not in aggregator.reinits:
        raise InputError(
            f"reinit={name}: does not go with strategy={config.strategy.name}, {aggregator.why}; "
            f"choose one of: {', '.join(aggregator.reinits)}"
        )
    if made.at is not None and "average" not in aggregator.reinits:
        raise InputError(
            f"reinit.at={list(made.at)}: after the other rounds clients start from the global factors; this does not "
            f"go with strategy={config.strategy.name}, {aggregator.why}"
        )
    return made
