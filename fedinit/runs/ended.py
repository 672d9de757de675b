"""What ended a run before its end, in a small file in its folder, for comparisons of many runs.

It is there from that end until the run goes on. A process that is killed writes none.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from fedinit.errors import reason
from fedinit.opening import read_bytes
from fedinit.runs.status import status_of
from fedinit.state import disk

FILE = ".ended.json"
PREFIXES = ("run failed: ", "error: ")
LONGEST = 300  # characters of a reason


def note(folder: Path, error: BaseException | None) -> None:
    """Keep what ended the run; None: nothing did. A folder that cannot be written keeps nothing."""
    if error is None:
        return
    why = ""
    if isinstance(error, Exception):
        why = reason(error, kept="") or f"{type(error).__name__}: {error}"
        for prefix in PREFIXES:
            why = why.removeprefix(prefix)
        why = " ".join(why.split()).rstrip("; ")[:LONGEST]
    with contextlib.suppress(OSError):
        disk.replace_json(folder / FILE, {"failed": isinstance(error, Exception), "why": why})


def forget(folder: Path) -> None:
    """Of a run that begins, or goes on."""
    with contextlib.suppress(OSError):
        for name in (FILE, FILE + ".tmp"):  # which a second signal may have left
            (folder / name).unlink(missing_ok=True)


def standing(folder: Path) -> str:
    """How a run stands that is not done: ``failed, round 1: no usable update …``, ``stopped``, ``being run``,
    ``not begun``."""
    if (status := status_of(folder)) is not None:
        return "stopped: its process is gone" if status.process is False else "being run"
    try:
        values = json.loads(read_bytes(folder / FILE))
        failed, why = bool(values["failed"]), str(values["why"])[:LONGEST]
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        # The ledger is made when training begins, the checkpoints with the first round.
        begun = (folder / "ledger.jsonl").exists() or any((folder / "checkpoints").rglob("round-*"))
        return "stopped" if begun else "not begun"
    return "stopped" if not failed else f"failed, {why}" if why else "failed"
