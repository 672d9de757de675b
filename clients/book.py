"""What a site's book of answers is made of (clients/limits.py): the cells that sets of images cut each other into."""

from __future__ import annotations

import copy
import math
import secrets
from collections.abc import Collection, Iterable, Mapping
from typing import Any


def cut_by(cells: Iterable[Collection[str]], images: set[str]) -> list[tuple[set[str], set[str]]]:
    """Every cell's images that are among these, and those that are not; last, those of these that are in no cell."""
    cut = [(images & {*cell}, {*cell} - images) for cell in cells]
    return [*cut, (images.difference(*(inside for inside, _ in cut)), set())]


def opened(kept: Mapping[str, Any] | None) -> dict[str, Any]:
    """A copy of the book that is kept, to be changed; where there is none (None), one that is begun here, with a key
    that no server has. Raises ValueError for what is no book."""
    if kept is None:
        return {"key": secrets.token_hex(16), "runs": {}, "all": {}, "cells": {}, "sizes": []}
    book = copy.deepcopy({**kept})
    if isinstance(earlier := book.pop("images", None), dict):  # of an earlier version
        book |= {"cells": {}, "sizes": [len(images) for images in earlier.get("statistics", ())]}
        for kind, sets in earlier.items():  # its answers count on
            for images in sets:
                cut = cut_by(book["cells"].get(kind, []), {*images})
                book["cells"][kind] = [sorted(part) for pair in cut for part in pair if part]
    kinds = {"key": str, "runs": dict, "all": dict, "cells": dict, "sizes": list}
    if any(not isinstance(book.get(name), kind) for name, kind in kinds.items()):
        raise ValueError(f"it is none: it has not all of {', '.join(kinds)}")
    if not book["key"] or not all(_is_count(number) for number in (*book["all"].values(), *book["sizes"])):
        raise ValueError("what it counts is no number")
    return book


def _is_count(number: Any) -> bool:
    return type(number) in (int, float) and 0 <= number < math.inf
