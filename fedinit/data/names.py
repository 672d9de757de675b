"""Names of domains and classes: one spelling for those that look the same, and whether those asked for are there."""

from __future__ import annotations

import unicodedata

from fedinit.errors import InputError, did_you_mean


def composed(name: str) -> str:
    """The name in Unicode's normal form C: macOS writes é as two characters, most other systems as one."""
    return unicodedata.normalize("NFC", name)


def pick(key: str, asked: tuple[str, ...] | None, known: tuple[str, ...]) -> tuple[str, ...]:
    """The names asked for, each checked against the known ones; all of them for None. Raises InputError."""
    if asked is None:
        return known
    if not asked:
        raise InputError(f"data.{key}=[]: expected one name or more, or null for all; known: {', '.join(known)}")
    for name in asked:
        if name not in known:
            raise InputError(
                f"data.{key}: no '{name}' in the source{did_you_mean(name, known)}. Known: {', '.join(known)}."
            )
        if asked.count(name) > 1:
            raise InputError(f"data.{key}: '{name}' is named {asked.count(name)} times; name it once")
    return tuple(asked)
