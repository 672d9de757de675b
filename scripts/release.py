"""What goes with a release besides the package: constraints.txt, the versions that it was tested with, and sbom.json,
its bill of materials (CycloneDX), by cyclonedx-py.

    python -m venv release && release/bin/pip install -c constraints.txt ".[release]"
    release/bin/python scripts/release.py            # both files, of what is installed there
    release/bin/python scripts/release.py --check    # whether what is installed is what constraints.txt says

constraints.txt names packages and versions and nothing else: no place that they come from.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS, SBOM = ROOT / "constraints.txt", ROOT / "sbom.json"


def closure(name: str, extras: frozenset[str] = frozenset(), known: dict[str, str] | None = None) -> dict[str, str]:
    """{package: version} of all that a package needs, itself left out, as installed here.

    Raises PackageNotFoundError for one that is not.
    """
    found: dict[str, str] = {} if known is None else known
    for text in distribution(name).requires or []:
        need = Requirement(text)
        wanted = need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in ("", *extras))
        key = re.sub(r"[-_.]+", "-", need.name).lower()
        if not wanted or (key in found and not need.extras):
            continue
        found[key] = distribution(need.name).version.partition("+")[0]  # a local build's mark is nobody else's
        closure(need.name, frozenset(need.extras), found)
    return found


def main() -> int:
    """Write both files, or compare the first; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    try:
        lines = [f"{name}=={version}" for name, version in sorted(closure("fedinit").items())]
    except PackageNotFoundError as error:
        print(f"error: {error} is not installed here; install fedinit first", file=sys.stderr)
        return 2
    text = "# Tested with these; scripts/release.py writes this file. pip install -c constraints.txt .\n"
    text += "\n".join(lines) + "\n"
    if options.check:
        other = sorted(set(lines) ^ {x for x in CONSTRAINTS.read_text().splitlines() if not x.startswith("#")})
        print("\n".join(other) or "as constraints.txt says")
        return 1 if other else 0
    CONSTRAINTS.write_text(text)
    command = [sys.executable, "-m", "cyclonedx_py", "environment", sys.executable, "--output-reproducible"]
    command += ["--pyproject", str(ROOT / "pyproject.toml"), "--output-file", str(SBOM)]
    return subprocess.run(command).returncode


if __name__ == "__main__":
    sys.exit(main())
