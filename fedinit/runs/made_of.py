"""What a run is made of besides its configuration: its images, and its backbone's file, by content and not by place.

A run's folder is named by both, and has them in made_of.json. So images that were moved are the same run's, and others
under the same path are another's.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fedinit.config.schema import Config, ModelConfig
from fedinit.config.site import EMBEDDED
from fedinit.data.content import Content
from fedinit.home import expand_home
from fedinit.opening import read_bytes
from fedinit.runs.own_files import MADE_OF
from fedinit.state import digest, disk


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

    def save(self, folder: Path, config: Config) -> None:
        """Write it into a run's folder, with the hash of the configuration alone. Raises OSError."""
        images = None if self.images is None else self.images.to_json()
        values = {"config": config.identity(), "images": images, "checkpoint": self.checkpoint}
        disk.replace_json(folder / MADE_OF, values)


class Kept(NamedTuple):
    """What a folder has of its run: what it is made of, and the hash of its configuration alone."""

    made_of: MadeOf
    config: str


def read(folder: Path) -> Kept | None:
    """What the run in this folder is made of; None where that cannot be read."""
    try:
        values: dict[str, Any] = json.loads(read_bytes(folder / MADE_OF))
        images = None if values["images"] is None else Content.from_json(values["images"])
        return Kept(MadeOf(images, values["checkpoint"]), str(values["config"]))
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        return None


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
