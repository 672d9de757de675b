"""One contestant's process: python -m benchmarks.peers.contestant MODULE WORK FILE.

MODULE: of this package. WORK: a Work as JSON. FILE: gets the time at the end of every round, a line each.
"""

from __future__ import annotations

import importlib
import json
import os
import sys

from benchmarks.peers.work import Work


def main() -> None:
    module, work, path = sys.argv[1:]

    def told(at: float) -> None:
        if os.environ.get("RANK", "0") == "0":
            with open(path, "a") as file:
                file.write(f"{at}\n")

    importlib.import_module(f"benchmarks.peers.{module}").run(Work(**json.loads(work)), told)


if __name__ == "__main__":
    main()
