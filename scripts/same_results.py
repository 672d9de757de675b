"""Whether two states of this code compute the same: ``python scripts/same_results.py BASE [HEAD]``.

BASE and HEAD (default: .) are each a directory with a checkout or a git revision. Every configuration of
same_results_cases.yaml is run from both, each side in a process of its own (same_results_side.py), and all that the
runs leave is compared to the last bit: final hashes, every figure of summary.json and of the tables, the ledgers, the
adapters' tensors; not what a clock says. A line is printed for every configuration that differs or fails, then one
with the counts. Exit code 0 when all are the same, 1 when any is not, 2 for wrong arguments. Results of a revision are
kept in --cache and not computed again.

    python scripts/same_results.py main                     # what is here against main
    python scripts/same_results.py main~3 main --jobs 1     # one side after the other
    python scripts/same_results.py main --only lora_ga      # those with this in their names; --list shows the names
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve()
SIDE, CASES = HERE.with_name("same_results_side.py"), HERE.with_name("same_results_cases.yaml")
EXPERIMENT = ("data", "model", "adapter.rank", "client.max_steps")  # what an experiment sets for itself
TIMES = {"seconds", "time"}  # of columns and figures, as whole words in their names
PLACES = {"folder"}
SHOWN = 3  # differences on a line

Result = dict[str, Any]  # {what: value}; {"error": why} where there is none


@dataclass(frozen=True)
class Case:
    """One configuration. how: run | resume | sites; otherwise: the words where some are called otherwise, tried where
    `words` are refused. same_results_cases.yaml explains both."""

    name: str
    words: Sequence[str]
    how: str = "run"
    otherwise: Sequence[str] = ()

    def key(self) -> str:
        """What a kept result belongs to, beside the code: the words, how they are run and read, and torch."""
        about = [self.words, self.how, SIDE.read_text(), importlib.metadata.version("torch")]
        return f"{self.name} {hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]}"


def read_cases(path: Path = CASES) -> list[Case]:
    table, cases = yaml.safe_load(path.read_text()), []
    for group, named in table["groups"].items():
        for name, text in named.items():
            words = completed(shlex.split(text), table)
            how = table["how"].get(group, "run")
            cases.append(Case(f"{group}/{name}", words, how, renamed(words, table["renamed"])))
    return cases


def completed(words: Sequence[str], table: Mapping[str, Any]) -> tuple[str, ...]:
    """The words of a case, after those of the table that it does not set itself."""
    keys = [word.partition("=")[0] for word in words]
    if "experiment" in keys:
        keys += EXPERIMENT
    whole = shlex.split(table["common"])
    for key, more in table["unless"].items():
        if not any(k == key or k.startswith(f"{key}.") for k in keys):
            whole += shlex.split(more)
    return (*whole, *words)


def renamed(words: Sequence[str], names: Mapping[str, str]) -> tuple[str, ...]:
    """The words with the new names of whole words and of keys; a word whose new name is empty is left out."""
    changed = []
    for word in words:
        key, _, value = word.partition("=")
        new = names.get(word, names.get(key))
        changed.append(word if new is None else new if word in names or not new else f"{new}={value}")
    return tuple(word for word in changed if word)


# -- comparing -----------------------------------------------------------------------------------------------------


def flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of everything inside, less clock times and places."""
    if isinstance(value, Mapping):
        items = [(str(key), inside) for key, inside in value.items() if not passing(str(key))]
    elif isinstance(value, (list, tuple)):
        items = [(str(i), inside) for i, inside in enumerate(value)]
    else:
        yield name, value
        return
    for key, inside in items:
        yield from flat(inside, f"{name}.{key}" if name else key)


def passing(name: str) -> bool:
    """Whether a figure of this name is one of the moment or of the machine."""
    return name in PLACES or bool(TIMES & set(name.replace("-", "_").split("_")))


def compare(old: Result, new: Result) -> list[str]:
    """What differs between two nested results, a text "what: old -> new" each, in their order."""
    one, other = dict(flat(old)), dict(flat(new))
    return [
        f"{what}: {one.get(what, 'absent')} -> {other.get(what, 'absent')}"
        for what in {**one, **other}
        if what not in one or what not in other or repr(one[what]) != repr(other[what])
    ]


def verdict(old: Result, new: Result) -> tuple[str, str]:
    """("same" | "differ" | "failed", what to say of it). A case that fails on both sides alike has to be put right."""
    found = compare(old, new)
    if not found:
        return ("failed", f"fails on both sides: {old['error']}") if "error" in old else ("same", "")
    if "error" in old or "error" in new:
        return "differ", f"error: {old.get('error', 'none')} -> {new.get('error', 'none')}"
    more = f"; {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return "differ", "; ".join(found[:SHOWN]) + more


def report(old: Mapping[str, Result], new: Mapping[str, Result]) -> tuple[list[str], bool]:
    """The lines to print, and whether all is the same."""
    counts, lines = {"same": 0, "differ": 0, "failed": 0}, []
    for name in old:
        kind, line = verdict(old[name], new[name])
        counts[kind] += 1
        if line:
            lines.append(f"{name}: {line}")
    told = f"{counts['same']} same, {counts['differ']} differ, {counts['failed']} failed"
    return [*lines, f"{len(old)} configurations: {told}"], 0 < len(old) == counts["same"]


# -- running -------------------------------------------------------------------------------------------------------


def git(*words: str) -> bytes:
    done = subprocess.run(["git", "-C", str(HERE.parents[1]), *words], capture_output=True)
    if done.returncode:
        raise ValueError(done.stderr.decode().strip().splitlines()[-1])
    return done.stdout


def commit_of(side: str) -> str | None:
    """None for a checkout. Raises ValueError for what is neither that nor a revision."""
    if (Path(side) / "run_sim.py").is_file():
        return None
    return git("rev-parse", "--verify", f"{side}^{{commit}}").decode().strip()


def results_of(side: str, cases: Sequence[Case], cache: Path) -> dict[str, Result]:
    """{case: result} of a checkout, or of a revision, whose results are kept."""
    commit = commit_of(side)
    if commit is None:
        return computed(Path(side).resolve(), cases, side)
    file = cache / f"{commit}.json"
    kept: dict[str, Result] = json.loads(file.read_text()) if file.exists() else {}
    missing, new = [case for case in cases if case.key() not in kept], {}
    if missing:
        with tempfile.TemporaryDirectory() as place:
            subprocess.run(["tar", "-x", "-C", place], input=git("archive", commit), check=True)
            new = computed(Path(place).resolve(), missing, side)
        kept |= {case.key(): new[case.name] for case in missing if "error" not in new[case.name]}
        cache.mkdir(parents=True, exist_ok=True)
        whole = file.with_suffix(f".{os.getpid()}")
        whole.write_text(json.dumps(kept))
        whole.replace(file)
    return {case.name: new[case.name] if case.name in new else kept[case.key()] for case in cases}


def computed(checkout: Path, cases: Sequence[Case], side: str) -> dict[str, Result]:
    """Run the cases in one process of one thread, with the code of this checkout."""
    one = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    ended = subprocess.run(
        [sys.executable, str(SIDE), str(checkout)],
        input="".join(json.dumps(asdict(case)) + "\n" for case in cases),
        text=True,
        capture_output=True,
        cwd=checkout,
        env={**os.environ, **one, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(checkout)},
    )
    told = [json.loads(line) for line in ended.stdout.splitlines()]
    last = (ended.stderr.strip().splitlines() or [""])[-1]
    if cases and not told:
        raise SystemExit(f"{side}: no configuration could be run: {last}")
    print(f"{side}: {len(told)} run, {sum(seconds for *_, seconds in told):.0f} s of one core", file=sys.stderr)
    lost = {"error": f"the process ended with code {ended.returncode}: {last}"}
    found = {name: result for name, result, _ in told}
    return {case.name: found.get(case.name, lost) for case in cases}


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", nargs="?", help="a checkout or a git revision")
    parser.add_argument("head", nargs="?", default=".", help="a checkout or a git revision; default: .")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="configurations whose name has this in it")
    parser.add_argument("--jobs", type=int, default=2, choices=(1, 2), help="sides that run at the same time")
    parser.add_argument("--list", action="store_true", help="show the configurations and end")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "fedinit-same-results")
    given = parser.parse_args(argv)
    if given.base is None and not given.list:
        parser.error("BASE is missing")
    try:
        for side in () if given.list else (given.base, given.head):
            commit_of(side)
    except ValueError as error:
        parser.error(f"{side}: neither a checkout nor a revision ({error})")
    return given


def main(argv: Sequence[str]) -> int:
    given = arguments(argv)
    cases = [case for case in read_cases() if fnmatchcase(case.name, f"*{given.only}*")]
    if given.list:
        print(*(f"{case.name}: {shlex.join(case.words)}" for case in cases), sep="\n")
        return 0
    with ThreadPoolExecutor(given.jobs) as pool:
        old, new = pool.map(lambda side: results_of(side, cases, given.cache), (given.base, given.head))
    lines, same = report(old, new)
    print(*lines, sep="\n")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
