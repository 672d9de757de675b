"""What a source of images has, before any pixel is read, and what is chosen of it.

A source lists what it has as a `Catalogue`, cheaply; names and counts are judged on that list, and pixels are read only
for the rows that a run uses. So wrong input ends in a second, also where decoding would take an hour.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedinit.data.dataset import Dataset
from fedinit.data.names import pick
from fedinit.data.reporter import counted
from fedinit.data.shares import beyond
from fedinit.data.splits import Split
from fedinit.data.store import Store
from fedinit.errors import InputError, kind_of
from fedinit.seeding import torch_generator
from fedinit.telling import tell

if TYPE_CHECKING:
    from rich.console import Console

    from fedinit.data.image_cache import MappedImages


@dataclass(frozen=True, eq=False)
class Catalogue:
    """A data set before its pixels: row i of every column speaks of image i.

    labels: (n,) int64, indices into class_names.
    domains: (n,) int64, indices into domain_names.
    test: (n,) bool, True in the test split.
    class_names, domain_names: in the order of their numbers.
    read: rows (m,) int64 -> (m, C, H, W) uint8, or the store of the images; asked once, for the rows kept, in
        increasing order.
    marks: rows -> what tells each of these images from another, wherever they lie: name and size, or a hash of bytes.
    passed_over: names of files that lie with the images and are not listed.
    remarks: a line each, about what the source decided by itself.
    left_out: of each image the split for which it is neither trained nor evaluated on; None: it is used. Empty: all.
    """

    labels: Tensor
    domains: Tensor
    test: Tensor
    class_names: tuple[str, ...]
    domain_names: tuple[str, ...]
    read: Callable[[Tensor], Tensor] | Store
    marks: Callable[[Sequence[int]], Sequence[str]] = lambda rows: [""] * len(rows)
    passed_over: Sequence[str] = ()
    remarks: Sequence[str] = ()
    left_out: Sequence[Split | None] = ()

    def __post_init__(self) -> None:
        """Raises InputError for columns that are not as said above: a fault in a source's code."""
        count = len(self.labels)
        columns = (("labels", torch.int64), ("domains", torch.int64), ("test", torch.bool))
        for column, dtype in columns:
            value = getattr(self, column)
            if not isinstance(value, Tensor) or value.dtype != dtype or value.shape != (count,):
                wanted = f"{str(dtype).removeprefix('torch.')} ({count},)"
                raise InputError(f"a source's catalogue has {column} as {kind_of(value)}, expected {wanted}")
        for column, names in (("labels", self.class_names), ("domains", self.domain_names)):
            if not isinstance(names, tuple) or not all(isinstance(name, str) for name in names):
                one = {"labels": "class_names", "domains": "domain_names"}[column]
                raise InputError(f"a source's catalogue has {one}={names!r:.60}, expected a tuple of texts")
            if odd := beyond(getattr(self, column), len(names)):
                raise InputError(f"a source's catalogue has {column} {odd}, expected 0..{len(names) - 1}, by its names")

    @property
    def used(self) -> list[bool]:
        """For every image whether it is trained or evaluated on."""
        return [split is None for split in self.left_out or [None] * len(self.labels)]

    def with_val_of(self, held: Collection[str]) -> Catalogue:
        """The same, with the val images of these domains, by name, used where they were left out."""
        if not held or not self.left_out:
            return self
        places = zip(self.left_out, self.domains.tolist(), strict=True)
        left_out = [None if s == "val" and self.domain_names[domain] in held else s for s, domain in places]
        return replace(self, left_out=left_out)


def choose_images(
    listed: Catalogue,
    domains: tuple[str, ...] | None,
    classes: tuple[str, ...] | int | None,
    validation_fraction: float | None,
    seed: int = 0,
    domain: str | None = None,
    console: Console | None = None,
) -> Dataset:
    """The images of the named domains and classes.

    Domains and classes are numbered in the order in which they are named, or else as the source has them.

    listed: what the source has.
    domains: names; None: all.
    classes: names, or a number n for the first n names in sorted order; None: all.
    validation_fraction: for choosing settings: the test images are left out, and this share of each domain's training
        images, drawn from `seed`, the run's, is the test split that is returned. None: the source's own split.
    domain: for a site that holds one of the domains. Only its images are chosen, the same and in the same order as in
        the data set of all domains; the other domains, and classes that are named, need not be in `listed`. None: the
        images of all domains are chosen.
    console: told what was chosen and passed over, before any image is read; None: nobody is.

    Raises InputError on an unknown name, a domain or class without images, a domain without test images, and fewer than
    two classes.
    """
    wanted, first = domains, 0  # the domains that are read, and the number of the first of them
    if domain is not None and domains is not None:
        wanted, first = (domain,), domains.index(domain)
    domain_names = pick("domains", wanted, listed.domain_names)
    classes = class_list(classes, listed.class_names)
    class_names = pick("classes", classes, listed.class_names if domain is None or classes is None else classes)
    if len(class_names) < 2:
        raise InputError(f"data.classes={list(class_names)}: expected two classes or more; a classifier needs them")
    places = _renumber(listed.domains, listed.domain_names, domain_names)
    labels = _renumber(listed.labels, listed.class_names, class_names)
    chosen = (places >= 0) & (labels >= 0)
    used = torch.tensor(listed.used, dtype=torch.bool)
    rows, unused = ((chosen & mask).nonzero().flatten() for mask in (used, ~used))
    places, labels, test = places[rows], labels[rows], listed.test[rows]
    if validation_fraction is not None:
        rows, places, labels = (column[~test] for column in (rows, places, labels))
        test = _held_out(places, validation_fraction, seed, first)
    needed = () if domain is not None and classes is not None else class_names
    _refuse_gaps(places, labels, test, needed, domain_names)
    if console is not None:
        left_out = _left_out([listed.left_out[row] for row in unused.tolist()])
        untrained = _untrained(set(labels[test].tolist()) - set(labels[~test].tolist()), class_names)
        for line in [*_summary(listed, len(rows), len(class_names), len(domain_names)), *left_out, *untrained]:
            tell(console, line)
    images, kept = _pixels(listed, rows, console)
    if kept is not None:
        rows, places, labels, test = rows[kept], places[kept], labels[kept], test[kept]
        _refuse_gaps(places, labels, test, needed, domain_names)
    if domain is not None:
        places, domain_names = places + first, domains or domain_names
    columns = images, labels, places, test, class_names, domain_names
    return Dataset(*columns, functools.partial(_marks, listed, rows), levels_of(listed))


def _pixels(listed: Catalogue, rows: Tensor, console: Console | None) -> tuple[Tensor | MappedImages, Tensor | None]:
    """The images of these rows, and which of them there are where some can have been left out."""
    if isinstance(listed.read, Store):
        return listed.read.fetch(rows, console)
    images = listed.read(rows)
    if not isinstance(images, Tensor) or images.dtype != torch.uint8 or images.ndim != 4 or len(images) != len(rows):
        wanted = f"uint8 ({len(rows)}, channels, height, width)"
        raise InputError(f"a source reads {len(rows)} rows as {kind_of(images)}, expected {wanted}")
    return images, None


def levels_of(listed: Catalogue) -> Mapping[str, Sequence[float]] | None:
    """As `Dataset` has them, once the images were read."""
    known = getattr(listed.read, "prepared", None)
    return known if isinstance(known, Mapping) else None


def _marks(listed: Catalogue, chosen: Tensor, at: Sequence[int]) -> Sequence[str]:
    """The marks of some of the images that were chosen, by their rows among these. chosen: (n,) of the catalogue."""
    return listed.marks(chosen[torch.tensor(at, dtype=torch.int64)].tolist())


def _untrained(labels: Collection[int], class_names: Sequence[str]) -> list[str]:
    """What is said of classes that have test images and none to train on."""
    if not labels:
        return []
    said = ", ".join(class_names[label] for label in sorted(labels)[:3]) + ", …" * (len(labels) > 3)
    return [f"data: {len(labels):,} of the classes have test images and none to train on: {said}"]


def _summary(listed: Catalogue, images: int, classes: int, domains: int) -> list[str]:
    """What a run is told about its data: numbers, the files passed over by the ends of their names, and remarks."""
    text = "data: " + ", ".join(map(counted, (images, classes, domains), ("image", "class", "domain")))
    if listed.passed_over:
        by_suffix: dict[str, list[str]] = defaultdict(list)
        for name in listed.passed_over:
            by_suffix[PurePosixPath(name).suffix.lower() or "without suffix"].append(name)
        kinds = [
            f"{len(names):,} {suffix} ({', '.join(names[:2])}{', …' * (len(names) > 2)})"
            for suffix, names in sorted(by_suffix.items(), key=lambda kind: -len(kind[1]))
        ]
        text += f"; {counted(len(listed.passed_over), 'file')} passed over: {', '.join(kinds)}"
    return [text, *(f"data: {remark}" for remark in listed.remarks)]


def _left_out(splits: Sequence[Split | None]) -> list[str]:
    """What a run is told about the images that it leaves out for their splits."""
    hints = {"val": "; data.evaluate_on=val evaluates on them", "test": ""}
    return [
        f"data: {counted(count, f'{split} image')} {'is' if count == 1 else 'are'} "
        f"neither trained nor evaluated on{hint}"
        for split, hint in hints.items()
        if (count := splits.count(split))  # pyright: ignore[reportArgumentType]
    ]


def class_list(classes: tuple[str, ...] | int | None, known: Sequence[str]) -> tuple[str, ...] | None:
    """The names that are meant: a number n means the first n of `known` in sorted order, None all of them. Raises
    InputError for more than there are."""
    if not isinstance(classes, int):
        return classes
    if classes > len(known):
        raise InputError(
            f"data.classes={classes}: the source has only {len(known)} classes; ask for that many or fewer"
        )
    return tuple(sorted(known)[:classes])


def _renumber(indices: Tensor, old: tuple[str, ...], new: tuple[str, ...]) -> Tensor:
    """(n,) indices into `old` -> indices into `new`, -1 for a name that `new` leaves out."""
    table = torch.tensor([new.index(name) if name in new else -1 for name in old], dtype=torch.int64)
    return table[indices]


def _held_out(domains: Tensor, share: float, seed: int, first: int = 0) -> Tensor:
    """(n,) bool: a share of every domain's rows, one at least, drawn from the seed and the domain's number, `first` and
    up."""
    test = torch.zeros(len(domains), dtype=torch.bool)
    for domain in domains.unique().tolist():
        rows = (domains == domain).nonzero().flatten()
        order = torch.randperm(len(rows), generator=torch_generator(seed, "validation", first + domain))
        test[rows[order[: max(1, round(share * len(rows)))]]] = True
    return test


def _refuse_gaps(
    domains: Tensor, labels: Tensor, test: Tensor, class_names: tuple[str, ...], domain_names: tuple[str, ...]
) -> None:
    images = torch.bincount(domains, minlength=len(domain_names))
    for name, count in zip(domain_names, images.tolist(), strict=True):
        if not count:
            raise InputError(f"domain '{name}' has no images: add some, or leave it out with data.domains=[...]")
    members = torch.bincount(labels, minlength=len(class_names)).tolist()
    for name, count in zip(class_names, members[: len(class_names)], strict=True):
        if not count:
            raise InputError(
                f"class '{name}' has no images in {', '.join(domain_names)}: add some, or leave it out with "
                "data.classes=[...]"
            )
    held_out = torch.bincount(domains[test], minlength=len(domain_names))
    for name, count, total in zip(domain_names, held_out.tolist(), images.tolist(), strict=True):
        if not count:
            raise InputError(
                f"domain '{name}' has {total} images and none in its test split, so it cannot be evaluated: "
                "raise data.test_fraction, add images, or mark some as test in index.csv"
            )
