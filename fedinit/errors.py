"""The two ways to fail, wrong input and a run that cannot go on, and the "did you mean" of the first."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Something a person gave (a key, a file, a number) cannot be used.

    The message is one line: what was wrong, what was expected, what to do. Programs print it and exit with 2.
    """


class RunFailed(RuntimeError):
    """The run cannot go on: no clients, clients that disagree, or a round without a usable reply. One line, also where
    a client's words are in it."""

    def __init__(self, reason: str) -> None:
        super().__init__(" ".join(reason.split()))


def first_line(error: BaseException) -> str:
    """What an error says first, or its class where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``" (did you mean 'x'?)"`` for the nearest of `known`, or an empty string."""
    near = difflib.get_close_matches(str(word), list(known), n=1, cutoff=0.6)
    return f" (did you mean '{near[0]}'?)" if near else ""


def choose(what: str, name: object, known: Iterable[str]) -> str:
    """Return `name` if it is one of `known`, else raise InputError that lists the choices."""
    known = sorted(known)
    if name in known:
        return str(name)
    raise InputError(f"{what}={name}: no such choice{did_you_mean(str(name), known)}. Choices: {', '.join(known)}.")
