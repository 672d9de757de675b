"""The `fedinit` command: which subcommand is meant, and what its errors are told in."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from fedinit import starting
from fedinit.commands import COMMANDS
from fedinit.errors import InputError, RunFailed, did_you_mean, first_line, machine_failed, out_of_memory
from fedinit.stopping import listening
from fedinit.telling import tell

if TYPE_CHECKING:
    from rich.console import Console

USAGE = "usage: fedinit COMMAND …"
EXIT_CODES = """Exit codes: 0 done, 1 a run or a process failed, 2 wrong input; stopped: 130 by Ctrl-C, 143 by SIGTERM,
129 by SIGHUP; 141 nobody read what is printed to its end."""


ANYWHERE = ("-q", "--quiet", "-v", "--verbose")  # options of all commands, which may stand before the command too


def main(argv: Sequence[str] | None = None, alone: bool = False) -> int:
    """Run one command and return its exit code. argv: its words without the program's name; None: the process's. alone:
    the process is for nothing else, so that a signal may end it."""
    words = list(sys.argv[1:] if argv is None else argv)
    count = next((i for i, word in enumerate(words) if word not in ANYWHERE), len(words))
    words = [*words[count : count + 1], *words[:count], *words[count + 1 :]]  # the command first
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if words[0] == "--version":
        import fedinit

        print(f"fedinit {fedinit.__version__}")
        return 0
    with starting.imports():
        from rich.console import Console

    quiet, verbose = ({f"-{name[0]}", f"--{name}"} & set(words) for name in ("quiet", "verbose"))
    console = Console(soft_wrap=True, quiet=bool(quiet))
    errors = Console(stderr=True, soft_wrap=True, markup=False, highlight=False)
    try:
        with contextlib.nullcontext() if not verbose else _traced():
            return _run(words[0], words[1:], console, alone)
    except SystemExit as left:  # argparse's, after --help
        return int(left.code or 0)
    except ValueError as error:  # InputError, and what a file that is no JSON or no text raises
        tell(errors, "error: " + str(error))
        return 2
    except RunFailed as error:
        tell(errors, f"failed: {error}")
        return 1
    except PermissionError as error:  # of whatever a command was given
        tell(errors, f"error: {error.filename or 'a file'}: permission denied; let this user at it, or give another")
        return 2
    except OSError as error:
        tell(errors, f"failed: {error.strerror or error}" + (f" ({error.filename})" if error.filename else ""))
        return 1
    except (MemoryError, RuntimeError, ImportError, SystemError) as error:
        if not machine_failed(error):
            raise
        tell(errors, f"failed: {'too little memory ' * out_of_memory(error)}({first_line(error)})")
        return 1
    except KeyboardInterrupt as stopped:
        with contextlib.suppress(OSError):  # the terminal may be what is gone
            tell(errors, "interrupted")
        return getattr(stopped, "code", 130)


def _run(name: str, words: Sequence[str], console: Console, alone: bool) -> int:
    known = ", ".join(COMMANDS)
    if name in ANYWHERE:
        raise InputError(f"{name}: goes with a command; there are {known}; see fedinit --help")
    if name not in COMMANDS:
        raise InputError(
            f"{name}: no such command{did_you_mean(name, COMMANDS)}; there are {known}; see fedinit --help"
        )
    with starting.imports():
        command = importlib.import_module(COMMANDS[name].module)
    if name == "run" or not alone:  # a run says what it leaves
        return command.main(name, words, console)
    with listening(cut_short="interrupted", imports=False):
        return command.main(name, words, console)


@contextlib.contextmanager
def _traced() -> Iterator[None]:
    """Within, an error is also shown with where in the code it arose."""
    try:
        yield
    except Exception:
        import traceback

        traceback.print_exc()
        raise


def usage() -> str:
    """What `fedinit --help` prints."""
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:<{width}}{command.summary}" for name, command in COMMANDS.items()]
    about = "Federated fine-tuning of vision backbones with low-rank adapters, and what is done with the runs."
    return "\n".join(
        [
            USAGE,
            "",
            about,
            "",
            *lines,
            "",
            "fedinit COMMAND --help says more; fedinit --version which this is.",
            EXIT_CODES,
        ]
    )
