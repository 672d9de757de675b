"""What privacy=examples goes with: all that leaves a client of its examples is trained with noise."""

from __future__ import annotations

from collections.abc import Sequence

from fedinit.config.compatibility import Objection, Rule, named
from fedinit.config.privacy import ExamplePrivacyConfig
from fedinit.heads import HEADS
from fedinit.heads.measured import MeasuredHead
from fedinit.initializers import INITIALIZERS
from strategies import AGGREGATORS
from strategies.methods.choosing import Choosing
from strategies.server.components import Components, fixes_scales


def _hides_examples(c: Components) -> bool:
    return isinstance(c.config.privacy, ExamplePrivacyConfig)


def _the_start_is_made_of_no_examples(c: Components) -> Objection | None:
    if not _hides_examples(c) or c.initializer.needs == "none":
        return None
    blind = sorted(name for name, start in INITIALIZERS.items() if start.needs == "none")
    why = "is measured on the clients' examples in round 0, which privacy=examples does not cover"
    return Objection(f"init={c.config.init.name}", why, named(blind))


def _the_head_is_made_of_no_examples(c: Components) -> Objection | None:
    if not _hides_examples(c) or not isinstance(c.head, MeasuredHead):
        return None
    blind = sorted(name for name, kind in HEADS.items() if not issubclass(kind, MeasuredHead))
    why = "is measured on the clients' examples in round 0, which privacy=examples does not cover"
    return Objection(f"head={c.config.head.name}", why, named(blind))


def _no_client_tells_its_score(c: Components) -> Objection | None:
    if not _hides_examples(c) or c.config.evaluation.where != "clients":
        return None
    instead = "use evaluation=none" if c.under_flower else "use evaluation=server or none"
    return Objection("evaluation=clients", "tells counts over the clients' own images, without noise", instead)


def _nor_a_probe_of_its_images(c: Components) -> Objection | None:
    if not _hides_examples(c) or c.config.diagnostics.name == "none":
        return None
    why = "is measured on the clients' images, which privacy=examples does not cover"
    return Objection(f"diagnostics={c.config.diagnostics.name}", why, "use diagnostics=none")


def _no_step_scales_of_gradients_without_noise(c: Components) -> Objection | None:
    if not _hides_examples(c) or not fixes_scales(c.config):
        return None
    why = "fixes the step scales by gradients without noise; a client's own, by its first noisy one, cost nothing"
    return Objection("client.gsnr_scope=global_once", why, "use client_once or per_round")


def _slots_are_chosen_without_looking(c: Components) -> Objection | None:
    if not _hides_examples(c) or not isinstance(c.aggregator, Choosing):
        return None
    fitting = sorted(name for name, method in AGGREGATORS.items() if not issubclass(method, Choosing))
    method = f"strategy={c.config.strategy.name}"
    why = f"clients of {method} choose the slots that they train, by their examples, and tell which"
    return Objection("privacy=examples", why, named(fitting, "these go"))


EXAMPLE_RULES: Sequence[Rule[Components]] = (
    Rule(("privacy", "init"), _the_start_is_made_of_no_examples),
    Rule(("privacy", "head"), _the_head_is_made_of_no_examples),
    Rule(("privacy", "evaluation"), _no_client_tells_its_score),
    Rule(("privacy", "diagnostics"), _nor_a_probe_of_its_images),
    Rule(("privacy", "client.gsnr_scope"), _no_step_scales_of_gradients_without_noise),
    Rule(("strategy", "privacy"), _slots_are_chosen_without_looking),
)
