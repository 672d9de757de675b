"""Picture files that a person names, as a run's model takes them: decoded as its training images were."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fedinit.config.schema import Config
from fedinit.data.decoding import LEVELS, GreyRange, Window, Windows, decode, measure_windows, reason, suffixes
from fedinit.data.store import THREADS
from fedinit.errors import InputError, machine_failed
from fedinit.models import InputSpec
from fedinit.opening import read_bytes, regular
from fedinit.unreadable import is_folder, unreadable

COMMON = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class Pictures:
    """paths: of those that could be read. images: (n, C, H, W) uint8, of these.
    unread: (path, why), of the others."""

    paths: Sequence[Path]
    images: Tensor
    unread: Sequence[tuple[Path, str]]


def named(given: Sequence[Path]) -> list[Path]:
    """The picture files that are meant: a file by itself, of a folder all that lie below it and whose names end as
    pictures' do, in the order of their names. Raises InputError for a folder without any, or that
    cannot be read."""
    paths: list[Path] = []

    def refuse(error: OSError) -> None:
        raise unreadable(Path(error.filename), error)

    for path in given:
        if not is_folder(path):
            paths.append(path)
            continue
        inside = [Path(folder, name) for folder, _, names in os.walk(path, onerror=refuse) for name in names]
        pictures = sorted(file for file in inside if file.name.lower().endswith(suffixes()))
        if not pictures:
            raise InputError(f"{path}: no pictures in this folder, or below it; {expected()}")
        paths += pictures
    return paths


def expected() -> str:
    """What a person gives, with the endings that are looked for in a folder."""
    common = [ending for ending in COMMON if ending in suffixes()]
    others = len(suffixes()) - len(common)
    more = f" or one of {others} others that Pillow reads" if others else ""
    return f"give a picture, or a folder with files whose names end in {', '.join(common)}{more}"


def wanted(path: Path, why: str) -> str:
    """What a person does about a file that cannot be read as a picture. why: the reason."""
    if not path.exists():
        return "give the path of a picture"
    if LEVELS in why:  # a picture it is
        return "or leave it out"
    return f"give a picture ({', '.join(COMMON)}, …) in its place, or leave it out"


def read(paths: Sequence[Path], spec: InputSpec, window: Window | Windows | None) -> Pictures:
    """The pictures as a model takes them. window: as in `decode`, of grey with more than 8 bits."""
    size = spec.height, spec.width

    def one(path: Path) -> Tensor | str:
        try:
            content = read_bytes(path)
            if not content:
                return "the file is empty"
            return torch.from_numpy(decode(content, spec.channels, size, window).copy())
        except Exception as error:  # a broken file makes Pillow raise nearly anything
            if machine_failed(error):
                raise
            return reason(error)

    with ThreadPoolExecutor(THREADS) as pool:
        decoded = list(zip(paths, pool.map(one, paths), strict=True))
    there = [(path, pixels) for path, pixels in decoded if isinstance(pixels, Tensor)]
    unread = [(path, why) for path, why in decoded if isinstance(why, str)]
    empty = torch.empty((0, spec.channels, *size), dtype=torch.uint8)
    images = torch.stack([pixels for _, pixels in there]) if there else empty
    return Pictures([path for path, _ in there], images, unread)


def window_of(config: Config, paths: Sequence[Path], chosen: GreyRange | Windows) -> Window | Windows | None:
    """The levels that grey of more than 8 bits is shown between.

    chosen: by the person or the run; "auto": by the run's images, as they are now.

    Raises InputError where that is, there is such a picture, and the run's images are not there any more.
    """
    if not isinstance(chosen, str):
        return chosen
    if chosen == "full":
        return None
    if not measure_windows(lambda name: open(name, "rb", opener=regular), map(str, paths), THREADS):
        return {}  # deep grey under the name of another kind is told, not shown from 0 to 65,535
    return own_window(config)


def own_window(config: Config) -> Windows | None:
    """The levels of the run's images as they are now; None of data in no files. Raises InputError where they are not
    there any more."""
    from fedinit.data.file_source import FileSource
    from fedinit.data.image_files import ImageFiles

    if not isinstance(config.data, FileSource):
        return None
    try:
        tree, listing = config.data.listing()
        return ImageFiles(tree, listing.names, 1, (1, 1), "auto").prepare()
    except InputError as error:
        raise InputError(
            "pictures of grey with more than 8 bits are shown between the levels of the run's own images "
            f"(data.grey_range=auto), which cannot be read ({error}); say --grey-range LOW HIGH"
        ) from error
