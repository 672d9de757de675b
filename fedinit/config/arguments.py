"""The options of the command line, which are Hydra's own: a sweep, other folders of configurations, and what is shown
instead of run."""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import OmegaConf

import fedinit
from fedinit.config.compose import Primary, composing
from fedinit.config.groups import CONF_DIR
from fedinit.config.schema import Config, to_dict
from fedinit.errors import InputError

INSTEAD = ("cfg", "info", "shell_completion", "hydra_help", "version")  # options that show something


@dataclass(frozen=True)
class Arguments:
    """What a command line says.

    words: the overrides.
    primary: the configuration that they are put upon.
    multirun: they are a sweep.
    jobs: how many runs of it at a time; None: not said.
    help: of this program.
    quiet, verbose: how much is said.
    options: all of Hydra's.
    """

    words: Sequence[str]
    primary: Primary
    multirun: bool
    jobs: int | None
    help: bool
    quiet: bool
    verbose: bool
    options: argparse.Namespace

    @property
    def shows(self) -> bool:
        """Whether something is to be shown, by `show`, and nothing run."""
        return any(getattr(self.options, name) not in (None, False) for name in INSTEAD)


def read(argv: Sequence[str]) -> Arguments:
    """The arguments of a command line, options and overrides in any order. Raises InputError, one line."""
    # argparse's own --version would print, and end the process.
    options, unknown = _parser().parse_known_intermixed_args([word for word in argv if word != "--version"])
    options.version = "--version" in argv
    for word in unknown:
        hint = f"a key has no dashes, {word.lstrip('-')}" if "=" in word else "see --help, and --hydra-help"
        raise InputError(f"{word}: no such option; {hint}")
    if options.quiet and options.verbose:
        raise InputError("--quiet --verbose: one of them at a time")
    modes = ["--run", "--multirun", "--cfg", "--info", "--shell-completion"]
    given = [mode for mode in modes if getattr(options, mode[2:].replace("-", "_")) not in (None, False)]
    if len(given) > 1:
        raise InputError(f"{' '.join(given)}: one of them at a time")
    for option in ("--resolve", "--package"):
        if getattr(options, option[2:]) and not options.cfg:
            raise InputError(f"{option}: goes with --cfg, which shows a configuration")
    if options.jobs is not None and options.jobs < 1:
        raise InputError(f"--jobs {options.jobs}: expected a number from 1, of runs at a time")
    if options.experimental_rerun:
        raise InputError("--experimental-rerun: is not done here; resume=FOLDER goes on with the run in a folder")
    primary = Primary(name=(options.config_name or "config").removesuffix(".yaml"))
    if options.config_path is not None:
        primary = primary._replace(folder=_folder("--config-path", CONF_DIR.parent / options.config_path))
    if options.config_dir is not None:
        primary = primary._replace(beside=_folder("--config-dir", Path(options.config_dir)))
    return Arguments(
        words=options.overrides,
        primary=primary,
        multirun=options.multirun,
        jobs=options.jobs,
        help=options.help,
        quiet=options.quiet,
        verbose=options.verbose,
        options=options,
    )


def show(arguments: Arguments, kept: Config | None = None) -> None:
    """Print what the options ask for. Raises InputError, one line, where the words do not compose.

    kept: the configuration, where it is not the words' but that of the run which they name."""
    options = arguments.options
    if kept is not None:
        part = OmegaConf.create(to_dict(kept))
        if (package := options.package) is not None:
            part = OmegaConf.select(part, package)
            if part is None:
                raise _no_package(package)
        told = OmegaConf.to_yaml(part).rstrip() if OmegaConf.is_config(part) else str(part)
        print(f"# @package {package}\n{told}" if OmegaConf.is_config(part) and package else told)
        return
    if options.version:
        print(f"fedinit {fedinit.__version__}, Hydra {hydra.__version__}")
        return
    with composing(arguments.words, arguments.primary) as words, _logging_as_it_was():
        app: Any = GlobalHydra.instance().hydra
        name, overrides = arguments.primary.name, [str(word.input_line) for word in words]
        if options.hydra_help:
            app.hydra_help(None, _parser(), argparse.Namespace(overrides=[]))
            return
        if options.shell_completion:
            app.shell_completion(name, overrides)
            return
        app.config_loader.load_configuration(name, overrides, RunMode.RUN)  # raises what is wrong
        if options.info:
            app.show_info(options.info, name, overrides)
            return
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                app.show_cfg(name, overrides, options.cfg, options.package, options.resolve)
        except SystemExit as error:
            raise _no_package(options.package) from error


def _no_package(name: str) -> InputError:
    return InputError(f"--package {name}: no such key in the configuration")


def _parser() -> argparse.ArgumentParser:
    """Hydra's, which raises InputError for what it does not take."""
    parser = get_args_parser()
    parser.allow_abbrev = False
    parser.prog = "fedinit run"
    parser.add_argument("-q", "--quiet", action="store_true", help="Print the folder of the run and nothing else")
    parser.add_argument("-j", "--jobs", type=int, metavar="N", help="How many runs of a sweep at a time")
    parser.add_argument("-v", "--verbose", action="store_true", help="Also print a line a client and round")

    def refuse(message: str) -> NoReturn:
        raise InputError(f"{message}; see --hydra-help")

    vars(parser)["error"] = refuse
    return parser


def _folder(option: str, place: Path) -> Path:
    if not place.is_dir():
        raise InputError(f"{option} {place}: no such folder")
    return place


@contextlib.contextmanager
def _logging_as_it_was() -> Iterator[None]:
    """Hydra logs what it shows, by a handler of its own."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    try:
        yield
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers
