"""The files below `data.root`, a folder or a .zip of one, as names with '/' between the parts.

Names that begin with a dot, and macOS's __MACOSX, are passed over.
"""

from __future__ import annotations

import functools
import hashlib
import os
import threading
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

from fedinit.data.splits import looks_like, meaning
from fedinit.errors import InputError, refuse
from fedinit.home import expand_home
from fedinit.opening import kind, read_bytes, regular
from fedinit.pasted import pasted
from fedinit.unreadable import mode_of, unreadable

Fault = Callable[[InputError], None]
SHAPE = "expected data.root/domain/class/image.jpg, with folders train, val and test above or below a level if you like"
_WINDOWS = (0, 10, 11)  # in a zip, the systems a member may come from that have backslashes in paths: FAT, NTFS, VFAT
_DEEPEST = 3  # folders above an image: a domain, a class and a split


class Tree(ABC):
    """What lies below the root.

    root: the folder or zip itself, resolved.
    where: what errors begin with.
    files, folders: their names below the root, sorted.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.where = f"data.root={self.root}"
        self.files: list[str] = []
        self.folders: list[str] = []
        self.fault: Fault = refuse  # told of what is wrong in it
        self._prefix = ""  # a leading folder that the names leave out

    @abstractmethod
    def read(self, name: str) -> bytes:
        """The bytes of a file, by its name."""

    @abstractmethod
    def open(self, name: str) -> IO[bytes]:
        """A file to read from, which the caller closes."""

    @abstractmethod
    def stamps(self, names: Sequence[str]) -> list[list[int | str]]:
        """What changes when one of these files does: its name, and numbers that the file system or the zip keeps. Where
        the tree lies is no part of it."""

    def size(self, name: str) -> int:
        """The bytes of a file, without reading it."""
        return len(self.read(name))

    def marks(self, names: Sequence[str], whole: bool) -> list[str]:
        """Of each of these files its name with its size, or, `whole`, with the sha256 of its bytes, which are read."""

        def mark(name: str) -> str:
            try:
                return f"{name}|{hashlib.sha256(self.read(name)).hexdigest() if whole else self.size(name)}"
            except (OSError, RuntimeError, zipfile.BadZipFile, zlib.error):
                return f"{name}|unreadable"  # which the images' reader will say of it

        if not whole:
            return [mark(name) for name in names]
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            return list(pool.map(mark, names))

    def doubles(self, names: Sequence[str]) -> dict[str, str]:
        """{name: the one before it in `names` that is the same file}: what symbolic links make."""
        return {}

    def descend(self, top: str) -> None:
        """Leave the leading folder `top` out of all names in it; what is outside of it is no longer listed."""
        lead = f"{top}/"
        self._prefix += lead
        self.files = [name.removeprefix(lead) for name in self.files if name.startswith(lead)]
        self.folders = [name.removeprefix(lead) for name in self.folders if name.startswith(lead)]

    def too_deep(self, folder: str) -> InputError:
        """The refusal of a folder that lies a level too deep. It proposes a root only where nothing is left outside,
        and no name below seems to be a split that is not read as one."""
        paths = [*self.folders, folder]
        tops = {path.split("/")[0] for path in paths}
        names = {name for path in paths for name in path.split("/")}
        unclear = any(map(meaning, tops)) or any(looks_like(name) and not meaning(name) for name in names)
        hint = "" if unclear or len(tops) > 1 else f"; is {pasted(f'data.root={self.root / tops.pop()}')} meant?"
        return InputError(f"data.root={self.root}: folder {folder!r} is a level too deep, {SHAPE}{hint}")


class OnDisk(Tree):
    """Files on disk, whose names are known from elsewhere."""

    def read(self, name: str) -> bytes:
        return read_bytes(self.root / (self._prefix + name))

    def open(self, name: str) -> IO[bytes]:
        return open(self.root / (self._prefix + name), "rb", opener=regular)

    def size(self, name: str) -> int:
        return (self.root / (self._prefix + name)).stat().st_size

    def stamps(self, names: Sequence[str]) -> list[list[int | str]]:
        statuses = [(name, (self.root / (self._prefix + name)).stat()) for name in names]
        return [[name, s.st_size, s.st_mtime_ns, s.st_ctime_ns] for name, s in statuses]

    def doubles(self, names: Sequence[str]) -> dict[str, str]:
        folders: dict[str, str] = {}
        first: dict[str, str] = {}
        twice: dict[str, str] = {}
        for name in names:
            folder, _, last = (self._prefix + name).rpartition("/")
            if folder not in folders:
                folders[folder] = os.path.realpath(self.root / folder)
            path = os.path.join(folders[folder], last)
            path = os.path.realpath(path) if os.path.islink(path) else path
            if (other := first.setdefault(path, name)) != name:
                twice[name] = other
        return twice


class Folder(OnDisk):
    """A tree on disk."""

    def __init__(self, root: Path, fault: Fault = refuse) -> None:
        super().__init__(root)
        self.fault = fault
        self._walk("")
        self.files.sort()
        self.folders.sort()

    def _walk(self, parent: str) -> None:
        with os.scandir(self.root / parent) as entries:
            listed = sorted(entries, key=lambda entry: entry.name)
        folders = []
        for entry in listed:
            if _ignored(entry.name):
                continue
            name = f"{parent}/{entry.name}" if parent else entry.name
            wrong = self._undecodable(name) or (self._way_out(name) if entry.is_symlink() else None)
            if wrong is not None:
                self.fault(wrong)
                continue
            if not entry.is_dir() and not entry.is_file():
                what = kind(entry.stat().st_mode)
                self.fault(InputError(f"{self.where}: {name!r} is {what}, not a file; take it away"))
                continue
            (folders if entry.is_dir() else self.files).append(name)
        self.folders += folders
        for name in folders:
            if name.count("/") >= _DEEPEST:
                self.fault(self.too_deep(name))
                self.folders.remove(name)
            else:
                self._walk(name)

    def _undecodable(self, name: str) -> InputError | None:
        try:
            name.encode()
        except UnicodeEncodeError:
            return InputError(
                f"{self.where}: the name {ascii(name)} is not UTF-8, and no result could name it; rename it"
            )
        return None

    def _way_out(self, name: str) -> InputError | None:
        target = Path(os.path.realpath(self.root / name))  # Path.resolve raises before 3.13, where links go round
        if target.is_relative_to(self.root) and target.exists():
            return None
        return InputError(
            f"{self.where}: {name!r} is a symbolic link that leads out of the root or nowhere; "
            "replace it by the file itself, or delete it"
        )


class Zip(Tree):
    """A tree in a zip. Members are read in place, never extracted, so their names never become paths."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._lock = threading.Lock()  # a ZipFile's reads share one position in the file
        self._members: dict[str, zipfile.ZipInfo] = {}
        self.same_twice: set[str] = set()  # names that two members have, with the same bytes
        self.other_twice: set[str] = set()  # and with others
        for member in self._zip.infolist():
            name = _meant(member)
            if any(map(_ignored, name.split("/"))):
                continue
            before = self._members.get(name)
            if before is not None and not name.endswith("/"):
                is_same = (before.file_size, before.CRC) == (member.file_size, member.CRC)
                (self.same_twice if is_same else self.other_twice).add(name)
            self._members[name] = member
        self.files = sorted(n for n in self._members if not n.endswith("/"))
        parts = [n.split("/") for n in self._members]
        self.folders = sorted({"/".join(p[:i]) for p in parts for i in range(1, len(p))})

    @functools.cached_property
    def _zip(self) -> zipfile.ZipFile:
        return _opened(self.root)

    def __getstate__(self) -> dict[str, Any]:
        """In another process it is opened again where something is read."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_zip", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._lock = threading.Lock()

    def way_out(self) -> str | None:
        """The name of a member that, were it a path, would lead out of where the zip lies; None where there is none."""
        names = [info.orig_filename for info in self._zip.infolist()]
        paths = [name.replace("\\", "/") for name in names]
        out = (p.startswith("/") or ".." in p.split("/") or p[1:2] == ":" for p in paths)
        return next((name for name, is_out in zip(names, out, strict=True) if is_out), None)

    def cut(self) -> list[str]:
        """The whole names of members that zipfile cuts, at a NUL."""
        return [info.orig_filename for info in self._zip.infolist() if "\0" in info.orig_filename]

    def backslashed(self) -> str | None:
        """The name of a member with a backslash that no tool of Windows wrote between folders; None without one."""
        return next((name for name in self._members if "\\" in name), None)

    def read(self, name: str) -> bytes:
        with self._lock:
            return self._zip.read(self._member(name))

    def open(self, name: str) -> IO[bytes]:
        with self._lock:
            return self._zip.open(self._member(name))

    def size(self, name: str) -> int:
        return self._member(name).file_size

    def stamps(self, names: Sequence[str]) -> list[list[int | str]]:
        members = [(name, self._member(name)) for name in names]
        return [[name, member.file_size, member.CRC] for name, member in members]

    def _member(self, name: str) -> zipfile.ZipInfo:
        return self._members[self._prefix + name]


def open_tree(given: str | None, fault: Fault = refuse) -> Tree:
    """The tree at `data.root`. Raises InputError for none, or one that cannot be read. fault: told of what in it does
    not fit and is passed over."""
    if given is None:
        raise InputError(
            f"data.root is not set: {SHAPE}, or a .zip of that; give it on the command line as data.root=..."
        )
    root = expand_home("data.root", given)
    if not mode_of(root):
        raise InputError(f"data.root={given}: there is no such folder or zip; give the right one as data.root=...")
    try:
        tree = Folder(root, fault) if root.is_dir() else Zip(root)
    except PermissionError as error:
        raise unreadable(Path(error.filename or root), error) from error
    except (OSError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:  # RuntimeError: an encrypted zip
        why = getattr(error, "strerror", None) or error  # without the error's number
        raise InputError(
            f"data.root={given}: neither a folder nor a zip that can be read ({why}); {SHAPE}, or a .zip of that"
        ) from error
    if isinstance(tree, Zip) and tree.other_twice:
        raise InputError(
            f"data.root={given}: has two different members {min(tree.other_twice)!r}, and nothing says which is meant; "
            "make the zip anew"
        )
    return tree


def _opened(path: Path) -> zipfile.ZipFile:
    file = open(path, "rb", opener=regular)
    try:
        return zipfile.ZipFile(file)
    except BaseException:
        file.close()
        raise


def _meant(member: zipfile.ZipInfo) -> str:
    """A member's name with '/' between its parts: tools of Windows have written backslashes there, and no other."""
    by_windows = member.create_system in _WINDOWS and "/" not in member.filename
    return member.filename.replace("\\", "/") if by_windows else member.filename


def _ignored(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"
