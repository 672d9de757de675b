"""Accuracy under attack: attack × defence × share of bad clients, over three seeds.

    python -m benchmarks.robust [--quick] [--workers N] [--attacks sign_flip scaled …] [--defences none bounded …]

The default run (`strategy=lora_fair` on the six digit domains) at six rounds, and the same images dealt to twenty
clients alike. One and two of six are bad, and 10, 20 and 30 % of twenty; which, is drawn from the seed. `multi_krum` is
told how many (without an attack: the most of them), `trust` has the first honest client for its root set. --quick: the
six domains with two bad ones, eight steps a round in place of two epochs, one seed. The workers are processes that
share the cores, or the GPU; they change no accuracy, and make the milliseconds those of a machine at work.

ended            of the seeds, the runs that came to the last round; the rest of a row is of those
accuracy, std    mean over domains after the last round, in %, over the seeds
honest_weight    what the honest clients' updates weigh together, of 1; a mean over rounds
least_honest     of the honest client that weighs least, its weight times the number of clients; the same mean
bad_weight       what the bad clients' updates weigh together; the rest of the weight is the start's
server_ms        milliseconds a round on the server, aggregation and rule
"""

from __future__ import annotations

import dataclasses
import functools
import math
import multiprocessing
import os
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from statistics import fmean, pstdev

import torch

from benchmarks import machine
from clients.cohort import Cohort
from clients.engine.hardware import resolved
from clients.site import Site
from fedinit.config.attack import ATTACKS, AttackConfig
from fedinit.config.compose import compose_config
from fedinit.config.schema import Config
from fedinit.errors import RunFailed
from fedinit.runs.observer import Observer, RoundReport
from fedinit.sweeps.processes import CORES as SHARE_OF_CORES
from fedinit.threads import cores
from fedinit.transport.local import LocalGrid
from strategies.robust import ROBUST
from strategies.server.federation import federate

ROUNDS = 6
BASE = (f"rounds={ROUNDS}", f"evaluation.every={ROUNDS}", "evaluation.head_alone=false", "logger=none", "report=none")
SHORT = ("client.max_steps=8",)  # of --quick
SETTINGS = {"domains": (), "iid": ("partition=iid", "partition.clients=20")}
BAD = {"domains": (1, 2), "iid": (2, 4, 6)}
CLIENTS = {"domains": 6, "iid": 20}
FIGURES = ("accuracy", "honest_weight", "least_honest", "bad_weight", "server_ms")


@dataclasses.dataclass(frozen=True)
class Case:
    """A cell of the table. setting: of SETTINGS. bad: how many clients attack; 0 without an attack."""

    setting: str
    attack: str
    bad: int
    defence: str


class Weights(Observer):
    """Of every round, what each client weighed, and the server's seconds."""

    def __init__(self) -> None:
        self.rounds: list[dict[int, float]] = []
        self.seconds: list[float] = []

    def round_done(self, report: RoundReport) -> None:
        self.rounds.append({client.client: client.weight or 0.0 for client in report.clients})
        self.seconds.append(report.phases["server"])


def cases(attacks: Sequence[str], defences: Sequence[str], quick: bool) -> Iterator[Case]:
    for setting in ["domains"] if quick else SETTINGS:
        for defence in defences:
            yield Case(setting, "none", 0, defence)
            for bad in BAD[setting][-1:] if quick else BAD[setting]:
                yield from (Case(setting, attack, bad, defence) for attack in attacks)


def configured(case: Case, seed: int, more: Sequence[str] = ()) -> tuple[Config, frozenset[int]]:
    """The run of a case, with more words, and the partition ids of its bad clients."""
    words = [*BASE, *SETTINGS[case.setting], *more, f"seed={seed}", f"robust={case.defence}", f"attack={case.attack}"]
    if case.bad:
        words.append(f"attack.count={case.bad}")
    if case.defence == "multi_krum":  # a share, which holds for those that the gate lets in, where a number does not
        words.append(f"robust.bad={(case.bad or BAD[case.setting][-1]) / CLIENTS[case.setting] + 1e-6:.6f}")
    bad: frozenset[int] = frozenset()
    attack = compose_config([word for word in words if not word.startswith("robust")]).attack
    if isinstance(attack, AttackConfig):
        bad = attack.attackers(CLIENTS[case.setting], seed)
    if case.defence == "trust":
        words.append(f"robust.root={min(set(range(CLIENTS[case.setting])) - bad)}")
    return resolved(compose_config(words)), bad


def run(case: Case, seed: int, more: Sequence[str] = ()) -> dict[str, float]:
    """The figures of one run of a case."""
    config, bad = configured(case, seed, more)
    site, seen = Site(config), Weights()
    grid = LocalGrid(Cohort(site), len(site.partitions))
    try:
        score = federate(config, grid, site.backbone, observers=[seen], evaluate_fn=site.evaluate_round).score
    except RunFailed as failure:
        print(f"{case}, seed {seed}: {failure}", flush=True)
        return {"ended": 0.0}
    assert score is not None
    clients = CLIENTS[case.setting]
    honest = [[w for client, w in weights.items() if client not in bad] for weights in seen.rounds]
    return {
        "ended": 1.0,
        "accuracy": score.mean,
        "honest_weight": fmean(sum(weights) for weights in honest),
        "least_honest": fmean(min(weights) * clients for weights in honest),
        "bad_weight": fmean(sum(w for client, w in weights.items() if client in bad) for weights in seen.rounds),
        "server_ms": 1e3 * fmean(seen.seconds),
    }


def row(case: Case, seeds: Sequence[int], more: Sequence[str] = ()) -> dict[str, object]:
    """The means over the runs that came to their last round; NaN where none did."""
    runs = [run(case, seed, more) for seed in seeds]
    whole = [figures for figures in runs if figures["ended"]]
    means = {key: fmean(f[key] for f in whole) if whole else math.nan for key in FIGURES}
    spread = {"std": pstdev([f["accuracy"] for f in whole]) if whole else math.nan}
    counts = {"seeds": len(seeds), "ended": len(whole)}
    return {**dataclasses.asdict(case), **counts, "accuracy": means.pop("accuracy"), **spread, **means}


def rows_of(todo: Sequence[Case], seeds: Sequence[int], more: Sequence[str], workers: int) -> Iterator[dict]:
    """The rows in their order, made by so many processes, or by this one where that is one."""
    one = functools.partial(row, seeds=seeds, more=more)
    if workers == 1:
        yield from map(one, todo)
        return
    share = max(1, cores() // workers)
    # Spawned: a fork of a process that has begun with CUDA cannot use it.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _take, (share,)) as pool:
        yield from pool.map(one, todo)


def _take(share: int) -> None:
    """Of the cores, for a process of several."""
    os.environ[SHARE_OF_CORES] = str(share)
    torch.set_num_threads(share)


def parser() -> ArgumentParser:
    """Of the command's words."""
    words = machine.words("robust", __doc__)
    words.add_argument("--quick", action="store_true", help="two bad ones of six domains, one seed")
    attacks, defences = sorted(set(ATTACKS) - {"none"}), ["none", *sorted(set(ROBUST) - {"none"})]
    words.add_argument("--workers", type=machine.count, default=1, help="processes side by side")
    words.add_argument("--attacks", nargs="+", choices=attacks, default=attacks)
    words.add_argument("--defences", nargs="+", choices=defences, default=defences)
    return words


def main() -> None:
    arguments = parser().parse_args()
    todo = list(cases(arguments.attacks, arguments.defences, arguments.quick))
    seeds, more = ((0,), SHORT) if arguments.quick else ((0, 1, 2), ())
    rows = []
    for made in rows_of(todo, seeds, more, arguments.workers):
        rows.append(made)
        told = "{setting}, {bad} {attack}, {defence}: {accuracy:.1f} %".format(**made)
        print(f"{len(rows)} of {len(todo)}: {told}", flush=True)
    engine = configured(todo[0], 0)[0].engine
    where = f"-{torch.cuda.get_device_name().replace(' ', '-')}" if torch.cuda.is_available() else ""
    machine.publish(
        machine.named("robust", parser(), arguments, "workers") + where, rows, dtype=engine.precision, seed=0
    )


if __name__ == "__main__":
    main()
