"""From a cold process to its first training step, and to the answer of a command that runs nothing.

    python -m benchmarks.start [--quick]

first step     `run_sim.py evaluation.head_alone=false`, until the first client's first step begins
default        `run_sim.py`, likewise: the features of the head alone are made before
help           `run_sim.py --help`, to its end
wrong word     `run_sim.py strategy=lora_fiar`, to its end
import torch   what a process takes for that alone, to its end

Every one is a process of its own; they take turns, and the median of the turns counts. Bars: 2.5 s to the first step,
0.7 s for an answer.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser

from benchmarks import machine

ROOT = machine.RESULTS.parents[1]
RUN = "run_sim.py"
STEP, END = "step", "end"  # what is waited for
SMALL = "evaluation.head_alone=false"
CONTESTANTS = {  # {name: (its words, what is waited for, the exit code of its end, the bar in seconds)}
    "first step": ([RUN, SMALL], STEP, 0, 2.5),
    "default": ([RUN], STEP, 0, None),
    "help": ([RUN, "--help"], END, 0, 0.7),
    "wrong word": ([RUN, "strategy=lora_fiar"], END, 2, 0.7),
    "import torch": (["-c", "import torch"], END, 0, None),
}


def seconds(name: str) -> float:
    """Of one process of a contestant, from its start. Raises SystemExit where it ends otherwise than it has to."""
    words, until, code, _ = CONTESTANTS[name]
    with tempfile.TemporaryDirectory() as folder:
        if until == STEP:
            words = ["-m", "benchmarks.until_step", *words, f"output_dir={folder}"]
        began = time.time()
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=ROOT)
        ended = time.time()
    last = done.stdout.splitlines()[-1:] if until == STEP else []
    if done.returncode != code or (until == STEP and not last):
        raise SystemExit(f"{name}: ended with {done.returncode}\n{done.stderr[-2000:]}")
    return (float(last[0]) if last else ended) - began


def measure(turns: int) -> list[dict[str, object]]:
    """One row a contestant."""
    taken: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    for _ in range(turns):
        for name, all_ in taken.items():
            all_.append(seconds(name))
    return [
        {
            "contestant": name,
            "seconds": round(statistics.median(all_), 2),
            "least": round(min(all_), 2),
            "most": round(max(all_), 2),
        }
        for name, all_ in taken.items()
    ]


def parser() -> ArgumentParser:
    """Of the command's words."""
    words = machine.words("start", __doc__)
    words.add_argument("--quick", action="store_true", help="one turn")
    return words


def main() -> None:
    options = parser().parse_args()
    rows = measure(1 if options.quick else 7)
    print("seconds from the start of a process")
    machine.publish(machine.named("start", parser(), options), rows, dtype="float32", seed=0)
    for row in rows:
        bar = CONTESTANTS[str(row["contestant"])][-1]
        if bar is not None:
            met = float(str(row["seconds"])) < bar
            print(f"{row['contestant']}: {row['seconds']} s, bar {bar:g}: {'met' if met else 'NOT met'}")


if __name__ == "__main__":
    main()
