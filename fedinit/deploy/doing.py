"""What a run is at, for those who wait for it from another process."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

from fedinit.report.runs.left_out import as_it_comes
from fedinit.runs.status import status_of


def doing_of(folder: Path, say: Callable[[str], None]) -> Callable[[], None]:
    """What says, when it is called, what the run in this folder is at in words, such as whom it waits for, once; and
    what has come into its ledger since about clients that are left out."""
    told, ledger = "", folder / "ledger.jsonl"
    read = ledger.stat().st_size if ledger.is_file() else 0  # a run that goes on has been told of what was before

    def look() -> None:
        nonlocal told, read
        status = status_of(folder)
        doing = "" if status is None or status.process is False else status.doing
        what = doing.partition(", the run fails in ")[0]  # whose seconds run down
        if what and what != told:
            say(f"  {doing}")
        told = what or told
        try:
            with ledger.open("rb") as file:
                file.seek(read)
                new = file.read()
        except OSError:  # not there yet
            return
        whole = new[: new.rfind(b"\n") + 1]
        read += len(whole)
        for line in whole.splitlines():
            with contextlib.suppress(ValueError):
                if text := as_it_comes(json.loads(line)):
                    say(f"  {text}")

    return look
