"""A table as it stands in docs/results.md."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.pacs.table import Table
from fedinit.report.runs.significance import LEVEL, Sample, paired


def spread(sample: Sample) -> str:
    """Mean and sample standard deviation."""
    return f"{sample.mean:.1f} ± {math.nan if sample.std is None else sample.std:.1f}"


def against(sample: Sample, other: Sample) -> str:
    """The difference, seed by seed; in bold where the 95 % interval of its mean, by Student's t, leaves out zero."""
    difference = paired(sample, other)
    gaps = Sample({seed: value - other.by_seed[seed] for seed, value in sample.by_seed.items()})
    text = f"{'+' if gaps.mean >= 0 else ''}{spread(gaps)}"
    return f"**{text}**" if difference.p is not None and difference.p < LEVEL else text


def render(table: Table, rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: mean ± standard deviation over the seeds, and the difference to the reference, seed by seed, in bold
    where it is beyond noise."""
    lines = []
    for setting in table.settings:
        inside = [r for r in rows if r["setting"] == setting]
        last = f"round_{table.evaluated[-1]}"

        def sample(label: str, column: str, rows: Sequence[Mapping[str, Any]] = inside) -> Sample:
            return Sample({r["seed"]: r[column] for r in rows if r["method"] == label})

        heads = [f"round {r}" for r in table.evaluated]
        lines += [
            f"**{setting}**",
            "",
            f"| {table.name[:-1]} | rate | {' | '.join(heads)} | against {table.reference} | MB up | MB down |"
            + " CPU s |" * table.timed,
            "|---" * (5 + len(heads) + table.timed) + "|",
        ]
        for row in table.rows:
            mine = [r for r in inside if r["method"] == row.label]
            cells = [spread(sample(row.label, f"round_{n}")) for n in table.evaluated]
            reference = row.label == table.reference
            gap = "" if reference else against(sample(row.label, last), sample(table.reference, last))
            up, down = (sample(row.label, key).mean / 1e6 for key in ("bytes_up", "bytes_down"))
            cells = [row.label, f"{mine[0]['lr']:g}", *cells, gap, f"{up:.1f}", f"{down:.1f}"]
            if table.timed:
                seconds = statistics.fmean(r["cpu_seconds"] for r in mine)  # NaN where a run was interrupted
                cells.append(f"{seconds:.0f}")
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)
