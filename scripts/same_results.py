"""Whether two states of this code compute the same: ``python scripts/same_results.py BASE [HEAD]``.

BASE and HEAD (default: .) are each a directory with a checkout, or a git revision. Every configuration of
same_results_cases.yaml is run from both, each side in a process of its own, and all that the runs leave is compared to
the last bit: final hashes, every number of summary.json and of the tables, the ledgers, the adapters' tensors; not
what was measured by a clock. A line is printed for every configuration that differs, then one with the counts; exit
code 0 only when all are the same, 1 when any differs or fails, 2 for wrong arguments. Results of a revision are kept in
--cache and not computed again.

    python scripts/same_results.py main                      # what is here against main
    python scripts/same_results.py main~3 main --jobs 1      # one side after the other
    python scripts/same_results.py main --only 'init/lora*'  # some of them; --list shows the names
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import hashlib
import importlib
import importlib.metadata
import io
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
CASES = HERE.with_name("same_results_cases.yaml")
# A key, or a whole word, that is called otherwise since: {"client.gsnr_scope": "client.scope", "old=word": "new=word"}.
# The new one is tried where the old one is refused; "" leaves the word out.
RENAMED: dict[str, str] = {}
TIMES = ("seconds", "time")  # of columns and figures, as whole words in their names
PLACES = ("folder",)
SHOWN = 3  # differences on a line

Result = dict[str, Any]  # {what: value}; {"error": why} where there is none


@dataclass(frozen=True)
class Case:
    """One configuration. how: run | resume | sites, as same_results_cases.yaml explains."""

    name: str
    words: tuple[str, ...]
    how: str = "run"

    def key(self) -> str:
        """What a kept result belongs to, beside the code: the case, how it is run and read, and torch."""
        reader = [HERE.read_text(), importlib.metadata.version("torch"), asdict(self)]
        return f"{self.name} {hashlib.sha256(json.dumps(reader).encode()).hexdigest()[:16]}"


def read_cases(path: Path = CASES) -> list[Case]:
    import yaml

    table = yaml.safe_load(path.read_text())
    return [
        Case(f"{group}/{name}", completed(shlex.split(words), table), table["how"].get(group, "run"))
        for group, named in table["groups"].items()
        for name, words in named.items()
    ]


def completed(words: Sequence[str], table: Mapping[str, Any]) -> tuple[str, ...]:
    """The words of a case, after those that it does not set itself."""
    keys = [word.partition("=")[0] for word in words]
    whole = shlex.split(table["common"])
    for key, more in table["unless"].items():
        if "experiment" not in keys and not any(k == key or k.startswith(f"{key}.") for k in keys):
            whole += shlex.split(more)
    return (*whole, *words)


# -- comparing -----------------------------------------------------------------------------------------------------


def flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of everything inside, less clock times and places."""
    if isinstance(value, Mapping):
        items = [(str(k), v) for k, v in value.items() if not passing(str(k))]
    elif isinstance(value, (list, tuple)):
        items = [(str(i), v) for i, v in enumerate(value)]
    else:
        yield name, value
        return
    for key, inside in items:
        yield from flat(inside, f"{name}.{key}" if name else key)


def passing(name: str) -> bool:
    """Whether a figure of this name is one of the moment or the machine."""
    return name in PLACES or bool(set(TIMES) & set(name.replace("-", "_").split("_")))


def compare(old: Result, new: Result) -> list[str]:
    """ "what: old -> new" of everything that differs, in the order of the results."""
    return [
        f"{what}: {old.get(what, 'absent')} -> {new.get(what, 'absent')}"
        for what in {**old, **new}
        if what not in old or what not in new or repr(old[what]) != repr(new[what])
    ]


def verdict(old: Result, new: Result) -> tuple[str, str]:
    """("same" | "differ" | "failed", what to say of it). A case that fails on both sides alike has to be put right."""
    found = compare(old, new)
    if not found:
        return ("failed", f"fails on both sides: {old['error']}") if "error" in old else ("same", "")
    if "error" in old or "error" in new:
        found = [line for line in found if line.startswith("error: ")]
    more = f"; {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return "differ", "; ".join(found[:SHOWN]) + more


# -- one side: a process that runs cases from one checkout ----------------------------------------------------------


class Failed(Exception):
    """A case has no result."""


def work(checkout: Path) -> None:
    """Cases as JSON lines on stdin, their results as JSON lines on stdout."""
    sys.path.insert(0, str(checkout))
    import torch

    torch.set_num_threads(1)
    run_sim = importlib.import_module("run_sim")
    if Path(run_sim.__file__).parent != checkout:
        raise SystemExit(f"{run_sim.__file__} is not in {checkout}")
    results, how = sys.stdout, {"run": run, "resume": resume, "sites": sites}
    for line in sys.stdin:
        case = Case(**json.loads(line))
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as root:
            try:
                found = dict(flat(how[case.how](run_sim.main, case.words, Path(root))))
            except Failed as why:
                found = {"error": str(why).replace(root, "")}
            except Exception as error:  # noqa: BLE001 (whatever it is, it is this case's result)
                found = {"error": " ".join(traceback.format_exception_only(error)).strip().replace(root, "")}
        print(json.dumps([case.name, found, time.perf_counter() - began]), file=results, flush=True)


def run(main: Callable[[Sequence[str]], int], words: Sequence[str], root: Path) -> Result:
    """A whole run by the command line, and what it leaves."""
    code, said = command(main, words, root)
    if code == 2 and (changed := renamed(words)) != list(words):
        code, said = command(main, changed, root)
    if code != 0:
        raise Failed(f"exit code {code}: {said}")
    return left_in(folder_in(root), root)


def command(main: Callable[[Sequence[str]], int], words: Sequence[str], root: Path) -> tuple[int, str]:
    """The exit code and the last line that was said."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = main([*words, f"output_dir={root}"])
    return code, (said.getvalue().strip().splitlines() or [""])[-1]


def renamed(words: Sequence[str]) -> list[str]:
    """The words as `RENAMED` has them."""
    changed = []
    for word in words:
        key, _, value = word.partition("=")
        new = RENAMED.get(word, RENAMED.get(key))
        changed.append(word if new is None or new == "" or "=" in new else f"{new}={value}")
        if new is not None and ("=" in new or not new):
            changed[-1] = new
    return [word for word in changed if word]


def resume(main: Callable[[Sequence[str]], int], words: Sequence[str], root: Path) -> Result:
    """The same words again on a folder that looks as if the run had been stopped before its last checkpoint."""
    run(main, words, root)
    folder = folder_in(root)
    for place in {path.parent for path in folder.rglob("round-*")}:
        shutil.rmtree(max(place.glob("round-*")))
    shutil.rmtree(folder / "adapter")
    for name in ("summary.json", "DONE.json"):
        (folder / name).unlink()
    found = run(main, words, root)
    if '"resumed"' not in (folder / "ledger.jsonl").read_text():
        raise Failed("the run did not go on from a checkpoint")
    return found


def folder_in(root: Path) -> Path:
    """The folder of the one run that was written."""
    (summary,) = root.rglob("summary.json")
    return summary.parent


def left_in(folder: Path, root: Path) -> Result:
    """All that a finished run has computed, by file."""
    from safetensors import safe_open

    found: Result = {"summary": json.loads((folder / "summary.json").read_text())}
    for path in sorted(folder.glob("*.csv")):
        rows = list(csv.DictReader(path.open()))
        found[path.name] = {"columns": ",".join(rows[0]) if rows else "", "rows": rows}
    lines = (folder / "ledger.jsonl").read_text().replace(str(root), "").splitlines()
    found["ledger"] = [json.loads(line) for line in lines]
    for path in sorted((folder / "adapter").iterdir()):
        if path.suffix == ".json":
            found[path.name] = json.loads(path.read_text())
        else:
            with safe_open(path, "pt") as file:
                found[path.name] = {name: digest(file.get_tensor(name)) for name in sorted(file.keys())}
    return found


def digest(tensor: Any) -> str:
    shape = "x".join(map(str, tensor.shape))
    data = tensor.detach().cpu().contiguous().flatten().numpy().tobytes()
    return f"{tensor.dtype} {shape} {hashlib.sha256(data).hexdigest()[:16]}"


def sites(main: Callable[[Sequence[str]], int], words: Sequence[str], root: Path) -> Result:
    """Two sites, whose messages the ClientApp answers one by one."""
    compose_config = found_in("compose_config", "fedinit.compose", "fedinit.config.compose", "fedinit.config")
    federate = found_in("federate", "strategies.federation", "strategies.server.federation")
    local_grid = found_in("LocalGrid", "fedinit.engines.local", "fedinit.transport.local")
    observer = found_in("Observer", "fedinit.metrics", "fedinit.runs.observer")
    site, app = found_in("Site", "clients.site"), found_in("app", "clients.client_app")
    to_tensors = found_in("to_tensors", "fedinit.wire")

    events: list[Any] = []

    class Ledger(observer):
        def event(self, kind: str, facts: Mapping[str, Any]) -> None:
            events.append({"kind": kind, **facts})

    words = [*words, "data.domains=[plain,inverted]", "evaluation=clients"]
    config = compose_config(words)
    grid = local_grid(
        lambda deliveries: [app(message, context) for message, context in deliveries],
        2,
        run_config={"overrides": shlex.join(words)},
    )
    outcome = federate(config, grid, site(config).backbone, observers=[Ledger()])
    tensors = to_tensors(outcome.aggregate.layers, outcome.aggregate.head)
    tensors |= {f"offset {name}": tensor for name, tensor in outcome.offset.items()}
    return {
        "summary": outcome.summary(),
        "ledger": events,
        "tensors": {name: digest(tensors[name]) for name in sorted(tensors)},
    }


def found_in(name: str, *modules: str) -> Any:
    """`name` from the first of the modules that is there: what has moved is found where it was and where it is."""
    for module in modules:
        with contextlib.suppress(ModuleNotFoundError, AttributeError):
            return getattr(importlib.import_module(module), name)
    raise Failed(f"{name} is in none of {', '.join(modules)}")


# -- both sides ----------------------------------------------------------------------------------------------------


def git(*words: str) -> bytes:
    return subprocess.run(["git", "-C", str(HERE.parents[1]), *words], check=True, capture_output=True).stdout


def results_of(side: str, cases: Sequence[Case], cache: Path) -> dict[str, Result]:
    """{case: result} of a directory, or of a revision, whose results are kept."""
    if Path(side).is_dir():
        return computed(Path(side).resolve(), cases, side)
    commit = git("rev-parse", "--verify", f"{side}^{{commit}}").decode().strip()
    kept_in = cache / f"{commit}.json"
    kept: dict[str, Result] = json.loads(kept_in.read_text()) if kept_in.exists() else {}
    missing = [case for case in cases if case.key() not in kept]
    if missing:
        with tempfile.TemporaryDirectory() as place:
            subprocess.run(["tar", "-x", "-C", place], input=git("archive", commit), check=True)
            new = computed(Path(place).resolve(), missing, side)
        kept |= {case.key(): new[case.name] for case in missing if "error" not in new[case.name]}
        cache.mkdir(parents=True, exist_ok=True)
        kept_in.with_suffix(".new").write_text(json.dumps(kept))
        kept_in.with_suffix(".new").replace(kept_in)
    else:
        new = {}
    return {case.name: new.get(case.name) or kept[case.key()] for case in cases}


def computed(checkout: Path, cases: Sequence[Case], side: str) -> dict[str, Result]:
    """Run the cases in one process, from this checkout."""
    began = time.perf_counter()
    one = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    ended = subprocess.run(
        [sys.executable, str(HERE), "--work", str(checkout)],
        input="".join(json.dumps(asdict(case)) + "\n" for case in cases),
        text=True,
        capture_output=True,
        cwd=checkout,
        env={**os.environ, **one, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(checkout)},
    )
    told = [json.loads(line) for line in ended.stdout.splitlines()]
    print(f"{side}: {len(told)} runs in {time.perf_counter() - began:.0f} s", file=sys.stderr)
    for seconds, name in sorted(((s, n) for n, _, s in told), reverse=True)[:5]:
        print(f"  {name} {seconds:.1f} s", file=sys.stderr)
    last = (ended.stderr.strip().splitlines() or [""])[-1]
    lost = {"error": f"the process ended with code {ended.returncode}: {last}"}
    found = {name: result for name, result, _ in told}
    return {case.name: found.get(case.name, lost) for case in cases}


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", nargs="?", help="a directory or a git revision")
    parser.add_argument("head", nargs="?", default=".", help="a directory or a git revision; default: .")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="configurations whose name matches")
    parser.add_argument("--jobs", type=int, default=2, choices=(1, 2), help="sides run at the same time")
    parser.add_argument("--list", action="store_true", help="show the names and words")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "fedinit-same-results")
    given = parser.parse_args(argv)
    if given.base is None and not given.list:
        parser.error("BASE is missing")
    return given


def main(argv: Sequence[str]) -> int:
    if argv[:1] == ["--work"]:
        work(Path(argv[1]))
        return 0
    given = arguments(argv)
    cases = [case for case in read_cases() if fnmatchcase(case.name, f"*{given.only}*")]
    if given.list:
        for case in cases:
            print(case.name, shlex.join(case.words))
        return 0
    with ThreadPoolExecutor(given.jobs) as pool:
        old, new = pool.map(lambda side: results_of(side, cases, given.cache), (given.base, given.head))
    counts = {"same": 0, "differ": 0, "failed": 0}
    for case in cases:
        kind, line = verdict(old[case.name], new[case.name])
        counts[kind] += 1
        if line:
            print(f"{case.name}: {line}")
    same, differ, failed = counts.values()
    print(f"{len(cases)} configurations: {same} same, {differ} differ, {failed} failed")
    return int(same < len(cases) or not cases)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
