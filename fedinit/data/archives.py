"""The archives and lists of a published set as one tree: images as domain/class/file, lists at the top.

What is above an image's domain differs from release to release, and is left out. Members are read, never extracted, and
what is made of their names is three plain parts, so that no name leads out of a folder.
"""

from __future__ import annotations

import contextlib
import itertools
import stat
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import IO

from fedinit.data.decoding import suffixes
from fedinit.data.official import Official
from fedinit.data.reporter import readable
from fedinit.data.tree import OnDisk, Tree, Zip
from fedinit.errors import InputError
from fedinit.unreadable import mode_of, no_file, unreadable

LARGEST = 64_000_000  # bytes of an image or a list; the largest of these sets have a few millions
RATIO = 100  # between the bytes of what is read of an archive and its own; of images, packed already, it is about 1
PIECE = 1 << 20  # bytes in memory at a time
_UNREADABLE = (OSError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error, EOFError)


class Archives(Tree):
    """Of the files given those that are images of the set's domains, or its lists."""

    def __init__(self, official: Official, given: Sequence[Path], domains: Collection[str]) -> None:
        """
        given: zips, lists, and folders that hold some.
        domains: of which images and lists are wanted.

        Raises InputError for what is no zip and no list, a folder without one, what has the name of one and is no file,
        a zip that cannot be read or has a name that leads out of it, two different files of one name, and what is too
        large or packed too tightly to be one of the set's.
        """
        super().__init__(Path.cwd())
        self.where = official.title
        self.spoilt: set[str] = set()  # images that are there and passed over
        # Members that would be images, were it not for control characters in their names.
        self.misnamed: set[str] = set()
        self.twice = 0  # members that their archive has twice, with the same bytes
        self._places: dict[str, tuple[Tree, str]] = {}
        wanted = tuple(suffixes())
        for tree, name in _members(official, given):
            last, image = name.rpartition("/")[2], _image(name, domains, wanted)
            if official.split_of(last) and last.startswith(tuple(f"{domain}_" for domain in domains)):
                self._add(last, tree, name)
            elif image is None or "\0" in name:
                if _image(_without_controls(name), domains, wanted):
                    self.misnamed.add(name)
            elif image in official.spoilt:
                self.spoilt.add(image)
            else:
                self._add(image, tree, name)
        _refuse_too_large(self._places.values())
        self.twice = sum(inside in tree.same_twice for tree, inside in self._places.values() if isinstance(tree, Zip))
        self.files = sorted(self._places)
        self.folders = sorted({name.rpartition("/")[0] for name in self.files} - {""})

    def read(self, name: str) -> bytes:
        """Raises InputError, which names the archive, for one that is damaged."""
        return b"".join(self.pieces(name))

    def pieces(self, name: str) -> Iterator[bytes]:
        """The bytes of a file, PIECE at a time. Raises InputError as `read` does."""
        tree, inside = self._places[name]
        with _reading(tree, inside), tree.open(inside) as file:
            while piece := file.read(PIECE):
                yield piece

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
        if isinstance(tree, Zip) and inside in tree.other_twice:
            raise InputError(
                f"{tree.root}: has two different members {inside!r}, and nothing says which is meant; download it again"
            )
        other, before = self._places.setdefault(name, (tree, inside))
        if (other, before) != (tree, inside) and not _alike((other, before), (tree, inside)):
            raise InputError(
                f"{tree.root}: has another {name!r} than {other.root}; give the archives of one release alone"
            )


def _image(name: str, domains: Collection[str], ends: tuple[str, ...]) -> str | None:
    """The member's name as an image of one of the domains, domain/class/file; None where it is none."""
    parts = name.split("/")
    is_one = len(parts) > 2 and parts[-3] in domains and name.lower().endswith(ends)
    return "/".join(parts[-3:]) if is_one else None


def _without_controls(name: str) -> str:
    """And without blanks at the ends of its parts."""
    return "/".join("".join(filter(str.isprintable, part)).strip() for part in name.split("/"))


@contextlib.contextmanager
def _reading(tree: Tree, inside: str) -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        raise unreadable(Path(error.filename or tree.root), error) from error
    except _UNREADABLE as error:
        raise InputError(
            f"{tree.root}: {inside!r} cannot be read ({_why(error)}); the archive is damaged: download it again"
        ) from error


def _alike(*two: tuple[Tree, str]) -> bool:
    """Whether two files have the same bytes, which are read only where their sizes are the same."""
    (tree, inside), (other, before) = two
    if tree.size(inside) != other.size(before):
        return False
    with contextlib.ExitStack() as stack:
        for each, name in two:
            stack.enter_context(_reading(each, name))
        files = [stack.enter_context(each.open(name)) for each, name in two]
        pieces = [iter(lambda file=file: file.read(PIECE), b"") for file in files]
        return all(a == b for a, b in itertools.zip_longest(*pieces))


def _refuse_too_large(places: Collection[tuple[Tree, str]]) -> None:
    """Raise InputError for a file above LARGEST, and for an archive above RATIO: by what the archives say, before any
    of it is unpacked. No member gives more bytes than its archive says of it."""
    sizes: dict[Path, int] = defaultdict(int)
    for tree, inside in places:
        size = tree.size(inside)
        if size > LARGEST:
            raise InputError(
                f"{tree.root}: {inside!r} has {readable(size)}, and no image or list of these sets has more than "
                f"{readable(LARGEST)}; do not use this archive"
            )
        if isinstance(tree, Zip):
            sizes[tree.root] += size
    for archive, size in sizes.items():
        if size > RATIO * archive.stat().st_size:
            raise InputError(
                f"{archive}: {readable(size)} would come out of {readable(archive.stat().st_size)}, more than {RATIO} "
                "times as many, which images, packed already, never are; do not use this archive"
            )


def _members(official: Official, given: Sequence[Path]) -> Iterator[tuple[Tree, str]]:
    for file in files_of(official, given):
        if official.split_of(file.name):
            yield OnDisk(file.parent), file.name
        else:
            tree = _open(file)
            for name in itertools.chain(tree.files, tree.cut()):
                yield tree, name


def files_of(official: Official, given: Sequence[Path]) -> Iterator[Path]:
    """The zips and lists that are read of what is given: of a folder, those in it. Raises InputError, as they come, for
    what is no file, is neither, or is a folder without any."""
    for path in given:
        if wrong := no_file(path, folders=True):
            raise InputError(f"{path}: {wrong}; give the archive itself")
        if not (mode := mode_of(path)):
            raise InputError(f"{path}: there is no such file; expected {official.archives}")
        if stat.S_ISDIR(mode):
            found = [file for file in sorted(path.iterdir()) if _is_named(official, file)]
            if not found:
                raise InputError(
                    f"{path}: this folder holds no archive and no list of {official.title}; expected "
                    f"{official.archives}"
                )
            for file in found:
                if wrong := no_file(file):
                    raise InputError(f"{file}: {wrong}; put the file itself there, or move this away")
            yield from found
        else:
            if any(path.name == domain + end for domain in official.domains for end in official.not_read):
                continue  # as in a folder
            if not _is_named(official, path):
                raise InputError(f"{path}: is no archive and no list of {official.title}; expected {official.archives}")
            yield path


def _is_named(official: Official, file: Path) -> bool:
    """Whether it has the name of an archive or of a list."""
    return official.split_of(file.name) is not None or file.suffix.lower() == ".zip"


def _why(error: Exception) -> str:
    """What an error says, without its number."""
    return str(getattr(error, "strerror", None) or error)


def _open(file: Path) -> Zip:
    try:
        tree = Zip(file)
    except PermissionError as error:
        raise unreadable(file, error) from error
    except _UNREADABLE as error:
        raise InputError(f"{file}: is no whole zip ({_why(error)}); download it again") from error
    if (name := tree.way_out()) is not None:
        raise InputError(
            f"{file}: has a member {name!r}, which leads out of the folder that it would be unpacked in; no official "
            "archive has such a name: do not use it"
        )
    if (name := tree.backslashed()) is not None:
        raise InputError(
            f"{file}: has a member {name!r}, with a backslash in its name, and not from Windows, where that parts "
            "folders; make the zip anew with '/' between them"
        )
    return tree
