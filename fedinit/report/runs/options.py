"""What a run was configured to be, as dotted keys."""

from __future__ import annotations

from typing import Any

from fedinit.config.dotted import dotted
from fedinit.config.schema import PLACES, UNCOUNTED
from fedinit.report.runs.reading import RecordedRun

# Of two runs of a method, these may differ; where data and weights lie says not which they are.
APART = (*UNCOUNTED, *PLACES, "seed", "name")


def counted(run: RecordedRun) -> dict[str, Any]:
    """What the run's result is a function of, but for its seed."""
    return {k: v for k, v in dotted(run.config) if not any(k == apart or k.startswith(f"{apart}.") for apart in APART)}
