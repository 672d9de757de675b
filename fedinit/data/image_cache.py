"""Decoded images in a file that is mapped into memory: `data.cache_dir`.

One file holds all images of a source at one size. It is filled image by image, by any number of processes at once, and
what one of them has decoded is there for the others and for the next run, whenever it stops. An image counts as there
when its checksum is in the file's index, which is written after the pixels; a reader that finds other pixels than the
checksum says decodes them again. The header has a checksum of its own.

    header, 4096 bytes: JSON, filled up with blanks | index: n x uint32 | up to a multiple of 4096 | n x (C, H, W) uint8
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import logging
import math
import os
import platform
import sys
import tempfile
import threading
import warnings
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedinit.errors import InputError
from fedinit.opening import astray, kind, make_folder

_log = logging.getLogger(__name__)

_FORMAT = 2
_PAGE = 4096
PREFIX = ".prefix"  # ends the name of a file that holds what blocks make of images, and not images
HOME = "LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME"  # by which a person moves the user's folder


def default_folder() -> Path:
    """The user's folder for what can be made again: $XDG_CACHE_HOME/fedinit, or as the system has it."""
    given = os.environ.get(HOME, "")
    try:
        return (Path(given) if os.path.isabs(given) else Path.home() / ".cache") / "fedinit"
    except RuntimeError:  # a user without a home
        return Path(tempfile.gettempdir()) / "fedinit"


def fault_of(folder: Path, error: OSError) -> tuple[str, bool]:
    """What is said of a cache in this folder that failed, and whether more room there would mend it."""
    verb = "written to" if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) else "used"
    said = f"cache {folder} cannot be {verb} ({error.strerror or error})"
    return said, error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))


class ImageFile:
    """The file at `path`, made if there is none that holds.

    prepared: what the maker of the file measured before it decoded anything.
    """

    def __init__(
        self,
        path: Path,
        key: str,
        count: int,
        shape: Sequence[int],
        prepare: Callable[[], Any] = lambda: None,
        remade: Callable[[], bool] = bool,
    ) -> None:
        """
        path: of the file; its folder is made.
        key: says which images there are and how they are decoded; a file with another key is not used.
        count, shape: n, and (C, H, W).
        prepare: gives a value that JSON can hold; called where the file is made.
        remade: asked in another process where the file does not hold, whether its rows can be made there again;
            bool, which gives False, where they cannot.

        Raises OSError where it can be neither read nor made.
        """
        self.path, self.count, self.shape = path, count, tuple(shape)
        self._asked: dict[str, Any] = {"format": _FORMAT, "key": key, "count": count, "shape": list(self.shape)}
        self._remade, self._sent = remade, False
        self._begin()
        self.prepared = self._have(prepare)
        _ = self._maps  # of the file that was looked at

    def _begin(self) -> None:
        """What every process has for itself."""
        self._lock = threading.Lock()
        self._bytes = math.prod(self.shape)
        self._pixels_at = _PAGE + -(-4 * self.count // _PAGE) * _PAGE
        self._verified = np.zeros(self.count, dtype=bool)
        self._file = None
        self._told = False  # of damage, which is told once

    def __getstate__(self) -> dict[str, Any]:
        """In another process, which may be in another folder, it is the same file. It is opened when a row is read, so
        that what is wrong with it is told there, and not while the process takes what it was sent."""
        asked = {**self._asked, "prepared": self.prepared}
        state = {"path": self.path.absolute(), "count": self.count, "shape": self.shape, "prepared": self.prepared}
        return state | {"_asked": asked, "_remade": self._remade, "_sent": True}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    @functools.cached_property
    def _maps(self) -> tuple[np.ndarray, Tensor]:
        """The index, (n,) uint32, and the rows, (n, C, H, W) uint8, on the disk. Raises InputError in a process that
        was sent the file, where it does not hold and cannot be made; else OSError."""
        try:
            if self._sent:
                self._have(lambda: self.prepared)
            index = np.memmap(self.path, np.dtype("<u4"), "r", _PAGE, (self.count,))
            pixels = np.memmap(self.path, np.uint8, "r", self._pixels_at, (self.count, *self.shape))
        except OSError as error:
            if not self._sent:
                raise
            raise self._lacking(f"which {platform.node()} cannot use ({error.strerror or error})") from error
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that writing to the tensor would be wrong; nothing does
            return index, torch.from_numpy(pixels)

    @property
    def _words(self) -> tuple[str, str]:
        """What the file is called, and how its rows are made."""
        return ("prefix cache", "computing") if self.path.suffix == PREFIX else ("image cache", "decoding")

    def _lacking(self, how: str) -> InputError:
        """The refusal of a machine without the file. how: it is without it."""
        without = "engine.prefix_cache=false" if self.path.suffix == PREFIX else "data.cache=never"
        return InputError(
            f"{self.path}: the images are in this file, {how}; give data.cache_dir=... on a file "
            f"system that all machines have, or {without}"
        )

    def _have(self, prepare: Callable[[], Any]) -> Any:
        """What the file's maker measured; the file is made where there is none that holds. Raises OSError as the class
        does, and InputError where it was sent to a process that cannot make it."""
        header, why = self._look()
        if header is None and self._sent:
            if not self._remade():
                raise self._lacking(f"which {why or f'{platform.node()} has not'}")
            header, why = self._look()  # another process may have made it meanwhile
        if header is None:
            self.path.unlink(missing_ok=True)
            if why or self._sent:
                _log.warning("%s %s %s: %s again", self._words[0], self.path, why or "is gone", self._words[1])
            self._make(prepare)
            header, _ = self._look()
            if header is None:
                raise OSError(0, "another process put another file there", str(self.path))
        return header["prepared"]

    def _look(self) -> tuple[dict[str, Any] | None, str]:
        """The header of the file that is there, or None and why it does not hold, in words behind its name; they are
        empty where there is none. Raises OSError for what is no file, and might be waited for."""
        if wrong := self._no_file():
            raise OSError(errno.EINVAL, f"{self.path} {wrong}")
        try:
            with self.path.open("rb") as file:
                read, size = file.read(_PAGE), file.seek(0, os.SEEK_END)
        except FileNotFoundError:
            return None, ""
        try:
            header = json.loads(read)
            checksum = header.pop("checksum", None)
        except (ValueError, RecursionError, AttributeError, TypeError):  # the last two: it is no mapping
            return None, "is damaged (its header cannot be read)"
        if header.get("format") != _FORMAT:
            return None, "is in the format of another fedinit"
        if checksum != _checksum(json.dumps(header).encode()):
            return None, "is damaged (its header has changed)"
        if {key: header.get(key) for key in self._asked} != self._asked:
            return None, "is damaged (its header is another's)"
        if size != self._pixels_at + self.count * self._bytes:
            return None, "is damaged (its length is another)"
        return header, ""

    def _no_file(self) -> str:
        """What is there and is no file, in words behind its name; empty where it is one, and where nothing is."""
        if (wrong := astray(self.path)) or not self.path.exists() or self.path.is_file():
            return wrong
        return f"is {kind(self.path.stat().st_mode)}, not a file"

    def _make(self, prepare: Callable[[], Any]) -> None:
        """Put an empty file there, whole at once. Where another process was faster, its file stays."""
        make_folder(self.path.parent)
        scratch = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        header = {**self._asked, "prepared": prepare()}
        header["checksum"] = _checksum(json.dumps(header).encode())
        try:
            with scratch.open("wb") as file:
                file.write(json.dumps(header).encode().ljust(_PAGE))
                file.truncate(self._pixels_at + self.count * self._bytes)  # a hole, until pixels are written
            try:
                os.link(scratch, self.path)
            except FileExistsError:
                pass
            except OSError:  # no hard links here
                os.replace(scratch, self.path)
        finally:
            with contextlib.suppress(OSError):
                scratch.unlink(missing_ok=True)

    def missing(self, rows: np.ndarray) -> np.ndarray:
        """Those of the rows (m,) that are not there yet."""
        if not len(rows):
            return rows
        # Read, and not through the map: to look at a hole there takes a page, and ends the process where none is left.
        low, high = int(rows.min()), int(rows.max())
        return rows[np.fromfile(self.path, "<u4", high - low + 1, offset=_PAGE + 4 * low)[rows - low] == 0]

    def write(self, row: int, pixels: np.ndarray) -> None:
        """Put an image there, (C, H, W) uint8. Raises OSError, as of a full disk, which leaves the row as it was."""
        content = np.ascontiguousarray(pixels).tobytes()
        with self._lock:
            if self._file is None:
                self._file = self.path.open("r+b", buffering=0)
            for at, part in (
                (self._pixels_at + row * self._bytes, content),
                (_PAGE + 4 * row, np.array([_checksum(content)], "<u4").tobytes()),
            ):
                self._file.seek(at)
                rest = memoryview(part)
                while rest:
                    rest = rest[self._file.write(rest) :]

    def read(self, rows: np.ndarray) -> tuple[Tensor, np.ndarray]:
        """The images of the rows (m,), as (m, C, H, W) uint8, and which of the rows, (k,), are not what was written or
        were not written yet. Raises InputError as `_maps`."""
        index, pixels = self._maps
        checksums = index[rows]  # before the pixels, which are there before it
        images = pixels[torch.from_numpy(rows)]
        lacking, is_damaged = [], False
        for place in np.flatnonzero(~self._verified[rows]):
            if _checksum(images[place].numpy().data) == checksums[place]:
                self._verified[rows[place]] = True
            else:
                lacking.append(rows[place])
                is_damaged |= bool(checksums[place])
        if is_damaged and not self._told:
            self._told = True
            name, doing = self._words
            _log.warning("%s %s is damaged (checksums differ): %s again what does not match", name, self.path, doing)
        return images, np.array(lacking, dtype=np.int64)


def _checksum(content: Any) -> int:
    """CRC-32, never zero, which in the index means that there is no image."""
    return zlib.crc32(content) or 1


class MappedImages:
    """Rows of an image file, indexed like the tensor (n, C, H, W) that they are, of which none is in memory.

    An index gives a tensor of its own.
    """

    ndim = 4

    def __init__(
        self,
        rows: Tensor,
        shape: Sequence[int],
        read: Callable[[np.ndarray], Tensor],
        dtype: torch.dtype = torch.uint8,
    ) -> None:
        """rows: (n,) int64, in the file. shape: (C, H, W). read: rows (m,) -> (m, C, H, W) of the dtype."""
        self.dtype = dtype
        self.shape = torch.Size((len(rows), *shape))
        self._rows, self._read = rows, read

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int | slice | Tensor) -> Tensor:
        rows = self._rows[index]
        return self._read(rows.reshape(-1).numpy()).view(*rows.shape, *self.shape[1:])
