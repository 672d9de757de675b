"""Federate low-rank adapters on this machine: ``python run_sim.py strategy=lora_fair rounds=30 …``.

Every word is a Hydra override; ``--help`` lists the groups and their choices, ``-m`` sweeps over lists of values
(``-m strategy=fedit,lora_fair seed=0,1,2``). Exit codes: 0 done, 1 the run failed, 2 wrong input, 130 interrupted.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

from rich.console import Console

from clients.cohort import Cohort
from clients.site import Site
from fedinit import compose, run_folder
from fedinit.config import Choice, Config
from fedinit.engines.local import LocalGrid
from fedinit.errors import InputError
from fedinit.progress import ProgressObserver
from fedinit.reporting import open_run
from fedinit.table import print_summary
from strategies.federated_lora import RunFailed
from strategies.federation import Outcome, check_method, client_ranks, federate


def simulate(config: Config, console: Console) -> dict:
    """Run the configuration, write its folder, print its table; returns the summary. A finished run is shown."""
    check_method(config)
    if config.resume not in ("auto", "never"):
        raise InputError(f"resume={config.resume}: expected auto or never")
    folder = run_folder.place(config)
    done = run_folder.finished(folder) if config.resume == "auto" else None
    if done is not None:
        console.print("this run is done; resume=never runs it again", highlight=False)
        print_summary(console, done, str(folder))
        return done
    site = Site(config)
    client_ranks(config, range(len(site.partitions)))  # refuses what does not fit, before a folder is made
    opened = open_run(config, console)
    head_alone = None
    if config.evaluation.head_alone and config.strategy.name != "head_alone":
        last_only = dataclasses.replace(config.evaluation, every=config.rounds, rounds=None)
        # The adapters stay as they start, so their start must be none that clients measure for.
        plain = {"reinit": Choice(name="auto"), "weighting": "auto", "server_opt": Choice(name="none")}
        plain["init"] = Choice(name="kaiming")
        short = dataclasses.replace(config, evaluation=last_only, **plain)
        head_alone = run(short, site, [], console, "head alone", Choice(name="head_alone")).summary()
    outcome = run(config, site, opened.observers, console, config.strategy.name)
    final = outcome.aggregate
    summary = outcome.summary() | {"head_alone": head_alone}
    return opened.close(final.layers, final.head, outcome.offset, outcome.roster.class_names, summary)


def run(
    config: Config, site: Site, observers: list, console: Console, label: str, method: Choice | None = None
) -> Outcome:
    """One federated run over the in-process grid, with a progress display."""
    grid = LocalGrid(Cohort(site), len(site.partitions), strict=config.engine.strict)
    progress = ProgressObserver(console, label)
    evaluate = site.evaluate_round if config.evaluation.where == "server" else None
    try:
        return federate(
            config, grid, site.backbone, observers=[*observers, progress], evaluate_fn=evaluate, method=method
        )
    finally:
        progress.close()


def main(argv: Sequence[str]) -> int:
    console, errors = Console(), Console(stderr=True, soft_wrap=True, markup=False, highlight=False)
    try:
        if {"-h", "--help"} & set(argv):
            console.print(__doc__, compose.describe_groups(), sep="\n", markup=False, highlight=False, soft_wrap=True)
            return 0
        words = [word for word in argv if word not in ("-m", "--multirun")]
        for config in compose.sweep(words) if len(words) < len(argv) else [compose.compose_config(words)]:
            simulate(config, console)
        return 0
    except InputError as error:
        errors.print(f"error: {error}")
        return 2
    except RunFailed as error:
        errors.print(f"run failed: {error}")
        return 1
    except KeyboardInterrupt:
        errors.print("interrupted")
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
