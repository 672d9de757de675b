"""Advice that can be pasted: paths and words as a shell, and Hydra behind it, take them back."""

from __future__ import annotations

import re
import shlex
from os import PathLike

_PLAIN = re.compile(r"[\w./ ~+:-]+")  # of a value: what fedinit/config/words.py takes as it stands


def pasted(path: str | PathLike[str]) -> str:
    """A path as a shell takes it, and no command as an option."""
    text = str(path)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)


def resuming(folder: str | PathLike[str], *words: str) -> str:
    """The command that goes on with the run in a folder. words: what is said beside it, as a shell takes it."""
    value = str(folder)
    if not _PLAIN.fullmatch(value):  # a comma would be a sweep, a bracket a list
        from hydra.core.override_parser.types import Quote, QuotedString  # here, since few paths need it

        value = QuotedString(value, Quote.double).with_quotes()
    return " ".join(["fedinit run", shlex.quote(f"resume={value}"), *words])
