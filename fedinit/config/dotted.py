"""A configuration by dotted keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def dotted(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, its value), of mappings inside each other; an empty one is a value."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
