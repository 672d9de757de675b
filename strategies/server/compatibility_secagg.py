"""What secure_aggregation=secagg goes with: what needs nothing of a round but the sum of its updates."""

from __future__ import annotations

from collections.abc import Sequence

from fedinit.config.compatibility import Objection, Rule
from strategies.methods.choosing import Choosing
from strategies.server.components import Components


def _the_rule_is_one_of_sums(c: Components) -> Objection | None:
    if c.config.secure_aggregation.name == "none" or not (why := not_summed(c)):
        return None
    fitting = "use fedit, ffa_lora, rolora, or lora_fair with strategy.phases=2"
    return Objection("secure_aggregation=secagg", f"strategy={c.config.strategy.name} {why}", fitting)


def not_summed(c: Components) -> str:
    """Why a method needs more than the sums of what clients train; empty where it does not."""
    method = c.aggregator
    if method.personal:
        return "leaves each client a factor of its own, by which it goes on"
    if isinstance(method, Choosing):
        return "has clients train slots of their own choice, which have no one sum"
    needed = {name for round in (1, 2, 3, 4) for name in method.sums(round)}
    if method.no_sum:
        return f"needs each client's update: {method.no_sum}"
    more = sorted(needed - {"A", "B", "R", *(("B(AĀᵀ)",) if method.two_phase else ())})
    return f"needs more than sums of what clients send: {', '.join(more)}" if more else ""


def _the_server_sees_no_single_update(c: Components) -> Objection | None:
    if c.robust is None or c.config.secure_aggregation.name == "none":
        return None
    why = "compares clients' updates, of which the server sees the sum alone"
    return Objection(f"robust={c.config.robust.name}", f"{why} with secure_aggregation=secagg", "use robust=none")


def _weights_are_known_before(c: Components) -> Objection | None:
    if c.aggregator.weighting != "norm" or c.config.secure_aggregation.name == "none":
        return None
    why = "is by norms of single updates, of which the server sees the sum alone with secure_aggregation=secagg"
    return Objection("weighting=norm", why, "use examples or uniform")


def _clients_go_on_from_one_start(c: Components) -> Objection | None:
    if not c.reinit.own_factors or c.config.secure_aggregation.name == "none":
        return None
    why = "has each client go on from factors of its own, whose norms of drift would be told"
    return Objection(f"reinit={c.reinit_name}", why, "use another reinit")


def _nothing_private_is_told_beside(c: Components) -> Objection | None:
    if c.config.privacy.name == "none" or c.config.secure_aggregation.name == "none":
        return None
    why = {
        "clients": "puts its noise on sums that the server makes of single updates",
        "examples": "has each client tell its ε, and with secure_aggregation=secagg nothing is told but the sum",
    }[c.config.privacy.name]
    return Objection(f"privacy={c.config.privacy.name}", why, "use secure_aggregation=none")


SECAGG_RULES: Sequence[Rule[Components]] = (
    Rule(("privacy", "secure_aggregation"), _nothing_private_is_told_beside),
    Rule(("strategy", "secure_aggregation"), _the_rule_is_one_of_sums),
    Rule(("robust", "secure_aggregation"), _the_server_sees_no_single_update),
    Rule(("weighting", "secure_aggregation"), _weights_are_known_before),
    Rule(("reinit", "secure_aggregation"), _clients_go_on_from_one_start),
)
