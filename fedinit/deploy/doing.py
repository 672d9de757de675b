"""What a run is at, for those who wait for it from another process."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path

from fedinit.report.runs.left_out import as_it_comes
from fedinit.runs.status import status_of


def doing_of(folder: Path, say: Callable[[str], None]) -> Callable[[], None]:
    """What says, when it is called, what the run in this folder is at in words, such as whom it waits for, once; and
    what has come into its ledger since about clients that are left out."""
    told, ledger = "", folder / "ledger.jsonl"
    # A run that goes on has been told of what was before; one that begins anew has another file.
    of, read = (ledger.stat().st_ino, ledger.stat().st_size) if ledger.is_file() else (0, 0)

    def look() -> None:
        nonlocal told, of, read
        status = status_of(folder)
        doing = "" if status is None or status.process is False else status.doing
        what = doing.partition(", the run fails in ")[0]  # whose seconds run down
        if what and what != told:
            say(f"  {doing}")
        told = what or told
        try:
            with ledger.open("rb") as file:
                if (now := os.fstat(file.fileno())).st_ino != of or now.st_size < read:
                    of, read = now.st_ino, 0
                file.seek(read)
                new = file.read()
        except OSError:  # not there yet
            return
        whole = new[: new.rfind(b"\n") + 1]
        read += len(whole)
        for line in whole.splitlines():
            with contextlib.suppress(ValueError, TypeError, AttributeError):  # a line that somebody damaged
                if text := as_it_comes(json.loads(line)):
                    say(f"  {text}")

    return look
