"""A sweep by a launcher of Hydra's, `-m hydra/launcher=joblib`, `=submitit_slurm`: what each run is stays fedinit's."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf

import fedinit
from fedinit.config.choices import is_launcher
from fedinit.config.compose import at_home, composing
from fedinit.config.schema import load
from fedinit.config.words import parse
from fedinit.sweeps.outcome import Outcome, attempt

if TYPE_CHECKING:
    from fedinit.config.arguments import Arguments
    from fedinit.config.compose import Swept

# Of a job's own output there is none: a run has its folder. What a launcher writes lies beside the runs.
SETTINGS = ("hydra.output_subdir=null", "hydra/job_logging=none", "hydra.sweep.subdir=.")
FOLDER = ".launcher"


def chosen(words: Sequence[str]) -> bool:
    """Whether the words say which launcher, or how it launches."""
    return any(is_launcher(parse(word)) for word in words)


def launched(said: Arguments, runs: Sequence[Swept]) -> Iterator[Outcome]:
    """Give the runs to the launcher, and say what came of each when all have ended.

    Raises InputError for settings that the launcher does not take.
    """
    first = runs[0].config
    place = f"hydra.sweep.dir='{Path(first.output_dir).absolute() / first.name / FOLDER}'"
    with composing(said.words, said.primary, sweeping=True) as words:
        hydra: Any = GlobalHydra.instance().hydra
        settings = [str(word.input_line) for word in words if not word.is_sweep_override()]
        config = hydra.compose_config(said.primary.name, [*settings, *SETTINGS, place], RunMode.MULTIRUN)
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks(config)),
            task_function=task,
            config=config,
        )
        returned = launcher.launch([list(swept.overrides) for swept in runs], initial_job_idx=0)
    for swept, job in zip(runs, returned, strict=True):
        name, value = swept.words or swept.config.name, job._return_value
        if isinstance(value, dict):
            yield Outcome(**{**value, "words": name})
        else:
            why = " ".join(f"{type(value).__name__}: {value}".split())
            yield Outcome(name, why=f"run failed: {why}")


def task(composed: DictConfig) -> dict[str, Any]:
    """One run, in whatever process the launcher has for it. Returns what `Outcome` is made of."""
    from rich.console import Console

    container = cast("dict[str, Any]", OmegaConf.to_container(composed, resolve=True))
    simulate = importlib.import_module(fedinit.FACE["run"]).simulate
    console = Console(quiet=True)
    return dataclasses.asdict(attempt("", load(at_home(container)), simulate, console))
