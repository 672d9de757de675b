"""Images of one's own: a folder root/domain/class/*.jpg|jpeg|png, or a .zip that holds such a tree.

The zip may have one leading folder, which is stripped. Either may have an index.csv at its top with the
columns `path` (domain/class/file) and `split` (train or test); other columns are not read. Without it an
image is a test image when the sha256 of its path, as a fraction of the largest, lies under
data.test_fraction: so an image keeps its side of the split when others are added, and a folder and a zip of
it have the same split. Names that begin with a dot, and macOS's __MACOSX, are passed over.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import threading
import zipfile
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import PIL
from PIL import Image, ImageOps

from fedinit.config.checks import within
from fedinit.data.source import DomainSource
from fedinit.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from fedinit.data.catalogue import Catalogue

SUFFIXES = (".jpg", ".jpeg", ".png")
INDEX = "index.csv"
# What Pillow may try: collected sets hold many a GIF or WebP named .jpg.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
_CACHE_VERSION = 1  # raise it when the same file would decode to other pixels
_CHUNK = 32  # images a task of the pool
_SHAPE = "expected data.root/domain/class/image.jpg (or .jpeg, .png)"


@dataclass(frozen=True, kw_only=True)
class ImageFolder(DomainSource):
    """`data=image_folder`: the images under `root`, a folder or a zip, in its domains and classes."""

    name: Literal["image_folder"] = "image_folder"
    root: str | None = None  # must be given: the folder or zip
    test_fraction: float = 0.2  # where there is no index.csv
    cache_dir: str | None = None  # where decoded images are kept between runs; null: kept in memory only

    def __post_init__(self) -> None:
        super().__post_init__()
        within("data.test_fraction", self.test_fraction, 0, 1, open_low=True, open_high=True)

    def catalogue(self, channels: int, size: tuple[int, int]) -> Catalogue:
        """The images under the root, sorted by path; domains and classes are numbered in sorted order.

        Its `read` gives (m, channels, H, W) uint8 by `decode`, kept in cache_dir if set.
        Raises InputError on a root that is missing or of another shape, a link out of it, an empty class folder of a
        domain that is used, an index that does not fit; `read` raises it on images that cannot be decoded, naming them.
        """
        import torch

        from fedinit.data.catalogue import Catalogue

        tree = _open_tree(self.root)
        _refuse_shape(tree)
        used = [f for f in tree.folders if self.domains is None or f.split("/")[0] in self.domains]
        filled = {name.rpartition("/")[0] for name in tree.images}
        for folder in used:
            if folder.count("/") == 1 and folder not in filled:
                raise InputError(
                    f"data.root={tree.root}: class folder {folder!r} holds no images; add jpg or png files, or delete "
                    "it"
                )
        domain_names = sorted({f.split("/")[0] for f in tree.folders})
        class_names = sorted({f.split("/")[1] for f in tree.folders if "/" in f})
        parts = [name.split("/") for name in tree.images]
        domain_index = {name: d for d, name in enumerate(domain_names)}
        class_index = {name: c for c, name in enumerate(class_names)}
        return Catalogue(
            labels=torch.tensor([class_index[c] for _, c, _ in parts], dtype=torch.int64),
            domains=torch.tensor([domain_index[d] for d, _, _ in parts], dtype=torch.int64),
            test=torch.tensor(_split(tree, self.test_fraction), dtype=torch.bool),
            class_names=tuple(class_names),
            domain_names=tuple(domain_names),
            read=lambda rows: _read(tree, [tree.images[i] for i in rows.tolist()], channels, size, self.cache_dir),
        )


def decode(content: bytes, channels: int, size: tuple[int, int]) -> np.ndarray:
    """The bytes of an image file -> (channels, H, W) uint8, channels 1 (grey) or 3 (RGB).

    Turned upright by its EXIF orientation; what is transparent shows white, like paper; 16 bits of grey are
    scaled to 8. The shorter side is brought to the target by bicubic resampling and the centre is cropped, in
    one step: only the box that will be seen is computed. For square images and targets it is a plain resize.
    Raises what Pillow raises on bytes that are no image.
    """
    height, width = size
    with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
        # JPEG decodes at 1/2, 1/4 or 1/8 in less time; twice the target leaves bicubic its work.
        image.draft(None, (2 * max(size), 2 * max(size)))
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip at 255
        image = Image.fromarray((np.asarray(image, dtype=np.float32) / 257.0).round().clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        paper = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(paper, image.convert("RGBA"))
    image = image.convert("L" if channels == 1 else "RGB")
    scale = max(height / image.height, width / image.width)
    box_width, box_height = min(image.width, width / scale), min(image.height, height / scale)
    left, top = (image.width - box_width) / 2, (image.height - box_height) / 2
    box = (left, top, left + box_width, top + box_height)
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC, box=box))
    return pixels.reshape(height, width, channels).transpose(2, 0, 1)


class _Folder:
    """A tree on disk.

    images, folders: paths below the root with '/' between the parts, sorted.
    index: the bytes of index.csv, or None.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.images: list[str] = []
        self.folders: list[str] = []
        self._walk("")
        self.images.sort()
        self.folders.sort()
        self.index = self.read(INDEX) if (self.root / INDEX).is_file() else None

    def _walk(self, parent: str) -> None:
        with os.scandir(self.root / parent) as entries:
            for entry in entries:
                if _ignored(entry.name):
                    continue
                name = f"{parent}/{entry.name}" if parent else entry.name
                if entry.is_symlink():
                    self._refuse_way_out(name)
                if not entry.is_dir():
                    if entry.name.lower().endswith(SUFFIXES):
                        self.images.append(name)
                elif name.count("/") < 2:
                    self.folders.append(name)
                    self._walk(name)
                else:
                    raise InputError(
                        f"data.root={self.root}: folder {name!r} is a level too deep, {_SHAPE}; is "
                        f"data.root={self.root / name.split('/')[0]} meant?"
                    )

    def _refuse_way_out(self, name: str) -> None:
        target = (self.root / name).resolve()
        if not target.is_relative_to(self.root) or not target.exists():
            raise InputError(
                f"data.root={self.root}: {name!r} is a symbolic link that leads out of the root or nowhere; "
                "replace it by the file itself, or delete it"
            )

    def read(self, name: str) -> bytes:
        """The bytes of a file, by its path below the root."""
        return (self.root / name).read_bytes()

    def stamps(self, names: Sequence[str]) -> list[list[int | str]]:
        """What changes when one of these files does: path, size in bytes and time of change in ns, of each."""
        statuses = [(name, (self.root / name).stat()) for name in names]
        return [[name, status.st_size, status.st_mtime_ns] for name, status in statuses]


class _Zip:
    """A tree in a zip, with the attributes of `_Folder`. Members are read in place, never extracted, so their names
    never become paths."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self._zip = zipfile.ZipFile(self.root)
        self._lock = threading.Lock()  # a ZipFile's reads share one position in the file
        names = [n for n in self._zip.namelist() if not any(map(_ignored, n.split("/")))]
        images = [n for n in names if n.lower().endswith(SUFFIXES)]
        tops = {n.split("/")[0] for n in images}
        wrapped = len(tops) == 1 and all(n.count("/") == 3 for n in images)
        self._prefix = f"{tops.pop()}/" if wrapped else ""
        kept = len(self._prefix)
        self.images = sorted({n[kept:] for n in images})  # a zip may hold a name twice
        parents = {n[kept:].rpartition("/")[0] for n in [*images, *names] if n.startswith(self._prefix)}
        self.folders = sorted({"/".join(p.split("/")[: i + 1]) for p in parents if p for i in range(p.count("/") + 1)})
        self.index = self.read(INDEX) if self._prefix + INDEX in names else None

    def read(self, name: str) -> bytes:
        with self._lock:
            return self._zip.read(self._prefix + name)

    def stamps(self, names: Sequence[str]) -> list[list[int | str]]:
        status = self.root.stat()
        return [["", status.st_size, status.st_mtime_ns], *([name] for name in names)]


def _ignored(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _open_tree(given: str | None) -> _Folder | _Zip:
    if given is None:
        raise InputError(
            f"data.root is not set: {_SHAPE}, or a .zip of that; give it on the command line as data.root=..."
        )
    root = Path(given).expanduser()
    if not root.exists():
        raise InputError(f"data.root={given}: there is no such folder or zip; give the right one as data.root=...")
    try:
        return _Folder(root) if root.is_dir() else _Zip(root)
    except (OSError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:  # RuntimeError: an encrypted zip
        raise InputError(
            f"data.root={given}: neither a folder nor a zip that can be read ({error}); {_SHAPE}, or a .zip of that"
        ) from error


def _refuse_shape(tree: _Folder | _Zip) -> None:
    """Raise InputError unless the images lie at domain/class/image."""
    where = f"data.root={tree.root}"
    if not tree.images:
        raise InputError(f"{where}: no images there; {_SHAPE}, or a .zip of that")
    depths = {name.count("/") for name in tree.images}
    if depths == {1}:
        first = tree.images[0]
        raise InputError(
            f"{where}: found class folders and no domain folders ({first!r}); {_SHAPE}: put the class "
            f"folders into one for their domain, such as {'all/' + first!r}, and leave data.root as it is"
        )
    for name in tree.images:
        if name.count("/") != 2:
            raise InputError(f"{where}: image {name!r} lies at another depth; {_SHAPE}: move it or delete it")


def _split(tree: _Folder | _Zip, test_fraction: float) -> list[bool]:
    """For every image, whether it is a test image."""
    if tree.index is None:
        digests = (hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest() for name in tree.images)
        return [int.from_bytes(digest[:8], "big") < test_fraction * 2**64 for digest in digests]
    where = f"data.root={tree.root}: {INDEX}"
    try:
        rows = list(csv.DictReader(io.StringIO(tree.index.decode("utf-8-sig"), newline="")))
        split = {row["path"]: row["split"] for row in rows}
    except (UnicodeDecodeError, csv.Error, KeyError) as error:
        raise InputError(
            f"{where} cannot be read ({error!r}); expected UTF-8 with the columns path and split, or no such file"
        ) from error
    for name, side in split.items():
        if side not in ("train", "test"):
            raise InputError(f"{where} has split={side!r} for {name!r}; expected train or test")
    absent, unlisted = set(split) - set(tree.images), set(tree.images) - set(split)
    if absent:
        raise InputError(f"{where} names {min(absent)!r}, which is not there; add the file or delete its line")
    if unlisted:
        raise InputError(f"{where} does not name {min(unlisted)!r}; add a line for it, or delete the image")
    return [split[name] == "test" for name in tree.images]


def _read(
    tree: _Folder | _Zip, names: list[str], channels: int, size: tuple[int, int], cache_dir: str | None
) -> Tensor:
    """(len(names), channels, H, W) uint8, from the cache where there is one that holds."""
    from fedinit.data import image_cache

    if cache_dir is None:
        return _decode_all(tree, names, channels, size)
    # Pillow's version is in the key, since another libjpeg may round otherwise.
    key = [_CACHE_VERSION, PIL.__version__, str(tree.root), channels, *size, tree.stamps(names)]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()
    path = Path(cache_dir).expanduser() / f"images-{digest[:32]}.safetensors"
    images = image_cache.load(path, (len(names), channels, *size))
    if images is None:
        images = _decode_all(tree, names, channels, size)
        image_cache.save(path, images)
    return images


def _decode_all(tree: _Folder | _Zip, names: list[str], channels: int, size: tuple[int, int]) -> Tensor:
    """(len(names), channels, H, W) uint8, decoded in a few threads (Pillow frees the GIL). Raises InputError for images
    that cannot be decoded, once all of them are known."""
    import torch

    images = np.empty((len(names), channels, *size), dtype=np.uint8)

    def fill(start: int) -> list[str]:
        faults = []
        for row in range(start, min(start + _CHUNK, len(names))):
            try:
                content = tree.read(names[row])
                if not content:
                    raise ValueError("the file is empty")
                images[row] = decode(content, channels, size)
            except MemoryError:
                raise
            except Exception as error:  # a broken file makes Pillow raise nearly anything
                reason = " ".join(str(error).split()) or type(error).__name__
                faults.append(f"{names[row]!r} ({reason})")
        return faults

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        faults = [fault for chunk in pool.map(fill, range(0, len(names), _CHUNK)) for fault in chunk]
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise InputError(
            f"data.root={tree.root}: cannot read {', '.join(faults[:3])}{more}; expected whole jpg or png "
            "images: replace or delete these files"
        )
    return torch.from_numpy(images)
