"""What goes together: every rule about two settings or more, in one table, which docs/compatibility.md prints.

A rule looks at what the components say of themselves, and objects in one line: what is wrong, why, and what goes
instead. `scripts/compatibility_table.py` asks the same rules about every pair of choices.
"""

from __future__ import annotations

from collections.abc import Callable

from fedinit.config.compatibility import CONFIG_RULES, Objection, Rule, named, refuse
from fedinit.config.schema import Config
from fedinit.errors import InputError
from fedinit.heads import HEADS
from fedinit.heads.measured import MeasuredHead
from fedinit.initializers import INITIALIZERS
from strategies import AGGREGATORS
from strategies.methods.choosing import Choosing
from strategies.robust.trust import Trust
from strategies.server.compatibility_examples import EXAMPLE_RULES
from strategies.server.compatibility_privacy import PRIVACY_RULES
from strategies.server.compatibility_secagg import SECAGG_RULES
from strategies.server.components import Components, fixes_scales, measured_groups


def _of_config(one: Rule[Config]) -> Rule[Components]:
    return Rule(one.about, lambda components: one.judge(components.config))


RULES: list[Rule[Components]] = [
    *(_of_config(one) for one in CONFIG_RULES),
    *PRIVACY_RULES,
    *EXAMPLE_RULES,
    *SECAGG_RULES,
]


Judge = Callable[[Components], Objection | None]


def rule(*about: str) -> Callable[[Judge], Rule[Components]]:
    """Put a function into the table, as the rule about these settings."""

    def put(judge: Judge) -> Rule[Components]:
        RULES.append(Rule(about, judge))
        return RULES[-1]

    return put


def check_method(config: Config, under_flower: bool = False) -> None:
    """Build everything once and ask every rule, so that what is wrong is found before any data is read.

    under_flower: the run's server is a Flower ServerApp. Raises InputError, one line.
    """
    chosen = Components.of(config, under_flower)
    chosen.aggregator.check(config.adapter.rank)
    chosen.initializer.check(config.adapter.rank)
    if chosen.robust is not None and (why := chosen.robust.lacks()):
        raise InputError(f"robust={config.robust.name}: {why}")
    refuse(chosen, RULES)


@rule("reinit", "adapter")
def _reinit_fits_the_kind(c: Components) -> Objection | None:
    fitting = c.kind.reinits
    if fitting is None or c.reinit_name in fitting:
        return None
    why = f"does not go with adapter={c.config.adapter.kind}, {c.kind.why}"
    return Objection(f"reinit={c.reinit_name}", why, named(fitting))


@rule("strategy", "reinit")
def _reinit_fits_the_method(c: Components) -> Objection | None:
    if c.reinit_name not in c.aggregator.reinits:
        why = f"does not go with strategy={c.config.strategy.name}, {c.aggregator.why}"
        return Objection(f"reinit={c.reinit_name}", why, named(c.aggregator.reinits))
    if c.reinit.at is not None and "average" not in c.aggregator.reinits:
        why = "after the other rounds clients start from the global factors; this does not go with "
        return Objection(
            f"reinit.at={list(c.reinit.at)}", f"{why}strategy={c.config.strategy.name}, {c.aggregator.why}"
        )
    if c.reinit.at is not None and min(c.reinit.at) >= c.config.rounds:
        why = f"does not go with rounds={c.config.rounds}: no round begins after one of these"
        return Objection(f"reinit.at={list(c.reinit.at)}", why, "use a round before the last")
    return None


@rule("deployment", "evaluation")
def _a_flower_server_has_no_images(c: Components) -> Objection | None:
    if not c.under_flower or c.config.evaluation.where != "server":
        return None
    return Objection("evaluation=server", "a Flower server holds no images", "use evaluation=clients or none")


@rule("deployment", "diagnostics")
def _nor_a_probe_set(c: Components) -> Objection | None:
    if not c.under_flower or c.config.diagnostics.name == "none":
        return None
    return Objection(f"diagnostics={c.config.diagnostics.name}", "a Flower server holds no images", "use none")


@rule("strategy", "diagnostics")
def _diagnostics_need_a_global_model(c: Components) -> Objection | None:
    if c.config.diagnostics.name == "none" or not c.aggregator.personal:
        return None
    why = (
        f"with strategy={c.config.strategy.name} every client keeps a factor of its own and there is no global model "
        "to look at"
    )
    return Objection(f"diagnostics={c.config.diagnostics.name}", why, "use diagnostics=none")


@rule("adapter", "diagnostics")
def _diagnostics_are_of_lora(c: Components) -> Objection | None:
    if c.config.diagnostics.name == "none" or c.config.adapter.kind == "lora":
        return None
    why = "its kernels and ranks are those of adapter=lora"
    return Objection(
        f"diagnostics={c.config.diagnostics.name}", why, f"with adapter={c.config.adapter.kind} use diagnostics=none"
    )


@rule("strategy", "head")
def _a_head_to_train_alone(c: Components) -> Objection | None:
    if c.config.head.name != "none" or c.config.strategy.name != "head_alone":
        return None
    why = "trains the head alone, and head=none has none"
    return Objection("strategy=head_alone", why, "choose another strategy")


@rule("strategy", "evaluation")
def _evaluation_needs_a_global_model(c: Components) -> Objection | None:
    if not c.aggregator.personal or c.config.evaluation.where != "server":
        return None
    why = (
        f"with strategy={c.config.strategy.name} every client keeps a factor of its own and there is no global model "
        "to evaluate"
    )
    return Objection("evaluation=server", why, "use evaluation=clients")


@rule("strategy", "adapter")
def _the_kind_fits_the_method(c: Components) -> Objection | None:
    name = c.config.adapter.kind
    if not (why := c.aggregator.objection(name)):
        return None
    fitting = sorted(other for other, method in AGGREGATORS.items() if name in method.kinds)
    why = f"does not go with strategy={c.config.strategy.name}: {why}"
    return Objection(f"adapter={name}", why, named(fitting, "these go"))


@rule("adapter", "init")
def _the_start_fits_the_kind(c: Components) -> Objection | None:
    name = c.config.adapter.kind
    if name in c.initializer.kinds:
        return None
    fitting = sorted(other for other, start in INITIALIZERS.items() if name in start.kinds)
    return Objection(f"adapter={name}", f"init={c.config.init.name} makes no start for it", named(fitting))


@rule("adapter", "client.lr_ratio_b")
def _the_kind_trains_b(c: Components) -> Objection | None:
    if c.config.client.lr_ratio_b == 1 or "B" not in c.kind.names:
        return None
    ratio = f"client.lr_ratio_b={c.config.client.lr_ratio_b}"
    return Objection(ratio, f"adapter={c.config.adapter.kind} trains no B", "use 1")


@rule("strategy", "client.lr_ratio_b")
def _the_method_trains_b(c: Components) -> Objection | None:
    if c.config.client.lr_ratio_b == 1 or "B" in c.trained():
        return None
    ratio = f"client.lr_ratio_b={c.config.client.lr_ratio_b}"
    return Objection(ratio, f"strategy={c.config.strategy.name} trains no B", "use 1")


@rule("strategy", "init")
def _the_method_can_learn_from_the_start(c: Components) -> Objection | None:
    method, start, trained = f"strategy={c.config.strategy.name}", f"init={c.config.init.name}", c.trained()
    if c.aggregator.cores and not c.initializer.cores:
        cored = sorted(name for name, kind in INITIALIZERS.items() if kind.cores)
        return Objection(method, f"trains a core between frozen factors, and {start} has none", named(cored))
    zero = c.initializer.zero
    if trained in (frozenset("A"), frozenset("B")) and zero and zero not in trained:
        why = f"starts with {zero} = 0, which {method} keeps frozen, so nothing could be learned"
        return Objection(start, why, f"choose a method that trains {zero}")
    if c.aggregator.cuts and c.initializer.takes_out:
        why = (
            f"takes its product out of the base, and {method} drops components by their size, so the model "
            "would lose a part of its own weights"
        )
        return Objection(start, why, "choose a start that leaves the base alone")
    return None


@rule("init", "adapter.ranks")
def _the_start_has_leading_components(c: Components) -> Objection | None:
    # Clients that choose their slots are sent the whole start, whatever their rank.
    if c.config.adapter.ranks is None or not c.initializer.indivisible or isinstance(c.aggregator, Choosing):
        return None
    why = f"a client of a lower rank cannot start from the leading components of init={c.config.init.name}, "
    return Objection("adapter.ranks", why + c.initializer.indivisible, "use another init")


@rule("init", "head")
def _gradients_come_through_the_head(c: Components) -> Objection | None:
    if c.initializer.needs != "gradients":
        return None
    start = f"init={c.config.init.name}"
    if not c.head.classifies:
        why = "is made of the gradients of a classifier's loss, and head=none leaves no classifier"
        return Objection(start, why, "choose an init that needs no gradients")
    if c.head.silent:
        measured = sorted(name for name, kind in HEADS.items() if issubclass(kind, MeasuredHead))
        why = f"under head.init={c.config.head.name} every gradient is exactly zero"
        return Objection(start, why, f"use one of head.init={', '.join(measured)}")
    return None


@rule("strategy", "server_opt")
def _the_server_may_move_the_factors(c: Components) -> Objection | None:
    if c.server_optimizer is None or not c.aggregator.unmoved:
        return None
    fitting = sorted(name for name, method in AGGREGATORS.items() if not method.unmoved)
    why = f"does not go with strategy={c.config.strategy.name}, {c.aggregator.unmoved}"
    return Objection(f"server_opt={c.config.server_opt.name}", why, named(fitting, "these go"))


@rule("reinit", "server_opt")
def _the_server_moves_global_factors(c: Components) -> Objection | None:
    if c.server_optimizer is None or c.config.reinit.name in ("auto", "average"):
        return None
    why = "needs clients that start from the global factors"
    instead = f"got reinit={c.config.reinit.name}, choose one of: auto, average"
    return Objection(f"server_opt={c.config.server_opt.name}", why, instead)


@rule("strategy", "client.gsnr_scope")
def _one_scale_for_blocks_that_clients_choose(c: Components) -> Objection | None:
    return _one_scale(c, f"strategy={c.config.strategy.name}") if isinstance(c.aggregator, Choosing) else None


@rule("adapter.ranks", "client.gsnr_scope")
def _one_scale_for_ranks(c: Components) -> Objection | None:
    return _one_scale(c, "adapter.ranks") if c.config.adapter.ranks is not None else None


def _one_scale(c: Components, who: str) -> Objection | None:
    if not fixes_scales(c.config):
        return None
    why = f"with {who} clients train blocks of different sizes, which have no one scale"
    return Objection("client.gsnr_scope=global_once", why, "use client_once or per_round")


@rule("strategy", "adapter.ranks")
def _the_method_has_mixed_ranks(c: Components) -> Objection | None:
    if c.config.adapter.ranks is None or c.aggregator.mixed_ranks:
        return None
    mixed = sorted(name for name, kind in AGGREGATORS.items() if kind.mixed_ranks)
    why = f"{c.config.strategy.name} has one rank for all clients"
    return Objection("adapter.ranks", why, named(mixed, "these take any"))


@rule("reinit", "adapter.ranks")
def _the_base_lacks_nothing(c: Components) -> Objection | None:
    if c.config.adapter.ranks is None or c.config.reinit.name != "pissa":
        return None
    why = "reinit=pissa takes W0's own components out of the base, which a client of a lower rank would then lack"
    return Objection("adapter.ranks", why, "use another reinit")


@rule("reinit", "adapter.ranks")
def _every_rank_starts_from_what_was_taken_out(c: Components) -> Objection | None:
    # Clients that choose their slots are sent the whole start, whatever their rank.
    if c.config.adapter.ranks is None or c.reinit_name != "fresh" or isinstance(c.aggregator, Choosing):
        return None
    if c.initializer.zero:
        return None
    product = f"the product of init={c.config.init.name}"
    why = f"reinit=fresh takes {product} out of the base, of which a client of a lower rank would lack a part"
    return Objection("adapter.ranks", why, "use an init whose product is zero, such as kaiming, or another reinit")


@rule("strategy", "init")
def _the_method_goes_with_the_start(c: Components) -> Objection | None:
    if not c.aggregator.inits or c.config.init.name in c.aggregator.inits:
        return None
    why = f"does not go with strategy={c.config.strategy.name}, {c.aggregator.why}"
    needed = ", ".join(f"init={name}" for name in c.aggregator.inits)
    return Objection(f"init={c.config.init.name}", why, f"use {needed}")


@rule("strategy", "robust")
def _the_server_knows_the_products(c: Components) -> Objection | None:
    if c.robust is None or not c.aggregator.personal:
        return None
    method = f"strategy={c.config.strategy.name}"
    why = f"compares what clients changed by their products, of which {method} keeps a factor at the client"
    return Objection(f"robust={c.config.robust.name}", why, "use robust=none")


@rule("strategy.phases", "robust")
def _a_client_is_judged_by_all_it_sends(c: Components) -> Objection | None:
    if c.robust is None or not c.aggregator.two_phase:
        return None
    why = "judges clients by their updates, and strategy.phases=2 has them send a second answer, which is not judged"
    return Objection(f"robust={c.config.robust.name}", why, "use strategy.phases=1")


@rule("participation", "robust")
def _the_trusted_client_is_in_every_round(c: Components) -> Objection | None:
    if not isinstance(c.robust, Trust) or c.config.participation == 1:
        return None
    why = "every round needs the trusted client's update, and a part of the clients is drawn anew each time"
    return Objection(f"participation={c.config.participation}", f"robust=trust: {why}", "use participation=1")


@rule("start_participation", "init")
def _somebody_measures(c: Components) -> Objection | None:
    measured = measured_groups(c.initializer, c.head) or fixes_scales(c.config)
    if c.config.start_participation == 1 or measured:
        return None
    why = f"nobody measures for a start of init={c.config.init.name} head={c.config.head.name}"
    return Objection(f"start_participation={c.config.start_participation:g}", why, "leave it out, or use another start")


@rule("deployment", "attack")
def _real_clients_attack_unasked(c: Components) -> Objection | None:
    if not c.under_flower or c.config.attack.name == "none":
        return None
    return Objection(f"attack={c.config.attack.name}", "bad clients are for simulations alone", "use none")


@rule("deployment", "engine")
def _a_client_computes_where_it_is(c: Components) -> Objection | None:
    if not c.under_flower or c.config.engine.name != "ray":
        return None
    return Objection("engine=ray", "actors are for simulations alone", "use engine=threads")


@rule("adapter.ranks", "attack")
def _who_knows_all_needs_one_shape(c: Components) -> Objection | None:
    if c.config.adapter.ranks is None or c.config.attack.name not in ("alie", "ipm", "minmax"):
        return None
    why = "takes means over the honest clients' tensors, and adapter.ranks gives these other shapes"
    return Objection(f"attack={c.config.attack.name}", why, "use another attack")
