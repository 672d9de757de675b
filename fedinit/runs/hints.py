"""How a run that stopped before its end is gone on with, in words that work for this one."""

from __future__ import annotations

from pathlib import Path

from fedinit.errors import InputError
from fedinit.report.runs.reading import RecordedRun, read

GROWN = ("not_finite", "factor_norm", "head_norm")  # codes of updates of a training that diverged


def way_on(folder: Path) -> str:
    """What a person does next, after a semicolon."""
    plain = f"fedinit run resume={folder} goes on with it"
    try:
        run = read(folder)
    except InputError:
        return plain
    if _diverged(run):
        grown = f"the updates of its round {run.reached + 1} were NaN, infinite or beyond what is taken"
        return f"{grown}, and would be again: begin a run with a lower client.lr"
    data = run.config.get("data") or {}
    root = data.get("root")
    if isinstance(root, str) and data.get("name") != "hub" and not Path(root).expanduser().exists():
        return f"fedinit run resume={folder} data.root=PLACE goes on with it: its images are no longer at {root}"
    return plain


def _diverged(run: RecordedRun) -> bool:
    """Whether all that the ledger has of the round that it did not complete are updates that grew too large."""
    last = [entry for entry in run.ledger if entry.get("round") == run.reached + 1]
    codes = [entry.get("code") for entry in last if entry.get("kind") == "refused"]
    return bool(codes) and all(code in GROWN for code in codes)
