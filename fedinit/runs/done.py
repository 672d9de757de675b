"""DONE.json of a run's folder, which says that the run is done, as far as it is what a run writes. Nothing here
imports torch."""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedinit.opening import astray, kind, read_bytes
from fedinit.runs.summary import SUMMARY
from fedinit.unreadable import mode_of, unreadable

DONE = "DONE.json"
KEY = "adapter"  # in it: {path in the run's folder: sha256} of what its final model is read from
HASH = "final_hash"
_SHA256 = re.compile("[0-9a-f]{64}")
_FILE = re.compile(r"adapter/(client-\d+/|client-untrained/|shared/)?\w+\.(safetensors|json)", re.ASCII)


def done_of(folder: Path) -> Mapping[str, Any] | None:
    """What it says; None where it is not there, or is something else. Raises InputError where it cannot be read."""
    values, why = _read(folder)
    return None if why else values


def wrong(folder: Path) -> str:
    """What is wrong with it, in words behind its name; empty where it is as a run writes it, or is not there. Raises
    InputError where it cannot be read."""
    return _read(folder)[1]


def _read(folder: Path) -> tuple[Any, str]:
    file = folder / DONE
    if told := astray(file):
        return None, told
    if not (mode := mode_of(file)):
        return None, ""
    if not stat.S_ISREG(mode):
        return None, f"is {kind(mode)}"
    try:
        content = read_bytes(file)
    except OSError as error:
        raise unreadable(file, error) from error
    try:
        values = json.loads(content)
    except (ValueError, RecursionError):
        return None, "is no JSON" if content.strip() else "is empty"
    return values, _told_wrong(values) or _of_another(folder, values)


def _told_wrong(values: Any) -> str:
    if not isinstance(values, dict):
        return "holds no keys and values"
    if unknown := sorted(set(values) - {HASH, "rounds", KEY}):
        return f"has a key that no run writes, {ascii(unknown[0])[:40]}"
    if not isinstance(values.get(HASH), str) or type(values.get("rounds")) is not int:
        return f"has no {HASH} and rounds"
    kept = values.get(KEY)
    if KEY in values and not (isinstance(kept, dict) and all(map(_SHA256.fullmatch, map(str, kept.values())))):
        return f"has no sha256 of files as its {KEY}"
    if others := [name for name in kept or () if not _FILE.fullmatch(name)]:
        return f"names a file that no run writes, {ascii(others[0])[:40]}"
    return ""


def _of_another(folder: Path, values: Mapping[str, Any]) -> str:
    try:
        summary = json.loads(read_bytes(folder / SUMMARY))
    except (OSError, ValueError, RecursionError):
        return ""
    told = summary.get(HASH) if isinstance(summary, dict) else None
    return f"has another {HASH} than {SUMMARY}" if isinstance(told, str) and told != values[HASH] else ""
