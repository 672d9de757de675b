"""Federate low-rank adapters on this machine: ``python run_sim.py strategy=lora_fair rounds=30 …``.

Every word is a Hydra override; ``--help`` lists the groups and their choices, ``-m`` sweeps over lists of values
(``-m strategy=fedit,lora_fair seed=0,1,2``). ``--cfg job`` and ``--info`` show what would be run, ``--config-dir`` adds
a folder of configurations; ``--hydra-help`` lists these options. Exit codes: 0 done, 1 a run failed, 2 wrong input, 130
and 143 stopped by Ctrl-C and SIGTERM.
"""

from __future__ import annotations

from fedinit import starting

if __name__ == "__main__":
    starting.begin()  # before what takes seconds to import

import dataclasses
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flwr.app import Context
from rich.console import Console

from clients.cohort import Cohort
from clients.engine.hardware import resolved
from clients.probe import Probe
from clients.site import Site
from clients.state.rounds import own_factors
from fedinit.config import arguments, compose
from fedinit.config.adapter import plain_lora
from fedinit.config.arguments import Arguments
from fedinit.config.compose import Swept
from fedinit.config.schema import Choice, Config
from fedinit.config.words import parse
from fedinit.errors import InputError, RunFailed
from fedinit.factors import Factors
from fedinit.runs import folder as run_folder
from fedinit.runs.progress import ProgressObserver
from fedinit.runs.reporting import OpenRun, open_run, show_done
from fedinit.runs.result import Run
from fedinit.runs.stopping import listening
from fedinit.transforms.personal import with_personal
from fedinit.transport.local import LocalGrid
from strategies.server.compatibility import check_method
from strategies.server.components import Components
from strategies.server.federation import Outcome, check_clients, federate

GOES_ON = "the last whole checkpoint is kept, and the same command goes on from it"


def run(*words: str, quiet: bool = True) -> Run:
    """One run from the words of the command line, ``run("strategy=lora_fair", "rounds=3")``: ``fedinit.run``.

    The same words give the same run in the same folder: one that is done is only read, one that was stopped goes on.
    quiet: nothing is printed. Raises InputError for wrong words, RunFailed for a run that cannot go on.
    """
    if not all(isinstance(word, str) for word in words):
        raise InputError(f"run: expected words, one an argument, run('strategy=fedit', 'rounds=3'); got {words!r}")
    if {"-m", "--multirun"} & set(words):
        raise InputError("-m: a sweep is the command line's, python run_sim.py -m …; here, call run for each")
    for option in (word for word in words if word.startswith("-")):
        raise InputError(f"{option}: an option is the command line's, python run_sim.py {option} …")
    ((_, config),) = configurations(arguments.read(words))
    return Run(simulate(config, Console(quiet=quiet, force_terminal=False if quiet else None))["folder"])


def simulate(config: Config, console: Console) -> dict[str, Any]:
    """Run the configuration, write its folder, print its table; returns the summary. A finished run is shown."""
    check_method(config)
    config = resolved(config)
    located = run_folder.locate(config)
    folder = located.path
    done = None if config.resume == "never" else run_folder.finished(folder)
    if done is not None:
        return show_done(done, config, folder, console)
    site = Site(config, console=console)
    # Refuses what does not fit, before a folder is made.
    check_clients(config, {part.client: len(part.train) for part in site.partitions})
    try:
        opened = open_run(config, console, located)
    except run_folder.RunDone as ended:
        return show_done(ended.summary, config, folder, console)
    try:
        opened.record_holdings(site.data, site.partitions)
        head_alone = reference(config, site, opened, console)
        outcome, contexts = federated(config, site, opened, console)
        model = outcome.final_model(adapters_of(contexts, outcome))
        return opened.finish(model, outcome.summary() | {"head_alone": head_alone})
    finally:
        opened.close()


def reference(config: Config, site: Site, opened: OpenRun, console: Console) -> dict[str, Any] | None:
    """The summary of the same budget with the adapters frozen; None where that is not wanted or is the run itself."""
    without = config.strategy.name == "head_alone" or config.head.name == "none"
    if without or not config.evaluation.head_alone:
        return None
    last_only = dataclasses.replace(config.evaluation, every=config.rounds, rounds=None)
    # The adapters stay as they start, so their start must be none that clients measure for.
    plain = {"reinit": Choice(name="auto"), "weighting": "auto", "server_opt": Choice(name="none")}
    plain["init"] = Choice(name="kaiming")
    plain["adapter"] = plain_lora(config.adapter)
    short = dataclasses.replace(config, evaluation=last_only, **plain)
    outcome, _ = federated(short, site, opened, console, Choice(name="head_alone"))
    return outcome.summary()


def adapters_of(contexts: Sequence[Context], outcome: Outcome) -> dict[int, dict[str, Factors]]:
    """{client: {layer: factors}} as each client uses them after the last round, where clients keep some to themselves;
    empty for other methods. contexts: one a client, in the order of their partition ids."""
    if not outcome.personal:
        return {}
    own = {client: own_factors(contexts[client], round) for client, round in outcome.accepted.items()}
    shared = outcome.aggregate.layers
    return {client: with_personal(shared, factors, outcome.personal) for client, factors in own.items()}


def federated(
    config: Config, site: Site, opened: OpenRun, console: Console, method: Choice | None = None
) -> tuple[Outcome, list[Context]]:
    """One federated run over the in-process grid, with a progress display; what came of it, and what each client holds.

    site: the data and backbone of the clients, and of the server where it evaluates. opened: the run's folder.
    method: instead of the configured strategy, for a reference run, which leaves nothing but its checkpoints.
    """
    cohort = Cohort(site)
    grid = LocalGrid(cohort, len(site.partitions), strict=config.engine.strict)
    progress = ProgressObserver(console, (method or config.strategy).name.replace("head_alone", "head alone"))
    parts = {"clients": grid, "bases": cohort.bases}
    watching = [*opened.observers, progress]
    if method is None:
        parts["files"] = opened.folder
        if config.diagnostics.name != "none":
            trained = Components.of(config).trained
            parts["probe"] = probe = Probe(site, trained(), trained(1), opened.folder.path)
            watching.append(probe)
    try:
        outcome = federate(
            config,
            grid,
            site.backbone,
            observers=[progress] if method else watching,
            evaluate_fn=site.evaluate_round if config.evaluation.where == "server" else None,
            method=method,
            checkpoints=opened.checkpoints(method.name if method else None),
            parts=parts,
        )
        return outcome, list(grid.contexts.values())
    finally:
        progress.close()


def configurations(said: Arguments) -> list[Swept]:
    """What is to be run: one configuration, a sweep of them, or, for `resume=<folder>` alone, the folder's own."""
    if said.multirun:
        return compose.sweep(said.words, said.primary)
    if len(said.words) == 1 and said.words[0].startswith("resume="):
        alone = os.path.expanduser(str(parse(said.words[0]).value()))
        if alone not in ("auto", "never") and Path(alone).is_dir():
            return [Swept("", dataclasses.replace(run_folder.configured(Path(alone)), resume=alone))]
    return [Swept("", compose.compose_config(said.words, said.primary))]


def simulate_all(runs: Sequence[Swept], console: Console, errors: Console) -> int:
    """Every run of a sweep, also after one that failed; at the end, or when it is stopped, says which failed and why, a
    line each. Returns the exit code, 1 where one failed."""
    failed: list[str] = []
    try:
        for words, config in runs:
            try:
                simulate(config, console)
            except Exception as error:  # noqa: BLE001 (whatever ends a run, the others are to be done)
                if (why := reason(error)) is None:
                    traceback.print_exc()
                    why = "run failed: " + " ".join(f"{type(error).__name__}: {error}".split())
                failed.append(f"{words or config.name}: {why}")
                errors.print(f"{failed[-1]}; the sweep goes on")
    finally:
        if failed:
            errors.print(f"{len(failed)} of {len(runs)} runs failed:", *failed, sep="\n  ")
    return 1 if failed else 0


def reason(error: Exception) -> str | None:
    """The line that an error which is foreseen is told in; None for one that is not."""
    if isinstance(error, InputError):
        return f"error: {error}"
    if isinstance(error, RunFailed):
        return f"run failed: {error}"
    if isinstance(error, OSError):
        where = f" ({error.filename})" if error.filename else ""
        return f"run failed: {error.strerror or error}{where}; {GOES_ON}"
    return None


def main(argv: Sequence[str]) -> int:
    """Run what the command line says; the exit code. What goes wrong is one line on stderr."""
    console, errors = Console(), Console(stderr=True, soft_wrap=True, markup=False, highlight=False)
    try:
        said = arguments.read(argv)
        if said.help:
            console.print(__doc__, compose.describe_groups(), sep="\n", markup=False, highlight=False, soft_wrap=True)
        elif said.shows:
            arguments.show(said)
        else:
            with listening():
                runs = configurations(said)
                if said.multirun:
                    return simulate_all(runs, console, errors)
                simulate(runs[0].config, console)
        return 0
    except (InputError, RunFailed, OSError) as error:
        errors.print(reason(error))
        return 2 if isinstance(error, InputError) else 1
    except KeyboardInterrupt as stopped:
        errors.print(f"stopped; {GOES_ON}")
        return getattr(stopped, "code", 130)


def leave(code: int) -> None:
    """End the process; after a signal without waiting for lanes in the midst of a bank."""
    if code > 128:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    starting.end()
    leave(main(sys.argv[1:]))
