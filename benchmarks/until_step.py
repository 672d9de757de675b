"""A command of Python's, run until the first training step of its process begins, whose time it prints last.

    python -m benchmarks.until_step run_sim.py rounds=1 …

Nothing is imported for this that the command does not import, nor in another order: the step is watched from when its
own module is first imported. A command without a step ends with exit code 1.
"""

from __future__ import annotations

import importlib.machinery
import os
import runpy
import sys
import time
from types import ModuleType
from typing import Any

WATCHED = "clients.step"


class Watched(importlib.machinery.SourceFileLoader):
    """Loads the module of the step, whose first call ends the process."""

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        module.Training.step = _reached  # type: ignore[attr-defined]


class Finder:
    """Finds that module alone."""

    @staticmethod
    def find_spec(name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        found = importlib.machinery.PathFinder.find_spec(name, path) if name == WATCHED else None
        if found is not None and found.origin is not None:
            found.loader = Watched(name, found.origin)
        return found


def _reached(*_: object) -> None:
    print(f"\n{time.time()}", flush=True)
    os._exit(0)


def main() -> None:
    sys.argv = sys.argv[1:]
    sys.meta_path.insert(0, Finder)  # type: ignore[arg-type]
    runpy.run_path(sys.argv[0], run_name="__main__")
    raise SystemExit(f"{sys.argv[0]}: ended without a training step")


if __name__ == "__main__":
    main()
