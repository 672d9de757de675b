"""The `fedinit` command: fedinit/cli.py, which takes seconds to import."""

from __future__ import annotations

import functools
from typing import NoReturn

from fedinit import leaving, standard_streams, starting


def main() -> NoReturn:
    """Run the process's words, and end it."""
    with starting.imports():
        from fedinit import cli
    leaving.leave(standard_streams.ended(functools.partial(cli.main, alone=True)))


if __name__ == "__main__":
    main()
