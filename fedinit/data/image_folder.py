"""Images of one's own: a folder root/domain/class/image, or a .zip that holds such a tree.

The zip may have one leading folder, which is stripped. A level of folders whose names mean a split (train, val, test)
may stand anywhere: root/split/class, root/domain/split/class, root/split/domain/class (fedinit/data/layout.py). Without
one, an index.csv at the top with the columns `path` and `split` says the split, or lists such as DomainNet's
clipart_train.txt (fedinit/data/list_files.py); else it goes by the name (fedinit/data/splits.py).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import PIL

from fedinit.config.checks import within
from fedinit.data.decoding import Window, decode, measure_window, suffixes
from fedinit.data.layout import Layout
from fedinit.data.listing import list_images
from fedinit.data.source import DomainSource
from fedinit.data.splits import choose_sides
from fedinit.data.tree import Tree, open_tree
from fedinit.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from fedinit.data.catalogue import Catalogue
    from fedinit.data.content import Content

_CACHE_VERSION = 2  # raise it when the same file would decode to other pixels
_CHUNK = 32  # images a task of the pool
_THREADS = min(8, os.cpu_count() or 1)  # Pillow frees the GIL


@dataclass(frozen=True, kw_only=True)
class ImageFolder(DomainSource):
    """`data=image_folder`: the images under `root`, a folder or a zip, in its domains and classes."""

    name: Literal["image_folder"] = "image_folder"
    root: str | None = None  # must be given: the folder or zip
    layout: Layout = "auto"  # what the levels of folders are; auto: names that mean a split are splits
    test_fraction: float = 0.2  # of a domain's images, where nothing names its split
    evaluate_on: Literal["auto", "val"] = "auto"  # auto: test images, where there are none val images
    grey_range: Literal["auto", "full"] | tuple[float, float] = "auto"  # the levels shown black and white, of deep grey
    fingerprint: Literal["names", "bytes"] = "names"  # what tells images apart: names and sizes, or all their bytes
    cache_dir: str | None = None  # where decoded images are kept between runs; null: kept in memory only

    def __post_init__(self) -> None:
        super().__post_init__()
        within("data.test_fraction", self.test_fraction, 0, 1, open_low=True, open_high=True)
        if isinstance(self.grey_range, tuple) and not -math.inf < self.grey_range[0] < self.grey_range[1] < math.inf:
            given = ",".join(f"{level:g}" for level in self.grey_range)
            raise InputError(
                f"data.grey_range=[{given}]: expected [low,high], two numbers of which the second is larger"
            )

    def content(self) -> Content | None:
        from fedinit.data.content import content_of

        return None if self.root is None else content_of(self.catalogue(3, (1, 1)), self.domains, self.classes)

    def catalogue(self, channels: int, size: tuple[int, int]) -> Catalogue:
        """The images under the root that are trained or evaluated on, sorted by path; domains and classes are numbered
        in sorted order.

        Its `read` gives (m, channels, H, W) uint8 by `decode`, kept in cache_dir if set.
        Raises InputError on a root that is missing or of another shape, a link out of it, an empty class folder of a
        domain that is used, an index that does not fit; `read` raises it on images that cannot be decoded, naming them.
        """
        import torch

        from fedinit.data.catalogue import Catalogue

        tree = open_tree(self.root)
        listed = list_images(tree, suffixes(), self.layout, self.domains).of(self.domains)
        sides = choose_sides(listed.splits, listed.names, listed.domains, self.evaluate_on, self.test_fraction)
        rows = [row for row, kept in enumerate(sides.kept) if kept]
        domain_index = {name: d for d, name in enumerate(listed.domain_names)}
        class_index = {name: c for c, name in enumerate(listed.class_names)}
        names = [listed.names[row] for row in rows]
        return Catalogue(
            labels=torch.tensor([class_index[listed.classes[row]] for row in rows], dtype=torch.int64),
            domains=torch.tensor([domain_index[listed.domains[row]] for row in rows], dtype=torch.int64),
            test=torch.tensor([sides.test[row] for row in rows], dtype=torch.bool),
            class_names=tuple(listed.class_names),
            domain_names=tuple(listed.domain_names),
            passed_over=listed.passed_over,
            remarks=sides.remarks,
            read=lambda rows: self._read(tree, listed.names, [names[i] for i in rows.tolist()], channels, size),
            marks=lambda rows: tree.marks([names[row] for row in rows], self.fingerprint == "bytes"),
        )

    def _read(
        self, tree: Tree, all_names: Sequence[str], names: list[str], channels: int, size: tuple[int, int]
    ) -> Tensor:
        """(len(names), channels, H, W) uint8, from the cache where there is one that holds.

        all_names: whose grey the range is measured of, so that it does not depend on what is chosen.
        """
        from fedinit.data import image_cache

        window = None if isinstance(self.grey_range, str) else self.grey_range
        if self.grey_range == "auto":
            window = measure_window(tree.open, all_names, _THREADS)
        if self.cache_dir is None:
            return _decode_all(tree, names, channels, size, window)
        # Pillow's version is in the key, since another libjpeg may round otherwise.
        key = [_CACHE_VERSION, PIL.__version__, str(tree.root), channels, *size, window, tree.stamps(names)]
        digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()
        path = Path(self.cache_dir).expanduser() / f"images-{digest[:32]}.safetensors"
        images = image_cache.load(path, (len(names), channels, *size))
        if images is None:
            images = _decode_all(tree, names, channels, size, window)
            image_cache.save(path, images)
        return images


def _decode_all(tree: Tree, names: list[str], channels: int, size: tuple[int, int], window: Window | None) -> Tensor:
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
                images[row] = decode(content, channels, size, window)
            except MemoryError:
                raise
            except Exception as error:  # a broken file makes Pillow raise nearly anything
                reason = " ".join(str(error).split()) or type(error).__name__
                faults.append(f"{names[row]!r} ({reason})")
        return faults

    with ThreadPoolExecutor(_THREADS) as pool:
        faults = [fault for chunk in pool.map(fill, range(0, len(names), _CHUNK)) for fault in chunk]
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise InputError(
            f"data.root={tree.root}: cannot read {', '.join(faults[:3])}{more}; expected whole "
            "images: replace or delete these files"
        )
    return torch.from_numpy(images)
