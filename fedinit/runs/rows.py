"""The tables of a run's folder, as texts. A name in a header is that of a folder, which may have a line's end in it; of
what is below a header a row is a line."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from pathlib import Path

from fedinit.opening import regular
from fedinit.said import csv_row

METRICS, LINES = "metrics.csv", "metrics.jsonl"
TABLES = (METRICS, "clients.csv", LINES)  # which a checkpoint has


def as_written(path: Path, errors: str = "strict") -> str:
    """What a file says, with the ends of lines that it has. Raises OSError, and ValueError for what is no UTF-8."""
    with open(path, encoding="utf-8", errors=errors, newline="", opener=regular) as file:
        return file.read()


def header_and_rows(text: str) -> tuple[list[str], list[list[str]]]:
    """The header of a table and its rows, without a last one that is being written, or was cut short. Raises
    csv.Error."""
    file = io.StringIO(text[: text.rfind("\n") + 1], newline="")
    header = next(csv.reader(file), [])
    return header, list(csv.reader(line for line in file.read().split("\n") if line))


def of_lines(text: str) -> tuple[list[str], list[list[str]]]:
    """The header and the rows that metrics.csv has, by metrics.jsonl, which says the same. What is no whole object of
    the first one's keys is left out."""
    found: list[dict[str, object]] = []
    for line in text.split("\n"):
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(line)
            if isinstance(value, dict) and (not found or value.keys() == found[0].keys()):
                found.append(value)
    header = list(found[0]) if found else []
    return header, [["" if values[key] is None else str(values[key]) for key in header] for values in found]


def metrics_of(text: str, rounds: int) -> str | None:
    """metrics.csv, to the byte, of a run of so many rounds by its metrics.jsonl; None where that has not each of them
    once, in order."""
    header, rows = of_lines(text)
    try:
        numbers = [int(row[header.index("round")]) for row in rows]
        seconds = header.index("seconds")
        rows = [[*row[:seconds], f"{float(row[seconds]):.3f}", *row[seconds + 1 :]] for row in rows]
    except ValueError:
        return None
    whole = (
        bool(rows)
        and header[:3] == ["round", "seconds", "clients"]
        and len(rows) == text.count("\n")
        and numbers == list(range(min(numbers[0], 1), rounds + 1))
    )
    return "".join(map(csv_row, [header, *rows])) if whole else None
