"""The `fedinit` command: fedinit/cli.py, which takes seconds to import."""

from __future__ import annotations

import sys

from fedinit import standard_streams, starting


def main() -> int:
    """Run the process's words; the exit code."""
    with starting.imports():
        from fedinit import cli
    return standard_streams.ended(cli.main)


if __name__ == "__main__":
    sys.exit(main())
