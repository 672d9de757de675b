"""Files opened as files. A named pipe in the place of one would be waited for without end, and a device may have none:
whatever a folder of others holds, `regular` says so at once."""

from __future__ import annotations

import errno
import os
import stat
import sys
from pathlib import Path

_AT_ONCE = getattr(os, "O_NONBLOCK", 0)  # of a file it changes nothing
_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


def kind(mode: int) -> str:
    """What a mode is of, in words: "a named pipe"."""
    return _KINDS.get(stat.S_IFMT(mode), "a file")


def astray(path: Path) -> str:
    """What is wrong with a link that leads nowhere, in words behind its name: "is a link to Y, which is not there";
    empty for other links, for what is no link, and where nothing is. Raises OSError where nobody may look."""
    if not os.path.islink(path):
        return ""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return f"is a link to {os.path.realpath(path)}, which is not there"
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return "is a link that leads back to itself"
    return ""


def make_folder(path: Path) -> None:
    """Make a folder, and those around it, where they are not there. Raises OSError, which says of a link that leads
    nowhere, and of a file in its place, what it is: mkdir says of either that it is there."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        for place in (path, *path.parents):
            if wrong := astray(place):
                raise FileNotFoundError(errno.ENOENT, f"{place} {wrong}") from error
            if place.exists() and not place.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, f"{place} is {kind(place.stat().st_mode)}") from error
        raise


def regular(path: str, flags: int) -> int:
    """The opener of `open` for what is to be a file. One of this process's own open files, such as /dev/stdin or what a
    shell's <(…) names, is taken whatever it is. Raises OSError, for what is no file at once."""
    if (descriptor := own(Path(path))) is not None:
        return os.dup(descriptor)
    try:
        file = os.open(path, flags | _AT_ONCE, 0o666)
    except OSError as error:
        if error.errno == errno.ENXIO:  # to write to a pipe that nobody reads, and to a socket
            raise _no_file(path, os.stat(path).st_mode) from error
        raise
    mode = os.fstat(file).st_mode
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):  # which `open` refuses itself
        return file
    os.close(file)
    raise _no_file(path, mode)


def read_bytes(path: Path) -> bytes:
    """What a file holds. Raises OSError, as `regular` does."""
    with open(path, "rb", opener=regular) as file:
        return file.read()


def read_text(path: Path) -> str:
    """What a file of UTF-8 says, with "\\n" at the end of each line. Raises as `read_bytes`, and UnicodeDecodeError."""
    with open(path, encoding="utf-8", opener=regular) as file:
        return file.read()


def own(path: Path) -> int | None:
    """The open file of this process that the path stands for; None where it is of another kind. By its name it would
    be opened again: what was read from it before be read again, and what was written to it before be written over."""
    folders = {"/dev/fd", f"/proc/{os.getpid()}/fd"}
    for _ in range(40):
        folder, name = os.path.split(os.path.abspath(path))
        if name.isdecimal() and sys.platform != "win32" and os.path.realpath(folder) in folders:
            return int(name)
        if not os.path.islink(path):
            return None
        path = Path(folder, os.readlink(path))
    return None


def _no_file(path: str, mode: int) -> OSError:
    return OSError(errno.EINVAL, f"{kind(mode)}, not a file", path)
