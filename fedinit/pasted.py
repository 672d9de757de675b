"""Advice that can be pasted: paths and words as a shell, and Hydra behind it, take them back."""

from __future__ import annotations

import os
import re
import shlex
from os import PathLike

_PLAIN = re.compile(r"[\w./ ~+:-]+")  # of a value: what fedinit/config/words.py takes as it stands


def pasted(path: str | PathLike[str]) -> str:
    """A path as a shell takes it, and no command as an option."""
    text = str(path)
    return _quoted(f"./{text}" if text.startswith("-") else text)


def _quoted(text: str) -> str:
    """A word as a shell takes it, on one line: control characters, and bytes that are no UTF-8, as bash, zsh and ksh
    write them."""
    if text.isprintable():
        return shlex.quote(text)
    signs = (sign if sign.isprintable() and sign not in "\\'" else _escaped(sign) for sign in text)
    return f"$'{''.join(signs)}'"


def _escaped(sign: str) -> str:
    return "".join(f"\\{byte:03o}" for byte in os.fsencode(sign))


def resuming(folder: str | PathLike[str], *words: str) -> str:
    """The command that goes on with the run in a folder. words: what is said beside it, as a shell takes it."""
    value = str(folder)
    if not _PLAIN.fullmatch(value):  # a comma would be a sweep, a bracket a list
        from hydra.core.override_parser.types import Quote, QuotedString  # here, since few paths need it

        value = QuotedString(value, Quote.double).with_quotes()
    return " ".join(["fedinit run", _quoted(f"resume={value}"), *words])
