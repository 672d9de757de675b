"""What a checkpoint says of itself: its manifest, and whose it is. Nothing here imports torch.

manifest.json  format; what was written (round, configuration, size and sha256 of the files), and its sha256
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from fedinit.config.build import shown
from fedinit.config.dotted import dotted
from fedinit.errors import InputError, machine_failed
from fedinit.opening import read_bytes
from fedinit.unreadable import is_folder, unreadable

FORMAT = 7  # raise it when the shape of anything in a checkpoint changes, the configuration's keys too
FOLDER = "checkpoints"
MANIFEST = "manifest.json"
FACTS = "state.json"
LARGEST = 2**24  # bytes of a manifest, which holds a configuration
NAMED = 3  # of the keys in which two configurations differ, by an error
UNNAMED = "not given"  # said of a key that one of two configurations has not, or has at its usual value
NAME = "round-"

Read = TypeVar("Read")


class Damaged(Exception):
    """A checkpoint that is not what was written."""


def checkpoints_in(folder: Path) -> list[Path]:
    """The folders in it that have a checkpoint's name, the latest first. Raises InputError where it cannot be read."""
    if not is_folder(folder):
        return []
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise unreadable(folder, error) from error
    found = [name for name in names if name.startswith(NAME) and name[len(NAME) :].isdecimal()]
    return [folder / name for name in sorted(found, reverse=True)]


def last_round(folder: Path) -> int:
    """The round of the latest checkpoint in it, whole or not; 0 where there is none."""
    return max((int(path.name[len(NAME) :]) for path in checkpoints_in(folder)), default=0)


def written_config(folder: Path) -> Mapping[str, Any] | None:
    """The configuration in the latest checkpoint under `folder` that can be read; None where there is none. Raises
    InputError for one of another format."""
    return _latest(folder, lambda path, content: dict(content["config"]))


def last_facts(folder: Path, part: str) -> Mapping[str, Any]:
    """The facts of a part in the latest checkpoint under `folder` whose facts are whole, whoever's it is; empty where
    there is none. Raises InputError as `written_config`."""

    def read(path: Path, content: Mapping[str, Any]) -> Mapping[str, Any]:
        return dict(json.loads(verified(path / FACTS, content["files"][FACTS]))["parts"][part]["facts"])

    return _latest(folder, read) or {}


def _latest(folder: Path, read: Callable[[Path, Mapping[str, Any]], Read]) -> Read | None:
    """What `read` makes of the latest checkpoint that it can be made of: its path, and what its manifest says."""
    for path in checkpoints_in(folder):
        try:
            return read(path, content_of(read_manifest(path), path))
        except InputError:
            raise
        except (OSError, Damaged, LookupError, TypeError, AttributeError, RecursionError, ValueError) as error:
            if machine_failed(error):
                raise
    return None


def verified(path: Path, facts: Mapping[str, Any]) -> bytes:
    """What a checkpoint's file holds. facts: of it, by the manifest. Raises Damaged for other bytes; OSError."""
    if (size := path.stat().st_size) != facts["bytes"]:  # before more is read than was ever written
        raise Damaged(f"{path.name} has {size} bytes, {facts['bytes']} were written")
    data = read_bytes(path)
    if sha256(data) != facts["sha256"]:
        raise Damaged(f"{path.name} is not what was written")
    return data


def read_manifest(folder: Path) -> Mapping[str, Any]:
    """The manifest of a checkpoint's folder. Raises Damaged for one larger than any; ValueError, OSError."""
    path = folder / MANIFEST
    if path.stat().st_size > LARGEST:
        raise Damaged(f"{MANIFEST} is larger than any")
    return json.loads(read_bytes(path))


def content_of(manifest: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    """The content of a manifest: format, round, and the files' sizes and hashes.

    Raises InputError for a manifest of another format, whatever else is in it; Damaged for one whose own hash is wrong.
    """
    told, content = manifest.get("format"), manifest.get("content", {})
    if sha256(canonical(content)) != manifest.get("sha256"):
        if type(told) is int and told > FORMAT:
            raise InputError(f"{path}: written by a newer fedinit (format {told}, this one reads {FORMAT})")
        raise Damaged(f"{MANIFEST} is not what was written")
    if content["format"] != FORMAT:
        told, newer = content["format"], content["format"] > FORMAT
        age, hint = ("a newer", "") if newer else ("an older", "; resume=never begins anew")
        raise InputError(f"{path}: written by {age} fedinit (format {told}, this one reads {FORMAT}){hint}")
    if told != FORMAT:  # a manifest of this format that changed on the disk
        raise Damaged(f"{MANIFEST} is not what was written")
    return content


def refuse_other(written: Mapping[str, Any], wanted: Mapping[str, Any], what: str, advice: str = "") -> None:
    """Raise InputError, naming the first keys that differ, unless two configurations are the same.

    written: the configuration that was found.
    wanted: the run's.
    what: where it was found, as the message begins.
    advice: what it ends with.
    """
    if others := differences(written, wanted):
        said = ", ".join(f"{key} is {shown(old)} there and {shown(new)} here" for key, old, new in others[:NAMED])
        left = len(others) - NAMED
        more = f", and {left} more" * (left > 0)
        raise InputError(f"{what}: belongs to another configuration; {said}{more}{advice}")


def differences(left: Mapping[str, Any], right: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """The keys in which two configurations differ, and the value in each; empty where they are the same."""
    one, other = dict(dotted(left)), dict(dotted(right))
    keys = (key for key in dict.fromkeys([*other, *one]) if one.get(key, UNNAMED) != other.get(key, UNNAMED))
    return [(key, one.get(key, UNNAMED), other.get(key, UNNAMED)) for key in keys]


def canonical(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True).encode()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
