"""Runs in processes of their own, which are killed or stopped at moments drawn from a seed.

A fork server holds the imports and the data, so that a run starts in a fraction of a second; it has no threads, so its
children are whole.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import torch

import run_sim
from clients.site import Site
from fedinit import stopping
from fedinit.config.compose import compose_config
from tests.support.small import WORDS

RUN = [
    *WORDS,
    "engine.device=cpu",
    "rounds=4",
    "client.max_steps=1",
    "evaluation.every=2",
    "strategy=flora",
    "evaluation=clients",
]


@functools.lru_cache(maxsize=1)
def site() -> Site:
    torch.set_num_threads(1)
    return Site(compose_config(RUN))


def child(root: str) -> None:
    """`python run_sim.py …`, without its start."""
    os.dup2(os.open(Path(root).with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
    os.dup2(1, 2)
    run_sim.Site = lambda config, console: site()
    run_sim.leave(run_sim.main([*RUN, f"output_dir={root}"]))


@functools.lru_cache(maxsize=1)
def context():
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(["tests.faults.warm"])
    return made


def run(root: Path, delay: float | None = None, number: int = signal.SIGKILL) -> tuple[int, float]:
    """(exit code, seconds it took to end after the signal) of one run, which gets `number` after `delay` seconds."""
    process = context().Process(target=child, args=(str(root),))
    process.start()
    if delay is not None:
        process.join(delay)
        if process.is_alive():
            os.kill(process.pid, number)
    began = time.monotonic()
    process.join(120)
    assert process.exitcode is not None, "the run hangs"
    return process.exitcode, time.monotonic() - began


def busy(path: str, limit: float) -> None:
    """One operation of the main thread that takes many times as long as `limit`, after which a signal ends it."""
    matrix = torch.randn(3600, 3600, dtype=torch.float64)
    with stopping.listening(limit=limit):
        Path(path).touch()
        torch.linalg.svd(matrix)
        Path(path).unlink()


def stopped_while_busy(path: Path, number: int, limit: float = 0.5, second: bool = False) -> tuple[int, float]:
    """(exit code, seconds after the signal) of a process in the midst of an operation; with `second`, a second signal
    follows at once."""
    process = context().Process(target=busy, args=(str(path), limit))
    process.start()
    while not path.exists():
        time.sleep(0.02)
    time.sleep(0.3)
    began = time.monotonic()
    for _ in range(1 + second):
        os.kill(process.pid, number)
        time.sleep(0.05)
    process.join(100)
    assert path.exists(), "the operation ended before the process"
    return process.exitcode, time.monotonic() - began


def outcome(root: Path) -> tuple[str, bytes, list[str]]:
    """Final hash, clients.csv, and metrics.csv without its seconds."""
    (folder,) = (root / "digits").iterdir()
    rows = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()]
    place = rows[0].index("seconds")
    tables = [",".join(row[:place] + row[place + 1 :]) for row in rows]
    summary = json.loads((folder / "summary.json").read_text())
    return summary["final_hash"], (folder / "clients.csv").read_bytes(), tables


def rounds_done(root: Path) -> int:
    """The last round that a run's table tells of, 0 for none; a row that was cut short is none."""
    tables = list(root.rglob("metrics.csv"))
    rows = tables[0].read_text().rpartition("\n")[0].splitlines()[1:] if tables else []
    return int(rows[-1].partition(",")[0]) if rows else 0


def begun_after(root: Path) -> int:
    """The round after which a run last went on; 0 where it began anew."""
    lines = [line for path in root.rglob("ledger.jsonl") for line in path.read_text().splitlines()]
    return max((json.loads(line)["round"] for line in lines if '"resumed"' in line), default=0)


def campaign(root: Path, seed: int, count: int, number: int = signal.SIGKILL) -> Counter:
    """{"same", "other", "stopped": ended by the signal, "late": after more than ten seconds, "codes": wrong ones,
    "again": runs in which more than one round was done again}."""
    draw, tally = random.Random(f"{seed}/{number}"), Counter()
    run(root / "first")
    began = time.monotonic()
    code, _ = run(root / "whole")
    length = time.monotonic() - began
    assert code == 0
    wanted, right = outcome(root / "whole"), -9 if number == signal.SIGKILL else 128 + number
    for i in range(count):
        place = root / str(i)
        code, seconds = run(place, draw.uniform(0, length), number)
        tally["stopped"] += code == right
        begun, done = place.exists(), any(place.rglob("DONE.json"))  # before and after these, Python has the signal
        tally["codes"] += code not in (right, 0) and begun and not done
        tally["late"] += seconds > 10
        reached = rounds_done(place)
        again, _ = run(place)
        tally["again"] += not done and reached - begun_after(place) > 1
        tally["same" if again == 0 and outcome(place) == wanted else "other"] += 1
    return tally
