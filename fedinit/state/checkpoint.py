"""Checkpoints: the whole state of a run after a round, from which it goes on as if it had never stopped.

checkpoints/round-000005/
  state.safetensors   every tensor, "<part>/<name>"; of those that are equal to the last byte only the first
  state.json          every other fact by part, and the names of its tensors with the one that each is stored under
  manifest.json       format; what was written (round, configuration, size and sha256 of the two), and its sha256

A folder gets its name only when all of it is on the disk. The last KEEP are kept. Loading verifies every byte, and
falls back to the one before.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import safetensors.numpy
from safetensors import SafetensorError
from safetensors.torch import load as tensors_of
from torch import Tensor

from fedinit.errors import InputError, machine_failed
from fedinit.state import digest, disk
from fedinit.state.manifest import (
    FACTS,
    FORMAT,
    MANIFEST,
    NAME,
    Damaged,
    canonical,
    checkpoints_in,
    content_of,
    read_manifest,
    refuse_other,
    sha256,
    verified,
)

KEEP = 3
TENSORS = "state.safetensors"
DAMAGED = ".damaged"  # behind the name of a checkpoint that was passed over, and of what lay beside where all were


@dataclass(frozen=True)
class State:
    """What a part of a run is made of: named tensors, and facts that are JSON.

    Tensors that are equal may be one object, as they are when a checkpoint was loaded: none is changed in place.
    """

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


class Part(Protocol):
    """Something whose state outlives the process.

    `snapshot` gives all that the rest of the run depends on; `restore` goes on from it. Law: `restore(snapshot())`
    changes nothing that is computed later.
    """

    def snapshot(self) -> State: ...

    def restore(self, state: State) -> None: ...


@runtime_checkable
class Filed(Protocol):
    """A part that has files of its own beside the checkpoints, which say which ones are theirs."""

    def check(self, state: State) -> Mapping[int, str]:
        """{whose: what is wrong with its file} of those of this state that are not what was written. Raises OSError
        where one cannot be read now."""
        ...

    def lose(self, whose: Iterable[int]) -> None:
        """Go on, where a state was restored, without what these have in their files."""
        ...

    def put_aside(self) -> None:
        """Nothing is gone on from: keep the files that are there under another name. Raises OSError."""
        ...

    def saved(self, round: int, oldest: int) -> None:
        """What `snapshot` gave was written as the checkpoint of this round; `oldest` is that of the first that is left,
        and what only those before had can go."""
        ...


@dataclass(frozen=True)
class Loaded:
    """What was loaded.

    round: after which the checkpoint was written; 0 where there is no usable one.
    states: {part: its state}; empty where there is no usable one.
    passed_over: (folder's name, reason) of the later checkpoints, which are damaged.
    """

    round: int
    states: Mapping[str, State]
    passed_over: Sequence[tuple[str, str]]


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, folder: Path, config: Mapping[str, Any], keep: int = KEEP) -> None:
        """
        folder: where they are, a folder each; made when the first is written.
        config: the values that the run is a function of, `Config.computed`.
        keep: how many are kept, the latest ones.
        """
        self.folder, self.config, self.keep = folder, config, keep

    def save(self, round: int, states: Mapping[str, State]) -> int:
        """Write the checkpoint of a round, then remove those beyond the last `keep`; the round of the first that is
        left.

        states: {part: its state}.

        Raises OSError; the earlier checkpoints are then untouched.
        """
        tensors = {f"{part}/{name}": t for part, state in states.items() for name, t in state.tensors.items()}
        stored = _stored_names(tensors)
        arrays = {name: tensors[name].detach().cpu().contiguous().numpy() for name in dict.fromkeys(stored.values())}
        # A safetensors file has an order of its own, but sums over layers are taken in the order of the names here.
        parts = {
            part: {"facts": state.facts, "tensors": {name: stored[f"{part}/{name}"] for name in state.tensors}}
            for part, state in states.items()
        }
        files = {TENSORS: safetensors.numpy.save(arrays), FACTS: json.dumps({"parts": parts}).encode()}
        content = {
            "format": FORMAT,
            "round": round,
            "config": self.config,
            "files": {name: {"bytes": len(data), "sha256": sha256(data)} for name, data in files.items()},
        }
        # The format stands first and by itself, where every later one has it, whatever else a manifest may become.
        manifest = {"format": FORMAT, "content": content, "sha256": sha256(canonical(content))}
        files[MANIFEST] = json.dumps(manifest, indent=1).encode()
        self.folder.mkdir(parents=True, exist_ok=True)
        disk.replace_folder(self.folder / f"{NAME}{round:06d}", files)
        there = self.there()
        for old in there[self.keep :]:
            shutil.rmtree(old, ignore_errors=True)
        return _round_of(there[: self.keep][-1])

    def drop_after(self, round: int) -> None:
        """Remove the checkpoints of rounds later than this one."""
        for path in self.there():
            if _round_of(path) > round:
                shutil.rmtree(path, ignore_errors=True)

    def put_aside(self, names: Iterable[str]) -> None:
        """Keep damaged checkpoints, by their folders' names, under other ones, by which they are none. Raises
        OSError."""
        for name in names:
            os.rename(self.folder / name, disk.unused(self.folder / f"{name}{DAMAGED}"))

    def load(self, last: int | None = None) -> Loaded:
        """The latest checkpoint that is whole, of round `last` or an earlier one; None: of any round.

        Raises InputError for one of another format or configuration, and where the folder is a symbolic link; OSError
        where the system had too little of something to open one, which may be whole.
        """
        if self.folder.is_symlink():
            raise InputError(f"{self.folder}: is a symbolic link; a run is only kept in a folder of its own")
        passed_over = []
        for path in self.there():
            if last is not None and _round_of(path) > last:
                continue
            try:
                round, states = self._read(path)
            except Damaged as reason:
                passed_over.append((path.name, str(reason)))
                continue
            return Loaded(round, states, passed_over)
        return Loaded(0, {}, passed_over)

    def there(self) -> list[Path]:
        """The folders that have a checkpoint's name, the latest first. Raises InputError where nobody may look."""
        return checkpoints_in(self.folder)

    def _read(self, path: Path) -> tuple[int, dict[str, State]]:
        if path.is_symlink() or any((path / name).is_symlink() for name in (TENSORS, FACTS, MANIFEST)):
            raise InputError(f"{path}: is a symbolic link, which a checkpoint never is")
        try:
            content = content_of(read_manifest(path), path)
            if f"{NAME}{content['round']:06d}" != path.name:
                raise Damaged(f"holds round {content['round']}")
            config = dict(content["config"])
            files = {name: verified(path / name, facts) for name, facts in content["files"].items()}
            facts, tensors = json.loads(files[FACTS]), tensors_of(files[TENSORS])
            states = {
                part: State({name: tensors[stored] for name, stored in kept["tensors"].items()}, kept["facts"])
                for part, kept in facts["parts"].items()
            }
        except OSError as error:
            if machine_failed(error):
                raise
            raise Damaged(f"{Path(error.filename).name if error.filename else path.name}: {error.strerror}") from error
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
            if isinstance(error, InputError):
                raise
            raise Damaged(f"{type(error).__name__}: {error}") from error
        refuse_other(config, self.config, f"{path}")
        return content["round"], states


def _stored_names(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """{name: the first name that has a tensor of the same type, shape and bytes}, which is its own for most."""
    by_object: dict[int, str] = {}  # what is one object already needs no second digest
    by_digest: dict[str, str] = {}
    for name, tensor in tensors.items():
        if id(tensor) not in by_object:
            by_object[id(tensor)] = by_digest.setdefault(digest.of_tensors({"": tensor}), name)
    return {name: by_object[id(tensor)] for name, tensor in tensors.items()}


def _round_of(path: Path) -> int:
    return int(path.name[len(NAME) :])
