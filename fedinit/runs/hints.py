"""How a run that stopped before its end, or lost a file of it, is gone on with, in words that work for this one."""

from __future__ import annotations

from pathlib import Path

from fedinit.errors import InputError
from fedinit.pasted import resuming
from fedinit.report.runs.reading import RecordedRun, read
from fedinit.state.manifest import FOLDER, checkpoints_in

GROWN = ("not_finite", "factor_norm", "head_norm")  # codes of updates of a training that diverged


def way_on(folder: Path) -> str:
    """What a person does next, after a semicolon."""
    try:
        run = read(folder)
    except InputError:
        return f"{resuming(folder)} goes on with it"
    if _diverged(run):
        grown = f"the updates of its round {run.reached + 1} were NaN, infinite or beyond what is taken"
        return f"{grown}, and would be again: begin a run with a lower client.lr"
    return _resumed(folder, run, "goes on with it")


def anew(folder: Path, does: str = "writes it anew", before: str = "") -> str:
    """How a file that a run writes at its end is written once more, after a semicolon.

    does: what going on with the run does. before: what is to be done before that.
    """
    if not checkpoints_in(folder / FOLDER):
        return (
            "there is no checkpoint that it could be written from; resume=never with the run's own words runs it again"
        )
    try:
        return before + _resumed(folder, read(folder), does)
    except InputError:
        return f"{before}{resuming(folder)} {does}"


def _resumed(folder: Path, run: RecordedRun, does: str) -> str:
    data = run.config.get("data") or {}
    root = data.get("root")
    if isinstance(root, str) and data.get("name") != "hub" and not Path(root).expanduser().exists():
        return f"{resuming(folder, 'data.root=PLACE')} {does}: its images are no longer at {root}"
    return f"{resuming(folder)} {does}"


def _diverged(run: RecordedRun) -> bool:
    """Whether all that the ledger has of the round that it did not complete are updates that grew too large."""
    last = [entry for entry in run.ledger if entry.get("round") == run.reached + 1]
    codes = [entry.get("code") for entry in last if entry.get("kind") == "refused"]
    return bool(codes) and all(code in GROWN for code in codes)
