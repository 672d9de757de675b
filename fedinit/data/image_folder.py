"""Images of one's own: a folder root/domain/class/image, or a .zip that holds such a tree.

The zip may have one leading folder, which is stripped. A level of folders whose names mean a split (train, val, test)
may stand anywhere: root/split/class, root/domain/split/class, root/split/domain/class (fedinit/data/layout.py). Without
one, an index.csv at the top with the columns `path` and `split` says the split, or lists such as DomainNet's
clipart_train.txt (fedinit/data/list_files.py); else it goes by the name (fedinit/data/splits.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fedinit.config.checks import within
from fedinit.data.decoding import GreyRange, suffixes
from fedinit.data.layout import Layout
from fedinit.data.listing import list_images
from fedinit.data.source import DecodedSource, DomainSource
from fedinit.data.splits import choose_sides
from fedinit.data.tree import open_tree
from fedinit.errors import InputError

if TYPE_CHECKING:
    from fedinit.data.catalogue import Catalogue
    from fedinit.data.content import Content


@dataclass(frozen=True, kw_only=True)
class ImageFolder(DomainSource, DecodedSource):
    """`data=image_folder`: the images under `root`, a folder or a zip, in its domains and classes."""

    name: Literal["image_folder"] = "image_folder"
    root: str | None = None  # must be given: the folder or zip
    layout: Layout = "auto"  # what the levels of folders are; auto: names that mean a split are splits
    test_fraction: float = 0.2  # of a domain's images, where nothing names its split
    evaluate_on: Literal["auto", "val"] = "auto"  # auto: test images, where there are none val images
    grey_range: GreyRange = "auto"  # the levels shown black and white, of deep grey
    fingerprint: Literal["names", "bytes"] = "names"  # what tells images apart: names and sizes, or all their bytes

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

        Raises InputError on a root that is missing or of another shape, a link out of it, an empty class folder of a
        domain that is used, an index or a list that does not fit.
        """
        import torch

        from fedinit.data.catalogue import Catalogue
        from fedinit.data.image_files import ImageFiles
        from fedinit.data.store import Store

        tree = open_tree(self.root)
        whole = list_images(tree, suffixes(), self.layout, self.domains)
        used = [row for row, domain in enumerate(whole.domains) if self.domains is None or domain in self.domains]
        part = whole.rows(used)
        sides = choose_sides(part.splits, part.names, part.domains, self.evaluate_on, self.test_fraction)
        kept = [row for row, keep in enumerate(sides.kept) if keep]
        listed, test = part.rows(kept), [sides.test[row] for row in kept]
        domain_index = {name: d for d, name in enumerate(whole.domain_names)}
        class_index = {name: c for c, name in enumerate(whole.class_names)}
        decoding = ImageFiles(tree, whole.names, channels, size, self.grey_range)
        return Catalogue(
            labels=torch.tensor([class_index[name] for name in listed.classes], dtype=torch.int64),
            domains=torch.tensor([domain_index[name] for name in listed.domains], dtype=torch.int64),
            test=torch.tensor(test, dtype=torch.bool),
            class_names=tuple(whole.class_names),
            domain_names=tuple(whole.domain_names),
            read=Store(decoding, self.keeping(), [used[row] for row in kept]),
            passed_over=whole.passed_over,
            remarks=sides.remarks,
            marks=lambda rows: tree.marks([listed.names[row] for row in rows], self.fingerprint == "bytes"),
        )
