"""A published set as a folder domain/class/image with index.csv, out of its archives: `fedinit data prepare`.

It is written beside its place, as <name>.partial, and gets its name when it is whole and on the disk. Stopped at any
moment, the same command goes on: what was written is known by its size and CRC-32, which zips keep of every member.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import stat
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from fedinit.data.archives import PIECE, Archives
from fedinit.data.list_files import INDEX, ListFile, parse_line, read_list, read_lists
from fedinit.data.official import Official
from fedinit.data.prepared_place import RECORD, refuse_no_folder
from fedinit.data.reporter import Reporter, counted, readable
from fedinit.data.splits import Split, choose_sides
from fedinit.errors import InputError
from fedinit.opening import make_folder, read_bytes, regular
from fedinit.said import csv_row
from fedinit.state.disk import replace, sync_folder, try_writing

_HELD_OUT = 0.2  # of each domain's images, by name, where no list says the split
_NAMED = 3  # files that a refusal names
_SPARE = 16e6  # bytes of the disk that are left free


@dataclass(frozen=True)
class Plan:
    """What the folder will hold. splits: {domain/class/file: its split}. remarks: a line each, for who is told."""

    official: Official
    tree: Archives
    splits: Mapping[str, Split]
    remarks: Sequence[str]

    @property
    def names(self) -> list[str]:
        """Of the images, sorted."""
        return sorted(self.splits)

    def record(self) -> dict[str, object]:
        """What tells this folder from one that is made of other files."""
        stamps = self.tree.stamps(self.names)
        made_of = [(self.splits[name], *stamp) for name, stamp in zip(self.names, stamps, strict=True)]
        digest = hashlib.sha256(json.dumps(made_of).encode("utf-8", "surrogateescape")).hexdigest()
        return {"set": self.official.title, "images": len(self.splits), "made_of": digest}

    def index(self) -> bytes:
        """What index.csv holds."""
        return "".join(map(csv_row, [("path", "split"), *sorted(self.splits.items())])).encode()


def plan(official: Official, given: Sequence[Path], domains: Sequence[str] | None = None) -> Plan:
    """What is made of these archives and lists, before anything is written.

    domains: some of the set's; None: all.

    Raises InputError for archives that are not whole or of another set, a domain or list that is missing, and a list
    that does not fit its archive.
    """
    wanted = tuple(official.domains if domains is None else domains)
    for name in wanted or ("",):
        if name not in official.domains:
            raise InputError(f"--domains {name or repr(name)}: {official.title} has {', '.join(official.domains)}")
    tree = Archives(official, given, wanted)
    classes = {name: name.split("/")[1] for name in tree.files if "/" in name}
    _refuse_missing("no images", official, wanted, {name.split("/")[0] for name in classes})
    lists = {name: read_list(tree, name, split) for name in tree.files if (split := official.split_of(name))}
    if not lists and not official.lists_needed:
        names = sorted(classes)
        test = choose_sides([None] * len(names), names, [n.split("/")[0] for n in names], "auto", _HELD_OUT).test
        splits: dict[str, Split] = {n: "test" if t else "train" for n, t in zip(names, test, strict=True)}
        remarks = [f"no lists of splits: {_HELD_OUT:.0%} of each domain is held out, by the hash of each name"]
    else:
        for end in official.lists:
            _refuse_missing(
                f"no list …{end}", official, wanted, {n.removesuffix(end) for n in lists if n.endswith(end)}
            )
        splits = read_lists(tree, classes, {name: _wanted(name, file, official) for name, file in lists.items()})
        _refuse_empty(official, lists, {(name.split("/")[0], split) for name, split in splits.items()})
        remarks = []
    remarks.append(_taken(official, tree, classes, splits, lists))
    there = len({classes[name] for name in splits})
    if tree.twice:
        remarks.append(f"{counted(tree.twice, 'file')} twice in an archive, with the same bytes, taken once")
    if there != official.classes:
        remarks.append(f"warning: {there} classes, where {official.title} has {official.classes}")
    return Plan(official, tree, splits, remarks)


def _taken(
    official: Official,
    tree: Archives,
    images: Collection[str],
    taken: Collection[str],
    lists: Mapping[str, ListFile],
) -> str:
    """How many images of how many are taken, and which are left out, and why. images: those that are not spoilt."""
    every = len(images) + len(tree.spoilt) + len(tree.misnamed)
    if every == len(taken):
        return f"all {every:,} images of the archives are taken"
    left = set(images) - set(taken)
    listed = {"/".join(parse_line(line)[0].split("/")[-3:]) for file in lists.values() for _, line in file.lines}
    kinds = {
        "known to be spoilt": tree.spoilt,
        "with control characters in the name, or blanks at its ends": tree.misnamed,
        f"of classes beyond the first {official.classes}": left & listed if official.numbered else set(),
        "in no list": left - listed if official.numbered else left,
    }
    why = [f"{len(names):,} {kind} ({_few(sorted(names))})" for kind, names in kinds.items() if names]
    return f"{len(taken):,} of {every:,} images of the archives are taken; left out: {', '.join(why)}"


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return ", ".join(map(repr, names[:_NAMED])) + more


def prepare(made: Plan, place: Path, reporter: Reporter) -> bool:
    """Write the folder, or go on with it; whether it was not there yet, whole.

    Raises InputError for a place that holds something else or can be no folder, that another process writes to or that
    cannot be written, a file there that is not the archives', and a damaged archive; OSError, with what to do, where
    the disk is full.
    """
    refuse_no_folder(place)
    record = made.record()
    place = place.resolve() if place.is_symlink() else place  # a link to an empty folder could not be replaced
    is_there = place.exists() and not (place.is_dir() and not any(place.iterdir()))
    if is_there and _record(place) != record:
        raise InputError(f"{place}: is there already, and not made of these archives; delete it, or give another --to")
    if is_there and _is_as_written(made, place, reporter):
        return False
    partial = place.with_name(f"{place.name}.partial")
    _try(place)
    with _alone(place, partial.with_name(f"{partial.name}.lock")):
        if is_there:  # without some of its files: it is unfinished again
            _clear(partial)
            place.rename(partial)
        _begin(partial, record)
        _write(made, partial, reporter)
        if place.exists():
            place.rmdir()
        partial.rename(place)
        sync_folder(place.parent)
    return True


def _write(made: Plan, partial: Path, reporter: Reporter) -> None:
    """All images and the index, as far as they are not there. Raises OSError where there is no room for them."""
    stamps = dict(zip(made.names, made.tree.stamps(made.names), strict=True))
    left = [name for name in made.names if not _is_whole(partial / name, stamps[name])]
    needed, free = sum(made.tree.size(name) for name in left) + _SPARE, shutil.disk_usage(partial).free
    if needed > free:
        raise OSError(
            errno.ENOSPC,
            f"{partial.parent}: {readable(needed)} are needed and {readable(free)} free; make room and give the same "
            "command again, or another --to",
        )
    try:
        with reporter.progress(len(left), "writing") as advance:
            for name in left:
                (partial / name).parent.mkdir(parents=True, exist_ok=True)
                with (partial / name).open("wb") as file:
                    for piece in made.tree.pieces(name):
                        file.write(piece)
                advance(1)
        replace(partial / INDEX, made.index())
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        kept = f"the disk is full; what was written stays in {partial}: make room and give the same command again"
        raise OSError(errno.ENOSPC, kept) from error
    if hasattr(os, "sync"):  # before the folder gets its name; Windows has no such call
        os.sync()


def _is_as_written(made: Plan, place: Path, reporter: Reporter) -> bool:
    """Whether every file is there as the archives have it; False where some are not there and the others are. Raises
    InputError, by their names, for those that are others: they may be somebody's work."""
    stamps = made.tree.stamps(made.names)
    absent, others = 0, []
    with reporter.progress(len(stamps), "checking") as advance:
        for name, stamp in zip(made.names, stamps, strict=True):
            if not os.path.lexists(place / name):
                absent += 1
            elif not _is_whole(place / name, stamp):
                others.append(name)
            advance(1)
    index = place / INDEX
    if not os.path.lexists(index):
        absent += 1
    elif not index.is_file() or read_bytes(index) != made.index():
        others.append(INDEX)
    if others:
        it, are = ("it", "is") if len(others) == 1 else ("them", "are")
        raise InputError(
            f"{place}: {_few(others)} {are} not as written out of these archives; delete {it}, or the whole folder, "
            f"and the same command writes {it} anew"
        )
    return not absent


def _is_whole(file: Path, stamp: Sequence[int | str]) -> bool:
    """Whether a file is there as its archive has it. stamp: its name, size and CRC-32."""
    if not file.is_file() or file.stat().st_size != stamp[1]:
        return False
    found = 0
    with open(file, "rb", opener=regular) as opened:
        while piece := opened.read(PIECE):
            found = zlib.crc32(piece, found)
    return found == stamp[2]


def _try(place: Path) -> None:
    """Raise InputError where nothing can be written beside the place."""
    try:
        make_folder(place.parent)
        try_writing(place.parent)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        raise InputError(
            f"{place}: cannot be made ({error.strerror or error}); give another --to, in a folder that can be written"
        ) from error


def _begin(partial: Path, record: Mapping[str, object]) -> None:
    """The unfinished folder of this record, empty or as far as it came; one of another record is begun anew."""
    if os.path.lexists(partial) and _record(partial) != record:
        _clear(partial)
    partial.mkdir(exist_ok=True)
    replace(partial / RECORD, json.dumps(record).encode())


def _clear(partial: Path) -> None:
    """Delete an unfinished folder. Raises InputError for one that holds something else."""
    if not os.path.lexists(partial):
        return
    if partial.is_symlink() or not partial.is_dir() or (_record(partial) is None and any(partial.iterdir())):
        raise InputError(f"{partial}: is needed for what is unfinished, and holds something else; move it away")
    shutil.rmtree(partial)


def _record(folder: Path) -> object:
    try:
        return json.loads(read_bytes(folder / RECORD))
    except (OSError, ValueError):
        return None


@contextlib.contextmanager
def _alone(place: Path, file: Path) -> Iterator[None]:
    """Within, no other process prepares this place."""
    if os.path.lexists(file) and not stat.S_ISREG(os.lstat(file).st_mode):
        raise InputError(f"{file}: is needed for what is unfinished, and is something else; move it away")
    lock = FileLock(file, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise InputError(f"{place}: another process prepares it; wait for it, or end it") from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows removes no open file
            file.unlink()
        lock.release()


def _wanted(name: str, file: ListFile, official: Official) -> ListFile:
    """A list without the lines about spoilt images and, where classes go by number, about those that are not among the
    first. Raises InputError for a line without a number there."""
    kept = []
    for number, line in file.lines:
        path, label = parse_line(line)
        if not label and official.numbered:
            raise InputError(
                f"{official.title}: line {number} of {name!r} is {line!r}; expected an image and its class's number"
            )
        is_first = not official.numbered or int(label) < official.classes
        if is_first and "/".join(path.split("/")[-3:]) not in official.spoilt:
            kept.append((number, line))
    return ListFile(file.split, kept)


def _refuse_empty(official: Official, lists: Collection[str], there: Collection[tuple[str, Split]]) -> None:
    """Raise InputError, by its name, for a list that no image of its domain is taken by. there: (domain, split) of the
    images that are."""
    for name in lists:
        end = next(end for end in official.lists if name.endswith(end))
        if (name.removesuffix(end), official.lists[end]) not in there:
            raise InputError(
                f"{official.title}: {name!r} names no image of its domain that is taken; download it again, or mend it"
            )


def _refuse_missing(what: str, official: Official, wanted: Sequence[str], there: Collection[str]) -> None:
    missing = [domain for domain in wanted if domain not in there]
    if missing:
        raise InputError(
            f"{official.title}: {what} of {', '.join(missing)}; expected {official.archives}, or --domains=… for some"
        )
