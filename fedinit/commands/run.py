"""fedinit run, python run_sim.py: federations on this machine, from Hydra's words.

Here is what takes no time: the words are read and judged before torch, timm and Flower are imported, with run_sim.
"""

from __future__ import annotations

import importlib
import os
import traceback
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

import fedinit
from fedinit import standard_streams, starting
from fedinit.commands.parsing import Parser
from fedinit.config import groups
from fedinit.errors import GOES_ON, InputError, RunFailed, reason
from fedinit.runs.verbose import VerboseConsole
from fedinit.stopping import listening
from fedinit.telling import tell
from fedinit.unreadable import is_folder

if TYPE_CHECKING:
    from fedinit.config.arguments import Arguments
    from fedinit.config.compose import Swept
    from fedinit.config.schema import Config

ABOUT = """usage: fedinit run [OPTION …] [group=choice | key=value …]
       python run_sim.py [OPTION …] [group=choice | key=value …]

Federate low-rank adapters on this machine.

  fedinit run                                           the default: handwritten digits, six clients
  fedinit run strategy=fedit rounds=30                  Hydra's overrides
  fedinit run -m strategy=fedit,lora_fair seed=0,1,2    a sweep over lists of values, in processes side by side
  fedinit run resume=FOLDER                             go on with the run in a folder

  -h, --help            this; --hydra-help: all of Hydra's options
  -m, --multirun        a sweep; what is done already is skipped, and a run that fails does not end it
  -j, --jobs N          of a sweep: runs at a time; default: one a core, 8 at most, or one a GPU
  -c, --cfg job         show the configuration, do not run it; -p KEY: a part of it
  -i, --info            show how it is composed: all, config, defaults, defaults-tree, plugins, searchpath
  -cd, --config-dir DIR a folder of configurations of your own
  -q, --quiet           print the folder of the run and nothing else
  -v, --verbose         also a line a client and round, and where in the code a run failed
  --version

Exit codes: 0 done, 1 a run failed, 2 wrong input, 130 and 143 stopped by Ctrl-C and SIGTERM, 141 nobody
read what is printed to its end, which does not end a run in progress."""
OPTIONS = (
    "--cfg",
    "--config-dir",
    "--config-name",
    "--config-path",
    "--hydra-help",
    "--info",
    "--jobs",
    "--multirun",
    "--package",
)
OPTIONS += ("--resolve", "--version")


def parser(name: str) -> Parser:
    """Of the command's options, for completion; they are read by fedinit/config/arguments.py, where Hydra's are."""
    made = Parser(f"fedinit {name}", ABOUT)
    for option in OPTIONS:
        made.add_argument(option)
    return made


def main(name: str, words: Sequence[str], console: Console) -> int:
    """`fedinit run`; the exit code."""
    return command(words)


def configurations(said: Arguments) -> list[Swept]:
    """What is to be run: one configuration, a sweep of them, or the own one of the folder that `resume` names."""
    from fedinit.config import compose
    from fedinit.config.compose import Swept

    if said.multirun:
        return compose.sweep(said.words, said.primary)
    kept = _of_folder(said.words)
    if kept is not None:
        return [Swept("", kept)]
    try:
        return [Swept("", compose.compose_config(said.words, said.primary))]
    except InputError as error:
        named = next((word for word in said.words if word.startswith("resume=")), "")
        if not is_folder(Path(os.path.expanduser(named.partition("=")[2] or "auto"))):
            raise
        hint = f"beside {named} words are a whole configuration: give all of the run's own, or none"
        raise InputError(f"{error}; {hint}") from error


def _of_folder(words: Sequence[str]) -> Config | None:
    """The configuration of the folder that `resume=` names, where nothing else is said than where its files lie now or
    how it is run; None where the words are a configuration of their own."""
    from hydra.core.override_parser.types import OverrideType

    from fedinit.config.engine import ENGINES, EngineConfig
    from fedinit.config.schema import PLACES, UNCOUNTED, LoggerConfig, load, to_dict
    from fedinit.config.words import parse

    overrides = [parse(word) for word in words]
    free = {*PLACES, *UNCOUNTED, "engine", *(f"logger.{f.name}" for f in fields(LoggerConfig))}
    changes = all(o.type is OverrideType.CHANGE and not o.package and not o.is_sweep_override() for o in overrides)
    if not changes or not free.issuperset(o.key_or_group for o in overrides):
        return None
    values = {o.key_or_group: o.value() for o in overrides}
    named = str(values.get("resume", "auto"))
    folder = Path(os.path.expanduser(named))
    if not named.strip() or str(folder) in ("auto", "never") or not is_folder(folder):
        return None
    engine = values.pop("engine", None)
    if engine is not None and engine not in ENGINES:  # which is told as of any other run
        return None
    from fedinit.runs.configured import configured  # with all of torch

    config = to_dict(configured(folder))
    if engine is not None:  # with what all engines read, which is the run's own
        shared = {f.name: config["engine"][f.name] for f in fields(EngineConfig)}
        config["engine"] = {**shared, "name": engine}
    if "logger" in values:
        values.setdefault("logger.name", values.pop("logger"))  # a key counts for more than its group, as in Hydra
    for key, value in {**values, "resume": str(folder)}.items():
        group, _, last = key.rpartition(".")
        (config[group] if group else config)[last] = value
    return load(config)


def command(argv: Sequence[str]) -> int:
    """Run what the command line says; the exit code. What goes wrong is one line on stderr."""
    errors = Console(stderr=True, soft_wrap=True, markup=False, highlight=False)
    verbose, runs = False, []
    try:
        if {"-h", "--help"} & set(argv):
            print(ABOUT, groups.describe(), sep="\n\n")
            return 0
        with starting.imports():
            from fedinit.config import arguments  # with Hydra

            said = arguments.read(argv)
            verbose = said.verbose
            runs = [] if said.shows else configurations(said)
        if said.shows:
            arguments.show(said, _of_folder(said.words) if said.options.cfg == "job" else None)
            return 0
        if not all(run.config.preview for run in runs):
            standard_streams.goes_on_without()
        return _run(said, runs, errors)
    except Exception as error:
        why = reason(error, "" if isinstance(error, (InputError, RunFailed)) else _kept(runs))
        if why is None:
            raise
        if verbose:
            traceback.print_exc()
        tell(errors, why)
        return 2 if isinstance(error, InputError) else 1
    except KeyboardInterrupt as stopped:
        tell(errors, f"stopped; {_kept(runs)}")
        return getattr(stopped, "code", 130)


def _kept(runs: Sequence[Swept]) -> str:
    """What is left of the runs, if there are any, when something ends them."""
    if not runs:
        return "nothing had begun"
    if all(run.config.preview for run in runs):
        return "a preview keeps nothing"
    try:
        from fedinit.runs.kept import left_by

        return left_by([run.config for run in runs])
    except Exception:  # noqa: BLE001 (what ended them may be that no memory was left, for this neither)
        return GOES_ON


def _run(said: Arguments, runs: Sequence[Swept], errors: Console) -> int:
    """Do the run, or the sweep; the exit code. Raises InputError, RunFailed and OSError for what ends it."""
    if said.jobs is not None and not said.multirun:
        raise InputError("--jobs: goes with -m, a sweep")
    console = VerboseConsole() if said.verbose else Console(quiet=said.quiet)
    if said.multirun:
        from fedinit.commands import sweep

        return sweep.run(said, runs, console, errors)
    with starting.imports():
        simulator = importlib.import_module(fedinit.FACE["run"])
    with listening():
        summary = simulator.simulate(runs[0].config, console)
    if said.quiet and "folder" in summary:  # a preview has none
        print(summary["folder"])
        if code := summary.get("other_code"):
            tell(errors, f"was begun by {code}; resume=never begins it anew")
    return 0
