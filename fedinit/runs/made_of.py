"""What a run is made of besides its configuration: its images, and its backbone's file, by content and not by place.

A run's folder is named by both, and has them in made_of.json. So images that were moved are the same run's, and others
under the same path are another's. Between which levels grey with more than 8 bits was shown is kept beside them: they
are measured over all images of the source, of which a run may use a part.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fedinit.config.schema import Config, ModelConfig
from fedinit.config.site import EMBEDDED
from fedinit.data.content import Content
from fedinit.data.deep_grey import KINDS
from fedinit.errors import InputError
from fedinit.home import expand_home
from fedinit.opening import read_bytes
from fedinit.runs.code import code_now, other_code
from fedinit.runs.own_files import MADE_OF
from fedinit.state import digest, disk
from fedinit.state.manifest import FOLDER, last_facts


@dataclass(frozen=True)
class MadeOf:
    """images: None where they are drawn from the options, or are not at this machine.
    checkpoint: the sha256 of the backbone's file, or the name of one in the package; None without one."""

    images: Content | None = None
    checkpoint: str | None = None

    @staticmethod
    def of(config: Config) -> MadeOf:
        """As the files are now. Raises InputError for files that cannot be read."""
        return MadeOf(config.data.content(config.partition.test_domains or ()), _checkpoint(config.model))

    @property
    def digest(self) -> str:
        """Of all of it; empty for nothing."""
        parts = [None if self.images is None else self.images.digest, self.checkpoint]
        return "" if not any(parts) else hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def changes(self, before: MadeOf) -> str:
        """What is other than in an earlier one, in a few words; empty where nothing is."""
        told = []
        if self.checkpoint != before.checkpoint:
            told.append("the backbone's file is another")
        nothing = Content("")
        if images := (self.images or nothing).changes(before.images or nothing):
            told.append(images)
        return "; ".join(told)

    def save(self, folder: Path, config: Config, goes_on: bool = False) -> None:
        """Write it into a run's folder, with the hash of the configuration alone. Raises OSError.

        goes_on: the run has rounds behind it, so that the levels that are there are its own, and the code is that which
        it was begun by."""
        images, kept = None if self.images is None else self.images.to_json(), read(folder) if goes_on else None
        values = {"config": config.identity(), "images": images, "checkpoint": self.checkpoint}
        if code := code_now() if kept is None else kept.code:
            values["code"] = dict(code)
        disk.replace_json(folder / MADE_OF, values | {"levels": None if kept is None else kept.levels})


class Kept(NamedTuple):
    """What a folder has of its run: what it is made of, the hash of its configuration alone, and the levels of deep
    grey, as `Dataset` has them; None where none were measured, or by a fedinit that kept none. code: as `code_now` was
    when it began; None by a fedinit that kept none."""

    made_of: MadeOf
    config: str
    levels: dict[str, tuple[float, float]] | None
    code: dict[str, str] | None = None


def read(folder: Path) -> Kept | None:
    """What the run in this folder is made of, by its last checkpoint, which nobody edits, or, where that has it not, by
    its own file; None where neither can be read."""
    text: object = None
    with contextlib.suppress(InputError, OSError):
        text = last_facts(folder / FOLDER, "files").get(MADE_OF)
    kept = _parsed(text) if isinstance(text, str) else None
    if kept is not None:
        return kept
    try:
        return _parsed(read_bytes(folder / MADE_OF))
    except OSError:
        return None


def _parsed(text: str | bytes) -> Kept | None:
    try:
        values: dict[str, Any] = json.loads(text)
        images = None if values["images"] is None else Content.from_json(values["images"])
        levels = values.get("levels")
        if levels is not None:
            levels = {KINDS[kind] and kind: (float(low), float(high)) for kind, (low, high) in levels.items()}
            if not all(-math.inf < low <= high < math.inf for low, high in levels.values()):
                return None
        code = values.get("code")
        code = None if code is None else {str(name): str(digest) for name, digest in code.items()}
        return Kept(MadeOf(images, values["checkpoint"]), str(values["config"]), levels, code)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None


def with_levels(text: str, levels: Mapping[str, Sequence[float]]) -> str | None:
    """The text of a file with these levels of deep grey, as `Dataset` has them, where it has none; None where it has.
    Raises ValueError for a text that is no file's."""
    values = json.loads(text)
    if values.get("levels") is not None:
        return None
    now = {kind: (float(low), float(high)) for kind, (low, high) in levels.items()}
    return json.dumps({**values, "levels": now}, indent=2) + "\n"


def hold_to(folder: Path, levels: Mapping[str, Sequence[float]] | None) -> None:
    """Raise InputError where these levels of deep grey, as `Dataset` has them, are not those that the run in the folder
    was begun with: the same files are then other pixels."""
    kept = read(folder)
    if kept is None or kept.levels is None or levels is None:
        return
    now = {kind: (float(low), float(high)) for kind, (low, high) in levels.items()}
    for kind, (low, high) in kept.levels.items():
        if kind in now and now[kind] != (low, high):
            there = f"from {now[kind][0]:g} to {now[kind][1]:g}"
            raise InputError(
                f"{folder}: grey of {KINDS.get(kind, kind)} is in its images {there}, and was from {low:g} to {high:g} "
                "when the run began, so that the same files would be other pixels: a file at data.root is new, another "
                "or gone; put it back, or begin anew, resume=never"
            )


def of_other_code(folder: Path) -> str:
    """What of the code is other than when the run in this folder was begun, in a few words; empty where nothing is."""
    kept = read(folder)
    return "" if kept is None else other_code(kept.code)


def beside(path: Path, config: Config, made_of: MadeOf) -> str:
    """A line where a run of this configuration lies beside `path` that is made of other files, which says what is
    other; else empty."""
    for folder in sorted(path.parent.glob(f"*-s{config.seed}")) if path.parent.is_dir() else ():
        kept = read(folder)
        if folder != path and kept is not None and kept.config == config.identity():
            if changes := made_of.changes(kept.made_of):
                return f"not the run in {folder}, which was made of other files: {changes}"
    return ""


def _checkpoint(model: ModelConfig) -> str | None:
    """The sha256 of the backbone's file; its name where it is one of the package's, or none, as will be said when it is
    loaded."""
    if not model.checkpoint or model.checkpoint.startswith(EMBEDDED):
        return model.checkpoint
    if model.sha256 is not None:
        return model.sha256  # which the file is held to when it is loaded
    path = expand_home("model.checkpoint", model.checkpoint)
    return digest.of_file(path) if path.is_file() else model.checkpoint
