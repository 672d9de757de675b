"""Federate low-rank adapters on this machine: ``python run_sim.py strategy=lora_fair rounds=30 …``, ``fedinit run …``.

The command line is read in fedinit/commands/run.py, before what is imported here, which takes seconds.
"""

from __future__ import annotations

if __name__ == "__main__":
    from fedinit import leaving, standard_streams, starting

    starting.begin()
    import sys

    from fedinit.commands import run as command

    starting.end()
    leaving.leave(standard_streams.ended(lambda: command.command(sys.argv[1:])))

import contextlib
import dataclasses
import warnings
from pathlib import Path
from typing import Any

from rich.console import Console

from clients.cohort import Cohort
from clients.engine.hardware import resolved
from clients.probe import Probe
from clients.site import Site
from clients.state.own_adapters import OwnAdapters
from clients.trial import RoundsKept, TrialGrid, scaled, seconds_an_image, with_few_images
from fedinit.commands.run import command as main
from fedinit.commands.run import configurations
from fedinit.config import arguments
from fedinit.config.adapter import plain_lora
from fedinit.config.attack import NoAttack
from fedinit.config.bundled import remark
from fedinit.config.schema import Choice, Config
from fedinit.devices import chosen
from fedinit.errors import InputError, RunFailed
from fedinit.leaving import leave
from fedinit.runs import folder as run_folder
from fedinit.runs import made_of
from fedinit.runs.code import code_now, edited_since
from fedinit.runs.preview import Preview, Trial
from fedinit.runs.progress import ProgressObserver
from fedinit.runs.reporting import OpenRun, open_run, show_done
from fedinit.runs.result import Run
from fedinit.runs.status import StatusObserver
from fedinit.runs.writable import refuse_unwritable
from fedinit.state.manifest import FOLDER, last_round
from fedinit.telling import tell
from fedinit.transport.contexts import Contexts
from fedinit.transport.local import LocalGrid
from strategies.server.audience import Audience
from strategies.server.compatibility import check_method
from strategies.server.components import Components, measured_groups
from strategies.server.evaluating import Schedule
from strategies.server.federation import Outcome, check_clients, federate
from strategies.server.measuring import refuse_few_images

__all__ = ["leave", "main", "run", "simulate"]


def run(*words: str, quiet: bool = True, **keys: object) -> Run:
    """One run from the words of the command line, ``run("strategy=lora_fair", "rounds=3")``: ``fedinit.run``.

    The same words give the same run in the same folder: one that is done is only read, one that was stopped goes on.
    quiet: nothing is printed. Raises InputError for wrong words, RunFailed for a run that cannot go on.
    """
    for key, value in keys.items():
        raise InputError(f"run: {key}={value!r}: a key is given as a word, run('{key}={value}')")
    if not all(isinstance(word, str) for word in words):
        raise InputError(f"run: expected words, one an argument, run('strategy=fedit', 'rounds=3'); got {words!r}")
    if {"-m", "--multirun"} & set(words):
        raise InputError("-m: a sweep is the command line's, fedinit run -m …; here, call run for each")
    for option in (word for word in words if word.startswith("-")):
        raise InputError(f"{option}: an option is the command line's, fedinit run {option} …")
    (single,) = configurations(arguments.read(words))
    config = single.config
    if config.preview:
        raise InputError("preview=true: a preview is the command line's, fedinit run preview=true …")
    if edited := edited_since():
        what = f"{', '.join(edited)}: edited since it was imported, and the run is computed as it was; restart Python"
        warnings.warn(what, stacklevel=2)
    summary = simulate(config, Console(quiet=quiet, force_terminal=False if quiet else None))
    if quiet and (code := summary.get("other_code")):
        warnings.warn(f"{summary['folder']}: was begun by {code}; resume=never begins it anew", stacklevel=2)
    return Run(summary["folder"])


def simulate(config: Config, console: Console) -> dict[str, Any]:
    """Run the configuration, write its folder, print its table; returns the summary. A finished run is shown, and of a
    preview nothing is run, written or returned. `other_code` of it: what the run was begun by, where that is other."""
    named = config.resume not in ("auto", "never")  # whose run's own words are compared with these first
    if not named:
        check_method(config)
    chosen("server_device", config.server_device)  # that it is there, before a folder is made
    config = resolved(config)
    located = run_folder.locate(config)
    if named:
        check_method(config)
    folder = located.path
    if text := remark(config.model.title, config.data.name):
        tell(console, text, "yellow")
    if config.preview:
        with contextlib.closing(Site(config, console=console)) as site:
            previewed(config, site, folder).show(console)
        return {}
    done = None if config.resume == "never" else run_folder.finished(folder)
    if done is not None:
        anew = run_folder.written_anew(config, folder, done)
        if anew is None:
            return show_done(done, config, folder, console)
        located = anew
    refuse_unwritable(config, folder)
    with contextlib.closing(Site(config, console=console)) as site:
        if done is not None:
            try:
                made_of.hold_to(folder, site.data.levels)
            except InputError as other:  # its model is written anew by none but its own images
                tell(console, f"warning: {other}", "yellow")
                return show_done(done, config, folder, console)
        return simulated(config, site, located, console)


def simulated(config: Config, site: Site, located: run_folder.Located, console: Console) -> dict[str, Any]:
    """Run the configuration with this site, in the folder that is located; its summary."""
    # Refuses what does not fit, before a folder is made.
    refuse_clients(config, site)
    if site.cost is not None and (said := site.without_room()):
        tell(console, f"{said}; the system may end the run", "yellow")
    try:
        opened = open_run(config, console, located)
    except run_folder.RunDone as ended:
        return show_done(ended.summary, config, located.path, console)
    try:
        opened.hold_to(site.data)
        opened.record_holdings(site.data, site.partitions)
        # At every start: config.yaml names the engine of the last one, and what `auto` came to is in no other file.
        done = last_round(opened.checkpoints())
        on = {"engine": config.engine.name, "detail": site.engine.described(), "code": dict(code_now())}
        opened.folder.event("engine", {"round": done, **on})
        if not isinstance(config.attack, NoAttack):
            bad = sorted(config.attack.attackers(len(site.partitions), config.seed))
            opened.folder.event("attackers", {"attack": config.attack.name, "clients": bad})
        opened.keep_reference(head_alone := reference(config, site, opened, console))
        outcome, contexts = federated(config, site, opened, console)
        kept = outcome.aggregate.layers, outcome.personal
        own = OwnAdapters(contexts, outcome.accepted, *kept) if outcome.personal else None
        model = outcome.final_model(own)
        done = opened.finish(model, outcome.summary() | {"head_alone": head_alone})
        return {**done, "other_code": made_of.of_other_code(opened.folder.path)}
    finally:
        opened.close()


def refuse_clients(config: Config, site: Site) -> None:
    """Raise InputError where the run cannot be one of this site's clients."""
    examples = {part.client: len(part.train) for part in site.partitions}
    check_clients(config, examples)
    refuse_few_images(config, examples)


def previewed(config: Config, site: Site, folder: Path) -> Preview:
    """What the run would be: who holds what, and what a trial of two steps a client, which leaves nothing, measures."""
    refuse_clients(config, site)
    there = run_folder.finished(folder) is not None
    begun = any((folder / FOLDER).rglob("round-*"))
    state = "is there, and done" if there else "is there, and goes on" if begun else "would be made"
    try:
        refuse_unwritable(config, folder)
    except InputError as error:
        state = state if there else f"cannot be written: {error}"
    facts = config, f"{folder}, which {state}", site.backbone, site.targets, site.data, site.partitions
    try:
        return Preview(*facts, trial_of(config, site))
    except (InputError, RunFailed) as error:
        return Preview(*facts, None, str(error))


def trial_of(config: Config, site: Site) -> Trial:
    """Three rounds of the run in memory, or two where it has no more, evaluated by the clients where the run's are, on
    a few images of each client: their figures, scaled to the run. Raises InputError where its steps would not fit into
    memory."""
    if said := site.without_room():
        raise InputError(said)
    kept = RoundsKept()
    parts, schedule = Components.of(config), Schedule.of(config.evaluation)
    groups = measured_groups(parts.initializer, parts.head).values()
    few = with_few_images(site, max((made.min_examples for made in groups), default=0))
    grid = TrialGrid(few)
    rounds = max(2, min(3, config.rounds))
    outcome = federate(dataclasses.replace(few.config, rounds=rounds), grid, site.backbone, observers=[kept])
    model = outcome.aggregate
    image = seconds_an_image(site, model.layers, model.head, outcome.offset)
    evaluated = sum(schedule.is_due(round, config.rounds) for round in range(1, config.rounds + 1))
    return scaled(kept.reports, grid.asked, site, few, outcome.trainable, image, evaluated)


def reference(config: Config, site: Site, opened: OpenRun, console: Console) -> dict[str, Any] | None:
    """The summary of the same budget with the adapters frozen; None where that is not wanted or is the run itself."""
    if not config.has_head_alone:
        return None
    last_only = dataclasses.replace(config.evaluation, every=config.rounds, rounds=None)
    # The adapters stay as they start, so their start must be none that clients measure for.
    plain = {"reinit": Choice(name="auto"), "weighting": "auto", "server_opt": Choice(name="none")}
    plain["init"] = Choice(name="kaiming")
    plain["adapter"] = plain_lora(config.adapter)
    short = dataclasses.replace(config, evaluation=last_only, **plain)
    outcome, _ = federated(short, site, opened, console, Choice(name="head_alone"))
    return outcome.summary()


def federated(
    config: Config, site: Site, opened: OpenRun, console: Console, method: Choice | None = None
) -> tuple[Outcome, Contexts]:
    """One federated run over the in-process grid, with a progress display; what came of it, and what each client holds.

    site: the data and backbone of the clients, and of the server where it evaluates. opened: the run's folder.
    method: instead of the configured strategy, for a reference run, which leaves nothing but its checkpoints.
    """
    cohort, checkpoints = Cohort(site), opened.checkpoints(method.name if method else None)
    grid = LocalGrid(cohort, len(site.partitions), strict=config.engine.strict, checkpoints=checkpoints)
    progress = ProgressObserver(console, (method or config.strategy).name.replace("head_alone", "head alone"))
    parts = {"clients": grid, "bases": cohort.bases}
    status = StatusObserver(opened.folder.path, progress.label)
    watching = [*opened.observers, progress, status]
    site.emit = Audience([opened.folder, progress]).event
    if method is None:
        parts |= opened.parts
        if config.diagnostics.name != "none":
            trained = Components.of(config).trained
            parts["probe"] = probe = Probe(site, trained(), trained(1), opened.folder.path)
            watching.append(probe)
    try:
        outcome = federate(
            config,
            grid,
            site.backbone,
            observers=[progress, status] if method else watching,
            evaluate_fn=site.evaluate_round if config.evaluation.where == "server" else None,
            method=method,
            checkpoints=checkpoints,
            parts=parts,
        )
        return outcome, grid.contexts
    finally:
        progress.close()
