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


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The one of `known` that was most likely meant, or None where none is near: a slip or two of the keys, letters in
    another order, or one that is the beginning of the other."""
    for near in difflib.get_close_matches(word, list(known), n=3, cutoff=0.6):
        alike = difflib.SequenceMatcher(None, near, word).ratio() >= 0.75
        if alike or sorted(near) == sorted(word) or near.startswith(word) or word.startswith(near):
            return near
    return None


def first_line(error: BaseException) -> str:
    """What an error says first, or its class where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``" (did you mean 'x'?)"`` for the nearest of `known`, or an empty string."""
    near = nearest(str(word), known)
    return "" if near is None else f" (did you mean '{near}'?)"


def choose(what: str, name: object, known: Iterable[str]) -> str:
    """Return `name` if it is one of `known`, else raise InputError that lists the choices."""
    known = sorted(known)
    if name in known:
        return str(name)
    raise InputError(f"{what}={name}: no such choice{did_you_mean(str(name), known)}. Choices: {', '.join(known)}.")
