"""Files that are whole or not there: written, flushed to the disk, then given their name.

A process may die between any two lines, and a disk may fill up at any byte. What has its final name was written
completely before it got it.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fedinit.opening import own

WINDOWS = sys.platform == "win32"
NO_PLACE = {getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG", "EIO", "EPIPE") if hasattr(errno, name)}


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Within, an OSError says which file it is about: that of a write to an open one does not."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


def write(path: Path, content: bytes, like: os.stat_result | None = None) -> None:
    """Write the bytes to a file at `path`; they are on the disk when this returns. Raises OSError, and then leaves
    behind what it had written.

    like: of the file that it takes the place of, whose owner, as far as that may be given, and mode it gets before
        it holds anything; None: what is usual.
    """
    # Windows would change the ends of lines in a file that is not opened as binary.
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0), 0o600 if like else 0o644)
    try:
        with naming(path):
            if like and not WINDOWS:
                with contextlib.suppress(OSError):
                    os.fchown(file, like.st_uid, like.st_gid)
                os.fchmod(file, stat.S_IMODE(like.st_mode))
            rest = memoryview(content)
            while rest:
                rest = rest[os.write(file, rest) :]
            os.fsync(file)
    finally:
        os.close(file)


def sync_folder(path: Path) -> None:
    """Flush the names in a folder, new and renamed files among them, to the disk; not on Windows, which opens no folder
    and keeps a journal of names. Raises OSError."""
    if WINDOWS:
        return
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def try_writing(path: Path) -> None:
    """Raise OSError where a folder could not be made at `path`, or nothing be written in the one that is there. What is
    tried is done in the nearest folder that is there, and leaves nothing."""
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    os.rmdir(tempfile.mkdtemp(prefix=".", dir=there))


def free(path: Path) -> Path:
    """The path with the first of .1, .2, … behind it that nothing has yet."""
    return next(p for n in itertools.count(1) if not os.path.lexists(p := path.with_name(f"{path.name}.{n}")))


def unused(path: Path) -> Path:
    """The path, where nothing has it yet; else as `free`."""
    return free(path) if os.path.lexists(path) else path


def replace(path: Path, content: bytes, like: os.stat_result | None = None, aside: Path | None = None) -> None:
    """Write a file so that a reader finds it whole, old or new, or not at all. Raises OSError; the old one stays. like:
    as of `write`. aside: what the old one, where there is one, is called once the new one is on the disk."""
    partial = path.with_name(path.name + ".tmp")
    try:
        write(partial, content, like)
    except BaseException:  # a signal may be what ends it
        partial.unlink(missing_ok=True)
        raise
    try:
        if aside is not None and os.path.lexists(path):
            os.rename(path, aside)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    os.replace(partial, path)


def put(path: Path, content: bytes) -> None:
    """Write to what a person named: a file is written whole, with the mode that it had, or stays as it is, the target
    of a symbolic link like any file. What is there and is no file, such as a device, a named pipe or one that the shell
    opened (/dev/stdout, /dev/fd/63), is written into. Raises OSError, with `filename` and one of NO_PLACE where the
    place took no more."""
    with naming(path):
        if (descriptor := own(path)) is not None:
            _pour(os.dup(descriptor), content)
            return
        there = _status(path)
        if there and stat.S_ISDIR(there.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if there and not stat.S_ISREG(there.st_mode):
            _pour(os.open(path, os.O_WRONLY | getattr(os, "O_NOCTTY", 0)), content)
            return
        replace(Path(os.path.realpath(path)), content, there)


def _status(path: Path) -> os.stat_result | None:
    """Of what is at the end of the path's links; None for nothing yet."""
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _pour(file: int, content: bytes) -> None:
    """Write the bytes to an open file, and close it."""
    for stream in (sys.stdout, sys.stderr):  # which may be the same one, with more in their buffers
        if stream is not None:
            stream.flush()
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(file, rest) :]
    finally:
        os.close(file)


def replace_json(path: Path, values: Mapping[str, Any]) -> None:
    """`replace`, with the values as indented JSON."""
    replace(path, (json.dumps(values, indent=2) + "\n").encode())


def replace_folder(path: Path, files: Mapping[str, bytes]) -> None:
    """Write a folder of these files, {name: content}, which gets its name only when all of them are on the disk.

    Made beside its place as `.tmp-<name>`, renamed, and its parent flushed. A folder that has the name already is put
    aside first and removed last. Raises OSError; nothing but the temporary folder is touched before the rename.
    """
    partial, former = path.with_name(f".tmp-{path.name}"), path.with_name(f".tmp-former-{path.name}")
    for leftover in (partial, former):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir()
    try:
        for name, content in files.items():
            write(partial / name, content)
        sync_folder(partial)
    except BaseException:  # a signal may be what ends it
        shutil.rmtree(partial, ignore_errors=True)
        raise
    try:
        if path.exists():
            os.rename(path, former)
        os.rename(partial, path)
        sync_folder(path.parent)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(former, ignore_errors=True)
