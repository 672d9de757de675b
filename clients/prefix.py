"""What a frozen backbone makes of every image before its first adapter, computed once and kept in a mapped file.

`engine.prefix_cache=true`. The file is an image file (fedinit/data/image_cache.py) whose rows are the float32 numbers
that the first adapted block is given. Its key says of which backbone, cut where, of which images, by which arithmetic,
so that a file of others is never used. Rows are made in fixed batches of neighbours, each by one thread, so that they
are the same bytes whoever makes them and however often that was stopped.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import math
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import as_completed
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from rich.console import Console
from torch import Tensor, nn

from clients.engine.arrays import Laid, pack, put_together, take_apart, unpack
from clients.engine.hardware import DTYPES, computing, devices
from fedinit.config.schema import Config
from fedinit.data.dataset import Dataset
from fedinit.data.image_cache import HOME, PREFIX, ImageFile, MappedImages, default_folder, fault_of
from fedinit.data.reporter import Reporter, readable
from fedinit.errors import InputError
from fedinit.home import expand_home
from fedinit.models.input_spec import InputSpec
from fedinit.models.prefix import Cut, before
from fedinit.threads import cores, make_pool

BATCH, PART = 16, 1024  # images of one pass; rows that are hashed at a time


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of a file, each what the block is given for an image, and what makes them.

    module: of the whole backbone, in the dtype that it computes in. block: the one that it is cut before.
    spec: of the backbone's input. images: of the data set. precision, device: what is computed in, and on.
    """

    module: nn.Module
    block: str
    spec: InputSpec
    images: Tensor | MappedImages
    precision: str
    device: torch.device

    def computed(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """What the block is given for each of the rows, as the bytes of its numbers (1, 1, 4 * numbers)."""
        with computing(self.device, self.precision):
            images = self.spec.normalise(self.images[torch.from_numpy(rows)], self.device)
            tokens = before(self.module, self.block, images.to(next(self.module.parameters()).dtype)).cpu()
        return (one.contiguous().view(torch.uint8).numpy() for one in tokens)


@dataclass(frozen=True, eq=False)
class KeptRows:
    """Reads the rows of a file that is filled, as MappedImages does. In another process it is the same file, and what
    makes its rows lies in memory that processes share, where whoever sends it knows such (clients/engine/arrays.py)."""

    rows: Rows
    file: ImageFile

    def __call__(self, rows: np.ndarray) -> Tensor:
        """(m, 1, 1, numbers) float32 of the rows (m,); what is damaged or gone is made again."""
        held, damaged = self.file.read(rows)
        for place in np.unique(damaged // BATCH):
            near = np.arange(place * BATCH, min((place + 1) * BATCH, self.file.count))
            lacking = damaged
            with contextlib.suppress(OSError):  # of a file that was made anew, its neighbours too
                lacking = np.union1d(damaged, self.file.missing(near))
            for row, numbers in zip(near, self.rows.computed(near), strict=True):
                if row in lacking:
                    held[torch.from_numpy(rows == row)] = torch.from_numpy(numbers)
                    with contextlib.suppress(OSError):
                        self.file.write(int(row), numbers)
        return held.view(torch.float32)

    def __reduce__(self) -> tuple[Any, ...]:
        frame, numbers = take_apart(self.rows.module)
        return _there, (replace(self.rows, module=frame, images=pack(self.rows.images)), numbers, self.file)


def _there(rows: Rows, numbers: list[tuple[bool, Laid]], file: ImageFile) -> KeptRows:
    """The same in another process, on its own device of the kind."""
    device, images = torch.device(rows.device.type), unpack(rows.images, Laid.view)
    module = put_together(rows.module, numbers).to(device)
    return KeptRows(replace(rows, module=module, images=images, device=device), file)


class Prefix:
    """The prefix of a data set's images under one backbone."""

    def __init__(self, made: Cut, data: Dataset, config: Config, console: Console | None) -> None:
        """made: the backbone, cut before its first adapter. config: `engine` resolved.

        Raises InputError where the file cannot be made or has no room."""
        self.cut, self.data, self.config = made, data, config
        self.device = devices(config.engine.device, None)[0]
        precision = config.engine.precision
        dtype = DTYPES[precision]
        module = made.whole.module
        if self.device.type != "cpu" or dtype != torch.float32:
            module = deepcopy(module).to(self.device, dtype)
        self.numbers = math.prod(made.tokens)
        self.rows = Rows(module, made.block, made.whole.input, data.images, precision, self.device)
        self.file = self._filled(Reporter(console))

    @property
    def dataset(self) -> Dataset:
        """The data set with what `Cut.after` takes in place of its images."""
        rows, read = torch.arange(len(self.data)), KeptRows(self.rows, self.file)
        return replace(self.data, images=MappedImages(rows, (1, 1, self.numbers), read, torch.float32))

    def _filled(self, report: Reporter) -> ImageFile:
        folder = _folder(self.config)
        key, count, shape = self._key(), len(self.data), (1, 1, 4 * self.numbers)
        what = f"{count:,} images before {self.cut.block}, {readable(count * 4 * self.numbers)}"
        try:
            again = functools.partial(_is_on, platform.node())
            file = ImageFile(folder / f"{key[:32]}{PREFIX}", key, count, shape, remade=again)
            missing = file.missing(np.arange(count))
            if not len(missing):
                report.line(f"{what}, from cache {folder}")
                return file
            if len(missing) * 4 * self.numbers > shutil.disk_usage(folder).free:
                if len(missing) == count:  # nobody else has begun to fill it
                    file.path.unlink(missing_ok=True)
                raise OSError(errno.ENOSPC, f"no room for {readable(len(missing) * 4 * self.numbers)}")
            report.line(f"{what}, into cache {folder}")
            self._fill(file, missing, report)
        except OSError as error:
            other = "data.cache_dir=..." if hasattr(self.config.data, "cache_dir") else f"{HOME} in the environment"
            said, is_full = fault_of(folder, error)
            raise InputError(
                f"engine.prefix_cache=true: {said}; {'make room, ' * is_full}give another folder as {other}, or use "
                "engine.prefix_cache=false"
            ) from error
        return file

    def _key(self) -> str:
        pixels = hashlib.sha256()
        for rows in torch.arange(len(self.data)).split(PART):
            pixels.update(self.data.images[rows].numpy().tobytes())
        arithmetic = (self.config.engine.precision, self.device.type, torch.__version__, sys.byteorder)
        whole = self.cut.whole  # the same weights may be those of another model, of other heads or activations
        tree = re.sub(" at 0x[0-9a-f]+", "", repr(whole.module))
        made = (self.config.model.name, str(sorted(whole.arguments.items())), tree, timm.__version__)
        about = [whole.digest, *made, self.cut.block, str(whole.input), *arithmetic, pixels.hexdigest()]
        return hashlib.sha256(json.dumps(about).encode()).hexdigest()

    def _fill(self, file: ImageFile, missing: np.ndarray, report: Reporter) -> None:
        places = np.unique(missing // BATCH)

        def work(place: int) -> int:
            rows = np.arange(place * BATCH, min((place + 1) * BATCH, file.count))
            wanted = file.missing(rows)
            for row, numbers in zip(rows, self.rows.computed(rows), strict=True):
                if row in wanted:
                    file.write(int(row), numbers)
            return len(wanted)

        lanes = cores() if self.device.type == "cpu" else 1
        with make_pool(lanes, "prefix") as pool, report.progress(len(missing)) as advance:
            futures = [pool.submit(work, int(place)) for place in places]
            try:
                for future in as_completed(futures):
                    advance(future.result())
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def _is_on(machine: str) -> bool:
    """Whether this is the machine of that name: rows that another made may have other last bits."""
    return platform.node() == machine


def _folder(config: Config) -> Path:
    """Where decoded images are kept too: `data.cache_dir`, or the user's cache folder."""
    given = getattr(config.data, "cache_dir", None)
    return default_folder() if given is None else expand_home("data.cache_dir", given)
