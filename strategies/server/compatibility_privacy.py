"""What privacy=clients goes with: what is released must be sums that noise goes on, and all of it counted."""

from __future__ import annotations

from collections.abc import Sequence

from fedinit.config.compatibility import Objection, Rule
from fedinit.config.privacy import ClientPrivacyConfig
from fedinit.heads.measured import MeasuredHead
from strategies import AGGREGATORS
from strategies.methods.choosing import Choosing
from strategies.server.components import Components, fixes_scales


def _private(c: Components) -> bool:
    return isinstance(c.config.privacy, ClientPrivacyConfig)


def _noise_goes_on_sums(c: Components) -> Objection | None:
    if not isinstance(c.config.privacy, ClientPrivacyConfig):
        return None
    aggregator, method = c.aggregator, f"strategy={c.config.strategy.name}"
    needed = {name for round in (1, 2) for name in aggregator.sums(round)}
    sent = {"A", "B", "R", *(("B(AĀᵀ)",) if aggregator.two_phase else ())}
    fitting = "use fedit, ffa_lora, rolora, or lora_fair with strategy.phases=2"
    if aggregator.personal:
        why = f"{method} has clients go on from factors of their own, which no noise goes on"
    elif aggregator.no_sum or isinstance(aggregator, Choosing):
        why = f"{method} needs each client's update: {aggregator.no_sum or 'the slots that it chose'}"
    elif more := sorted(needed - sent):
        why = f"{method} needs {', '.join(more)} of the clients, more than the sums that they send with a clip"
    elif aggregator.two_phase and c.config.privacy.clip_quantile is not None:
        why = "adapts one clip by one count, and a second phase has a clip of its own"
        return Objection(f"privacy.clip_quantile={c.config.privacy.clip_quantile}", why, "use null, or one phase")
    else:
        return None
    return Objection("privacy=clients", why, fitting)


def _a_second_clip_is_of_a_second_phase(c: Components) -> Objection | None:
    privacy = c.config.privacy
    if not isinstance(privacy, ClientPrivacyConfig) or privacy.second_clip is None or c.aggregator.two_phase:
        return None
    why = f"strategy={c.config.strategy.name} has one phase here, which does not read it"
    return Objection(f"privacy.second_clip={privacy.second_clip:g}", why, "leave it out, or use strategy.phases=2")


def _a_count_is_of_a_clip_that_adapts(c: Components) -> Objection | None:
    privacy = c.config.privacy
    if not isinstance(privacy, ClientPrivacyConfig) or privacy.count_noise is None or privacy.clip_quantile is not None:
        return None
    why = "is read where the clip adapts"
    return Objection(f"privacy.count_noise={privacy.count_noise:g}", why, "leave it out, or give privacy.clip_quantile")


def _clients_go_on_from_what_is_released(c: Components) -> Objection | None:
    if not _private(c) or not c.reinit.own_factors:
        return None
    why = "clients go on from factors of their own, which no noise goes on"
    return Objection(f"reinit={c.reinit_name}", f"with privacy=clients: {why}", "use reinit=average")


def _the_start_is_counted(c: Components) -> Objection | None:
    if not _private(c) or c.initializer.needs == "none":
        return None
    return _not_counted(f"init={c.config.init.name}", "use an init that is not measured")


def _the_head_is_counted(c: Components) -> Objection | None:
    if not _private(c) or not isinstance(c.head, MeasuredHead):
        return None
    return _not_counted(f"head={c.config.head.name}", "use head=random or zero")


def _step_scales_are_counted(c: Components) -> Objection | None:
    if not _private(c) or not fixes_scales(c.config):
        return None
    return _not_counted("client.gsnr_scope=global_once", "use client_once or per_round")


def _evaluations_are_counted(c: Components) -> Objection | None:
    if not _private(c) or c.config.evaluation.where != "clients":
        return None
    return _not_counted("evaluation=clients", f"use evaluation={'' if c.under_flower else 'server or '}none")


def _not_counted(what: str, instead: str) -> Objection:
    why = "is made of the clients' data, without noise that privacy=clients could count"
    return Objection(what, why, instead)


def _one_mean_is_all_there_is_to_judge(c: Components) -> Objection | None:
    if not _private(c) or c.robust is None:
        return None
    why = "weighs clients by their updates, and with privacy=clients every client's weight must be known before"
    return Objection(f"robust={c.config.robust.name}", why, "use robust=none; the clip bounds what one client can do")


def _every_entry_has_the_same_clients(c: Components) -> Objection | None:
    if not _private(c) or c.config.adapter.ranks is None:
        return None
    why = "has entries of a factor be sums over different clients, and privacy=clients has one denominator for all"
    return Objection("adapter.ranks", why, "use one rank")


def _weights_are_uniform(c: Components) -> Objection | None:
    if not _private(c) or c.config.weighting == "uniform":
        return None
    why = "a weight by what a client has or made tells of it, against privacy=clients"
    if c.config.weighting == "auto":
        own = AGGREGATORS[c.config.strategy.name].weighting
        if own != "norm":
            return None
        what = f"is its weighting={own}, without which it is strategy=fedit; {why}"
        return Objection(f"strategy={c.config.strategy.name}", what, "use strategy=fedit, or weighting=uniform")
    return Objection(f"weighting={c.config.weighting}", why, "use auto or uniform")


PRIVACY_RULES: Sequence[Rule[Components]] = (
    Rule(("strategy", "privacy"), _noise_goes_on_sums),
    Rule(("strategy", "privacy"), _a_second_clip_is_of_a_second_phase),
    Rule(("strategy", "privacy"), _a_count_is_of_a_clip_that_adapts),
    Rule(("reinit", "privacy"), _clients_go_on_from_what_is_released),
    Rule(("init", "privacy"), _the_start_is_counted),
    Rule(("head", "privacy"), _the_head_is_counted),
    Rule(("client.gsnr_scope", "privacy"), _step_scales_are_counted),
    Rule(("evaluation", "privacy"), _evaluations_are_counted),
    Rule(("robust", "privacy"), _one_mean_is_all_there_is_to_judge),
    Rule(("adapter.ranks", "privacy"), _every_entry_has_the_same_clients),
    Rule(("weighting", "privacy"), _weights_are_uniform),
)
