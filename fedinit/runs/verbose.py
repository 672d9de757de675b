"""A console on which more is said: a line a client and round."""

from __future__ import annotations

from rich.console import Console


class VerboseConsole(Console):
    """rich's, by which those that print know that `--verbose` was asked for."""
