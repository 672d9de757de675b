"""What a client has spent of its examples' privacy in a run (`privacy=examples`), counted before it trains.

A site with a book of its answers (clients/limits.py) counts there, which outlives what a server asks again: training
that is asked for twice is drawn anew and costs twice. Elsewhere the count is in the Context. In a simulation, whose
batches and noise are of the seed, a round that is asked again is the same release, and costs nothing more.
"""

from __future__ import annotations

from flwr.app import Context, MetricRecord

from clients.limits import Keeper
from clients.site import Site
from fedinit import wire
from fedinit.config.limits import Exhausted
from fedinit.config.privacy import ExamplePrivacyConfig
from fedinit.errors import Code, Refused
from fedinit.privacy.steps import SO_FAR, Spent, Steps
from fedinit.said import upwards


class BudgetSpent(Refused):
    """A round more would pass `privacy.epsilon`; nothing was trained."""

    code = Code.spent


SPENT = "privacy"  # in the Context: how many steps were private


def spend(
    site: Site,
    privacy: ExamplePrivacyConfig,
    examples: int,
    context: Context,
    keeper: Keeper | None,
    round: int | None = None,
) -> float:
    """ε of a client at `privacy.delta` once it has trained a further round; counted.

    examples: how many it has. keeper: of its book, where it has one.
    round: which; the last that was counted costs nothing again. None: what it releases is drawn anew each time.
    Raises BudgetSpent for a round that would pass `privacy.epsilon`, Exhausted for one beyond what the site gives, and
    InputError as Steps.of does; nothing is counted then.
    """
    steps = Steps.of(examples, site.config.client, site.config.rounds, privacy)

    def allow(before: Spent, spent: Spent) -> float:
        epsilon = spent.epsilon(privacy)
        try:
            if privacy.epsilon is not None and epsilon > privacy.epsilon:
                done = f"has taken {before.steps} steps, and a round more would make it {upwards(epsilon)}"
                raise BudgetSpent(f"privacy.epsilon={privacy.epsilon}: is spent; this client {done}")
            if keeper is not None:
                keeper.check_privacy(epsilon, privacy.delta, examples)
        except (BudgetSpent, Exhausted) as error:  # for a server that has lost what it was told
            raise type(error)(f"{error}; {SO_FAR}{upwards(before.epsilon(privacy))}") from None
        return epsilon

    if keeper is not None:
        return keeper.train(steps.spent, allow)
    spent, counted = Spent(), 0
    if SPENT in context.state:
        before = dict(wire.record(context.state, SPENT, MetricRecord))
        counted = before.pop("round", 0)
        spent = Spent(**before)  # pyright: ignore[reportArgumentType]  # as it was written below
    done = spent
    if round is None or round != counted:
        spent += steps.spent
    epsilon = allow(done, spent)
    kept = {"steps": spent.steps, "share": spent.share, "noise": spent.noise, "round": round or 0}
    context.state[SPENT] = MetricRecord(kept)
    return epsilon
