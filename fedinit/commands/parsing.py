"""What the parsers of the subcommands have in common."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from fedinit.commands.places import STDOUT
from fedinit.errors import InputError

if TYPE_CHECKING:
    from fedinit.runs.result import Run


WIDTH = 80  # columns of what --help prints


class Parser(argparse.ArgumentParser):
    """argparse's, which raises InputError, one line, in place of ending the process, and takes no shortened options."""

    def __init__(self, prog: str, about: str, epilog: str | None = None) -> None:
        """prog: how the command is called. about: what it does. epilog: examples, as they are to be shown."""
        super().__init__(
            prog=prog,
            description=_wrapped(about),
            epilog=_wrapped(epilog or ""),
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")
        self.add_argument("-v", "--verbose", action="store_true", help="print where in the code an error arose")

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")


def _wrapped(text: str) -> str:
    """The paragraphs at a terminal's width; those with lines that are indented stay as they are."""
    parts = []
    for paragraph in text.split("\n\n"):
        plain = any(line.startswith("  ") for line in paragraph.splitlines())
        parts.append(paragraph if plain else textwrap.fill(paragraph, WIDTH))
    return "\n\n".join(parts)


def only_text(options: argparse.Namespace, names: Sequence[str]) -> bool:
    """Whether one of these options, of `text_place`, has standard output, which then holds nothing else.

    Raises InputError where several have.
    """
    asked = [f"--{name} -" for name in names if getattr(options, name) is STDOUT]
    if len(asked) > 1:
        raise InputError(f"{', '.join(asked)}: standard output can be one of them; give the other a file")
    return bool(asked)


def add_run(parser: Parser) -> None:
    """RUN, and what says which model of it: --client, --checkpoint."""
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a run, as fedinit run prints it")
    parser.add_argument(
        "--client", type=int, metavar="N", help="whose model, of a method whose clients have one each (fedsa_lora)"
    )
    parser.add_argument(
        "--checkpoint", metavar="FILE", help="the backbone's file, where it lies elsewhere than when the run was made"
    )


def load_run(options: argparse.Namespace) -> Run:
    """The run that the options name. Raises InputError for a folder that is none, or is not done, and for a client that
    has no model there."""
    from fedinit.runs.result import load

    run = load(options.run, options.checkpoint)
    _ = run.summary  # says what is the matter, where it is not done
    if options.client is not None:
        whose(run, options.client)
    return run


def whose(run: Run, client: int | None) -> None:
    """Raise InputError where each client has a model, and none is named that there is, or where one is named, and all
    have one model."""
    from fedinit.runs.export import ONE

    clients = run.clients_with_models
    told, method = "" if client is None else f"--client {client}: ", f"strategy={run.config.strategy.name}"
    if not clients and client is not None and run.summary.get("adapter", ONE) == ONE:
        raise InputError(f"{told}{method} has one model for all clients; leave --client out")
    if clients and client not in clients:
        raise InputError(f"{told}{method} has a model a client; say whose, --client 0 to {clients[-1]}")
