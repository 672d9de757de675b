"""Where a source's decoded images are while a run lasts: in memory, or, of many, in a mapped file (image_cache.py)."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import math
import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from fedinit.data.image_cache import ImageFile, MappedImages, default_folder, fault_of
from fedinit.data.reporter import Reporter, readable
from fedinit.errors import InputError
from fedinit.home import expand_home
from fedinit.memory import free_memory

if TYPE_CHECKING:
    from rich.console import Console

THREADS = min(8, os.cpu_count() or 1)  # decoders free the GIL


@dataclass(frozen=True)
class Keeping:
    """Where decoded images are kept.

    cache: "always" and "never" a file; "auto": where one was asked for by its folder, or they have more bytes than
    `above`.
    folder: of the files; None: the user's cache folder.
    skip_unreadable: go on without images that cannot be decoded.
    """

    cache: Literal["auto", "always", "never"] = "auto"
    above: float = 1e9
    folder: str | None = None
    skip_unreadable: bool = False

    @property
    def place(self) -> Path:
        """The folder of the files."""
        return default_folder() if self.folder is None else expand_home("data.cache_dir", self.folder)


class Decoding(ABC):
    """How the images of a source become pixels. count: n, all that the source has. shape: (C, H, W) of each.
    chunk: how many are decoded at a time, in one of `THREADS` threads. where: what errors begin with."""

    count: int
    shape: tuple[int, int, int]
    chunk: int
    where: str

    @abstractmethod
    def key(self) -> Any:
        """What changes when the pixels would: the content of the source and how it is decoded, as JSON can hold it."""

    def prepare(self) -> Any:
        """What has to be known of all images before one is decoded, as JSON can hold it."""
        return None

    @abstractmethod
    def decode(self, rows: Sequence[int], prepared: Any) -> list[np.ndarray | str]:
        """Each row's image (C, H, W) uint8, or why it has none."""

    @abstractmethod
    def name(self, row: int) -> str:
        """What an error calls the image."""


class Store:
    """The images of a source, decoded when they are asked for."""

    def __init__(self, decoding: Decoding, keeping: Keeping, rows: Sequence[int] | None = None) -> None:
        """decoding: how they become pixels. keeping: where these are kept.
        rows: (n,) the images of the source that a catalogue lists, in its order; None: all."""
        self.decoding, self.keeping = decoding, keeping
        self.rows = torch.arange(decoding.count) if rows is None else torch.tensor(rows, dtype=torch.int64)
        self.faults: dict[int, str] = {}  # {row of the source: why it cannot be decoded}
        self.prepared: Any = None  # what was known of all images, once some were fetched

    def fetch(self, rows: Tensor, console: Console | None) -> tuple[Tensor | MappedImages, Tensor]:
        """The images of the rows (m,) of the catalogue, and (m,) bool, False for those that are not among them since
        they cannot be decoded and the run goes on without.

        console: where it is told what is read and what happens to the cache; None: nowhere.

        Raises InputError for images that cannot be decoded, once all are known, and for more than there is room for.
        """
        rows, report = self.rows[rows], Reporter(console)
        size = len(rows) * math.prod(self.decoding.shape)
        wanted = {"always": True, "never": False}.get(self.keeping.cache)
        if wanted is None:
            wanted = self.keeping.folder is not None or size > self.keeping.above
        file, whole = self._fill_file(rows.numpy(), size, report) if wanted else (None, False)
        if file is not None and whole and size > self.keeping.above:
            kept = self._readable(rows, report)
            return MappedImages(rows[kept], self.decoding.shape, functools.partial(self._read, file)), kept
        images = self._in_memory(rows.numpy(), size, file, report)
        kept = self._readable(rows, report)
        return (images if kept.all() else images[kept]), kept

    def _fill_file(self, rows: np.ndarray, size: int, report: Reporter) -> tuple[ImageFile | None, bool]:
        """The cache file, None where it cannot be made, and whether it holds the rows. What it cannot hold is left to
        memory. Raises InputError where that has no room."""
        what = self.decoding
        key, folder, file = self._key(), self.keeping.place, None
        try:
            path, remade = folder / f"{key[:32]}.images", functools.partial(self._has_all_of, key)
            file = ImageFile(path, key, what.count, what.shape, what.prepare, remade)
            self.prepared = file.prepared
            missing = file.missing(rows)
            if not len(missing):
                report.line(f"{len(rows):,} images, {readable(size)}, from cache {folder}")
                return file, True
            if len(missing) * math.prod(what.shape) > shutil.disk_usage(folder).free:
                raise OSError(errno.ENOSPC, "no room left")
            report.line(f"decoding {len(missing):,} of {len(rows):,} images, {readable(size)}, into cache {folder}")
            self._decode(missing, file.prepared, file.write, report, file)
            return file, True
        except OSError as error:
            said, is_full = fault_of(folder, error)
            room = free_memory()
            if room is not None and size > room / 2:
                room_there = "make room there, where what was decoded is kept, or " * is_full
                raise InputError(
                    f"data.cache_dir={folder}: {said}, and the images, {readable(size)}, do not fit into memory; "
                    f"{room_there}give another folder as data.cache_dir=..."
                ) from error
            report.line(f"{said}: the images are held in memory, {readable(size)}")
            return file, False

    def _key(self) -> str:
        """What changes when the pixels would, as hexadecimal digits."""
        return hashlib.sha256(json.dumps([self.decoding.key(), self.decoding.shape]).encode()).hexdigest()

    def _has_all_of(self, key: str) -> bool:
        """Whether the images of this key can be decoded here, which may be another machine: their files are unchanged
        and one of the first can be read."""
        try:
            first = self.decoding.decode(self.rows[:8].tolist(), None)
            return self._key() == key and any(not isinstance(pixels, str) for pixels in first)
        except OSError:
            return False

    def _in_memory(self, rows: np.ndarray, size: int, file: ImageFile | None, report: Reporter) -> Tensor:
        """(m, C, H, W) uint8, from the file as far as they are in it."""
        room = free_memory()
        if room is not None and size > room:
            raise InputError(
                f"data.cache={self.keeping.cache}: {len(rows):,} images, {readable(size)}, do not fit into the "
                f"{readable(room)} of memory that are free; use data.cache=always, or fewer images"
            )
        images = torch.empty((len(rows), *self.decoding.shape), dtype=torch.uint8)
        there = np.zeros(len(rows), dtype=bool)
        if file is not None:
            there = ~np.isin(rows, file.missing(rows))
            for places in np.array_split(np.flatnonzero(there), max(1, len(rows) // 1024)):
                images[torch.from_numpy(places)] = self._read(file, rows[places])
        left = rows[~there & ~np.isin(rows, list(self.faults))]
        if len(left):
            place = dict(zip(rows.tolist(), range(len(rows)), strict=True))
            array = images.numpy()

            def put(row: int, pixels: np.ndarray) -> None:
                array[place[row]] = pixels

            self.prepared = self.decoding.prepare() if file is None else file.prepared
            self._decode(left, self.prepared, put, report)
        return images

    def _read(self, file: ImageFile, rows: np.ndarray) -> Tensor:
        """(m, C, H, W) uint8, with what is damaged or gone decoded again. Raises InputError for what cannot be
        decoded now."""
        images, damaged = file.read(rows)
        for row in damaged.tolist():
            (pixels,) = self.decoding.decode([row], file.prepared)
            if isinstance(pixels, str):
                raise InputError(f"{self.decoding.where}: cannot read {self.decoding.name(row)} any more ({pixels})")
            images[torch.from_numpy(rows == row)] = torch.from_numpy(np.ascontiguousarray(pixels))
            with contextlib.suppress(OSError):
                file.write(row, pixels)
        return images

    def _decode(
        self,
        rows: np.ndarray,
        prepared: Any,
        put: Callable[[int, np.ndarray], None],
        report: Reporter,
        file: ImageFile | None = None,
    ) -> None:
        """Decode the rows in a few threads, `put` each, and note the faults. With a file, what another process has
        decoded meanwhile is not decoded again. Stopped, it waits for the chunks in hand alone."""
        chunk = self.decoding.chunk
        parts = [rows[start : start + chunk] for start in range(0, len(rows), chunk)]
        if file is not None:  # processes that work on one file begin at different places
            first = os.getpid() % len(parts)
            parts = parts[first:] + parts[:first]

        def work(part: np.ndarray) -> tuple[int, dict[int, str]]:
            wanted = (part if file is None else file.missing(part)).tolist()
            faults = {}
            for row, pixels in zip(wanted, self.decoding.decode(wanted, prepared), strict=True):
                if isinstance(pixels, str):
                    faults[row] = pixels
                else:
                    put(row, pixels)
            return len(part), faults

        with ThreadPoolExecutor(THREADS) as pool, report.progress(len(rows)) as advance:
            futures = [pool.submit(work, part) for part in parts]
            try:
                for future in as_completed(futures):
                    done, faults = future.result()
                    self.faults |= faults
                    advance(done)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _readable(self, rows: Tensor, report: Reporter) -> Tensor:
        """(m,) bool, False for the rows of the source that cannot be decoded. Raises InputError where there are such,
        and the run does not go on without."""
        if self.faults:
            named = [f"{self.decoding.name(row)} ({why})" for row, why in sorted(self.faults.items())]
            text = ", ".join(named[:3])
            if len(named) > 3:
                text += f" and {len(named) - 3} more, all listed in {self._write_list(named)}"
            if not self.keeping.skip_unreadable:
                raise InputError(
                    f"{self.decoding.where}: cannot read {text}; expected whole images: replace or delete these files, "
                    "or go on without them by data.skip_unreadable=true"
                )
            count = len(named)
            report.line(f"{count:,} image{'s' * (count != 1)} left out, which cannot be read: {text}")
        return ~torch.isin(rows, torch.tensor(list(self.faults), dtype=torch.int64))

    def _write_list(self, lines: Sequence[str]) -> Path:
        """A file with these lines, in the cache folder or, where that cannot be written, among temporary files."""
        content = "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape")
        name = f"unreadable-{hashlib.sha256(content).hexdigest()[:10]}.txt"
        try:
            self.keeping.place.mkdir(parents=True, exist_ok=True)
            path = self.keeping.place / name
            path.write_bytes(content)
        except OSError:
            path = Path(tempfile.gettempdir()) / name
            path.write_bytes(content)
        return path
