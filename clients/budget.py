"""What a client has spent of its examples' privacy in a run (`privacy=examples`), counted before it trains.

A site with a book of its answers (clients/limits.py) counts there, which outlives what a server asks again: training
that is asked for twice is drawn anew and costs twice. Elsewhere the count is in the Context.
"""

from __future__ import annotations

from flwr.app import Context, MetricRecord

from clients.limits import Keeper
from clients.site import Site
from fedinit import wire
from fedinit.config.privacy import ExamplePrivacyConfig
from fedinit.errors import Refused
from fedinit.privacy.steps import Steps

SPENT = "privacy"  # in the Context: how many steps were private


def spend(site: Site, privacy: ExamplePrivacyConfig, examples: int, context: Context, keeper: Keeper | None) -> float:
    """ε of a client at `privacy.delta` once it has trained a further round; counted.

    examples: how many it has. keeper: of its book, where it has one.
    Raises Refused for a round that would pass `privacy.epsilon`, and for a δ of one over the examples or more.
    """
    if privacy.delta * examples >= 1:
        raise Refused(f"privacy.delta={privacy.delta:g}: expected less than one over a client's {examples} images")
    steps = Steps.of(examples, site.config.client, site.config.rounds, privacy)
    count = steps.a_round
    if keeper is not None:
        count = keeper.train(count)
    else:
        if SPENT in context.state:
            count += wire.value(wire.record(context.state, SPENT, MetricRecord), "steps", int)
        context.state[SPENT] = MetricRecord({"steps": count})
    epsilon = steps.epsilon(count)
    if privacy.epsilon is not None and epsilon > privacy.epsilon:
        done = f"this client has trained {count // steps.a_round - 1} rounds, and one more would make it {epsilon:.3g}"
        raise Refused(f"privacy.epsilon={privacy.epsilon}: is spent; {done}")
    return epsilon
