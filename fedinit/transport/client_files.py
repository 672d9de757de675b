"""What clients of one process made in rounds, on the disk: a file a client, written when it changes, so that neither
memory nor what is written after a round grows with the clients that were asked before.

checkpoints/clients/<partition id>-<first digits of its sha256>.safetensors

A checkpoint says which of these files are its own. One that no kept checkpoint has any more is removed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.numpy
import safetensors.torch
import torch
from flwr.app import ArrayRecord, RecordDict
from torch import Tensor

from fedinit import wire
from fedinit.errors import GOES_ON, InputError, RunFailed
from fedinit.opening import kind
from fedinit.state import disk
from fedinit.state.checkpoint import DAMAGED, State
from fedinit.state.manifest import Damaged, verified

FOLDER = "clients"  # beside the checkpoints
NAME = re.compile(r"[0-9]+-[0-9a-f]{16}\.safetensors(\.tmp)?")  # of a file, or of one that was being written
FACTS = "facts"  # in a file's metadata: the records' names, and those of their arrays, in their order
# What a checkpoint keeps: (n,) partition ids, (n,) bytes, (n, 32) bytes of sha256.
CLIENTS, SIZES, HASHES = "clients", "sizes", "hashes"
# What the system says of a file that is not there, or is another thing; whatever else it says may be over in a moment.
GONE = {errno.ENOENT, errno.EISDIR, errno.ENOTDIR}
ODD = ".odd"  # behind the name of what is no file where one is written, and is kept


@dataclass(frozen=True)
class Written:
    """A client's file: its name, how many bytes it has, and their sha256."""

    name: str
    size: int
    sha256: bytes

    @staticmethod
    def of(client: int, size: int, sha256: bytes) -> Written:
        return Written(f"{client}-{sha256.hex()[:16]}.safetensors", size, sha256)


class ClientFiles:
    """The files of one run's clients."""

    def __init__(self, folder: Path) -> None:
        """folder: of the run's checkpoints; made when the first file is written."""
        self.folder = folder / FOLDER
        self._files: dict[int, Written] = {}
        self._former: list[str] = []  # which the next checkpoint has no more
        self._leaving: list[tuple[int, str]] = []  # (the first round whose checkpoint has it no more, a file's name)
        self._looked, self._synced = False, True
        self._sound: set[str] = set()  # the names of those that were found to be what was written

    def __contains__(self, client: int) -> bool:
        return client in self._files

    def __len__(self) -> int:
        return len(self._files)

    def put(self, client: int, records: Mapping[str, ArrayRecord]) -> None:
        """Write what a client has now; nothing, where it has nothing. What is no file in its place is kept under
        another name. Raises OSError, and what it had before stays."""
        self._look()
        before = self._files.get(client)
        if not records:
            self._replace(client, None)
            return
        state = wire.to_state(wire.of_records(records))
        arrays = {name: tensor.contiguous().numpy() for name, tensor in state.tensors.items()}
        data = safetensors.numpy.save(arrays, {FACTS: json.dumps(state.facts)})
        written = Written.of(client, len(data), hashlib.sha256(data).digest())
        if written != before:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / written.name
            for odd in (path, path.with_name(path.name + ".tmp")):
                if os.path.lexists(odd) and (odd.is_symlink() or not odd.is_file()):
                    os.rename(odd, disk.unused(odd.with_name(odd.name + ODD)))
            disk.replace(path, data)
            self._synced = False
            self._replace(client, written)

    def get(self, client: int) -> RecordDict:
        """What a client has; nothing where it has nothing. Raises RunFailed where its file is not what was written."""
        if client not in self._files:
            return RecordDict()
        try:
            data = self._read(self._files[client])
        except Damaged as fault:
            raise RunFailed(f"client {client}: {fault}; {GOES_ON}") from fault
        facts = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"][FACTS]
        return wire.from_state(State(safetensors.torch.load(data), json.loads(facts)))

    def index(self) -> dict[str, Tensor]:
        """Which files there are, all of them on the disk, as a checkpoint keeps it; empty where there are none."""
        if not self._synced:
            disk.sync_folder(self.folder)
            self._synced = True
        if not self._files:
            return {}
        hashes = b"".join(written.sha256 for written in self._files.values())
        return {
            CLIENTS: torch.tensor(list(self._files)),
            SIZES: torch.tensor([written.size for written in self._files.values()]),
            HASHES: torch.frombuffer(bytearray(hashes), dtype=torch.uint8).view(-1, 32),
        }

    def check(self, index: Mapping[str, Tensor]) -> dict[int, str]:
        """{client: what is wrong with its file} of those in this index that are not what was written. Raises OSError
        where one cannot be read now, InputError for links."""
        self._refuse_odd()
        faults = {}
        for client, written in _of_index(index).items():
            try:
                if written.name not in self._sound:
                    self._read(written)
                    self._sound.add(written.name)
            except Damaged as fault:
                faults[client] = str(fault)
        return faults

    def take(self, index: Mapping[str, Tensor]) -> None:
        """Go on with the files of this index."""
        self._files, self._former, self._leaving, self._looked = _of_index(index), [], [], False

    def lose(self, clients: Iterable[int]) -> None:
        """Go on without what these clients have."""
        for client in clients:
            self._replace(client, None)

    def put_aside(self) -> None:
        """Keep what is there under another name, where the run is begun anew. Raises OSError."""
        if os.path.lexists(self.folder):
            os.rename(self.folder, disk.unused(self.folder.with_name(FOLDER + DAMAGED)))

    def saved(self, round: int, oldest: int) -> None:
        """The checkpoint of a round was written, and `oldest` is the first that is left: remove what none has."""
        self._look()
        self._leaving += [(round, name) for name in self._former]
        self._former = []
        gone = [name for since, name in self._leaving if since <= oldest]
        self._leaving = [(since, name) for since, name in self._leaving if since > oldest]
        there = {written.name for written in self._files.values()} | {name for _, name in self._leaving}
        for name in set(gone) - there:
            with contextlib.suppress(OSError):
                (self.folder / name).unlink()

    def _look(self) -> None:
        """Once: files that are there and no client's, as a run that was stopped leaves them, are former ones. Raises
        InputError for what is no folder in its place."""
        if not self._looked:
            self._refuse_odd()
            own = {written.name for written in self._files.values()}
            there = os.listdir(self.folder) if self.folder.is_dir() else []
            self._former += [name for name in there if name not in own and NAME.fullmatch(name)]
            self._looked = True

    def _replace(self, client: int, written: Written | None) -> None:
        before = self._files.pop(client, None)
        if before is not None:
            self._former.append(before.name)
        if written is not None:
            self._files[client] = written

    def _refuse_odd(self) -> None:
        """Raise InputError for what is no folder in the folder's place."""
        if self.folder.is_symlink():
            raise InputError(f"{self.folder}: is a symbolic link; a run is only kept in a folder of its own")
        if os.path.lexists(self.folder) and not self.folder.is_dir():
            raise InputError(f"{self.folder}: is no folder; clients' own factors lie there: put the folder back")

    def _read(self, written: Written) -> bytes:
        path = self.folder / written.name
        if path.is_symlink():
            raise InputError(f"{path}: is a symbolic link, which a client's file never is")
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                raise Damaged(f"{written.name} is {kind(status.st_mode)}")
            return verified(path, {"bytes": written.size, "sha256": written.sha256.hex()})
        except OSError as error:
            if error.errno not in GONE:
                raise
            raise Damaged(f"{FOLDER}/{written.name}: {error.strerror}") from error
        except Damaged as fault:
            raise Damaged(f"{FOLDER}/{fault}") from fault


def _of_index(index: Mapping[str, Tensor]) -> dict[int, Written]:
    if not index:
        return {}
    rows = zip(index[CLIENTS].tolist(), index[SIZES].tolist(), index[HASHES], strict=True)
    return {client: Written.of(client, size, bytes(of.numpy())) for client, size, of in rows}
