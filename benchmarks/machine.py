"""Which machine a number was measured on, and one way to print and keep a table of numbers."""

from __future__ import annotations

import csv
import os
import platform
import re
import subprocess
import time
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from fedinit.threads import cores

FOLDER = "benchmarks/results"
RESULTS = Path(__file__).resolve().parent.parent / FOLDER


def name() -> str:
    """The processor and the cores this process may use, such as "intel-xeon-processor-2c"; no host name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2] for line in lines if line.startswith("model name")]
    model = models[0] if models else platform.processor() or platform.machine()
    words = re.sub(r"\((r|tm)\)|@.*", " ", model.lower())
    return f"{re.sub(r'[^a-z0-9]+', '-', words).strip('-')}-{cores()}c"


def commit() -> str:
    """The short hash of this checkout, with "-dirty" where more than results was changed, or "unknown" outside git."""
    changed = ["status", "--porcelain", "--untracked-files=no", "--", ":/", f":(exclude,top){FOLDER}"]
    try:
        head, dirty = _git("rev-parse", "--short=10", "HEAD"), _git(*changed)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + "-dirty" * bool(dirty)


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=RESULTS.parent, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def count(text: str) -> int:
    """A word of a benchmark's command line that is a whole number, 1 or more, as argparse asks."""
    if not re.fullmatch(r"[0-9]{1,9}", text) or not int(text):
        raise ArgumentTypeError(f"{text}: expected a whole number, 1 or more")
    return int(text)


def words(benchmark: str, doc: str | None) -> ArgumentParser:
    """Of a benchmark's command, which its module's docstring says in the first line."""
    return ArgumentParser(prog=f"python -m benchmarks.{benchmark}", description=(doc or "").partition("\n")[0])


def named(benchmark: str, words: ArgumentParser, given: Namespace, *beside: str) -> str:
    """The name under which a table is kept: with "-quick", or "-part" where other work was asked for than the command's
    own, so that a table of all of it stays. beside: options that change no work."""
    if given.quick:
        return f"{benchmark}-quick"
    own = vars(words.parse_args([]))
    return benchmark + "-part" * any(own[key] != value for key, value in vars(given).items() if key not in beside)


def in_turn(
    contestants: Mapping[str, Callable[[], object]], turns: int, tries: Callable[[str], int] = lambda name: 1
) -> dict[str, list[float]]:
    """{contestant: the seconds of each of its runs}; they take turns. tries: runs of one in a turn."""
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(turns):
        for name, run in contestants.items():
            for _ in range(tries(name)):
                start = time.perf_counter()
                run()
                taken[name].append(time.perf_counter() - start)
    return taken


def publish(benchmark: str, rows: Sequence[Mapping[str, object]], *, dtype: str, seed: int) -> Path:
    """Print the rows, one dictionary each with the same keys, and write them to benchmarks/results/.

    The file also says, in every row, at which commit, with which torch, threads, dtype and seed they were measured.
    """
    facts = {"commit": commit(), "torch": torch.__version__, "threads": torch.get_num_threads(), "dtype": dtype,
             "seed": seed}  # fmt: skip
    table = Table(title=f"{benchmark}, {name()}, {facts['threads']} threads, torch {facts['torch']}")
    for key, value in rows[0].items():
        table.add_column(key.replace("_", " "), justify="left" if isinstance(value, str) else "right")
    for row in rows:
        table.add_row(*(_text(value) for value in row.values()))
    console = Console(width=None if Console().is_terminal else 300)
    console.print(table)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{benchmark}-{name()}.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], *facts])
        writer.writeheader()
        writer.writerows({**row, **facts} for row in rows)
    console.print(f"written: {os.path.relpath(path)}", highlight=False, soft_wrap=True)
    return path


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)
