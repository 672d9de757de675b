"""What a result came from besides its configuration: command, versions, machine."""

from __future__ import annotations

import functools
import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("fedinit", "torch", "torchvision", "timm", "flwr", "numpy", "hydra-core", "safetensors")
COMMANDS = ("run_sim.py", "fedinit")
SOURCE = Path(__file__).resolve().parent.parent.parent.parent


@functools.cache  # none of it changes while a process lives
def provenance() -> dict[str, Any]:
    """{command, versions, python, system, cores, source}. command: None in a notebook or a test; source: the commit
    that the code is at, "-dirty" where files differ from it, None where it is no checkout."""
    name = Path(sys.argv[0]).name if sys.argv else ""
    return {
        "command": shlex.join([name, *sys.argv[1:]]) if name in COMMANDS else None,
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "source": _commit(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    if not (SOURCE / ".git").exists():
        return None
    command = ["git", "-C", str(SOURCE), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
