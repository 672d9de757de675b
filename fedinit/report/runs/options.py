"""What a run was configured to be, as dotted keys."""

from __future__ import annotations

from typing import Any

from fedinit.config.dotted import dotted
from fedinit.config.schema import LATER, PLACES, UNCOUNTED
from fedinit.report.runs.reading import RecordedRun

# Of two runs of a method, these may differ; where data and weights lie says not which they are.
APART = (*UNCOUNTED, *PLACES, "seed", "name")


# What a run of before there was a choice has not in its configuration.
USUAL = {f"{group}.{key}" if group else key: value for group, key, value in LATER}


def counted(run: RecordedRun) -> dict[str, Any]:
    """What the run's result is a function of, but for its seed. A choice that there was not always is there where it is
    not as it was before, as in a run's name."""
    said = {k: v for k, v in dotted(run.config) if k not in USUAL or v != USUAL[k]}
    return {k: v for k, v in said.items() if not any(k == apart or k.startswith(f"{apart}.") for apart in APART)}
