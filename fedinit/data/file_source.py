"""What the sources of image files have in common: how a listing of files becomes a catalogue."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fedinit.data.decoding import GreyRange
from fedinit.data.listing import Listing
from fedinit.data.source import DomainSource, SplitSource
from fedinit.data.splits import Sides, choose_sides
from fedinit.data.tree import Fault, Tree
from fedinit.errors import InputError, refuse

if TYPE_CHECKING:
    from fedinit.data.catalogue import Catalogue


@dataclass(frozen=True, kw_only=True)
class FileSource(DomainSource, SplitSource):
    """Image files with a class, a domain and a split each; a subclass lists them."""

    grey_range: GreyRange = "auto"  # the levels shown black and white, of deep grey
    fingerprint: Literal["names", "bytes"] = "names"  # what tells images apart: names and sizes, or all their bytes

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.grey_range, tuple) and not -math.inf < self.grey_range[0] < self.grey_range[1] < math.inf:
            given = ",".join(f"{level:g}" for level in self.grey_range)
            raise InputError(
                f"data.grey_range=[{given}]: expected [low,high], two numbers of which the second is larger"
            )

    @abstractmethod
    def listing(self, fault: Fault = refuse) -> tuple[Tree, Listing]:
        """The files and what is said of them. Raises InputError for a root that cannot be read or does not fit.
        fault: told of each file or folder that does not fit, which is passed over where it returns."""

    def catalogue(self, channels: int, size: tuple[int, int]) -> Catalogue:
        """The images in the listing's order; domains and classes are numbered in
        sorted order. Raises InputError as `listing` does, and for a file that links put into two places."""
        import torch

        from fedinit.data.catalogue import Catalogue
        from fedinit.data.image_files import ImageFiles
        from fedinit.data.store import Store

        tree, whole = self.listing()
        used = [row for row, domain in enumerate(whole.domains) if self.domains is None or domain in self.domains]
        listed = whole.rows(used)
        sides = choose_sides(listed.splits, listed.names, listed.domains, self.evaluate_on, self.test_fraction)
        for fault in linked_twice(tree, listed, sides):
            raise InputError(fault)
        domain_index = {name: d for d, name in enumerate(whole.domain_names)}
        class_index = {name: c for c, name in enumerate(whole.class_names)}
        decoding = ImageFiles(tree, whole.names, channels, size, self.grey_range)
        return Catalogue(
            labels=torch.tensor([class_index[name] for name in listed.classes], dtype=torch.int64),
            domains=torch.tensor([domain_index[name] for name in listed.domains], dtype=torch.int64),
            test=torch.tensor(sides.test, dtype=torch.bool),
            class_names=tuple(whole.class_names),
            domain_names=tuple(whole.domain_names),
            read=Store(decoding, self.keeping(), used),
            passed_over=whole.passed_over,
            remarks=sides.remarks,
            left_out=sides.left_out,
            marks=lambda rows: tree.marks([listed.names[row] for row in rows], self.fingerprint == "bytes"),
        )


def linked_twice(tree: Tree, listed: Listing, sides: Sides) -> Iterator[str]:
    """A line for each file that symbolic links put into two classes, two domains, or training and test images."""
    places = dict(zip(listed.names, zip(listed.domains, listed.classes, sides.test, strict=True), strict=True))
    for name, other in tree.doubles(listed.names).items():
        (domain, kind, test), before = places[name], places[other]
        if (domain, kind, test) != before:
            what = "domains" if domain != before[0] else "classes" if kind != before[1] else "training and test images"
            yield (
                f"{tree.where}: {name!r} is the file of {other!r} by a symbolic link, so that one picture would be in "
                f"{'' if what.startswith('training') else 'two '}{what}; take one of the two out"
            )
