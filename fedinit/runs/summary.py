"""summary.json of a run's folder, as far as it is what a run writes."""

from __future__ import annotations

import json
import stat
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedinit.opening import astray, kind, read_bytes
from fedinit.scores import SCORES
from fedinit.unreadable import mode_of, unreadable

SUMMARY = "summary.json"
SEED, SECRET = "seed", "secret"  # what the noise of a run's privacy was drawn by
OF_THE_SEED = (
    "simulated: its noise was drawn by the run's seed, which whoever has the weights finds by trying, and takes it off"
)
_WORDS = ("strategy", "data", "model", "final_hash")
_NUMBERS = ("rounds", "clients", "seconds", "trainable_parameters", "bytes_up", "bytes_down")


def summary_of(folder: Path) -> dict[str, Any] | None:
    """The summary in a run's folder; None where there is none, or something else."""
    try:
        values = json.loads(read_bytes(folder / SUMMARY))
    except (OSError, ValueError, RecursionError):
        return None
    return values if _is_summary(values) else None


def noise_is_of_the_seed(privacy: str, summary: Mapping[str, Any]) -> bool:
    """Whether the run's privacy is off for whoever knows its seed, as a simulation's is that can be repeated; also
    where a summary does not say by what its noise was drawn. privacy: what the configuration has."""
    return privacy != "none" and (summary.get("privacy") or {}).get("noise_drawn_by") != SECRET


def wrong(folder: Path) -> str:
    """What is wrong with it, in words behind its name; empty where it is as a run writes it. Raises InputError where it
    cannot be read."""
    file = folder / SUMMARY
    if told := astray(file):
        return told
    if not (mode := mode_of(file)):
        return "is not there"
    if not stat.S_ISREG(mode):
        return f"is {kind(mode)}"
    if summary_of(folder) is not None:
        return ""
    try:
        json.loads(read_bytes(file))
    except OSError as error:
        raise unreadable(file, error) from error
    except (ValueError, RecursionError):
        return "is no JSON"
    return "has not what a run writes"


def _is_summary(values: Any) -> bool:
    """Whether it has what is shown of a run, in its types."""
    if not isinstance(values, dict) or not all(isinstance(values.get(key), str) for key in _WORDS):
        return False
    score, alone = values.get("score"), values.get("head_alone")
    if not isinstance(score, str) or score not in SCORES or not all(_is_number(values.get(key)) for key in _NUMBERS):
        return False
    if not _is_number(values.get("untrained", 0)):
        return False
    adapter, missing = values.get("adapter", ""), values.get("not_scored", [])
    if not isinstance(adapter, str) or not isinstance(missing, list) or not all(isinstance(d, str) for d in missing):
        return False
    if not _is_spent(values.get("privacy")):
        return False
    return _is_scored(values, score) and (alone is None or (isinstance(alone, dict) and _is_scored(alone, score)))


def _is_spent(privacy: Any) -> bool:
    if not isinstance(privacy, dict) or privacy.get("unit") != "example":
        return privacy is None or isinstance(privacy, dict)
    numbers = all(_is_number(privacy.get(key)) for key in ("epsilon", "delta"))
    return numbers and isinstance(privacy.get("epsilon_by_client"), dict)


def _is_scored(values: Mapping[str, Any], score: str) -> bool:
    mean, by_domain = values.get(score), values.get(f"{score}_by_domain")
    if not isinstance(by_domain, dict) or not all(map(_is_number, by_domain.values())):
        return False
    return not by_domain if mean is None else _is_number(mean)


def _is_number(value: object) -> bool:
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) <= sys.float_info.max
    return isinstance(value, float)
