"""A process that does runs for another: ``python -m fedinit.sweeps.worker``, a configuration a line on stdin.

For each it writes a line, the `Outcome`, to what was its stdout; all that is printed goes to stderr. It ends with its
stdin, also in the midst of a run, which goes on from its last checkpoint another time: nobody would hear of its end.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import queue
import signal
import sys
import threading
from typing import Any, TextIO

from rich.console import Console

import fedinit
from fedinit.allocator import give_back
from fedinit.config.schema import load
from fedinit.stopping import listening
from fedinit.sweeps.outcome import attempt


def main() -> None:
    """Do what is asked until there is nothing more."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # a library that prints would write between the answers
    asked: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
    try:
        with listening():
            threading.Thread(target=_hear, args=(asked,), name="questions", daemon=True).start()
            _answer(asked, answers)
    except KeyboardInterrupt as stopped:
        os._exit(getattr(stopped, "code", 130))  # without waiting for lanes in the midst of a bank


def _hear(asked: queue.SimpleQueue[dict[str, Any] | None]) -> None:
    for line in sys.stdin.buffer:
        asked.put(json.loads(line))
    asked.put(None)
    os.kill(os.getpid(), signal.SIGTERM)


def _answer(asked: queue.SimpleQueue[dict[str, Any] | None], answers: TextIO) -> None:
    simulator = importlib.import_module(fedinit.FACE["run"])  # with torch, timm and Flower
    console = Console(stderr=True, force_terminal=False)
    while (run := asked.get()) is not None:
        outcome = attempt(run["words"], load(run["config"]), simulator.simulate, console)
        answers.write(json.dumps(dataclasses.asdict(outcome)) + "\n")
        answers.flush()
        give_back()  # else the next run would be reckoned with what this one has freed


if __name__ == "__main__":
    main()
