"""What a result came from: command, versions, hash, seed, the whole configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fedinit.config.dotted import dotted
from fedinit.report.markup import Markup, behind, joined, missing, table, tag
from fedinit.report.panels.panel import Panel
from fedinit.report.runs.methods import Method
from fedinit.report.runs.reading import RecordedRun

PLACES = ("output_dir", "resume")  # of the configuration: where, not what
DEVICE = "engine.device"
STARTS = ("engine", "code")  # of the ledger: what a simulation says at every start, and a deployed server


def panel(methods: Sequence[Method]) -> Panel:
    runs = [(method.label, run) for method in methods for run in method.runs]
    lead = "The same configuration and seed give the same final hash again, on the same versions"
    lead += ", but where noise is of the system's entropy." if any(run.chosen("privacy") for _, run in runs) else "."
    if len(runs) == 1:
        return Panel("provenance", "Provenance", lead, joined(_one(runs[0][1])))
    rows = [[label, run.seed, _state(run), tag("code", _hash(run)[:16]), run.folder.name] for label, run in runs]
    parts = [table(["method", "seed", "state", "final hash", "folder"], rows, caption="The runs")]
    parts += [behind(f"{method.label}, seed {method.first.seed}", *_one(method.first)) for method in methods]
    return Panel("provenance", "Provenance", lead, joined(parts))


def _one(run: RecordedRun) -> list[Markup]:
    known = run.provenance
    facts: list[tuple[str, object]] = [("final hash", tag("code", _hash(run) or "none yet")), ("seed", run.seed)]
    facts += [("state", _state(run)), ("folder", run.folder.name)]
    engines = _engines(run)
    if engines:
        facts.append(("engine", "; ".join(f"{text}{_since(after)}" for after, text in engines)))
    if codes := _codes(run):
        facts.append(("code", "; ".join(f"{text}{_since(after)}" for after, text in codes)))
    if known.get("command"):
        facts.append(("command", tag("code", known["command"])))
    facts += [(name, known[name]) for name in ("source", "python", "system", "cores") if known.get(name)]
    versions = known.get("versions")
    if isinstance(versions, Mapping):
        facts.append(("versions", ", ".join(f"{name} {version}" for name, version in versions.items())))
    listed = tag("dl", *[Markup(tag("dt", key) + tag("dd", value)) for key, value in facts], class_="facts")
    parts = [listed]
    if not known:
        parts.append(missing("Command and versions were not recorded.", "`report=full` records them."))
    rows = [[key, _value(value)] for key, value in dotted(run.config) if key not in PLACES]
    if engines:
        rows = [[key, f"auto: {engines[-1][1]}" if [key, value] == [DEVICE, "auto"] else value] for key, value in rows]
    parts.append(behind("the whole configuration", table(["key", "value"], rows, caption="config.yaml")))
    return parts


def _engines(run: RecordedRun) -> list[tuple[int, str]]:
    """[(round after which it began to compute, what the engine said of itself)]."""
    return _begun(run, STARTS[:1], lambda event: f"{event.get('engine')}: {event.get('detail')}")


def _codes(run: RecordedRun) -> list[tuple[int, str]]:
    """[(round after which it began to compute, the digest of each package)], where they are several."""
    codes = _begun(run, STARTS, lambda event: _pairs(event.get("code")))
    return codes if len(codes) > 1 else []


def _pairs(value: object) -> str:
    return ", ".join(f"{name} {digest}" for name, digest in value.items()) if isinstance(value, Mapping) else "unknown"


def _begun(run: RecordedRun, kinds: Sequence[str], what: Callable[[Mapping[str, Any]], str]) -> list[tuple[int, str]]:
    """[(round after which it began to compute, `what` the ledger says of that start)], of the starts of these kinds
    whose rounds the run still has, and of the same again the first."""
    told: list[tuple[int, str]] = []
    for event in run.ledger:
        if event.get("kind") in kinds:
            after = event.get("round")  # of the last checkpoint; of a damaged one "resumed" says another
            told.append((after if isinstance(after, int) else 0, what(event)))
        elif event.get("kind") == "resumed" and told and isinstance(event.get("round"), int):
            told[-1] = event["round"], told[-1][1]
    kept: list[tuple[int, str]] = []
    for after, text in told:
        while kept and kept[-1][0] >= after:  # all of its rounds were done again
            kept.pop()
        if not kept or (kept[-1][1] != text and after < run.rounds):
            kept.append((after, text))
    return kept


def _since(after: int) -> str:
    return f" (from round {after + 1} on)" if after else ""


def _state(run: RecordedRun) -> str:
    return "done" if run.summary is not None else f"not done, round {run.reached} of {run.rounds}"


def _hash(run: RecordedRun) -> str:
    return str((run.summary or {}).get("final_hash", ""))


def _value(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
