"""What came of one run of a sweep, whichever process did it."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedinit.errors import FolderBusy, reason
from fedinit.runs import lock
from fedinit.scores import SCORES, without

if TYPE_CHECKING:
    from rich.console import Console

    from fedinit.config.schema import Config


@dataclass(frozen=True)
class Outcome:
    """One run. It is sent as JSON from process to process.

    words: those that are swept over, as they are in this run.
    summary: its figures, with the folder; None of one that failed, and of a preview.
    why: the line that says why it failed; "" where it did not.
    trace: where in the code, of an error that was not foreseen.
    seconds, cpu_seconds: that it took, of the clock and of the processor, in this process.
    waited: another process was at it, which may be the same sweep.
    """

    words: str
    summary: Mapping[str, Any] | None = None
    why: str = ""
    trace: str = ""
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    waited: bool = False

    @property
    def line(self) -> str:
        """``strategy=fedit seed=0: accuracy 86.7 %, 12.3 s``, or why it failed."""
        summary = self.summary or {}
        told = [self.why] if self.why else []
        score = summary.get("score")
        if score in SCORES and summary.get(score) is not None:
            name, _, unit = SCORES[score].title.partition(", ")
            told.append(f"{name} {SCORES[score].show(summary[score])} {unit}".rstrip())
        if summary.get("done_before"):
            told.append("done by another process" if self.waited else "was done")
        elif not self.why:
            told.append(f"{self.seconds:.1f} s")
        if code := summary.get("other_code"):
            told.append(f"begun by {code}, resume=never begins it anew")
        missing = summary.get("not_scored")
        return f"{self.words}: {', '.join(told)}" + (f"; not scored: {without(missing)}" if missing else "")


def attempt(
    words: str, config: Config, simulate: Callable[[Config, Console], Mapping[str, Any]], console: Console
) -> Outcome:
    """Do the run, whatever ends it; a signal that stops the process passes through. One that another process is at is
    waited for, and gone on with where that process left it."""
    began, worked = time.monotonic(), time.process_time()
    summary, why, trace, waited = None, "", "", False
    try:
        while summary is None:
            try:
                summary = simulate(config, console)
            except FolderBusy as error:
                waited = True
                lock.wait(error.folder)
    except Exception as error:  # noqa: BLE001 (the others are to be done)
        why = reason(error) or ""
        if not why:
            trace = traceback.format_exc()
            why = "run failed: " + " ".join(f"{type(error).__name__}: {error}".split())
    return Outcome(words, summary, why, trace, time.monotonic() - began, time.process_time() - worked, waited)
