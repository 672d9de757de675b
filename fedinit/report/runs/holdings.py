"""record/partition.json, who holds what, checked value by value: a damaged one is none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MOST = 10**12  # images that anybody can hold; what is more is damage


def holdings(values: object) -> Mapping[str, Any] | None:
    """These values where they are what a simulation records, None where anything of them is not.

    classes: names, or None where the targets are numbers. clients: each with its number, its domain or None, and
    counts of its training and of its test images, one a class. images_by_domain, test_by_domain: {name: images}.
    """
    if not isinstance(values, Mapping):
        return None
    classes, clients = values.get("classes", ""), values.get("clients")
    if classes is not None and not (isinstance(classes, list) and all(isinstance(name, str) for name in classes)):
        return None
    if (
        not isinstance(clients, list)
        or not clients
        or not all(_is_client(each, len(classes or [""])) for each in clients)
    ):
        return None
    if len({client["client"] for client in clients}) < len(clients):
        return None
    if not all(_is_by_domain(values.get(key, {})) for key in ("images_by_domain", "test_by_domain")):
        return None
    return values


def _is_client(values: object, classes: int) -> bool:
    if not isinstance(values, Mapping) or not _is_count(values.get("client")):
        return False
    if not isinstance(values.get("domain"), str | None):
        return False
    held = (values.get("train"), values.get("test"))
    return all(isinstance(counts, list) and len(counts) == classes and all(map(_is_count, counts)) for counts in held)


def _is_by_domain(values: object) -> bool:
    return isinstance(values, Mapping) and all(map(_is_count, values.values()))


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= MOST
