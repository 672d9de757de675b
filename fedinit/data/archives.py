"""The archives and lists of a published set as one tree: images as domain/class/file, lists at the top.

What is above an image's domain differs from release to release, and is left out. Members are read, never extracted, and
what is made of their names is three plain parts, so that no name leads out of a folder.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import IO

from fedinit.data.decoding import suffixes
from fedinit.data.official import Official
from fedinit.data.tree import OnDisk, Tree, Zip
from fedinit.errors import InputError

_UNREADABLE = (OSError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error, EOFError)


class Archives(Tree):
    """Of the files given those that are images of the set's domains, or its lists."""

    def __init__(self, official: Official, given: Sequence[Path], domains: Collection[str]) -> None:
        """
        given: zips, lists, and folders that hold some.
        domains: of which images and lists are wanted.

        Raises InputError for what is no zip and no list, a zip that cannot be read or has a name that leads out of it,
        and two different files of one name.
        """
        super().__init__(Path.cwd())
        self.where = official.title
        self._places: dict[str, tuple[Tree, str]] = {}
        wanted = tuple(suffixes())
        for tree, name in _members(official, given):
            parts = name.split("/")
            if official.split_of(parts[-1]) and parts[-1].startswith(tuple(f"{domain}_" for domain in domains)):
                self._add(parts[-1], tree, name)
            elif len(parts) > 2 and parts[-3] in domains and name.lower().endswith(wanted):
                if "/".join(parts[-3:]) not in official.spoilt:
                    self._add("/".join(parts[-3:]), tree, name)
        self.files = sorted(self._places)
        self.folders = sorted({name.rpartition("/")[0] for name in self.files} - {""})

    def read(self, name: str) -> bytes:
        """Raises InputError, which names the archive, for one that is damaged."""
        tree, inside = self._places[name]
        try:
            return tree.read(inside)
        except _UNREADABLE as error:
            raise InputError(
                f"{tree.root}: {inside!r} cannot be read ({error}); the archive is damaged: download it again"
            ) from error

    def open(self, name: str) -> IO[bytes]:
        tree, inside = self._places[name]
        return tree.open(inside)

    def size(self, name: str) -> int:
        tree, inside = self._places[name]
        return tree.size(inside)

    def stamps(self, names: Sequence[str]) -> list[list[int | str]]:
        placed = [(name, *self._places[name]) for name in names]
        return [[name, *tree.stamps([inside])[0][1:]] for name, tree, inside in placed]

    def _add(self, name: str, tree: Tree, inside: str) -> None:
        other, before = self._places.setdefault(name, (tree, inside))
        if (other, before) != (tree, inside) and other.read(before) != tree.read(inside):
            raise InputError(
                f"{tree.root}: has another {name!r} than {other.root}; give the archives of one release alone"
            )


def _members(official: Official, given: Sequence[Path]) -> Iterator[tuple[Tree, str]]:
    for path in given:
        if not path.exists():
            raise InputError(f"{path}: there is no such file; expected {official.archives}")
        inside = path.is_dir()
        files = sorted(f for f in path.iterdir() if f.is_file()) if inside else [path]
        for file in files:
            if official.split_of(file.name):
                yield OnDisk(file.parent), file.name
            elif file.suffix.lower() == ".zip":
                tree = _open(file)
                for name in tree.files:
                    yield tree, name
            elif not inside:
                raise InputError(f"{file}: is no archive and no list of {official.title}; expected {official.archives}")


def _open(file: Path) -> Zip:
    try:
        tree = Zip(file)
    except _UNREADABLE as error:
        raise InputError(f"{file}: is no whole zip ({error}); download it again") from error
    if (name := tree.way_out()) is not None:
        raise InputError(
            f"{file}: has a member {name!r}, which leads out of the folder that it would be unpacked in; no official "
            "archive has such a name: do not use it"
        )
    return tree
