"""What each safeguard costs a round: seconds, and bytes a client, beside the same method without it.

    python -m benchmarks.safeguards [--quick]

Six clients of the embedded domains, an epoch of local training, seven rounds without evaluation in one process; the
contestants in turn, three times around: a quarter of an hour on two cores. Privacy is measured with noise that is
given, since ε costs nothing by itself. --quick: three rounds of two steps, once.

seconds          of a round, the median over all rounds but the first of every run
over plain       to the median of the same method without a safeguard
up, down         kB a client and round, as serialised
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from statistics import median

from benchmarks import machine
from clients.cohort import Cohort
from clients.site import Site
from fedinit.config.compose import compose_config
from fedinit.runs.observer import Observer, RoundReport
from fedinit.transport.local import LocalGrid
from strategies.robust import ROBUST
from strategies.server.compatibility import check_method
from strategies.server.federation import federate

BASE = (
    "evaluation.every=100",
    "evaluation.head_alone=false",
    "strategy.diagnostics=false",
    "client.epochs=1",
    "logger=none",
    "report=none",
)
GIVEN = ("privacy.epsilon=null", "privacy.noise=1", "privacy.clip=0.3")
SAFEGUARDS = {
    "none": (),
    **{f"robust={name}": (f"robust={name}",) for name in sorted(ROBUST) if name not in ("none", "trust")},
    "robust=trust": ("robust=trust", "robust.root=0"),
    "privacy=clients": ("privacy=clients", *GIVEN),
    "privacy=examples": ("privacy=examples", *GIVEN),
    "secure_aggregation=secagg": ("secure_aggregation=secagg",),
}
PHASES = "strategy.phases=2"
METHODS = {
    "fedit": ("strategy=fedit",),
    "lora_fair": ("strategy=lora_fair",),
    "lora_fair, two phases": ("strategy=lora_fair", PHASES),
}


class Rounds(Observer):
    """The reports of a run's rounds, of the first apart."""

    def __init__(self) -> None:
        self.seen: list[RoundReport] = []

    def round_done(self, report: RoundReport) -> None:
        if report.round > 1:
            self.seen.append(report)


def contests() -> list[tuple[str, str]]:
    """(method, safeguard) of the table: a rule needs single updates and one phase, a mask or noise for clients sums."""
    pairs = [("fedit", safeguard) for safeguard in SAFEGUARDS]
    pairs += [("lora_fair", s) for s in SAFEGUARDS if s.startswith(("none", "robust", "privacy=examples"))]
    sums = ("none", "privacy=clients", "secure_aggregation=secagg")
    return pairs + [("lora_fair, two phases", safeguard) for safeguard in sums]


def run(words: Sequence[str]) -> list[RoundReport]:
    """The rounds of one run of these words."""
    config, watch = compose_config(words), Rounds()
    check_method(config)
    site = Site(config)
    federate(config, LocalGrid(Cohort(site), len(site.partitions)), site.backbone, observers=[watch])
    return watch.seen


def rows_of(seen: Mapping[tuple[str, str], Sequence[RoundReport]]) -> list[dict[str, object]]:
    """The table."""
    seconds = {pair: median(report.seconds for report in reports) for pair, reports in seen.items()}

    def kilobytes(reports: Sequence[RoundReport], name: str) -> float:
        return round(median(getattr(r, name) / len(r.clients) for r in reports) / 1e3, 1)

    return [
        {
            "method": method,
            "safeguard": safeguard,
            "seconds": round(seconds[method, safeguard], 3),
            "over plain": round(seconds[method, safeguard] / seconds[method, "none"], 2),
            "up": kilobytes(reports, "bytes_up"),
            "down": kilobytes(reports, "bytes_down"),
        }
        for (method, safeguard), reports in seen.items()
    ]


def parser() -> ArgumentParser:
    """Of the command's words."""
    words = machine.words("safeguards", __doc__)
    words.add_argument("--quick", action="store_true", help="three rounds of two steps, once")
    return words


def main() -> None:
    options = parser().parse_args()
    quick = options.quick
    length = ("rounds=3", "client.max_steps=2") if quick else ("rounds=7",)
    seen: dict[tuple[str, str], list[RoundReport]] = {pair: [] for pair in contests()}
    for _ in range(1 if quick else 3):
        for method, safeguard in seen:
            seen[method, safeguard] += run([*BASE, *length, *METHODS[method], *SAFEGUARDS[safeguard]])
    machine.publish(machine.named("safeguards", parser(), options), rows_of(seen), dtype="float32", seed=0)


if __name__ == "__main__":
    main()
